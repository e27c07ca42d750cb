"""All that decides a search, as one frozen value that is written to `run.json`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rich.console import Console

import space as spaces
import trainers.datasets.data
from res2net.arch import Arch
from res2net.cost import Cost, cost
from res2net.errors import UserError, unknown
from search.scheduler import SCHEDULERS
from search.units import format_count
from space import Space
from space.space import MAX_WIDTH
from trainers.datasets.data import Data
from trainers.recipes import Config

SAMPLERS = ("tpe", "nsga2", "random")
EXECUTORS = ("tune", "local")
EVALUATORS = ("scratch", "supernet", "inherit")
CONFIRM_BY = ("tune", "scratch")
TUNED = 5  # what tunes a slice of shared weights has a peak rate so many times lower than what trained them

# What may differ when a search goes on: how long and where, not what is searched or how it is scored.
RESOURCES = ("workers", "cpus_per_trial", "gpus_per_trial", "ray_address")
FREE = ("data_dir", "trials", "time", "confirm", "executor", *RESOURCES)

# And what may differ between drivers of one study: each has its own way to it.
FREE_OF_DRIVERS = (*FREE, "storage", "study")


@dataclass(frozen=True, slots=True)
class Settings:
    """A search's settings, named as the options of `python -m search.run`.

    Counts are of one image's multiply-accumulates or of weights; `time` is in seconds; None is no limit.
    evaluator: how a trial gets its score: trained from `scratch`; by the weights of a `supernet`, of which `confirm`
    networks of the front found are then trained (`confirm_by`: from scratch, or tuned from their slices); or tuned from
    its slice of one (`inherit`).
    supernet: the folder of a trained one, else it is trained first, for `supernet_epochs`.
    scheduler: which trials are stopped early, after `min_epochs` and its products with powers of `eta` (see there).
    image_size: pixels along a side that images of a folder are resized to; a guess from the files if None.
    storage: the URL of the PostgreSQL database that holds the study of the name `study`, which several drivers may
    search at once; SQLite in the run's folder if None. ray_address: of a running cluster.
    """

    space: str = "scale_card_depth"
    base: str | None = None
    per_stage: bool = False
    data: str = "shapes"
    data_dir: str | None = None
    train_images: int | None = None
    image_size: int | None = None
    max_macs: int | None = None
    min_macs: int | None = None
    max_params: int | None = None
    max_activations: int | None = None
    match_macs: int | None = None
    sampler: str = "tpe"
    trials: int = 12
    time: float | None = None
    epochs: int = 2
    scheduler: str = "none"
    eta: int = 3
    min_epochs: int = 1
    batch_size: int = 64
    lr: float = 0.1
    evaluator: str = "scratch"
    supernet: str | None = None
    supernet_epochs: int = 8
    confirm: int = 4
    confirm_by: str = "tune"
    storage: str | None = None
    study: str | None = None
    executor: str = "tune"
    workers: int | None = None
    cpus_per_trial: int = 1
    gpus_per_trial: float | None = None
    ray_address: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        dataset = trainers.datasets.data.get(self.data)
        _choice("--sampler", self.sampler, SAMPLERS)
        _choice("--scheduler", self.scheduler, SCHEDULERS)
        _choice("--executor", self.executor, EXECUTORS)
        _choice("--evaluator", self.evaluator, EVALUATORS)
        _choice("--confirm-by", self.confirm_by, CONFIRM_BY)
        _check_storage(self)
        if self.image_size is not None:
            dataset.check_image_size(self.image_size)
        if self.match_macs and self.evaluator != "scratch":
            raise UserError(
                f"--match-macs: its widths are none of the supernet's, which --evaluator {self.evaluator} needs; "
                "accepted: with --evaluator scratch"
            )
        if self.supernet is not None and self.evaluator == "scratch":
            raise UserError("--supernet: says nothing with --evaluator scratch; accepted: with supernet or inherit")
        if self.confirm < 0:
            raise UserError(f"--confirm: {self.confirm} is too small; accepted: at least 0")
        if self.eta < 2:
            raise UserError(f"--eta: {self.eta} is too small; accepted: at least 2")
        counts = ("trials", "epochs", "min_epochs", "supernet_epochs", "batch_size", "workers", "train_images")
        for name in (*counts, "cpus_per_trial"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')}: {value} is too small; accepted: at least 1")
        if not self.lr > 0:
            raise UserError(f"--lr: {self.lr} is too small; accepted: a number above 0")
        if self.gpus_per_trial is not None and not 0 <= self.gpus_per_trial <= 16:
            raise UserError(f"--gpus-per-trial: {self.gpus_per_trial} is out of range; accepted: 0 to 16 (0.25, say)")
        if self.scheduler != "none" and self.evaluator == "supernet":
            raise UserError("--scheduler: shared weights score a network in one go; accepted: none")
        if self.scheduler != "none" and self.min_epochs >= self.epochs:
            raise UserError(
                f"--min-epochs: {self.min_epochs} leaves no rung below --epochs {self.epochs}; "
                "accepted: less than --epochs, or --scheduler none"
            )
        if self.max_macs and self.min_macs and self.min_macs > self.max_macs:
            raise UserError(
                f"--min-macs: {format_count(self.min_macs)} is more than --max-macs {format_count(self.max_macs)}; "
                "accepted: at most that"
            )

    def get_space(self, num_classes: int, image_size: int | None = None, in_channels: int | None = None) -> Space:
        """The space, on the base that was asked for or that suits the data set; costs are of images of that size."""
        base = self.base or trainers.datasets.data.get(self.data).base(image_size)
        known = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}
        return spaces.get(self.space, base, self.per_stage, **known)

    def load_data(self, console: Console | None = None) -> Data:
        """What the search may see of the data set; `console` shows a decoding that takes long."""
        return trainers.datasets.data.load(
            self.data,
            self.data_dir,
            seed=self.seed,
            train_images=self.train_images,
            image_size=self.image_size,
            console=console,
        )

    def train_config(self, seed: int) -> Config:
        """How a trial is trained."""
        return Config(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, seed=seed)

    @property
    def tunes(self) -> bool:
        """Whether the networks of the front start from shared weights."""
        return self.evaluator == "inherit" or (self.evaluator == "supernet" and self.confirm_by == "tune")

    @property
    def final_lr(self) -> float:
        """Peak learning rate of the networks of the final front."""
        return self.lr / TUNED if self.evaluator == "supernet" and self.tunes else self.lr

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise unknown("settings: key", key, known)
        return cls(**data)

    def differences(self, other: Settings, free: Sequence[str] = FREE) -> list[str]:
        """`--option: theirs, not ours` for each setting that a search cannot change half-way."""
        out = []
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name not in free and ours != theirs:
                out.append(f"--{field.name.replace('_', '-')} {theirs}, not {ours}")
        return out


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits on a network's cost, checked on integers before it is built."""

    max_macs: int | None = None
    min_macs: int | None = None
    max_params: int | None = None
    max_activations: int | None = None

    def violations(self, cost: Cost) -> list[float]:
        """One number a limit, as the share by which it is missed: above 0 is a violation."""
        out = []
        if self.max_macs is not None:
            out.append(cost.macs / self.max_macs - 1)
        if self.min_macs is not None:
            out.append(1 - cost.macs / self.min_macs)
        if self.max_params is not None:
            out.append(cost.params / self.max_params - 1)
        if self.max_activations is not None:
            out.append(cost.activations / self.max_activations - 1)
        return out

    def allow(self, cost: Cost) -> bool:
        return all(v <= 0 for v in self.violations(cost))


