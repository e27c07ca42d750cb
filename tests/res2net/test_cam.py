"""Grad-CAM: the maps are captum's and the paper's, and a network stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from hypothesis import assume, example, given
from hypothesis import strategies as st
from networks import randomised
from torch import Tensor, nn

from res2net import Arch, BigLittleArch, DlaArch, Stage, UserError, create, grad_cam
from res2net.arch import BaseArch
from res2net.backbone import Network

SMALL = Arch((Stage(2, 2, 4, 2, 3), Stage(1, 4, 4, 1, 2, 2)), "cifar", 6, num_classes=5)
DLA = DlaArch((Stage(1, 2, 4, 2, 3, 2), Stage(2, 4, 4, 1, 2, 2)), 4, 8, 5)
BIG_LITTLE = BigLittleArch((Stage(3, 4, 4, 2, 2, 2), Stage(2, 3, 2, 1, 3, 2)), 2, 4, 4, 5)
KINDS = (SMALL, DLA, BIG_LITTLE)
ARCHS = st.one_of(*map(st.from_type, (Arch, DlaArch, BigLittleArch)))


def images(arch: BaseArch, n: int = 3, height: int = 24, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, arch.in_channels, height, width, generator=generator, dtype=torch.float64)


def by_captum(model: Network, x: Tensor, target: int | Tensor) -> Tensor:
    found = LayerGradCam(model, model.layers()[-1]).attribute(x, target, relu_attributions=True)
    return found.detach()[:, 0]


class Plain(Network):
    """A network whose last map is the image, and whose classifier has these weights, [classes, channels]."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        classes, channels = weights.shape
        self.arch = SimpleNamespace(in_channels=channels, num_classes=classes)
        self.layer1 = nn.Identity()
        self.fc = nn.Linear(channels, classes, dtype=weights.dtype)
        self.fc.weight = nn.Parameter(weights)

    def stem(self, x: Tensor) -> Tensor:
        return x

    def stage_names(self) -> list[str]:
        return ["layer1"]


# ---- Maps ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(arch=ARCHS, data=st.data(), n=st.integers(1, 3), height=st.integers(1, 40), width=st.integers(1, 40))
def test_maps_of_any_network_are_captum_s(arch: BaseArch, data: st.DataObject, n: int, height: int, width: int) -> None:
    assume(arch.num_classes)
    model, x = randomised(create(arch)), images(arch, n, height, width)
    target = torch.tensor(data.draw(st.lists(st.integers(0, arch.num_classes - 1), min_size=n, max_size=n)))
    ours, theirs = grad_cam(model, x, target, raw=True), by_captum(model, x, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, theirs.max().item()))


@pytest.mark.parametrize("arch", KINDS)
def test_maps_in_single_precision_are_captum_s(arch: BaseArch) -> None:
    torch.manual_seed(0)
    model, x, target = create(arch).eval(), images(arch, 10).float(), torch.arange(10) % 5
    theirs = by_captum(model, x, target)
    assert theirs.amax((1, 2)).count_nonzero() >= 2  # maps of zeros alone would say nothing
    torch.testing.assert_close(grad_cam(model, x, target, raw=True), theirs, rtol=1e-5, atol=1e-5)
    theirs = LayerAttribution.interpolate(theirs[:, None], x.shape[2:], "bilinear")[:, 0]
    theirs /= theirs.amax((1, 2), keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(grad_cam(model, x, target), theirs, rtol=0, atol=1e-5)


@given(st.data())
def test_the_map_of_a_linear_network_is_the_weighted_sum_of_its_channels(data: st.DataObject) -> None:
    weights = torch.tensor(data.draw(st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=2)))
    model, x = Plain(weights.double()), images(SMALL, 2, 5, 7)
    target = data.draw(st.integers(0, len(weights) - 1))
    expected = torch.einsum("c,nchw->nhw", weights[target].double(), x).relu()
    torch.testing.assert_close(grad_cam(model, x, target, raw=True), expected / (5 * 7))


