"""`Space`, a set of networks: a skeleton with choices for its dimensions. The networks are its members."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from res2net.arch import Arch
from res2net.cost import Cost, cost
from res2net.errors import UserError, unknown
from res2net.heads.value import Head
from space.buildable import check_buildable
from space.dimensions import Params, checked_choices, checked_keys, checked_params, combinations, dimension_of
from space.grid import Grid, grid
from space.skeleton import SKELETON_KEYS, Skeleton

MAX_WIDTH = 2048  # the widest width, at 64 planes, that `at_macs` tries: ten times the widest choice of a named space
WORST_MATCH = 0.1  # relative error in MACs above which two networks no longer have the paper's "preserved complexity"


@dataclass(frozen=True, slots=True)
class Space:
    """A set of networks: the skeleton with every combination of the choices.

    name: the name of the space.
    base: the name of the base that the skeleton comes from (see `space.catalogue`).
    skeleton: the fixed part of the networks.
    choices: the values of each searched dimension.
    per_stage: whether every stage has its own parameters (`scale_1`, `scale_2`, ...). Whole-network dimensions have one
        parameter in any case.

    Several combinations may give equal networks, because widths are repaired (see `space.skeleton.repaired`).
    """

    name: str
    base: str
    skeleton: Skeleton
    choices: Mapping[str, tuple[int, ...]] = field(hash=False)
    per_stage: bool = False
    _grid: Grid = field(init=False, repr=False, compare=False)  # computed from the fields above

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"name is {self.name!r}; accepted: a text")
        if not isinstance(self.per_stage, bool):
            raise UserError(f"per_stage is {self.per_stage!r}; accepted: true or false")
        object.__setattr__(self, "choices", checked_choices(self.choices))
        self._check_cardinality()
        check_buildable(self.skeleton, self.choices)
        object.__setattr__(self, "_grid", grid(self.skeleton, self.choices, self.per_stage))

    @property
    def image_size(self) -> int:
        """Return the default image size for costs, as a side length in pixels."""
        return self.skeleton.image_size

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Return the values of each parameter, in ascending order."""
        return dict(self._grid.parameters)

    @property
    def size(self) -> int:
        """Return the number of combinations of parameters."""
        return math.prod(map(len, self._grid.parameters.values()))

    def all_params(self) -> Iterator[Params]:
        """Yield every combination of parameters. A per-stage space has more combinations than memory can hold."""
        return combinations(self.parameters)

    def sample(self, rng: random.Random | np.random.Generator) -> Params:
        """Return parameters drawn uniformly from all combinations."""
        # Call `random` once for each parameter. Both generators have this method. Another number of calls would change
        # the draws of a seed.
        return {name: values[int(rng.random() * len(values))] for name, values in self._grid.parameters.items()}

    def sample_by_macs(self, rng: random.Random) -> Params:
        """Return random parameters whose MACs are spread evenly on a logarithmic scale.

        Most uniformly drawn combinations have medium MACs. This method draws a target log-uniformly between the least
        and the most MACs. Then it draws eight uniform combinations and returns the one nearest to the target.
        """
        target = rng.uniform(*_log_macs(self))
        drawn = [self.sample(rng) for _ in range(8)]
        return min(drawn, key=lambda p: abs(math.log(cost(self._grid.build(p), self.image_size).macs) - target))

    def arch(self, params: Mapping[str, int]) -> Arch:
        """Return the network of the parameters, repaired and in canonical form.

        Raise `UserError` for an unknown or missing parameter, and for a value that is not a choice.
        """
        return self._grid.build(self._checked(params))

    def params_of(self, arch: Arch) -> Params | None:
        """Return the parameters of a network, or None if it is not a member. This is the inverse of `arch`.

        Where several widths are repaired to the same network, return the narrowest.
        """
        return self._grid.params_of(arch)

    def contains(self, arch: Arch) -> bool:
        """Return whether the network is a member."""
        return self.params_of(arch) is not None

    def with_head(self, head: Head) -> Space:
        """Return the space of the same networks with a head in place of the classifier."""
        return replace(self, skeleton=replace(self.skeleton, head=head))

    def fitted(self, arch: Arch) -> Arch:
        """Return a network with the classes, the image channels and the head of the space."""
        names = ("num_classes", "in_channels", "head")
        return replace(arch, **{name: getattr(self.skeleton, name) for name in names}).canonical()

    def cheapest(self, cost_field: str = "macs", image_size: int | None = None) -> tuple[Params, Cost]:
        """Return the parameters and the cost of the member with the exact minimum of a field of `Cost`."""
        return self._extreme(self._grid, min, cost_field, image_size)

    def dearest(self, cost_field: str = "macs", image_size: int | None = None) -> tuple[Params, Cost]:
        """Return the parameters and the cost of the member with the exact maximum of a field of `Cost`."""
        return self._extreme(self._grid, max, cost_field, image_size)

    def range_of(self, measure: Callable[[Arch], float]) -> tuple[float, float]:
        """Return the least and the greatest value of a measure. They are exact if the measure is a sum over stages."""
        low, high = (self.arch(self._grid.extreme(pick, measure)) for pick in (min, max))
        return measure(low), measure(high)

    def envelope(self) -> Arch:
        """Return the network of cardinality 1 whose weights contain the weights of every member, for a supernet."""
        return self._grid.envelope()

    def cardinalities(self) -> tuple[tuple[int, ...], ...]:
        """Return the cardinalities that each stage may have."""
        return (self._grid.values_of("cardinality"),) * len(self.skeleton.planes)

    def largest(self) -> Arch:
        """Return the member with the most MACs. Apart from the cardinality, all other members are slices of it."""
        return self.arch(self.dearest("macs")[0])

    def at_macs(self, params: Mapping[str, int], macs: int, image_size: int | None = None) -> Arch:
        """Return the network of the parameters, with the width that brings its MACs nearest to `macs`.

        In this way, the paper compares scale, cardinality and depth at equal complexity (26w x 4s with 14w x 8s).
        All stages have the same width at 64 planes, a whole number up to `MAX_WIDTH`. Width parameters are ignored and
        may be missing.
        Raise `UserError` if the relative error of the nearest network exceeds `WORST_MATCH`.
        """
        size = image_size or self.image_size
        others = {name: value for name, value in params.items() if dimension_of(name) != "width"}
        keys = self._grid.names_of("width")
        ignored = {name: values[0] for name, values in self._grid.parameters.items() if name in keys}
        values = self._checked(others | ignored)

        def at(width: int) -> Arch:
            return self._grid.build(values | dict.fromkeys(keys, width))

        widths = range(1, MAX_WIDTH + 1)
        # MACs never fall as the width grows. So the nearest network has the first width that reaches the target, or the
        # width before it.
        i = bisect.bisect_left(widths, macs, key=lambda w: cost(at(w), size).macs)
        nearest = min(map(at, widths[max(0, i - 1) : i + 1]), key=lambda a: abs(cost(a, size).macs - macs))
        got = cost(nearest, size).macs
        if abs(got - macs) > WORST_MATCH * macs:
            shown = ", ".join(f"{name}={value}" for name, value in others.items())
            raise UserError(f"`match_macs`: {macs:,} MACs cannot be met with {shown}; the nearest has {got:,}")
        return nearest

    def match_range(self) -> tuple[tuple[Params, Cost], tuple[Params, Cost]]:
        """Return the parameters and the cost of two networks: those with the least and the most MACs at any width.

        Their MACs are the range of targets for `at_macs`.
        """
        free = grid(self.skeleton, {**self.choices, "width": (1, MAX_WIDTH)}, self.per_stage)
        return self._extreme(free, min, "macs", None), self._extreme(free, max, "macs", None)

    def to_dict(self) -> dict[str, Any]:
        """Return the space as plain lists, numbers and strings, for JSON."""
        return {
            "name": self.name,
            "base": self.base,
            "per_stage": self.per_stage,
            "choices": {dimension: list(values) for dimension, values in self.choices.items()},
            "skeleton": self.skeleton.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Space:
        """Return the space that `to_dict` wrote. Raise `UserError` for a wrong or missing key, or a wrong value."""
        keys = tuple(f.name for f in fields(cls) if f.init)
        data = checked_keys(data, keys, "space", required=keys)
        # Earlier versions did not write the channels. `to_dict` writes no head for a classifier.
        required = tuple(key for key in SKELETON_KEYS if key not in ("in_channels", "head"))
        skeleton = checked_keys(data["skeleton"], SKELETON_KEYS, "space: skeleton", required=required)
        head: dict[str, Any] = {"head": Head.from_dict(skeleton["head"])} if "head" in skeleton else {}
        return cls(**{**data, "skeleton": Skeleton(**skeleton | head)})

    def _checked(self, params: Mapping[str, int]) -> Params:
        return checked_params(params, self._grid.parameters, f"space {self.name}")

    def _check_cardinality(self) -> None:
        planes = min(self.skeleton.planes)
        widest = planes * max(self.choices.get("width", (self.skeleton.width,))) // 64
        most = max(self.choices.get("cardinality", (self.skeleton.cardinality,)))
        if most > widest:
            raise UserError(
                f"cardinality {most} is more than the channels of a split at {planes} planes, at most {widest}; "
                f"accepted: a cardinality of at most {widest}, or a width of at least {-(-64 * most // planes)}"
            )

    def _extreme(
        self, members: Grid, pick: Callable[..., Params], cost_field: str, image_size: int | None
    ) -> tuple[Params, Cost]:
        if cost_field not in Cost._fields:
            raise unknown("`cost_field`", cost_field, Cost._fields)
        size = image_size or self.image_size
        best = members.extreme(pick, lambda arch: getattr(cost(arch, size), cost_field))
        return best, cost(members.build(best), size)


@lru_cache(maxsize=16)
def _log_macs(space: Space) -> tuple[float, float]:
    """Return the logarithms of the least and the most MACs.

    They are cached, because every training step of a supernet needs them.
    """
    return math.log(space.cheapest()[1].macs), math.log(space.dearest()[1].macs)
