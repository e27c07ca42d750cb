"""The groups of a search's settings: frozen dataclasses with the defaults, help texts and checks of all settings.

The metadata of a field describe the field's command-line option; `res2net.options` explains the metadata's keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

import space as spaces
import trainers.datasets.data
from res2net.errors import UserError, unknown
from res2net.latency import LatencyTable
from search.fields import check_choice, check_least, option
from search.latency_cache import parse_table
from search.objectives import COSTS, LATENCY, MACS, NAMES, Limits, Matching, Objective, cost_objectives, limits, quality
from search.scheduler import SCHEDULERS, rungs
from search.study.sampler import SAMPLERS, factory
from search.units import parse_bound, parse_count, parse_seconds, parse_share
from space import Space
from trainers.datasets.data import Data
from trainers.recipes import RECIPES, Config, parse_recipe, shortened
from trainers.tasks import TASKS
from trainers.tasks.metrics import METRICS, metric_of

CONFIRM_BY = ("tune", "scratch")
SHORT = RECIPES["short"]
LIMITS = tuple(f"{side}_{name}" for name in NAMES for side in ("max", "min"))  # not all of them are settings


def limit(name: str, what: str, **more: Any) -> Any:
    """Return a field for a limit on a cost: a value (20M, 5ms), a share of the baseline's cost (60%), or None."""
    side = "at most" if name.startswith("max_") else "at least"
    text = f"search networks of {side} {what}; default: no limit)"
    return option(None, text, "N", parse=parse_bound, **more)