def test_a_class_that_reads_one_channel_shows_that_channel() -> None:
    x = images(SMALL, 2, 5, 7)
    maps = grad_cam(Plain(torch.eye(3).double()), x, torch.tensor([2, 0]))
    for found, channel in zip(maps, (x[0, 2], x[1, 0]), strict=True):
        torch.testing.assert_close(found, channel.relu() / channel.max())


@given(arch=ARCHS, n=st.integers(1, 3), height=st.integers(1, 40), width=st.integers(1, 40))
@example(arch=SMALL, n=1, height=1, width=1)
def test_each_map_has_the_image_s_size_and_the_maximum_1(arch: BaseArch, n: int, height: int, width: int) -> None:
    assume(arch.num_classes)
    maps = grad_cam(randomised(create(arch)), images(arch, n, height, width))
    assert maps.shape == (n, height, width)
    assert not maps.requires_grad
    assert maps.min() >= 0
    assert set(maps.amax((1, 2)).tolist()) <= {0.0, 1.0}


def test_a_class_with_no_positive_evidence_has_a_map_of_zeros() -> None:
    maps = grad_cam(Plain(torch.tensor([[-1.0], [1.0]]).double()), torch.ones(1, 1, 4, 4).double(), 0)
    assert torch.equal(maps, torch.zeros(1, 4, 4).double())


def test_no_image_gives_no_map() -> None:
    assert grad_cam(randomised(create(SMALL)), images(SMALL, 0)).shape == (0, 24, 20)


