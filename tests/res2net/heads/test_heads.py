"""Heads whose outputs are maps: what every one of them keeps. A row of `EXAMPLES` for each kind."""

import json
from dataclasses import replace
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import measure, randomised
from torch import Tensor, nn

import space
from res2net import (
    Arch,
    BigLittleArch,
    DlaArch,
    Res2Net,
    Stage,
    UserError,
    contains,
    cost,
    create,
    export_onnx,
    export_program,
    load,
    named,
    optimize,
    save,
)
from res2net.arch import BaseArch
from res2net.deploy import export as formats
from res2net.elastic import ElasticRes2Net
from res2net.grow import grow
from res2net.heads import Deconv, DeepLab, Dss, Head
from res2net.heads.value import HEADS
from res2net.kinds import from_json
from res2net.levels import levels
from space import Skeleton, Space


class Example(NamedTuple):
    """A small head, its number of outputs, and wrong values of its fields."""

    head: Head
    num_classes: int
    wrong: tuple[dict[str, object], ...]


EXAMPLES = {
    "deeplab": Example(
        DeepLab(6, 3, (1, 2), None), 5, ({"low_channels": 1.5}, {"rates": 3}, {"rates": [0]}, {"rates": ["a"]})
    ),
    "dss": Example(Dss(4), 1, ()),
    "deconv": Example(Deconv(4), 3, ()),
}
SMALL = Arch((Stage(2, 2, 4, 2, 3, 2), Stage(1, 3, 3, 1, 2, 2), Stage(1, 4, 4, 1, 1, 2)), "cifar", 4, num_classes=5)
OTHERS = (
    DlaArch((Stage(2, 2, 2), Stage(1, 3, 3, 1, 1, 2)), 2, 4),
    BigLittleArch((Stage(2, 2, 2, 1, 1, 2), Stage(1, 3, 3)), stem_channels=4),
)
# Spaces of heads, and networks that grow with heads.
CHOICES = {"scale": (1, 2, 3), "cardinality": (1, 2, 4), "depth": (1, 2), "width": (64, 96, 128)}
SKELETON = Skeleton((4, 8), (1, 2), (1, 1), width=64, depth=2, stem_channels=4)
FRAME = Arch((Stage(1, 4, 8, 4, 1, 1), Stage(2, 8, 8, 8, 3, 2)), stem="cifar", stem_channels=8)
GROWN = replace(FRAME, stages=(Stage(2, 4, 12, 2, 3, 1), Stage(3, 8, 16, 2, 5, 2)))
WRONG = ({"channels": 0}, {"channels": "8"}, {"channels": True}, {"output_stride": 0}, {"output_stride": 2.0})
KINDS = tuple(kind for kind, head in HEADS.items() if not head.detects)  # the others: test_rcnn.py
every_kind = pytest.mark.parametrize("kind", KINDS)


def with_head(kind: str, arch: BaseArch = SMALL, **changes: object) -> BaseArch:
    """Return a network with the example's head, or with a change of it."""
    found = EXAMPLES[kind]
    return replace(arch, num_classes=found.num_classes, head=replace(found.head, **changes))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest value of `b`."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


@st.composite
def archs(draw: st.DrawFn) -> Arch:
    """Any small network with any head, at any output stride that the network can have."""
    arch = draw(st.from_type(Arch))
    kind = draw(st.sampled_from(KINDS))
    strides = accumulate([arch.stem_stride, *(s.stride for s in arch.stages)], mul)
    stride = draw(st.none() | st.sampled_from(sorted(set(strides))))
    return with_head(kind, arch, output_stride=stride, channels=draw(st.integers(1, 5)))


def test_every_head_has_an_example() -> None:
    assert EXAMPLES.keys() == set(KINDS)