@dataclass(frozen=True, slots=True)
class Scope:
    """The scope of a search: the space, its limits, the cost objective, the data and the seed."""

    space: str = option(
        "scale_card_depth", "the space: {choices}, or a YAML file", "NAME", choices=spaces.names, common=True
    )
    base: str | None = option(
        None,
        "the base: {choices} (default: the one that suits the data set)",
        "NAME",
        choices=lambda: spaces.BASES,
        common=True,
    )
    per_stage: bool = option(False, "give every stage its own values")
    objective: str = option(
        MACS.name,
        "the cost on the front, or several with commas: {choices}, or my_package:NAME",
        "NAME",
        choices=lambda: NAMES,
    )
    max_macs: float | str | None = limit("max_macs", "N MACs (20M, 4.2G, or 60% of the baseline's", common=True)
    min_macs: float | str | None = limit("min_macs", "N MACs (20M, 10%")
    max_params: float | str | None = limit("max_params", "N parameters (5M, 50%")
    max_activations: float | str | None = limit("max_activations", "N activations per image (2M, 50%")
    max_latency: float | str | None = limit("max_latency", "N of latency (5ms, 800us, 60%")
    latency: LatencyTable | None = option(  # noqa: RUF009  (`option` returns a field)
        None,
        "the latency table (default: this device's last table, or a new one, measured first)",
        "FILE",
        parse=parse_table,
    )
    baseline: str | None = option(
        None,
        "the network to which relative limits refer: a name (python -m res2net), an arch.json file, a model folder, or "
        "a run for its best network (default: the space's dearest network)",
        "NAME",
    )
    match_macs: int | None = option(
        None, "compare networks at N MACs: solve the width for each shape (default: off)", "N", parse=parse_count
    )
    data: str = option(
        "shapes",
        "the data set: {choices}, or my_package:NAME",
        "NAME",
        choices=trainers.datasets.data.names,
        common=True,
    )
    data_dir: str | None = option(None, "the folder of the data set's files", "DIR", common=True)
    task: str = option("classification", "the task: {choices}", "NAME", choices=lambda: tuple(TASKS))
    train_images: int | None = option(None, "train on only N images (default: all)", "N")
    image_size: int | None = option(
        None,
        "pixels along a side (default: 128 for scenes, 513 for voc, 640 for coco, else a guess from the image files)",
        "N",
    )
    seed: int = option(0, "the seed of the validation split, the proposals and the trainings", "N")

    def __post_init__(self) -> None:
        dataset = trainers.datasets.data.get(self.data)
        check_choice("task", self.task, tuple(TASKS))
        trainers.datasets.data.check_target(self.data, TASKS[self.task].target)
        if self.base is not None and self.base not in spaces.BASES:
            raise unknown("`base`", self.base, spaces.BASES)
        if isinstance(self.latency, Mapping):  # from JSON
            values = {**self.latency, "versions": dict(self.latency["versions"])}
            object.__setattr__(self, "latency", LatencyTable.from_dict(values))
        cost_objectives(self.objective)
        for name in LIMITS:
            if isinstance(value := getattr(self, name, None), str):
                object.__setattr__(self, name, parse_bound(value, name))
        if self.image_size is not None:
            dataset.check_image_size(self.image_size)
        check_least("train_images", self.train_images)
        self.limits.check_order()

    @property
    def costs(self) -> tuple[Objective, ...]:
        """The cost objectives. The plan, the levels of cost and the order of the front follow the first one."""
        return cost_objectives(self.objective, self.latency)

    @property
    def cost(self) -> Objective:
        """The first cost objective."""
        return self.costs[0]

    @property
    def limits(self) -> Limits:
        """The hard limits on a network's costs, without relative limits."""
        known = {name: value for name in LIMITS if not isinstance(value := getattr(self, name, None), str)}
        return limits(known, self.latency)

    @property
    def timed(self) -> bool:
        """Whether the search needs a latency table."""
        return self.max_latency is not None or any(o.name == LATENCY.name for o in self.costs)

    @property
    def shares(self) -> dict[str, float]:
        """The limits that are shares of the baseline's cost (`search.baseline`)."""
        return {
            name: parse_share(value, name) for name in LIMITS if isinstance(value := getattr(self, name, None), str)
        }

    @property
    def matching(self) -> Matching:
        """The comparison of networks at equal MACs, which the setting `match_macs` turns on."""
        return Matching(self.match_macs)

    def get_space(self, num_classes: int, image_size: int | None = None, in_channels: int | None = None) -> Space:
        """Return the space over the setting `base`, with the head of the task.

        By default, the base is the one that suits the data set. With a limit on a count, such as the number of
        parameters, it is the base whose members within the limit span the most octaves (doublings). Raise `UserError`
        if no base has a member within the limit.
        image_size: the side, in pixels, of the images for which costs are counted; None takes the base's size.
        """
        known = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}

        def over(base: str) -> Space:
            space = spaces.get(self.space, base, self.per_stage, **known)
            any_member = space.arch({name: values[0] for name, values in space.parameters.items()})
            head = TASKS[self.task].head(any_member, space.image_size)
            return space if head is None else space.with_head(head)

        usual = trainers.datasets.data.get(self.data).base(image_size)
        upper = {o: self.limits.of(o).most for o in (*self.costs, *COSTS.values()) if o.name in COSTS}
        cost, most = next(((o, most) for o, most in upper.items() if most is not None), (self.cost, None))
        # With matching, the widths are solved for the MACs, so the base's widths do not matter.
        if self.base is not None or most is None or self.matching.active:
            return over(self.base or usual)
        found = {space.base: space for space in map(over, (usual, *spaces.bases_like(usual)))}
        ranges = {base: cost.range(space) for base, space in found.items()}
        octaves = {b: cost.axis(min(high, most)) - cost.axis(low) for b, (low, high) in ranges.items()}
        best = max(octaves, key=lambda b: octaves[b])
        if octaves[best] < 0:
            least = ", ".join(f"at least {cost.format(low)} ({b})" for b, (low, _) in ranges.items())
            raise UserError(f"`max_{cost.name}`: no base has a network within {cost.format(most)}; accepted: {least}")
        return found[best]

    def load_data(self, console: Console | None = None) -> Data:
        """Return the data set without its test split. console: shows the progress of a long decoding."""
        return trainers.datasets.data.load(
            self.data,
            self.data_dir,
            seed=self.seed,
            train_images=self.train_images,
            image_size=self.image_size,
            target=TASKS[self.task].target,
            console=console,
        )


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a network gets its score."""

    evaluator: str | None = option(
        None,
        "how a trial gets its score: {choices}, or my_package:NAME (default: grow if a plan gains by it, else scratch)",
        "NAME",
        common=True,
    )
    metric: str = option(
        "top1", "the score of a network: {choices}, or my_package:NAME", "NAME", choices=lambda: tuple(METRICS)
    )
    epochs: int | None = option(
        None, "the full budget of a trial, in epochs (default: planned from --time, else 2)", "N", common=True
    )
    recipe: Config = option(  # noqa: RUF009  (`option` returns a field)
        SHORT,
        f"how trials are trained: {', '.join(RECIPES)}, or a YAML file that changes a recipe",
        "NAME",
        parse=parse_recipe,
        shown="short",
    )
    batch_size: int | None = option(None, "images per step (default: the recipe's)", "N")
    lr: float | None = option(None, "the peak learning rate (default: the recipe's)", "X")
    include: str | None = option(
        None, "networks to start from: names (python -m res2net), arch.json files, trained model folders", "A,B"
    )
    from_run: str | None = option(None, "start with the front of an earlier run on the same data: its folder", "DIR")
    supernet: str | None = option(
        None, "the folder of shared weights from search.supernet (default: train them first)", "DIR"
    )
    supernet_epochs: int = option(8, "epochs that train the shared weights", "N")
    confirm: int = option(4, "train K networks of the front that shared weights found", "K")
    confirm_by: str = option(
        "tune",
        "how these networks are trained: {choices} (tune: from their slices)",
        "NAME",
        choices=lambda: CONFIRM_BY,
    )

    def __post_init__(self) -> None:
        if isinstance(self.recipe, Mapping):  # from JSON
            object.__setattr__(self, "recipe", Config(**self.recipe))
        metric_of(self.metric)
        check_choice("confirm_by", self.confirm_by, CONFIRM_BY)
        check_least("epochs", self.epochs)
        check_least("supernet_epochs", self.supernet_epochs)
        check_least("batch_size", self.batch_size)
        check_least("confirm", self.confirm, 0)
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"`lr`: {self.lr} is out of range; accepted: a finite number above 0")

    @property
    def quality(self) -> Objective:
        """The quality objective: the metric on the validation split."""
        return quality(metric_of(self.metric))

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: the setting `lr`, or the recipe's."""
        return self.recipe.lr if self.lr is None else self.lr

    def train_config(self, seed: int) -> Config:
        """Return the training configuration of a trial: the recipe with the settings' epochs, batch size and rate."""
        changes = {k: v for k, v in (("batch_size", self.batch_size), ("lr", self.lr)) if v is not None}
        return shortened(self.recipe, self.epochs or self.recipe.epochs, seed=seed, **changes)