@pytest.mark.parametrize("arch", KINDS)
class TestTarget:
    def test_is_the_predicted_class_by_default(self, arch: BaseArch) -> None:
        model, x = randomised(create(arch)), images(arch)
        predicted = model(x).argmax(1)
        assert torch.equal(grad_cam(model, x), grad_cam(model, x, predicted))

    def test_may_be_one_number_for_all(self, arch: BaseArch) -> None:
        model, x = randomised(create(arch)), images(arch)
        one = grad_cam(model, x, 2)
        for kind in (torch.int64, torch.uint8):
            assert torch.equal(one, grad_cam(model, x, torch.full((3,), 2, dtype=kind)))
        assert not torch.equal(one, grad_cam(model, x, 1))

    def test_a_batch_gives_the_maps_of_its_images(self, arch: BaseArch) -> None:
        model, x, target = randomised(create(arch)), images(arch), torch.tensor([4, 0, 2])
        single = [grad_cam(model, x[i : i + 1], target[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(grad_cam(model, x, target), torch.cat(single))

    @pytest.mark.parametrize("factor", [0.01, 7.0])
    def test_the_scale_of_its_classifier_row_does_not_matter(self, arch: BaseArch, factor: float) -> None:
        model, x = randomised(create(arch)), images(arch)
        before = grad_cam(model, x, 1)
        with torch.no_grad():
            model.fc.weight[1] *= factor
            model.fc.bias[1] += 3
        torch.testing.assert_close(grad_cam(model, x, 1), before)


# ---- State ---------------------------------------------------------------------------------------------------------


def state(model: nn.Module) -> list[Any]:
    """Return everything that a call must leave alone. Tensors are copied."""
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [
        (name, p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
    ]
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks)) for m in model.modules()]
    return [tensors, flags, hooks, [m.training for m in model.modules()], torch.is_grad_enabled()]


def check_same(a: list[Any], b: list[Any]) -> None:
    for key, value in a[0].items():
        assert torch.equal(value, b[0][key]), key
    for (name, flag, gradient), (_, new_flag, new_gradient) in zip(a[1], b[1], strict=True):
        assert flag == new_flag, name
        assert (gradient is None) == (new_gradient is None), name
        assert gradient is None or torch.equal(gradient, new_gradient), name
    assert a[2:] == b[2:]


@pytest.fixture(params=KINDS)
def used(request: pytest.FixtureRequest) -> Network:
    """Return a network in mixed modes, with a frozen stem, gradients from a training step, and a hook."""
    model = randomised(create(request.param)).train()
    model(images(request.param)).sum().backward()
    model.layers()[0].eval()
    next(model.parameters()).requires_grad_(False)
    model.layers()[-1].register_forward_hook(lambda *_: None)
    return model


def test_the_network_stays_as_it_was(used: Network) -> None:
    x = images(used.arch).requires_grad_()
    before = state(used)
    grad_cam(used, x)
    check_same(before, state(used))
    assert x.grad is None


def test_the_network_stays_as_it_was_after_an_error(used: Network) -> None:
    before = state(used)
    with pytest.raises(UserError):
        grad_cam(used, images(used.arch), 99)
    check_same(before, state(used))

    def fail(*_: object) -> None:
        raise RuntimeError("my hook")

    handle = used.fc.register_forward_pre_hook(fail)
    before = state(used)
    with pytest.raises(RuntimeError, match="my hook"):
        grad_cam(used, images(used.arch))
    check_same(before, state(used))
    handle.remove()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("prepare", [nn.Module.train, nn.Module.eval, lambda model: model.requires_grad_(False)])
def test_mode_and_context_do_not_matter(
    context: Callable[[], AbstractContextManager[object]], prepare: Callable[[nn.Module], nn.Module]
) -> None:
    model, x = randomised(create(SMALL)), images(SMALL)
    expected = grad_cam(model, x, 1)
    prepare(model)
    with context():
        found = grad_cam(model, x * 1, 1)
    assert torch.equal(found, expected)


def test_no_graph_of_the_stages_is_kept() -> None:
    """The graph of a training step would hold hundreds of maps of a large network."""
    model, x, saved = randomised(create(SMALL)), images(SMALL), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        grad_cam(model, x)
    assert sum(saved) < model.forward_features(x)[-1].numel()


# ---- Mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "part"),
    [
        (5, "5; accepted: a class number from 0 to 4"),
        (-1, "-1; accepted"),
        (10**30, f"{10**30}; accepted"),
        (True, "a bool; accepted"),
        (1.0, "a float; accepted"),
        ("cat", "a str; accepted"),
        ([0, 1, 2], "a list; accepted: .* or a tensor \\[3\\] of class numbers"),
        (torch.tensor([0, 1]), r"a tensor \[2\] of torch.int64; accepted: .*\[3\]"),
        (torch.tensor([[0], [1], [2]]), r"a tensor \[3, 1\]"),
        (torch.tensor(1), r"a tensor \[\]"),
        (torch.zeros(3), r"a tensor \[3\] of torch.float32"),
        (torch.ones(3, dtype=torch.bool), r"a tensor \[3\] of torch.bool"),
        (torch.tensor([0, 5, 1]), "5; accepted"),
        (torch.tensor([0, 1, -1]), "-1; accepted"),
    ],
)
def test_a_target_that_cannot_be(target: Any, part: str) -> None:
    with pytest.raises(UserError, match=f"^`target`: {part}") as caught:
        grad_cam(randomised(create(SMALL)), images(SMALL), target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (2, 3)])
def test_images_that_cannot_be(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"images have shape .*accepted: \[N, 3, H, W\]"):
        grad_cam(create(SMALL), torch.zeros(shape))
    with pytest.raises(UserError, match=r"^`images`: a list; accepted: a tensor"):
        grad_cam(create(SMALL), torch.zeros(shape).tolist())


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (create(SMALL, num_classes=0), "a Res2Net without a classifier; accepted: 1 class or more"),
        (create(DLA, num_classes=0), "a Dla without a classifier"),
        (create(SMALL, features_only=True), "a Backbone; accepted: Res2Net, .*with a classifier"),
        (nn.Linear(2, 2), "a Linear; accepted"),
    ],
)
def test_a_model_that_cannot_be(model: nn.Module, part: str) -> None:
    with pytest.raises(UserError, match=f"^`model`: {part}"):
        grad_cam(model, images(SMALL).float())
