"""Shared weights: every member is an exact slice, and scales nest in the order of equation 1."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import randomised
from torch import Tensor, nn

import space
from res2net import Arch, Res2Net, Stage, UserError, cost
from res2net.elastic import ElasticBlock, ElasticRes2Net, block_diagonals, released
from space import Skeleton, Space

FRAME = {"strides": (1, 2), "pattern": (1, 1), "width": 64, "depth": 2, "stem_channels": 4}
CHOICES = {"scale": (1, 2, 3), "cardinality": (1, 2, 4), "depth": (1, 2), "width": (64, 96, 128)}
REDUCTIONS = (0, 1, 2, 16)  # with 32 channels: none, 32, 16 and 8 hidden channels


def small(per_stage: bool = False, se: tuple[int, ...] = (), **frame: object) -> Space:
    """Return a space whose networks build in milliseconds: of all stage dimensions, and of `se` if it has values."""
    choices = CHOICES | ({"se": se} if se else {})
    return Space("small", "micro", Skeleton(**{"planes": (4, 8), **FRAME, **frame}), choices, per_stage)


def images(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest value of `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()


def gated(block: ElasticBlock, x: Tensor, reduction: int) -> Tensor:
    """Return the output of squeeze-and-excitation, written out with the leading hidden channels: the oracle."""
    if not reduction:
        return x
    hidden = max(8, int(x.shape[1] / reduction + 4) // 8 * 8)
    squeeze, excite = block.se.fc1, block.se.fc2
    inner = F.linear(x.mean((2, 3)), squeeze.weight[:hidden, :, 0, 0], squeeze.bias[:hidden]).relu()
    return x * F.linear(inner, excite.weight[:, :hidden, 0, 0], excite.bias).sigmoid()[:, :, None, None]


def paper_block(block: ElasticBlock, x: Tensor, arch: Arch, stage: Stage, stride: int, first: bool) -> Tensor:
    """Return the output of a block, written out in the paper's order with one convolution per group: the oracle."""

    def norm(values: nn.Module, y: Tensor, split: int) -> Tensor:
        weight, bias, mean, var = (
            getattr(values, n)[split, : y.shape[1]].view(1, -1, 1, 1)
            for n in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    own = str(stage.cardinality) if block.own else "all"
    order = [1, 0, *range(2, stage.scale)] if stage.scale > 1 else [0]  # the shared index of each of the paper's splits
    w, part = stage.width, stage.width // stage.cardinality

    def convolve(y: Tensor, split: int, by: int) -> Tensor:
        width = block.kernel.shape[1]
        kernel = block.kernel + (block.own[own] if block.own else 0)
        kernel = kernel[order[split]].view(width, width, 3, 3)
        groups = [slice(g * part, (g + 1) * part) for g in range(stage.cardinality)]
        out = torch.cat([F.conv2d(y[:, g], kernel[g, g], None, by, 1) for g in groups], 1)
        return norm(block.norms[own], out, order[split]).relu()

    splits = [norm(block.norms1[own], torch.einsum("nchw,oc->nohw", x, block.conv1[i, :w]), i).relu() for i in order]
    if stage.scale == 1 or (first and block.convolves_all):
        outs = [convolve(y, i, stride) for i, y in enumerate(splits)]
    elif first:
        outs = [F.avg_pool2d(splits[0], 3, stride, 1), *[convolve(y, i, stride) for i, y in enumerate(splits) if i]]
    else:
        outs = [splits[0]]
        for i, y in enumerate(splits[1:], 1):
            outs.append(convolve(y + outs[-1] if i > 1 else y, i, 1))
    out = sum(torch.einsum("nchw,oc->nohw", y, block.conv3[:, i, :w]) for i, y in zip(order, outs, strict=True))
    out = gated(block, block.bn3(out), arch.se)
    return (out + (x if block.downsample is None else block.downsample(x))).relu()


def paper_network(net: ElasticRes2Net, arch: Arch, x: Tensor) -> Tensor:
    x = net.bn1(net.conv1(x)).relu()
    for i, stage in enumerate(arch.stages, 1):
        for j in range(stage.depth):
            block = net.get_submodule(f"layer{i}")[j]
            x = paper_block(block, x, arch, stage, stage.stride if j == 0 else 1, j == 0)
    return net.fc(x.mean((2, 3)))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize("frame", [{}, {"first_block": "conv"}, {"shortcut": "avgpool"}, {"se": (0, 2)}, {"se": (4,)}])
class TestMembers:
    def test_are_the_slices_that_the_paper_s_order_gives(self, frame: dict, per_stage: bool, own: bool) -> None:
        allowed = small(per_stage, **frame)
        net, rng = randomised(ElasticRes2Net(allowed, own)), random.Random(0)
        for _ in range(12):
            arch = allowed.arch(allowed.sample(rng))
            assert difference(net(images(), arch), paper_network(net, arch, images())) < 1e-9, arch

    def test_extracted_are_ordinary_networks_that_agree(self, frame: dict, per_stage: bool, own: bool) -> None:
        allowed = small(per_stage, **frame)
        net, rng = randomised(ElasticRes2Net(allowed, own)), random.Random(1)
        for _ in range(12):
            arch = allowed.arch(allowed.sample(rng))
            alone = net.extract(arch)
            assert (type(alone), alone.arch, alone.training) == (Res2Net, arch, False)
            assert sum(p.numel() for p in alone.parameters()) == cost(arch, 8).params
            assert difference(alone(images()), net(images(), arch)) < 1e-9, arch


@given(
    st.sets(st.sampled_from(REDUCTIONS)),
    st.sampled_from(REDUCTIONS),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=25)
def test_squeeze_and_excitation_is_shared(se: set[int], fixed: int, per_stage: bool, seed: int) -> None:
    """Compare each member's forward with the member written out, and extracted. `se` is fixed if it has no choices."""
    frame = Skeleton((8,), (1,), (1,), width=64, depth=1, stem_channels=4, se=fixed)
    allowed = Space("gates", "none", frame, {"scale": (1, 2)} | ({"se": tuple(se)} if se else {}), per_stage)
    net = randomised(ElasticRes2Net(allowed), seed)
    for params in allowed.all_params():
        arch = allowed.arch(params)
        assert arch.se == params.get("se", fixed)
        out, alone = net(images(), arch), net.extract(arch)
        assert difference(out, paper_network(net, arch, images())) < 1e-9
        assert difference(alone(images()), out) < 1e-9
        assert sum(p.numel() for p in alone.parameters()) == cost(arch, 8).params


class TestSharing:
    def test_the_first_splits_of_a_block_are_those_of_a_block_with_fewer(self) -> None:
        allowed = Space("wide", "micro", Skeleton((4,), (1,), (1,), 128, 2, stem_channels=16), {"scale": (2, 3, 5, 8)})
        net = randomised(ElasticRes2Net(allowed))
        x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def splits(scale: int) -> list[Tensor]:
            """Return the splits of the second block before its last convolution, in the paper's order."""
            block = net.extract(allowed.arch({"scale": scale})).layer1[1]
            out = block.middle(torch.relu(block.bn1(block.conv1(x)))).chunk(scale, 1)
            return [out[-1], *out[:-1]]

        most = splits(8)
        for scale in (2, 3, 5):
            for narrow, wide in zip(splits(scale), most, strict=False):
                assert torch.equal(narrow, wide)

    def test_a_plain_bottleneck_is_the_convolved_split_of_two(self) -> None:
        allowed = Space("wide", "micro", Skeleton((4,), (1,), (1,), 128, 1, stem_channels=16), {"scale": (1, 2, 8)})
        net = randomised(ElasticRes2Net(allowed))
        x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def middle(scale: int) -> Tensor:
            block = net.extract(allowed.arch({"scale": scale})).layer1[0]
            return block.middle(torch.relu(block.bn1(block.conv1(x))))

        assert torch.equal(middle(1), middle(2).chunk(2, 1)[0])
        assert torch.equal(middle(1), middle(8).chunk(8, 1)[0])

    def test_a_copy_is_the_member_s_own(self) -> None:
        allowed = small()
        net = ElasticRes2Net(allowed)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        alone = net.extract(allowed.largest())
        with torch.no_grad():
            for value in alone.parameters():
                value.add_(1)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

    def test_gradients_reach_what_a_member_uses_and_nothing_else(self) -> None:
        allowed = small()
        net = ElasticRes2Net(allowed).double()
        arch = allowed.arch({"scale": 2, "cardinality": 2, "depth": 1, "width": 64})
        net(images(), arch).square().sum().backward()
        block = net.layer1[0]
        w = arch.stages[0].width
        assert block.conv1.grad[:2, :w].abs().sum() > 0
        assert block.conv1.grad[2:].abs().sum() == block.conv1.grad[:, w:].abs().sum() == 0
        assert block.kernel.grad[0].abs().sum() == block.own["2"].grad[0].abs().sum() > 0
        assert block.kernel.grad[1].abs().sum() == 0  # the kernel of the split that passes through
        assert block.own["1"].grad is None
        assert all(p.grad is None for p in net.layer1[1].parameters())

    def test_gradients_are_those_of_the_extracted_network(self) -> None:
        allowed = small()
        net, arch = ElasticRes2Net(allowed).double(), allowed.largest()
        alone = net.extract(arch)
        net(images(), arch).square().sum().backward()
        alone(images()).square().sum().backward()
        assert difference(net.fc.weight.grad, alone.fc.weight.grad) < 1e-9
        rows = released(net.layer1[0].conv1.grad, 0, 3).flatten(0, 1)
        assert difference(rows, alone.layer1[0].conv1.weight.grad[:, :, 0, 0]) < 1e-9

    def test_training_remembers_no_statistics(self) -> None:
        allowed = small()
        net = ElasticRes2Net(allowed).double()
        before = {k: v.clone() for k, v in net.named_buffers()}
        net(images(), allowed.largest())
        assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_a_block_diagonal_computes_as_the_dense_kernel_with_zeros(self, groups: int) -> None:
        kernel, x = torch.randn(3, 8, 8, 3, 3), torch.randn(1, 8, 5, 5)
        mask = torch.block_diag(*[torch.ones(8 // groups, 8 // groups)] * groups)[:, :, None, None]
        for dense, grouped in zip(kernel, block_diagonals(kernel, groups), strict=True):
            torch.testing.assert_close(
                F.conv2d(x, dense * mask, padding=1), F.conv2d(x, grouped, padding=1, groups=groups)
            )


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"depth": 3}, "stage 1: depth is 3; accepted: at most 2"),
            ({"scale": 4}, "stage 1: scale is 4; accepted: at most 3"),
            ({"width": 9, "cardinality": 1}, "stage 1: width is 9; accepted: at most 8"),
            ({"width": 6, "cardinality": 3}, "stage 1: cardinality is 3; accepted: 1, 2, 4"),
            ({"planes": 5}, "stage 1: planes is 5; accepted: 4"),
        ],
    )
    def test_a_network_that_is_no_slice_names_what_is_not(self, change: dict, said: str) -> None:
        allowed = small()
        arch = allowed.arch({"scale": 2, "cardinality": 2, "depth": 1, "width": 64})
        other = replace(arch, stages=(replace(arch.stages[0], **change), *arch.stages[1:]))
        with pytest.raises(UserError, match=said):
            ElasticRes2Net(allowed).extract(other)

    @pytest.mark.parametrize(
        ("choices", "se", "said"),
        [((0, 4, 16), 2, "se is 2; accepted: 0, or at least 4"), ((0,), 16, "se is 16; accepted: 0$")],
    )
    def test_more_hidden_channels_than_the_shared_ones(self, choices: tuple[int, ...], se: int, said: str) -> None:
        allowed = small(se=choices)
        with pytest.raises(UserError, match=said):
            ElasticRes2Net(allowed).check(replace(allowed.largest(), se=se))

    def test_another_head_is_another_network(self) -> None:
        allowed = small()
        net = ElasticRes2Net(space.get("scale", "micro"))
        with pytest.raises(UserError, match="members of its space"):
            net.check(allowed.largest())