class TestCost:
    @given(arch=archs(), image_size=st.integers(1, 70))
    @settings(max_examples=15)
    @example(arch=with_head("deconv", named("resnet50")), image_size=64)
    def test_is_what_the_network_does(self, arch: Arch, image_size: int) -> None:
        assert cost(arch, image_size) == measure(arch, image_size)

    @pytest.mark.slow
    @every_kind
    @given(arch=st.one_of(st.from_type(DlaArch), st.from_type(BigLittleArch)), image_size=st.integers(1, 70))
    @settings(max_examples=8)
    def test_is_what_networks_of_other_kinds_do(self, kind: str, arch: BaseArch, image_size: int) -> None:
        arch = with_head(kind, arch)
        assert cost(arch, image_size) == measure(arch, image_size)

    @pytest.mark.parametrize("size", [224, 513])
    def test_of_the_published_heads_over_res2net50(self, size: int) -> None:
        plain = named("res2net50_26w_4s")
        for head, num_classes in ((DeepLab(), 21), (Dss(), 1), (Deconv(), 17)):
            arch = replace(plain, head=head, num_classes=num_classes)
            assert cost(arch, size) == measure(arch, size)

    def test_of_published_parts(self) -> None:
        """SimpleBaseline's three deconvolutions of 256 over 2048 channels have 10.5 M weights."""
        plain = replace(named("resnet50"), num_classes=0)
        head = cost(replace(plain, head=Deconv(), num_classes=17)).params - cost(plain).params
        assert head == 16 * 2048 * 256 + 2 * 16 * 256 * 256 + 3 * 2 * 256 + 256 * 17 + 17

    def test_without_outputs_there_is_no_head(self) -> None:
        for kind in KINDS:
            assert cost(replace(with_head(kind), num_classes=0), 32) == cost(replace(SMALL, num_classes=0), 32)


