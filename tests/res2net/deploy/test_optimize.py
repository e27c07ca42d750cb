"""Networks for inference: every kind computes what it did before, to fp32 rounding."""

import copy
import operator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from res2net import Arch, BigLittleArch, DlaArch, Stage, UserError, create, optimize, save
from res2net.arch import BaseArch
from res2net.deploy import optimize as optimized
from res2net.deploy.optimize import Conv, Optimized

SMALL = Arch((Stage(2, 4, 6, 2, 4, 1), Stage(2, 8, 6, 3, 3, 2)), stem="cifar", stem_channels=8, num_classes=5)
DENSE = Arch((Stage(2, 4, 4, 1, 4, 1), *(Stage(2, 4, 4, 1, 3, 2),) * 3), "deep", 8, num_classes=5)
NAMES = ("resnet50", "res2net50_26w_4s", "res2next50", "se_res2net50_26w_4s", "res2net50_v1b")
KINDS = ("res2net_dla60", "dla60x", "blres2net50", "resnext29_8c64w")
FAST = ("res2net50_26w_4s", "res2net_dla60", "blres2net50")
SOME_FAST = [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in (*NAMES, *KINDS)]
ARCHS = st.one_of(*map(st.from_type, (Arch, DlaArch, BigLittleArch)))


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """With batch norms that are no identity, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
    return model.eval()


def new(arch: BaseArch | str, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return trained(create(arch, **options), seed)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest one, relative to the largest value."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def check(model: nn.Module, fast: nn.Module, x: Tensor, tolerance: float = 1e-4) -> None:
    """Both give the same logits and maps."""
    before = x.clone()
    with torch.no_grad():
        assert difference(fast(x), model(x)) <= tolerance
        for ours, theirs in zip(fast.forward_features(x), model.forward_features(x), strict=True):
            assert difference(ours, theirs) <= tolerance
    assert torch.equal(x, before)


# ---- What it computes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(arch=ARCHS, batch=st.integers(1, 3), height=st.integers(1, 40), width=st.integers(1, 40))
@example(arch=SMALL, batch=2, height=9, width=10)
@example(arch=replace(SMALL, se=4, shortcut="avgpool", first_block="conv"), batch=1, height=1, width=1)
def test_any_network_of_any_kind_gives_what_it_gave(arch: BaseArch, batch: int, height: int, width: int) -> None:
    model = new(arch)
    check(model, optimize(model), images(batch, arch.in_channels, height, width))


@pytest.mark.slow
@given(arch=ARCHS, height=st.integers(1, 40), width=st.integers(1, 40))
def test_without_onednn_too(arch: BaseArch, height: int, width: int) -> None:
    """In float64 oneDNN's kernels are not used."""
    model = new(arch).double()
    check(model, optimize(model), images(2, arch.in_channels, height, width).double(), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("name", SOME_FAST)
def test_named_networks(name: str, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not onednn:
        monkeypatch.setattr(optimized, "has_onednn", lambda *_: False)
    model = new(name)
    check(model, optimize(model), images(1, 3, 64, 96))


@pytest.mark.parametrize("shortcut", ["conv", "avgpool"])
@pytest.mark.parametrize("output_stride", [4, 8, 16])
def test_dilated_networks(output_stride: int, shortcut: str) -> None:
    model = new(replace(DENSE, shortcut=shortcut), output_stride=output_stride)
    check(model, optimize(model), images(2, 3, 33, 47))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["res2net50_26w_4s", "res2net_dla60", "blres2net50"])
@pytest.mark.parametrize("wanted", [None, (0, 2), (1,)])
def test_backbones(name: str, wanted: tuple[int, ...] | None) -> None:
    model = new(name, features_only=True, out_indices=wanted)
    fast, x = optimize(model), images(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(fast(x), model(x), strict=True):
            assert difference(ours, theirs) <= 1e-4
    assert (fast.channels, fast.strides, fast.out_indices) == (model.channels, model.strides, model.out_indices)
    assert fast.feature_info == model.feature_info
    assert isinstance(fast.body, Optimized)
    assert not isinstance(model.body, Optimized)


def test_batches_and_sizes_take_turns() -> None:
    """Weights are packed for one shape at a time."""
    model = new(SMALL)
    fast = optimize(model)
    for shape in [(2, 9, 9), (1, 9, 9), (2, 16, 5), (2, 9, 9), (5, 1, 1), (0, 8, 8)]:
        x = images(shape[0], 3, *shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_is_deterministic() -> None:
    model, x = new("res2net50_14w_8s"), images(2, 3, 64, 64)
    first, second = optimize(model), optimize(model)
    assert torch.equal(first(x), first(x))
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_either_memory_layout_is_taken(layout: torch.memory_format) -> None:
    model = new(SMALL)
    check(model, optimize(model), images(2, 3, 12, 10).contiguous(memory_format=layout))


@pytest.mark.parametrize("name", SOME_FAST)
def test_bf16_is_close(name: str) -> None:
    model, x = new(name), images(2, 3, 64, 64)
    fast = optimize(model, bf16=True)
    outputs = [fast(x), *fast.forward_features(x)]
    assert {y.dtype for y in outputs} == {torch.float32}
    with torch.no_grad():
        for ours, theirs in zip(outputs, [model(x), *model.forward_features(x)], strict=True):
            assert 0 < difference(ours, theirs) < 0.05


@pytest.mark.slow
@given(arch=ARCHS)
def test_any_network_runs_in_bf16(arch: BaseArch) -> None:
    fast = optimize(new(arch), bf16=True)
    assert fast(images(2, arch.in_channels, 12, 9)).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", [*NAMES, *KINDS])
def test_on_a_gpu(name: str, bf16: bool) -> None:
    model, x = new(name).cuda(), images(2, 3, 64, 64).cuda()
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        assert difference(optimize(model, bf16=bf16)(x), model(x)) < (0.05 if bf16 else 1e-4)


# ---- How it computes it --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sums", "relus"),
    [("resnet50", 0, 0), ("dla60", 0, 0), ("blresnet50", 3, 3), ("res2net50_26w_4s", 0, 0)],
)
def test_convolutions_take_over_what_follows(name: str, sums: int, relus: int) -> None:
    """No batch norm is left, and of sums and ReLUs those alone of a branch that is enlarged."""
    fast = optimize(new(name))
    assert not [m for m in fast.modules() if isinstance(m, nn.BatchNorm2d | nn.ReLU | nn.Conv2d)]
    found = [n.target for n in fast.body.graph.nodes if n.op in ("call_function", "call_method")]
    assert (found.count(operator.add), found.count(torch.relu_)) == (sums, relus)


def test_only_a_map_that_nobody_reads_again_is_written_over() -> None:
    """Maps of features, which the first block of the next stage projects, are kept."""
    fast, x = optimize(new("resnet50")), images(1, 3, 64, 64)
    sums = {name for name, m in fast.body.named_modules() if name.endswith("conv3")}
    assert {name for name, m in fast.body.named_modules() if isinstance(m, Conv) and m.in_place} == sums
    kept = [y.clone() for y in fast.forward_features(x)]
    assert all(torch.equal(a, b) for a, b in zip(fast.forward_features(x), kept, strict=True))


def test_the_original_is_left_as_it_was() -> None:
    model = new(SMALL).train()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    fast = optimize(model)
    fast(images(2, 3, 8, 8))
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    mine = {p.data_ptr() for p in fast.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in model.parameters())


def test_it_is_in_eval_mode_without_gradients() -> None:
    fast = optimize(create(SMALL).train())
    assert not any(m.training for m in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    assert not fast(images(1, 3, 8, 8).requires_grad_()).requires_grad


# ---- Its face ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "dla60", "blres2net50"])
def test_it_describes_itself_as_before(name: str) -> None:
    model = new(name, num_classes=7)
    fast = optimize(model)
    assert (fast.arch, fast.num_features, fast.feature_info) == (model.arch, model.num_features, model.feature_info)


def test_without_classes_it_gives_features() -> None:
    model = new(SMALL, num_classes=0)
    check(model, optimize(model), images(2, 3, 8, 8))


def test_images_are_checked() -> None:
    with pytest.raises(UserError, match=r"images have shape \[1, 4, 8, 8\]"):
        optimize(create(SMALL))(torch.zeros(1, 4, 8, 8))


def test_it_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Optimized, which cannot be saved; accepted: Res2Net"):
        save(optimize(create(SMALL)), tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [nn.Identity(), optimize(create(SMALL))])
def test_other_modules_are_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match="accepted: Res2Net, Dla, BigLittle, Backbone"):
        optimize(model)
