"""The values of a plan: the networks to train in a given time. `search.planner` makes plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from search.front import Axis, hypervolume

LEAST_EPOCHS = 1.0


@dataclass(frozen=True, slots=True)
class Curve:
    """The expected error of a network, from 0 (no error) to 1 (chance), by its size and the length of its training.

    After an endless training, the error is `floor + room * 2 ** (-decay * octaves)`. The octaves are the doublings of
    multiply-accumulates above the smallest network's. After some passes over `images` training images, the error is
    larger by `short * (1 + growth * octaves) * passes ** -power`.

    most: the number of passes after which networks only overfit.
    """

    floor: float
    room: float
    decay: float
    short: float
    growth: float
    power: float
    images: int
    most: float

    def endless(self, octaves: float) -> float:
        """Return the error of an endless training."""
        return self.floor + self.room * 2 ** (-self.decay * octaves)

    def lack(self, octaves: float) -> float:
        """Return the additional error after a training of only one pass."""
        return self.short * (1 + self.growth * max(0.0, octaves))


# A fit to trainings of four networks of 0.3 to 4 MMACs for 3, 6 and 12 epochs on CIFAR-10 (`studies/LOG.md`). A plan
# needs only the relative worth of networks and epochs.
CLASSES = Curve(floor=0.12, room=0.19, decay=0.45, short=0.21, growth=0.23, power=0.9, images=45_000, most=40.0)
# A rough fit to trainings of networks of 37 to 67 MMACs for 8 to 24 epochs of segmentation on `scenes`.
PIXELS = Curve(floor=0.0, room=0.45, decay=0.08, short=0.7, growth=0.0, power=0.3, images=2_000, most=200.0)
CURVES = {"classification": CLASSES}  # by task; others take `PIXELS`


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that a plan may train.

    cost: the value of the first cost objective. seconds: seconds of one epoch on one worker. most: maximum of epochs.
    """

    params: Mapping[str, int]
    cost: float
    seconds: float
    most: float = math.inf


@dataclass(frozen=True, slots=True)
class Level:
    """A network that the plan trains.

    epochs: may be a fraction. start, seconds: the expected start and duration.
    trunk: the epochs at the peak rate after which larger networks grow from this one.
    """

    params: Mapping[str, int]
    cost: float
    epochs: float
    start: float
    seconds: float
    trunk: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The networks to train in a given time.

    seconds: the time for training. workers: concurrent trials.
    levels: the networks in their order of start.
    explore: the number of further networks that the sampler may propose.
    volume: the expected volume in %. idle: the expected share of the workers' time without work.
    grown: whether each network grows from a cheaper one.
    """

    seconds: float
    workers: int
    levels: tuple[Level, ...]
    explore: int
    volume: float
    idle: float
    grown: bool = False

    @property
    def first(self) -> float:
        """The expected seconds until the first network has its score."""
        return min((level.start + level.seconds for level in self.levels), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the plan that `to_dict` wrote."""
        return cls(**{**data, "levels": tuple(Level(**level) for level in data["levels"])})


@dataclass(frozen=True, slots=True)
class Pace:
    """The measured speed of training.

    costs, seconds: for each network of a plan, its cost and the seconds of one epoch on one worker, by rising cost.
    overhead: seconds of a trial outside its epochs.
    """

    costs: tuple[float, ...]
    seconds: tuple[float, ...]
    overhead: float = 1.0

    def of(self, cost: float) -> float:
        """Return the seconds of an epoch of a network, interpolated on logarithmic axes."""
        log = np.interp(math.log(cost), np.log(self.costs), np.log(self.seconds))
        if cost > self.costs[-1]:  # beyond the measured range, time is proportional to the cost
            log += math.log(cost / self.costs[-1])
        return float(math.exp(log))

    def scaled(self, factor: float) -> Pace:
        """Return the pace of a machine that is slower by a factor."""
        return replace(self, seconds=tuple(factor * s for s in self.seconds))


@dataclass(frozen=True, slots=True)
class Terms:
    """The inputs of a plan, apart from the time and the pace.

    low, high: the range of costs of the volume.
    images: training images of one epoch.
    known: cost and accuracy above chance (0 to 1) of networks that are on the front already.
    sizes: pairs of a cost and the doublings of multiply-accumulates above the smallest network's, by rising cost. The
        doublings determine the expected accuracy. Empty if the cost is the number of multiply-accumulates.
    curve: the expected errors of the task.
    """

    low: float
    high: float
    images: int
    known: tuple[tuple[float, float], ...] = ()
    sizes: tuple[tuple[float, float], ...] = ()
    curve: Curve = CLASSES

    def octaves(self, cost: float) -> float:
        """Return the doublings of the cost above the least cost."""
        return math.log2(cost / self.low)

    def size(self, cost: float) -> float:
        """Return the doublings of multiply-accumulates above the least network's, interpolated between `sizes`."""
        if not self.sizes:
            return self.octaves(cost)
        costs, sizes = zip(*self.sizes, strict=True)
        return float(np.interp(math.log(cost), np.log(costs), sizes))

    @property
    def pass_share(self) -> float:
        """The ratio of an epoch to a pass of the curve."""
        return self.images / self.curve.images

    @property
    def most_epochs(self) -> float:
        """The number of epochs after which networks only overfit."""
        return self.curve.most / self.pass_share


def expected(terms: Terms, cost: float, epochs: float) -> float:
    """Return the expected accuracy above chance, from 0 to 1, of a network trained for some epochs."""
    size, curve = terms.size(cost), terms.curve
    return max(0.0, 1 - curve.endless(size) - curve.lack(size) * (epochs * terms.pass_share) ** -curve.power)


def volume_of(terms: Terms, points: Sequence[tuple[float, float]]) -> float:
    """Return the volume in % of points (cost, accuracy above chance)."""
    costs, qualities = [cost for cost, _ in points], [100 * quality for _, quality in points]
    return hypervolume(qualities, Axis(costs, terms.low, terms.high))
