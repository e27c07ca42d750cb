"""Networks grow into larger ones that contain them, and keep their function."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import randomised
from torch import Tensor

from res2net import Arch, Res2Net, Stage, UserError, contains, create
from res2net.arch import FIRST_BLOCKS
from res2net.grow import embed, grow

FRAME = Arch((Stage(1, 4, 8, 4, 1, 1), Stage(2, 8, 8, 8, 3, 2)), stem="cifar", stem_channels=8, num_classes=5)
# Every dimension grows, and the first stage gets its second split.
GROWN = replace(FRAME, stages=(Stage(2, 4, 12, 2, 3, 1), Stage(3, 8, 16, 2, 5, 2)))


def images(arch: Arch, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, arch.in_channels, 16, 16, generator=generator, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    """Return whether no difference exceeds the tolerance, relative to the largest value of `b` (which may be 0)."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def larger_stage(draw: st.DrawFn, stage: Stage, size: tuple[int, ...]) -> Stage:
    """A stage that grew by `size` (blocks, splits, channels), with any cardinality that merges groups."""
    blocks, splits, channels = size
    cardinality = draw(st.sampled_from(divisors(stage.cardinality)))
    width = -(-(stage.width + channels) // cardinality) * cardinality
    return replace(stage, depth=stage.depth + blocks, scale=stage.scale + splits, width=width, cardinality=cardinality)


@st.composite
def larger(draw: st.DrawFn, arch: Arch) -> Arch:
    """Any architecture that contains the given one: all stages grow alike, or each by its own size."""
    sizes = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 5))
    uniform = draw(st.none() | sizes)
    arch = replace(arch, stages=tuple(draw(larger_stage(s, uniform or draw(sizes))) for s in arch.stages))
    if arch.se:
        arch = replace(arch, se=draw(st.integers(1, arch.se)))
    return arch


@st.composite
def canonical(draw: st.DrawFn) -> Arch:
    """Any small architecture. Half of them have cardinality 8, and half of them have scale 1, in all stages."""
    arch = draw(st.from_type(Arch))
    if draw(st.booleans()):
        arch = replace(arch, stages=tuple(replace(s, cardinality=8, width=8) for s in arch.stages))
    if draw(st.booleans()):
        arch = replace(arch, stages=tuple(replace(s, scale=1) for s in arch.stages))
    return arch.canonical()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Arch, Arch]:
    """An architecture, and any one that contains it."""
    small = draw(canonical())
    free = all(s.scale == 1 for s in small.stages)  # `first_block` has no effect then
    large = replace(small, first_block=draw(st.sampled_from(FIRST_BLOCKS))) if free else small
    return small, draw(larger(large)).canonical()


