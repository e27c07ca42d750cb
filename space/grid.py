"""All combinations of a space's choices: convert parameters to networks and back, and find extreme networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple

from res2net.arch import Arch, Stage
from space.dimensions import DIMENSIONS, NETWORK_DIMENSIONS, STAGE_DIMENSIONS, Params, combinations
from space.skeleton import Skeleton, Slot, stage


class Group(NamedTuple):
    """Dimensions that are chosen together, for one stage or for the whole network.

    suffix: the end of the parameters' names. `_1` for the first stage, empty for the whole network.
    values: the choices of each dimension.
    stages: indices, from 0, of the stages that the values determine.
    """

    suffix: str
    values: dict[str, tuple[int, ...]]
    stages: tuple[int, ...]

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Return the values of each parameter."""
        return {name + self.suffix: values for name, values in self.values.items()}


class Reader(NamedTuple):
    """The rule that makes one stage from parameters.

    slot: the fixed sizes of the stage.
    read: a function that picks the stage's values, in the order of `STAGE_DIMENSIONS`, from all parameters.
    """

    slot: Slot
    read: Callable[[Mapping[str, int]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination of the choices over one skeleton. Use `grid` to make one.

    groups: in a per-stage space, one group for each stage, then one for the whole network. Otherwise, a single group.
    parameters: the values of each parameter, in ascending order.
    readers: one reader for each stage.
    fixed: values of the stage dimensions that are not searched.
    frame: the fields of `Arch` that are equal in all members.
    whole: names of the searched dimensions that concern the whole network.

    The last four fields only make `build` faster, because a search builds tens of thousands of networks.
    """

    groups: tuple[Group, ...]
    parameters: dict[str, tuple[int, ...]]
    readers: tuple[Reader, ...]
    fixed: dict[str, int]
    frame: dict[str, Any]
    whole: tuple[str, ...]

    def build(self, values: Mapping[str, int]) -> Arch:
        """Return the canonical network of unchecked parameters. `values` may also replace fixed dimensions."""
        values = {**self.fixed, **values}
        # A list is faster than a generator, and a search runs this line tens of thousands of times.
        stages = tuple([stage(slot, *read(values)) for slot, read in self.readers])
        return self._canonical(stages, {name: values[name] for name in self.whole})

    def params_of(self, arch: Arch) -> Params | None:
        """Return the parameters whose network is `arch`, or None if no parameters give this network.

        This method reverses `build`. If several parameters give the network, return those with the smallest values.
        """
        whole = {name: getattr(arch, name) for name in self.whole}
        if len(arch.stages) != len(self.readers) or self._canonical(arch.stages, whole) != arch.canonical():
            return None
        out: Params = {}
        for group in self.groups:
            likely = {name + group.suffix: _likely(name, values, arch, group) for name, values in group.values.items()}
            matches = (p for p in combinations(likely) if self._gives(p, arch, group))
            found = next(matches, None)
            if found is None:
                return None
            out |= found
        return {name: out[name] for name in self.parameters}

    def extreme(self, pick: Callable[..., Params], price: Callable[[Arch], float]) -> Params:
        """Return the parameters of the network with the lowest (`pick=min`) or highest (`pick=max`) price.

        The result is exact, but the method does not visit every network. The skeleton fixes the input and output
        channels of each stage. So for given whole-network dimensions, the price of a stage does not depend on other
        stages. This method optimises one stage after the other, for every combination of whole-network dimensions.
        """
        *own, shared = self.groups

        def priced(params: Params) -> float:
            return price(self.build(params))

        def best(chosen: Params) -> Params:
            found = {name: values[0] for name, values in self.parameters.items()} | chosen
            for group in own:
                found = pick((found | p for p in combinations(group.parameters)), key=priced)
            return found

        return pick(map(best, combinations(shared.parameters)), key=priced)

    def envelope(self) -> Arch:
        """Return the network of cardinality 1 whose weights contain the weights of every member, for a supernet."""
        most = {
            name + group.suffix: DIMENSIONS[name].container(values)
            for group in self.groups
            for name, values in group.values.items()
        }
        # Repair narrows the widest choice if a cardinality does not divide it. The envelope has the widest repaired
        # width instead of the choice, because no member would use wider weights.
        keys = self.names_of("cardinality")
        members = [self.build(most | dict.fromkeys(keys, c)) for c in self.values_of("cardinality")]
        stages = [
            replace(wide[0], width=max(s.width for s in wide), cardinality=1)
            for wide in zip(*(m.stages for m in members), strict=True)
        ]
        return replace(members[0], stages=tuple(stages))

    def values_of(self, dimension: str) -> tuple[int, ...]:
        """Return the values of a dimension: its choices (in the first group that has it), or the fixed value."""
        choices = [group.values[dimension] for group in self.groups if dimension in group.values]
        return choices[0] if choices else (self.fixed[dimension],)

    def names_of(self, dimension: str) -> tuple[str, ...]:
        """Return the keys under which `build` reads a dimension: its parameters, or its own name if it is fixed."""
        return tuple(dimension + g.suffix for g in self.groups if dimension in g.values) or (dimension,)

    def _canonical(self, stages: tuple[Stage, ...], whole: Mapping[str, Any]) -> Arch:
        return Arch(stages, **self.frame, **whole).canonical()

    def _gives(self, values: Mapping[str, int], arch: Arch, group: Group) -> bool:
        """Return whether the values give the same stages as `arch` has. Compare only the stages of the group."""
        values = {**self.fixed, **values}
        return all(stage(self.readers[i].slot, *self.readers[i].read(values)) == arch.stages[i] for i in group.stages)


def _likely(name: str, values: tuple[int, ...], arch: Arch, group: Group) -> tuple[int, ...]:
    """Return the choices that may give this network: all if repair may change them, else the network's value."""
    dimension = DIMENSIONS[name]
    if dimension.repaired:
        return values
    held = getattr(arch if dimension.whole_network else arch.stages[group.stages[0]], name)
    return (held,) if held in values else ()


def grid(skeleton: Skeleton, choices: Mapping[str, tuple[int, ...]], per_stage: bool) -> Grid:
    """Return the `Grid` of a skeleton and choices.

    per_stage: whether every stage has its own value of each stage dimension.
    """
    choices = {name: choices[name] for name in DIMENSIONS if name in choices}
    groups = _groups(skeleton, choices, per_stage)
    suffixes = [f"_{i + 1}" if per_stage else "" for i in range(len(skeleton.planes))]
    readers = []
    for slot, suffix in zip(skeleton.slots, suffixes, strict=True):
        keys = (name + suffix if name in choices else name for name in STAGE_DIMENSIONS)
        readers.append(Reader(slot.counted() if per_stage and "depth" in choices else slot, itemgetter(*keys)))
    whole = tuple(name for name in NETWORK_DIMENSIONS if name in choices)
    parameters = {name: values for group in groups for name, values in group.parameters.items()}
    fixed = {name: value for name, value in skeleton.fixed.items() if name in STAGE_DIMENSIONS and name not in choices}
    frame = {name: value for name, value in skeleton.frame.items() if name not in whole}
    return Grid(groups, parameters, tuple(readers), fixed, frame, whole)


def _groups(skeleton: Skeleton, choices: dict[str, tuple[int, ...]], per_stage: bool) -> tuple[Group, ...]:
    stages = tuple(range(len(skeleton.planes)))
    if not per_stage:
        return (Group("", choices, stages),)
    own = {name: values for name, values in choices.items() if not DIMENSIONS[name].whole_network}
    shared = {name: values for name, values in choices.items() if name not in own}
    groups = []
    for i, slot in enumerate(skeleton.slots):
        values = dict(own)
        if "depth" in own:  # a per-stage depth is a number of blocks; two depths may round to the same number
            values["depth"] = tuple(dict.fromkeys(map(slot.blocks, own["depth"])))
        groups.append(Group(f"_{i + 1}", values, (i,)))
    return (*groups, Group("", shared, ()))