def outputs_of(arch: BaseArch, training: bool, size: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the outputs for one image."""
    if arch.head.kind == "deconv":
        return (arch.num_classes, *(-(-n // 4) for n in size))
    if arch.head.kind == "dss":
        return (1 + len(arch.stages) * training, *size)
    return (arch.num_classes, *size)


class TestOutputs:
    @given(arch=archs(), height=st.integers(1, 40), width=st.integers(1, 40), training=st.booleans())
    @settings(max_examples=15)
    def test_have_their_shape(self, arch: Arch, height: int, width: int, training: bool) -> None:
        with torch.device("meta"):
            model, x = create(arch).train(training), torch.empty(2, arch.in_channels, height, width)
        assert model(x).shape == (2, *outputs_of(arch, training, (height, width)))

    @every_kind
    @pytest.mark.parametrize("plain", OTHERS, ids=lambda arch: arch.kind)
    def test_of_other_kinds(self, kind: str, plain: BaseArch) -> None:
        arch = with_head(kind, plain)
        assert create(arch)(torch.randn(2, 3, 40, 36)).shape == (2, *outputs_of(arch, True, (40, 36)))

    @every_kind
    def test_do_not_depend_on_the_batch(self, kind: str) -> None:
        model, x = randomised(create(with_head(kind))), images(3, 3, 20, 24)
        one = torch.cat([model(x[i : i + 1]) for i in range(3)])
        assert difference(model(x), one) < 1e-9

    @every_kind
    def test_gradients_reach_all_weights(self, kind: str) -> None:
        torch.manual_seed(0)
        model = create(with_head(kind)).train()
        out = model(images(4, 3, 32, 32).float())
        (out * torch.randn_like(out)).sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []

    @every_kind
    def test_start_small(self, kind: str) -> None:
        """Initial outputs are on the scale of logits: no loss begins far above that of a guess."""
        torch.manual_seed(0)
        model = create(replace(named("res2net50_26w_4s"), num_classes=EXAMPLES[kind].num_classes, head=HEADS[kind]()))
        assert model.train()(images(2, 3, 64, 64).float()).abs().mean() < 1

    @every_kind
    def test_no_random_number_is_drawn_on_the_meta_device(self, kind: str) -> None:
        state = torch.get_rng_state()
        with torch.device("meta"):
            create(with_head(kind))
        assert torch.equal(torch.get_rng_state(), state)


class TestGrowth:
    @every_kind
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("stride", [None, 1])
    def test_keeps_the_function(self, kind: str, training: bool, stride: int | None) -> None:
        small, large = (with_head(kind, arch, output_stride=stride) for arch in (FRAME, GROWN))
        assert contains(large, small)
        model = randomised(create(small)).train(training)
        grown = grow(model, large, seed=0)
        x = images(4, 3, 16, 16)
        assert grown.arch == large
        assert difference(grown(x), model(x)) < 1e-6

    @every_kind
    def test_keeps_the_head(self, kind: str) -> None:
        other = with_head(kind, GROWN, channels=7)
        with pytest.raises(UserError, match=r"^grow: head is .*; accepted: .*, to contain "):
            grow(create(with_head(kind, FRAME)), other, 0)
        assert not contains(replace(other, head=None), with_head(kind, FRAME))


class TestSharedWeights:
    def space(self, kind: str, **changes: object) -> Space:
        found = EXAMPLES[kind]
        plain = Space("small", "micro", replace(SKELETON, num_classes=found.num_classes), CHOICES)
        return plain.with_head(replace(found.head, **changes))

    @every_kind
    @pytest.mark.parametrize("stride", [None, 1])
    def test_a_slice_is_the_extracted_network(self, kind: str, stride: int | None) -> None:
        allowed = self.space(kind, output_stride=stride)
        net = randomised(ElasticRes2Net(allowed))
        x = images(2, 3, 16, 16)
        for params in list(allowed.all_params())[::7]:
            arch = allowed.arch(params)
            alone = net.extract(arch)
            assert (type(alone), alone.arch) == (Res2Net, arch)
            assert sum(p.numel() for p in alone.parameters()) == cost(arch, 16).params
            assert difference(alone(x), net(x, arch)) < 1e-9
            assert difference(alone.train()(x), net.train()(x, arch)) < 1e-9
            net.eval()

    @every_kind
    def test_gradients_reach_the_head(self, kind: str) -> None:
        allowed = self.space(kind)
        net = ElasticRes2Net(allowed)
        net(images(2, 3, 16, 16).float(), allowed.largest()).square().sum().backward()
        assert net.head is not None
        assert all(p.grad is not None for p in net.head.parameters())

    @every_kind
    def test_another_head_is_another_network(self, kind: str) -> None:
        net = ElasticRes2Net(self.space(kind))
        with pytest.raises(UserError, match="members of its space"):
            net.check(self.space(kind, channels=3).largest())

    @every_kind
    def test_a_space_with_a_head_is_plain_json(self, kind: str) -> None:
        allowed = self.space(kind)
        assert Space.from_dict(json.loads(json.dumps(allowed.to_dict()))) == allowed


def test_spaces_of_all_bases_can_have_heads() -> None:
    for base in space.BASES:
        allowed = space.get("scale", base, num_classes=1).with_head(Dss(16))
        assert allowed.largest().head == Dss(16)


class TestFolders:
    @every_kind
    def test_a_saved_network_comes_back_bit_by_bit(self, kind: str, tmp_path: Path) -> None:
        arch = with_head(kind)
        model, x = create(arch).eval(), images(2, 3, 20, 24).float()
        save(model, tmp_path / "model")
        loaded = load(tmp_path / "model")
        assert loaded.arch == arch
        assert torch.equal(loaded(x), model(x))

    @every_kind
    def test_a_backbone_leaves_the_head(self, kind: str, tmp_path: Path) -> None:
        model, x = create(with_head(kind)).eval(), images(2, 3, 20, 24).float()
        save(model, tmp_path / "model")
        backbone = load(tmp_path / "model", features_only=True)
        for ours, theirs in zip(backbone(x), model.forward_features(x), strict=True):
            assert torch.equal(ours, theirs)
        assert not [n for n, _ in backbone.named_parameters() if "head" in n]

    def test_another_number_of_outputs_is_initialised(self, tmp_path: Path) -> None:
        save(create(with_head("deconv")), tmp_path / "model")
        model = load(tmp_path / "model", num_classes=7)
        assert model(images(1, 3, 16, 16).float()).shape == (1, 7, 4, 4)
        with pytest.raises(UserError, match="num_classes is 7; accepted with the head dss: 1"):
            create(with_head("dss")).reset_classifier(7)

    @every_kind
    def test_a_head_can_be_dropped(self, kind: str) -> None:
        model = create(with_head(kind))
        model.reset_classifier(0)
        assert (model.head, model.arch.head) == (None, None)
        assert model(images(2, 3, 16, 16).float()).shape == (2, SMALL.num_features)


class TestInference:
    @every_kind
    @pytest.mark.parametrize("stride", [None, 4])
    def test_an_optimized_network_gives_what_it_gave(self, kind: str, stride: int | None) -> None:
        model = randomised(create(with_head(kind, output_stride=stride)))
        for x in (images(2, 3, 24, 20), images(1, 3, 17, 33)):
            assert difference(optimize(model)(x), model(x)) < 1e-9
        single = model.float()
        assert difference(optimize(single)(x.float()), single(x.float())) < 1e-4

    @every_kind
    def test_bf16_is_close(self, kind: str) -> None:
        torch.manual_seed(0)
        model, x = create(with_head(kind)).eval(), images(2, 3, 32, 32).float()
        out = optimize(model, bf16=True)(x)
        assert out.dtype == torch.float32
        assert difference(out, model(x)) < 0.1

    @every_kind
    @pytest.mark.slow
    def test_an_exported_program_takes_any_batch(self, kind: str, tmp_path: Path) -> None:
        model = create(with_head(kind))
        assert export_program(model, tmp_path / "model.pt2", image_size=(24, 18)) <= 1e-5
        program = torch.export.load(tmp_path / "model.pt2").module()
        for batch in (1, 5):
            x = images(batch, 3, 24, 18).float()
            torch.testing.assert_close(program(x), model.eval()(x))

    @every_kind
    @pytest.mark.slow
    def test_an_onnx_file_gives_the_same(self, kind: str, tmp_path: Path) -> None:
        for name in formats.ONNX_PACKAGES:
            pytest.importorskip(name)
        model = create(with_head(kind))
        assert export_onnx(model, tmp_path / "model.onnx", image_size=(24, 18)) <= 1e-5


class TestValues:
    @given(arch=archs())
    def test_are_plain_json(self, arch: Arch) -> None:
        text = arch.to_json()
        assert from_json(text) == arch
        assert json.loads(text)["head"]["kind"] == arch.head.kind

    @every_kind
    def test_of_networks_of_other_kinds_are_plain_json(self, kind: str) -> None:
        for plain in (named("res2net_dla60"), named("blres2net50")):
            arch = with_head(kind, plain)
            assert from_json(arch.to_json()) == arch

    @every_kind
    def test_have_a_part_in_the_key(self, kind: str) -> None:
        arch = with_head(kind)
        others = (replace(arch, head=None), with_head(kind, channels=9), with_head(kind, output_stride=4))
        assert len({a.key() for a in (arch, *others)}) == 4
        assert str(arch) == f"{replace(arch, head=None)} + {kind}"

    @pytest.mark.parametrize(
        ("kind", "change"), [(kind, change) for kind in KINDS for change in (*WRONG, *EXAMPLES[kind].wrong)]
    )
    def test_wrong_ones_are_refused(self, kind: str, change: dict[str, object]) -> None:
        data = with_head(kind).to_dict()
        data["head"] |= change
        refused(json.dumps(data), "arch: head: ", "accepted: ")

    @pytest.mark.parametrize("head", ["dss", 3, [], {}, {"kind": "fpn"}, {"kind": ["dss"]}, {"channels": 4}])
    def test_other_data_are_refused(self, head: object) -> None:
        refused(json.dumps(SMALL.to_dict() | {"head": head}), "arch: head is ", "accepted: ", "deeplab")

    @every_kind
    def test_an_unknown_key_is_refused(self, kind: str) -> None:
        data = with_head(kind).to_dict()
        data["head"]["chanels"] = 3
        refused(json.dumps(data), "arch: head: key: unknown value 'chanels'; did you mean 'channels'?")

    def test_only_one_salient_class(self) -> None:
        refused(json.dumps(with_head("dss").to_dict() | {"num_classes": 2}), "num_classes is 2; accepted", "dss: 1")

    def test_a_head_is_no_text(self) -> None:
        with pytest.raises(UserError, match=r"arch: head is 'dss'; accepted: a head of res2net\.heads, or None"):
            replace(SMALL, head="dss")

    def test_an_output_stride_that_the_network_lacks(self) -> None:
        arch = with_head("dss", output_stride=3)
        for build in (create, cost):
            with pytest.raises(UserError, match=r"^`output_stride`: 3; accepted: 1, 2, 4"):
                build(arch)
        for plain in OTHERS:
            with pytest.raises(UserError, match=r"^arch: head: output_stride is 4; accepted for kind \w+: null"):
                with_head("dss", plain, output_stride=4)


def refused(text: str, *words: str) -> None:
    """Reading the architecture ends in a `UserError` of one line that holds `words`."""
    with pytest.raises(UserError) as caught:
        from_json(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# ---- What the kinds do ---------------------------------------------------------------------------------------------


def test_a_deeplab_reads_the_finest_map_of_stride_four() -> None:
    arch = with_head("deeplab", named("resnet50"))
    model = create(arch)
    assert model.head.reduce[0].in_channels == 256
    assert model.head.pyramid.project[0].in_channels == 6 * (2 + 2)


def test_a_deeplab_dilates_to_its_output_stride() -> None:
    arch = replace(named("resnet50"), head=DeepLab(), num_classes=21)
    assert levels(arch, 16)[-1].reduction == 16
    with torch.device("meta"):
        model = create(arch)
        maps = model.forward_features(torch.empty(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 4]


class TestDss:
    def test_each_branch_reads_all_deeper_ones(self) -> None:
        model = create(with_head("dss"))
        head = model.head
        assert [short.in_channels for short in head.short] == [3, 2]
        assert head.fuse.in_channels == 3
        maps = [m.detach().requires_grad_() for m in model.forward_features(images(2, 3, 32, 32).float())]
        out = head(maps, (32, 32))
        for i in range(3):  # branch i depends on the maps from i on
            grads = torch.autograd.grad(out[:, 1 + i].sum(), maps, retain_graph=True, allow_unused=True)
            assert [g is not None and bool(g.any()) for g in grads] == [j >= i for j in range(3)]

    def test_scoring_leaves_out_the_branches(self) -> None:
        head = randomised(create(with_head("dss"))).head
        maps = [images(2, 4 * s.planes, n, n) for s, n in zip(SMALL.stages, (16, 8, 4), strict=True)]
        scored = head(maps, (32, 32))
        for norm in head.modules():
            norm.training = norm is head  # batch norms stay as in scoring
        assert torch.equal(head(maps, (32, 32))[:, :1], scored)

    def test_a_network_of_one_stage_has_no_short_connection(self) -> None:
        arch = with_head("dss", replace(SMALL, stages=SMALL.stages[:1]))
        assert create(arch)(torch.randn(2, 3, 16, 16)).shape == (2, 2, 16, 16)


class TestDeconv:
    @pytest.mark.parametrize(("stride", "count"), [(1, 1), (2, 1), (4, 1), (8, 1), (12, 2), (16, 2), (32, 3), (64, 4)])
    def test_doubles_as_often_as_needed(self, stride: int, count: int) -> None:
        arch = with_head("deconv", Arch((Stage(1, 2, 2, stride=stride),), "cifar", 4))
        model = create(arch)
        assert sum(isinstance(m, nn.ConvTranspose2d) for m in model.modules()) == count
        assert model(torch.randn(2, 3, 128, 64)).shape == (2, 3, 32, 16)

    def test_starts_as_published(self) -> None:
        torch.manual_seed(0)
        model = create(replace(named("resnet50"), head=Deconv(), num_classes=17))
        for conv in (*(block[0] for block in model.head.enlarge), model.head.points):
            assert conv.weight.std().item() == pytest.approx(0.001, rel=0.1)
        assert not model.head.points.bias.any()

    def test_heat_maps_lie_over_the_image(self) -> None:
        """A bright square moves the heat maps where it is, even where maps extend beyond the image."""
        model = randomised(create(with_head("deconv", Arch((Stage(1, 2, 2, stride=32),), "cifar", 4))))
        x = images(1, 3, 72, 72)
        brighter = x.clone()
        brighter[..., :8, :8] += 1
        changed = (model(x) - model(brighter)).abs().sum((0, 1))
        assert changed.shape == (18, 18)
        assert changed[:8, :8].sum() > 0
        assert changed[15:, 15:].sum() == 0


@every_kind
def test_another_output_stride_than_the_head_s_is_refused(kind: str, tmp_path: Path) -> None:
    arch = with_head(kind)
    own = levels(arch, arch.output_stride)[-1].reduction
    save(create(arch, output_stride=own), tmp_path / "model")
    with pytest.raises(UserError, match=f"`output_stride`: 2; accepted: {own}"):
        load(tmp_path / "model", output_stride=2)
