"""Which networks are allowed: choices for the dimensions of a skeleton, and questions about all members at once."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from res2net.arch import Arch, Stage
from res2net.cost import Cost, cost
from res2net.errors import UserError, unknown
from space.dimensions import Params, checked_choices, checked_keys, checked_params, combinations
from space.skeleton import SKELETON_KEYS, Skeleton

MAX_WIDTH = 2048  # at 64 planes, that MACs are matched with: ten times the widest choice of the named spaces
WORST_MATCH = 0.1  # of the MACs asked for: beyond it, networks are no longer at "preserved complexity"


@dataclass(frozen=True, slots=True)
class Space:
    """A set of networks: the skeleton with every combination of the choices.

    choices: searched dimension -> its values. per_stage: whether every stage has its own (`scale_1`, `scale_2`, ...).
    Several combinations may be one network: where a width is repaired, they give equal `Arch`.
    """

    name: str
    base: str
    skeleton: Skeleton
    choices: Mapping[str, tuple[int, ...]] = field(hash=False)
    per_stage: bool = False
    _values: dict[str, tuple[int, ...]] = field(init=False, repr=False, compare=False)  # what `parameters` shows

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"name is {self.name!r}; accepted: a text")
        if not isinstance(self.per_stage, bool):
            raise UserError(f"per_stage is {self.per_stage!r}; accepted: true or false")
        object.__setattr__(self, "choices", checked_choices(self.choices))
        self._check_cardinality()
        named = {name: values for suffix, _ in self._groups() for name, values in self._named(suffix)}
        object.__setattr__(self, "_values", named)

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that costs are counted at, unless told otherwise."""
        return self.skeleton.image_size

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """What a sampler chooses: parameter -> its values in ascending order."""
        return dict(self._values)

    @property
    def size(self) -> int:
        """Number of combinations of parameters."""
        return math.prod(map(len, self._values.values()))

    def all_params(self) -> Iterator[Params]:
        """Every combination of parameters, one at a time: a per-stage space has more than memory holds."""
        return combinations(self.parameters)

    def sample(self, rng: random.Random | np.random.Generator) -> Params:
        """Parameters drawn uniformly over the combinations."""
        return {name: values[int(rng.random() * len(values))] for name, values in self._values.items()}

    def sample_by_macs(self, rng: random.Random) -> Params:
        """Parameters drawn so that small and large MACs are seen alike: most combinations are of middling ones.

        Of eight uniform draws the nearest to a number of MACs drawn log-uniformly between the least and the most.
        """
        target = rng.uniform(*_log_macs(self))
        drawn = [self.sample(rng) for _ in range(8)]
        return min(drawn, key=lambda p: abs(math.log(cost(self._build(p), self.image_size).macs) - target))

    def arch(self, params: Mapping[str, int]) -> Arch:
        """The network of the parameters, repaired and in canonical form.

        `UserError` for a parameter that is unknown or missing, or a value that is not among its choices.
        """
        return self._build(self._checked(params))

    def params_of(self, arch: Arch) -> Params | None:
        """Parameters that give the network (the narrowest choices where several do), or None: the reverse of `arch`."""
        stages = arch.stages
        if len(stages) != len(self.skeleton.planes) or self.skeleton.arch(stages) != arch.canonical():
            return None
        out: Params = {}
        for suffix, indices in self._groups():
            # All but the width stand in the stage as they were chosen; what width was repaired is found by trying.
            like = {
                name: [v for v in values if name.startswith("width") or v == getattr(stages[indices[0]], dimension)]
                for dimension, (name, values) in zip(self.choices, self._named(suffix), strict=True)
            }
            matches = (p for p in combinations(like) if all(self._stage(p, i) == stages[i] for i in indices))
            found = next(matches, None)
            if found is None:
                return None
            out |= found
        return {name: out[name] for name in self._values}

    def contains(self, arch: Arch) -> bool:
        """Whether some parameters give the network."""
        return self.params_of(arch) is not None

    def cheapest(self, cost_field: str = "macs", image_size: int | None = None) -> tuple[Params, Cost]:
        """The member with the least MACs (or params, or activations), exactly, and its cost."""
        return self._extreme(min, cost_field, image_size)

    def dearest(self, cost_field: str = "macs", image_size: int | None = None) -> tuple[Params, Cost]:
        """The member with the most MACs (or params, or activations), exactly, and its cost."""
        return self._extreme(max, cost_field, image_size)

    def envelope(self) -> Arch:
        """The network, of cardinality 1, that no member exceeds in a stage's depth, width or scale: a supernet's."""
        most = {
            name: values[0] if name.startswith("cardinality") else values[-1] for name, values in self._values.items()
        }
        stages = [replace(s, width=self._widest(i), cardinality=1) for i, s in enumerate(self._build(most).stages)]
        return self.skeleton.arch(tuple(stages))

    def cardinalities(self) -> tuple[tuple[int, ...], ...]:
        """Each stage's cardinalities."""
        values = self.choices.get("cardinality", (self.skeleton.cardinality,))
        return (values,) * len(self.skeleton.planes)

    def largest(self) -> Arch:
        """The member with the most MACs: all others are cut out of it, if its cardinality divides the others'."""
        return self.arch(self.dearest("macs")[0])

    def at_macs(self, params: Mapping[str, int], macs: int, image_size: int | None = None) -> Arch:
        """The network of the parameters with the one width (at 64 planes) that brings it nearest to `macs`.

        So scale, cardinality and depth are compared at equal complexity, as the paper does (26w x 4s, 14w x 8s). The
        width is any whole number up to `MAX_WIDTH`; parameters of the width are ignored and may be left out.
        `UserError` if the nearest is more than a tenth off: then the width alone cannot make up for the others.
        """
        size = image_size or self.image_size
        widths = {name: values[0] for name, values in self._values.items() if name.startswith("width")}
        values = self._checked({k: v for k, v in params.items() if not k.startswith("width")} | widths)

        def at(width: int) -> Arch:
            return self._build(values | {f"width{suffix}": width for suffix, _ in self._groups()})

        widths = range(1, MAX_WIDTH + 1)
        i = bisect.bisect_left(widths, macs, key=lambda w: cost(at(w), size).macs)  # MACs grow with the width
        nearest = min(map(at, widths[max(0, i - 1) : i + 1]), key=lambda a: abs(cost(a, size).macs - macs))
        got = cost(nearest, size).macs
        if abs(got - macs) > WORST_MATCH * macs:
            shown = ", ".join(f"{k}={v}" for k, v in params.items() if not k.startswith("width"))
            raise UserError(f"match-macs: {macs:,} MACs cannot be met with {shown}; the nearest has {got:,}")
        return nearest

    def match_range(self) -> tuple[tuple[Params, Cost], tuple[Params, Cost]]:
        """Between what `at_macs` can be asked for: the members with the least and the most MACs that it can give."""
        free = replace(self, choices={**self.choices, "width": (1, MAX_WIDTH)})
        return free.cheapest(), free.dearest()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON."""
        return {
            "name": self.name,
            "base": self.base,
            "per_stage": self.per_stage,
            "choices": {dimension: list(values) for dimension, values in self.choices.items()},
            "skeleton": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.skeleton).items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Space:
        """The reverse of `to_dict`; `UserError` for a key that is unknown or missing, or a value that cannot be."""
        keys = tuple(f.name for f in fields(cls) if f.init)
        data = checked_keys(data, keys, "space", required=keys)
        required = tuple(key for key in SKELETON_KEYS if key != "in_channels")  # earlier versions did not write it
        skeleton = checked_keys(data["skeleton"], SKELETON_KEYS, "space: skeleton", required=required)
        return cls(**{**data, "skeleton": Skeleton(**skeleton)})

    def _groups(self) -> list[tuple[str, list[int]]]:
        """What is chosen together: the suffix of the parameters' names, and the stages (from 0) that they set."""
        stages = range(len(self.skeleton.planes))
        return [(f"_{i + 1}", [i]) for i in stages] if self.per_stage else [("", list(stages))]

    def _named(self, suffix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The parameters of a group, in the order of `choices`; a stage's own depth is a plain count of its blocks."""
        for dimension, values in self.choices.items():
            if suffix and dimension == "depth":
                values = tuple(dict.fromkeys(self.skeleton.blocks(d, int(suffix[1:]) - 1) for d in values))
            yield dimension + suffix, values

    def _stage(self, values: Mapping[str, int], i: int) -> Stage:
        s, suffix = self.skeleton, f"_{i + 1}" if self.per_stage else ""
        own = self.per_stage and "depth" in self.choices
        return s.stage(
            i,
            values.get("scale" + suffix, s.scale),
            values.get("cardinality" + suffix, s.cardinality),
            values["depth" + suffix] if own else s.blocks(values.get("depth", s.depth), i),
            values.get("width" + suffix, s.width),
        )

    def _build(self, values: Mapping[str, int]) -> Arch:
        return self.skeleton.arch(tuple([self._stage(values, i) for i in range(len(self.skeleton.planes))]))

    def _widest(self, i: int) -> int:
        """Channels of the widest split of a stage (from 0), at its best repaired cardinality."""
        width = max(self.choices.get("width", (self.skeleton.width,)))
        return max(self.skeleton.stage(i, 1, c, 1, width).width for c in self.cardinalities()[i])

    def _checked(self, params: Mapping[str, int]) -> Params:
        return checked_params(params, self._values, f"space {self.name}")

    def _check_cardinality(self) -> None:
        planes = min(self.skeleton.planes)
        widest = planes * max(self.choices.get("width", (self.skeleton.width,))) // 64
        most = max(self.choices.get("cardinality", (self.skeleton.cardinality,)))
        if most > widest:
            raise UserError(
                f"cardinality {most} is more than the channels of a split at {planes} planes, at most {widest}; "
                f"accepted: a cardinality of at most {widest}, or a width of at least {-(-64 * most // planes)}"
            )

    def _extreme(self, pick: Callable[..., Params], cost_field: str, image_size: int | None) -> tuple[Params, Cost]:
        """Group by group, the others held.

        That is exact: a stage's input and output are the skeleton's, so what it costs does not depend on the others.
        """
        if cost_field not in Cost._fields:
            raise unknown("cost", cost_field, Cost._fields)
        size = image_size or self.image_size
        best = {name: values[0] for name, values in self._values.items()}
        for suffix, _ in self._groups():
            members = (best | p for p in combinations(dict(self._named(suffix))))
            best = pick(members, key=lambda p: getattr(cost(self._build(p), size), cost_field))
        return best, cost(self._build(best), size)


@lru_cache(maxsize=16)
def _log_macs(space: Space) -> tuple[float, float]:
    """Logarithms of the least and the most MACs of a space: a supernet's steps ask for them again and again."""
    return math.log(space.cheapest()[1].macs), math.log(space.dearest()[1].macs)