class TestGrownNetworks:
    @given(pairs(), st.booleans())
    def test_have_the_same_logits(self, pair: tuple[Arch, Arch], training: bool) -> None:
        small, large = pair
        model = randomised(create(small)).train(training)
        grown = grow(model, large, seed=0)
        assert (type(grown), grown.arch, grown.training) == (Res2Net, large, training)
        assert grown.state_dict().keys() == create(large).state_dict().keys()
        x = images(small, batch=4)
        assert close(grown(x), model(x), 1e-6)  # batch norms of nearly constant channels magnify rounding errors

    @given(pairs())
    def test_have_the_same_logits_in_single_precision(self, pair: tuple[Arch, Arch]) -> None:
        small, large = pair
        model = create(small).eval()
        x = images(small).float()
        assert torch.allclose(grow(model, large, seed=0)(x), model(x), rtol=1e-5, atol=1e-5)

    @given(st.data())
    def test_grow_again(self, data: st.DataObject) -> None:
        small, middle = data.draw(pairs())
        large = data.draw(larger(middle))
        model = randomised(create(small))
        twice = grow(grow(model, middle, seed=0), large, seed=1)
        assert contains(large, small)
        assert close(twice(images(small)), model(images(small)))

    def test_are_copies_when_nothing_grows(self) -> None:
        model = randomised(create(FRAME))
        grown = grow(model, FRAME, seed=0)
        assert all(torch.equal(value, grown.state_dict()[name]) for name, value in model.state_dict().items())
        grown.get_parameter("conv1.weight").data.zero_()
        assert model.conv1.weight.all()

    def test_train_as_the_small_one_until_new_weights_move(self) -> None:
        """The gradients of all old weights are those of the small network."""
        model = randomised(create(FRAME)).train()
        grown = grow(model, GROWN, seed=0)
        gradients = [gradient(net) for net in (model, grown)]
        nothing = {name: torch.zeros_like(p) for name, p in grown.named_parameters()}
        old = embed(FRAME, GROWN, {name: torch.ones_like(p) for name, p in model.named_parameters()}, nothing)
        for name, expected in embed(FRAME, GROWN, gradients[0], nothing).items():
            assert torch.allclose(gradients[1][name] * old[name], expected, rtol=1e-6, atol=1e-9), name

    @pytest.mark.parametrize("first_block", FIRST_BLOCKS)
    @pytest.mark.parametrize("se", [0, 16])
    def test_learn_with_all_new_weights(self, first_block: str, se: int) -> None:
        torch.manual_seed(0)
        model = create(replace(FRAME, first_block=first_block, se=se)).double()
        grown = grow(model, replace(GROWN, first_block=first_block, se=se and 4), seed=0)
        before = {name: p.detach().clone() for name, p in grown.named_parameters()}
        steps(grown, 10)
        for name, p in grown.named_parameters():
            changed = p != before[name]
            # Squeeze-and-excitation has no norm, so a hidden unit may be dead from the start.
            assert changed.any() if ".se." in name else changed.all(), name

    def test_start_new_channels_on_the_scale_of_old_ones(self) -> None:
        """The norms of kernel rows and the running variances are those of old channels, here far from the initial."""
        model = create(FRAME)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name.endswith("running_var") or value.dim() == 4:
                    value.mul_(100)
        grown = grow(model, GROWN, seed=0)
        for name in ("layer1.0.conv1.weight", "layer2.1.convs.0.weight"):
            old, new = (net.state_dict()[name].flatten(1).norm(dim=1) for net in (model, grown))
            assert len(new) > len(old)
            assert new.min() > old.min() / 2
            assert new.max() < old.max() * 2
        assert (grown.get_buffer("layer2.0.bn1.running_var") == 100).all()

    def test_follow_the_seed_and_leave_the_global_generator_alone(self) -> None:
        model, state = create(FRAME), torch.get_rng_state()
        a, b, c = (grow(model, GROWN, seed).layer1[1].conv1.weight for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_keep_the_dtype_and_the_output_stride(self, dtype: torch.dtype) -> None:
        model = randomised(create(FRAME, output_stride=1)).to(dtype)
        grown = grow(model, GROWN, seed=0)
        assert {p.dtype for p in grown.parameters()} == {dtype}
        x = images(FRAME).to(dtype)
        maps = [net.forward_features(x)[-1] for net in (model, grown)]
        assert maps[1].shape[2:] == (16, 16)
        assert close(maps[1], maps[0], 1e-9 if dtype == torch.float64 else 0.1)


def gradient(net: Res2Net) -> dict[str, Tensor]:
    """Return the gradients of a loss over fixed images and labels."""
    F.cross_entropy(net(images(net.arch, 8)), torch.arange(8) % net.arch.num_classes).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def steps(net: Res2Net, count: int) -> None:
    """Train for a few steps without weight decay."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net.train()
    for _ in range(count):
        optimizer.zero_grad()
        gradient(net)
        optimizer.step()


class TestEmbedding:
    @given(pairs())
    def test_keeps_the_function_over_any_base(self, pair: tuple[Arch, Arch]) -> None:
        """Averaged weights may be embedded over a child's own weights."""
        small, large = pair
        model, grown = randomised(create(small)), randomised(create(large), seed=1)
        grown.load_state_dict(embed(small, large, model.state_dict(), grown.state_dict()))
        assert close(grown(images(small)), model(images(small)))

    @given(pairs())
    def test_places_every_entry_once(self, pair: tuple[Arch, Arch]) -> None:
        small, large = pair
        model, grown = create(small), create(large)
        tensors = {
            name: torch.rand(p.shape, generator=torch.Generator().manual_seed(i)) + 1
            for i, (name, p) in enumerate(model.named_parameters())
        }
        nothing = {name: torch.zeros_like(p) for name, p in grown.named_parameters()}
        embedded = embed(small, large, tensors, nothing)
        placed = torch.cat([v[v != 0] for v in embedded.values()]).sort().values
        assert torch.equal(placed, torch.cat([v.flatten() for v in tensors.values()]).sort().values)
        assert not any(v.any() for v in nothing.values())


GRID = [
    Stage(depth, 4, width, cardinality, scale)
    for depth, width, cardinality, scale in product((1, 2), (2, 4, 6, 8), (1, 2, 4), (1, 3))
    if width % cardinality == 0
]


def single_steps(stage: Stage) -> Iterator[Stage]:
    """Yield every stage that is one growth step larger: by a block, a split, a channel of each group, or a merge."""
    yield replace(stage, depth=stage.depth + 1)
    yield replace(stage, scale=stage.scale + 1)
    yield replace(stage, width=stage.width + stage.cardinality)
    yield from (replace(stage, cardinality=d) for d in divisors(stage.cardinality))


def reachable(stage: Stage) -> set[Stage]:
    """Return the stages that a stage grows into step by step, of depth 2, scale 3 and width 8 at most."""
    found, new = {stage}, [stage]
    while new:
        after = {s for s in single_steps(new.pop()) if s.depth <= 2 and s.scale <= 3 and s.width <= 8} - found
        found |= after
        new += after
    return found


class TestContains:
    @given(st.from_type(Arch))
    def test_every_network_contains_itself(self, arch: Arch) -> None:
        assert contains(arch, arch)

    def test_agrees_with_growth_in_single_steps(self) -> None:
        for small in GRID:
            oracle = reachable(small)
            for large in GRID:
                found = contains(replace(FRAME, stages=(large,)), replace(FRAME, stages=(small,)))
                assert found == (large in oracle), (small, large)

    @given(st.data())
    def test_networks_that_contain_each_other_are_one(self, data: st.DataObject) -> None:
        small, large = data.draw(pairs())
        assert contains(large, small)
        assert contains(small, large) == (small.key() == large.key())

    @given(st.data())
    def test_decides_whether_networks_grow(self, data: st.DataObject) -> None:
        """The second network has random stages, and often the other fields of the first."""
        first = data.draw(canonical())
        second = replace(data.draw(canonical()), in_channels=first.in_channels, num_classes=first.num_classes)
        if data.draw(st.booleans()):
            second = replace(first, stages=second.stages)
        if contains(second, first):
            model = randomised(create(first))
            assert close(grow(model, second, 0)(images(first)), model(images(first)))
        else:
            with pytest.raises(UserError, match=r"^grow: .* is .*; accepted: "):
                grow(create(first), second, 0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"stem": "deep"}, "grow: stem is deep; accepted: cifar"),
            ({"stem_channels": 16}, "grow: stem_channels is 16; accepted: 8"),
            ({"num_classes": 10}, "grow: num_classes is 10; accepted: 5"),
            ({"shortcut": "avgpool"}, "grow: shortcut is avgpool; accepted: conv"),
            ({"first_block": "conv"}, "grow: first_block is conv; accepted: pool"),
            ({"se": 16}, "grow: se is 16; accepted: 0"),
            ({"stages": FRAME.stages[:1]}, "grow: the number of stages is 1; accepted: 2"),
            ({"depth": 1}, "grow: stage 2: depth is 1; accepted: at least 2"),
            ({"planes": 16}, "grow: stage 2: planes is 16; accepted: 8"),
            ({"width": 4, "cardinality": 4}, "grow: stage 2: width is 4; accepted: at least 8"),
            ({"width": 12, "cardinality": 3}, "grow: stage 2: cardinality is 3; accepted: a divisor of 8"),
            ({"width": 16, "cardinality": 16}, "grow: stage 2: cardinality is 16; accepted: a divisor of 8"),
            ({"scale": 2}, "grow: stage 2: scale is 2; accepted: at least 3"),
            ({"stride": 1}, "grow: stage 2: stride is 1; accepted: 2"),
        ],
    )
    def test_names_what_does_not_fit(self, changes: dict[str, object], message: str) -> None:
        own = {name: value for name, value in changes.items() if name in Arch.__slots__}
        of_stage = {name: value for name, value in changes.items() if name not in own}
        large = replace(FRAME, **own)
        if of_stage:
            large = replace(large, stages=(large.stages[0], replace(large.stages[1], **of_stage)))
        assert not contains(large, FRAME)
        with pytest.raises(UserError) as error:
            grow(create(FRAME), large, 0)
        assert str(error.value).startswith(message)

    def test_gates_may_only_gain_hidden_channels(self) -> None:
        few, many = (replace(FRAME, se=se) for se in (16, 2))  # with 16 and 32 channels: 8 and 8, 8 and 16 hidden ones
        assert contains(many, few)
        assert not contains(few, many)
        assert not contains(FRAME, few)
        assert contains(replace(FRAME, se=8), few)
        assert contains(few, replace(FRAME, se=8))  # both have 8 hidden channels throughout