def limits_of(settings: Settings) -> Limits:
    return Limits(settings.max_macs, settings.min_macs, settings.max_params, settings.max_activations)


def member(space: Space, params: Mapping[str, int], match_macs: int | None) -> Arch:
    """The network of these parameters; with `match_macs`, as wide as that many MACs allow."""
    return space.at_macs(params, match_macs) if match_macs else space.arch(params)


def check_limits(space: Space, settings: Settings) -> None:
    """`UserError` for a limit that nothing in the space meets, with the nearest there is."""
    if settings.match_macs:
        _check_match(space, settings)
        return
    for option, limit, field in (
        ("--max-macs", settings.max_macs, "macs"),
        ("--max-params", settings.max_params, "params"),
        ("--max-activations", settings.max_activations, "activations"),
    ):
        least = getattr(space.cheapest(field)[1], field)
        if limit is not None and limit < least:
            raise UserError(
                f"{option}: nothing in space {space.name!r} ({space.base}) is within {format_count(limit)}; "
                f"accepted: at least {least}, its cheapest"
            )
    most = space.dearest("macs")[1].macs
    if settings.min_macs is not None and settings.min_macs > most:
        raise UserError(
            f"--min-macs: nothing in space {space.name!r} ({space.base}) reaches {format_count(settings.min_macs)}; "
            f"accepted: at most {most}, its dearest"
        )


def _check_match(space: Space, settings: Settings) -> None:
    """`UserError` if no shape of a few hundred can be made that dear, or none that can is within the limits."""
    (narrow, least), (wide, most) = space.match_range()
    rng, error = random.Random(settings.seed), None
    for params in (narrow, wide, *(space.sample(rng) for _ in range(300))):
        try:
            if limits_of(settings).allow(cost(member(space, params, settings.match_macs), space.image_size)):
                return
            error = "no shape of that many MACs is within the other limits"
        except UserError as problem:
            error = error or str(problem)
    macs = settings.match_macs or 0
    if not least.macs <= macs <= most.macs:
        error = f"accepted: {least.macs} (its cheapest shape, 1 channel wide) to {most.macs} (its dearest, {MAX_WIDTH})"
    raise UserError(
        f"--match-macs: nothing in space {space.name!r} ({space.base}) matches {format_count(macs)}: {error}"
    )


def _check_storage(settings: Settings) -> None:
    """`UserError` for a URL that is none of PostgreSQL, or with a password, which `run.json` and plots would show."""
    if settings.storage is None:
        if settings.study is not None:
            raise UserError("--study: says nothing without --storage; accepted: with the URL of a PostgreSQL database")
        return
    try:
        url = urlsplit(settings.storage)
        known = url.scheme in ("postgresql", "postgresql+psycopg") and url.path.strip("/")
        secret = url.password is not None or "password" in parse_qs(url.query)
    except ValueError:
        known = secret = False
    if secret:
        raise UserError(
            "--storage: holds a password, which would be written down with the settings; accepted: the URL without it, "
            "and the password in PGPASSWORD or ~/.pgpass"
        )
    if not known:
        raise UserError("--storage: no URL of a PostgreSQL database; accepted: postgresql://user@host:5432/database")
    if settings.evaluator != "scratch" and settings.supernet is None:
        raise UserError(
            f"--storage: with --evaluator {settings.evaluator} all drivers need the same shared weights; "
            "accepted: with --supernet"
        )


def _choice(option: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise unknown(option, value, accepted)