@dataclass(frozen=True, slots=True)
class Budget:
    """How networks are proposed, how many, and for how long."""

    sampler: str = option(
        "tpe", "how networks are proposed: {choices}, or my_package:NAME", "NAME", choices=lambda: tuple(SAMPLERS)
    )
    trials: int | None = option(
        None, "number of networks to score in all (default: planned from --time, else 12)", "N", common=True
    )
    time: float | None = option(
        None,
        "how long the search may take, with everything (90s, 30m, 6h; default: 3m for a planned search, else no limit)",
        "T",
        parse=parse_seconds,
        common=True,
    )
    repeat: int = option(1, "train the networks of the final front with K seeds in all", "K")
    scheduler: str = option("none", "which trials stop early: {choices}", "NAME", choices=lambda: SCHEDULERS)
    eta: int = option(3, "continue one trial in N at each rung", "N")
    min_epochs: int = option(1, "epochs before the first rung", "N")

    def __post_init__(self) -> None:
        if ":" in self.sampler or self.sampler not in SAMPLERS:
            factory(self.sampler)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        check_least("trials", self.trials)
        check_least("repeat", self.repeat)
        check_least("min_epochs", self.min_epochs)
        check_least("eta", self.eta, 2)
        if self.time is not None and not 0 < self.time < math.inf:
            raise UserError(f"`time`: {self.time} is out of range; accepted: a finite number of seconds above 0")

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs after which trials are compared and checkpointed, for a full budget of `epochs`."""
        return rungs(epochs, self.min_epochs, self.eta)
