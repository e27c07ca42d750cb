"""How to train: the values of a training, named sets of them (recipes), and files that override one.

A recipe file is YAML with any of the keys of `Config` that are a recipe's, and `recipe`, the name that it starts from:

    recipe: modern
    epochs: 60
    lr: 0.2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from res2net.errors import UserError, unknown
from trainers.device import PRECISIONS

SCHEDULES = ("cosine", "step")
CROPS = ("auto", "pad", "resized")


@dataclass(frozen=True, slots=True)
class Config:
    """How to train. Rates are for batches of `batch_size` images; `crop_padding` is in pixels.

    schedule: of the learning rate, after a linear `warmup` of so many epochs: a `cosine` to zero, or by `step`, a tenth
    from each epoch of `milestones` on. decay_norms: whether weight decay shrinks what is no matrix, too (batch norms,
    biases). mixup, cutmix: parameters of the Beta distribution that a batch's share is drawn from (0: not done; with
    both, every batch gets one of the two). ema: decay a step of averaged weights, which are scored and kept (0: none).
    crop: what training sees of an image: `pad` shifts it by up to `crop_padding`; `resized` is 8 to 100 % of its area,
    as ImageNet is trained; `auto` is the one for image files, the other for images of one size.
    """

    epochs: int = 3
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = True
    schedule: str = "cosine"
    warmup: float = 0.5
    milestones: tuple[float, ...] = ()
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    crop: str = "auto"
    crop_padding: int = 2
    flip: bool = True
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # a list, where it was read from JSON
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: a whole number of at least 1")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr is {self.lr}; accepted: a number above 0")
        for name in ("weight_decay", "warmup", "crop_padding", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: a number of at least 0")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: a number from 0 up to, not including, 1")
        for name, accepted in (("precision", PRECISIONS), ("schedule", SCHEDULES), ("crop", CROPS)):
            if getattr(self, name) not in accepted:
                raise unknown(name, getattr(self, name), accepted)
        self._check_milestones()

    def _check_milestones(self) -> None:
        if self.schedule == "step" and not self.milestones:
            raise UserError("milestones is empty; accepted with schedule step: the epochs from which the rate is lower")
        rising = all(a < b for a, b in zip((0.0, *self.milestones), self.milestones, strict=False))
        if not rising or any(m >= self.epochs for m in self.milestones):
            raise UserError(
                f"milestones is {list(self.milestones)}; accepted: rising epochs above 0, below epochs ({self.epochs})"
            )

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate at a step: linear warm-up, then the schedule."""
        warmup, total = self.warmup * steps_per_epoch, self.epochs * steps_per_epoch
        if step < warmup:
            return self.lr * (step + 1) / (warmup + 1)
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(step >= m * steps_per_epoch for m in self.milestones)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


RUN_KEYS = ("precision", "device", "seed")  # of a run on some machine, not of a recipe
KEYS = tuple(f.name for f in fields(Config) if f.name not in RUN_KEYS)

RECIPES: Mapping[str, Config] = {
    "fast": Config(epochs=10),  # the search's, for longer
    "paper-cifar": Config(  # as ResNeXt-29 is trained (arXiv 1611.05431, section 5.3)
        epochs=300,
        batch_size=128,
        schedule="step",
        milestones=(150, 225),
        warmup=0,
        label_smoothing=0,
        crop="pad",
        crop_padding=4,
    ),
    "paper-imagenet": Config(  # arXiv 1904.01169, section 4.1
        epochs=100,
        batch_size=256,
        nesterov=False,
        weight_decay=1e-4,
        schedule="step",
        milestones=(30, 60, 90),
        warmup=0,
        label_smoothing=0,
        crop="resized",
    ),
    "modern": Config(
        epochs=100,
        batch_size=128,
        decay_norms=False,
        warmup=5,
        mixup=0.2,
        cutmix=1.0,
        ema=0.999,
        crop_padding=4,
    ),
}


def recipe(text: str, changes: Mapping[str, Any] | None = None) -> Config:
    """The recipe of that name, or of a YAML file, with changes; `UserError` for a key or value that cannot be.

    Where the epochs are changed, and the schedule's warm-up and milestones are not, these keep their share of it.
    """
    if text in RECIPES:
        return _changed(RECIPES[text], changes or {})
    if not text.endswith((".yaml", ".yml", ".json")) and "/" not in text:
        raise unknown("--recipe", text, (*RECIPES, "a YAML file"))
    try:
        values = _read(Path(text))
        start = values.pop("recipe", "fast")
        if start not in RECIPES:
            raise unknown("recipe", start, RECIPES)
        base = _changed(RECIPES[start], {key: _value(key, value) for key, value in values.items()})
    except UserError as error:
        raise UserError(f"--recipe {text}: {error}") from None
    return _changed(base, changes or {})


def differences(ours: Config, theirs: Config) -> list[str]:
    """`key: theirs, not ours` for each value that two trainings do not share; the device alone may differ."""
    a, b = asdict(ours), asdict(theirs)
    return [f"{key} {b[key]}, not {a[key]}" for key in a if key != "device" and a[key] != b[key]]


def _changed(config: Config, changes: Mapping[str, Any]) -> Config:
    changes = dict(changes)
    factor = changes.get("epochs", config.epochs) / config.epochs
    if factor > 0:
        changes.setdefault("warmup", config.warmup * factor)
        changes.setdefault("milestones", tuple(m * factor for m in config.milestones))
    return replace(config, **changes)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}); accepted: {', '.join(RECIPES)}, or a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise UserError(f"holds a {type(data).__name__}; accepted: keys and values ({', '.join(KEYS)}, recipe)")
    for key in data:
        if key not in (*KEYS, "recipe"):
            raise unknown("key", key, (*KEYS, "recipe"))
    return data


def _value(key: str, value: object) -> object:
    """The value as the field's type; YAML 1.1 reads 1e-4 as text."""
    default = getattr(Config(), key)
    try:
        if isinstance(default, bool):
            good = value if isinstance(value, bool) else None
        elif isinstance(default, tuple):
            good = tuple(float(v) for v in value) if isinstance(value, list) else None
        elif isinstance(default, str):
            good = value if isinstance(value, str) else None
        else:
            number = None if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
            whole = number is not None and number.is_integer()
            good = number if isinstance(default, float) else int(number) if whole else None
    except (TypeError, ValueError):
        good = None
    if good is None:
        kinds = {bool: "true or false", tuple: "a list of epochs", str: "a word", int: "a whole number"}
        raise UserError(f"{key} is {value!r}; accepted: {kinds.get(type(default), 'a number')}")
    return good
