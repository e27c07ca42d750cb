"""The settings of a training (`Config`), named settings (recipes), and recipe files.

A recipe file is YAML. Its key `recipe` names the recipe that the file changes (default: fast). The other keys are
fields of `Config`:

    recipe: modern
    epochs: 60
    lr: 0.2
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from res2net.errors import UserError, unknown
from trainers.device import PRECISIONS
from trainers.recipe_file import converted, read_values

SCHEDULES = ("cosine", "step", "linear", "rex", "constant", "poly")
OPTIMIZERS = ("sgd", "adamw")
CROPS = ("auto", "pad", "resized", "scaled")
POWER = 0.9  # exponent of the schedule `poly`
MAX_SEED = 2**32 - 1  # on a CPU, torch reads 32 bits of a seed, so a larger seed would repeat a smaller one


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a training.

    batch_size: images per step, over all processes.
    lr: peak learning rate, for batches of `batch_size` images.
    decay_norms: whether weight decay also shrinks 1-D parameters (norms, biases).
    schedule: the learning rate after the warm-up. `cosine`, `linear` (arXiv 1905.04753), `rex` (arXiv 2107.04197) and
    `poly` lower the rate to zero. The rate of `poly` is proportional to the share of the remaining steps, to the power
    of 0.9 (arXiv 1606.00915). `step` divides the rate by ten at each milestone. `constant` keeps the peak rate.
    warmup: epochs over which the rate first rises linearly.
    milestones: epochs at which the schedule `step` lowers the rate.
    mixup, cutmix: parameter of the Beta distribution that draws a batch's mixing share; 0 disables the method. With
    both methods, each batch uses one of the two, with equal probability.
    ema: decay per step of the averaged weights; 0 disables averaging. With averaging, the averaged weights are scored
    and kept instead of the latest weights.
    crop: random crop of training images. `pad` shifts an image by up to `crop_padding` pixels. `resized` cuts out 8 to
    100 % of an image's area, as for ImageNet. `scaled` scales an image with masks or boxes by 0.5 to 2, cuts out a
    square of `image_size`, and pads a smaller image, as for DeepLab. At scale 1, an image has its size in the file, or
    a longer side of `image_size` if it is larger. For key points, `scaled` scales the square around a box by 0.7 to
    1.3. `auto` is `resized` for image files with class numbers, `scaled` for other image files, and `pad` for images in
    memory.
    flip: whether images are mirrored at random.
    steps: optimizer steps of the whole training; 0 means `epochs` full epochs. The last epoch may be shorter than the
    others, and `epochs` must count it.
    zero_init_last: whether the last batch norm of every residual block starts with zero weights, so that a newly
    initialised block is the identity. Has no effect on loaded weights.
    crop_from: least number of epochs for the crops of `crop_padding`. With crops, shorter trainings would underfit.
    hold: epochs, from the first one, that keep the peak rate after the warm-up, before the schedule lowers it (arXiv
    2405.18392).
    frozen_norms: whether the batch norms of the backbone keep their statistics and weights. This suits batches of few
    large images, and requires trained initial weights. A norm with zero weights, as in a grown block, still learns.
    optimizer: `sgd`, or `adamw` (arXiv 1711.05101) with the coefficients `momentum` and 0.999.
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
    # Files of earlier versions lack these newer fields. So they are at the end, and their defaults have no effect.
    steps: int = 0
    zero_init_last: bool = False
    hold: float = 0.0
    crop_from: int = 0
    frozen_norms: bool = False
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # JSON gives a list
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}`: {getattr(self, name)}; accepted: a whole number of at least 1")
        if not 0 < self.lr < math.inf:
            raise UserError(f"`lr`: {self.lr}; accepted: a number above 0")
        for name in ("weight_decay", "warmup", "crop_padding", "mixup", "cutmix", "hold", "crop_from"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"`{name}`: {getattr(self, name)}; accepted: a number of at least 0")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"`seed`: {self.seed}; accepted: a whole number from 0 to {MAX_SEED}")
        if self.steps < 0:
            raise UserError(f"`steps`: {self.steps}; accepted: a whole number of at least 0")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"`{name}`: {getattr(self, name)}; accepted: a number of at least 0 and below 1")
        choices = {"precision": PRECISIONS, "schedule": SCHEDULES, "crop": CROPS, "optimizer": OPTIMIZERS}
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise unknown(f"`{name}`", getattr(self, name), accepted)
        self._check_milestones()

    def _check_milestones(self) -> None:
        if self.schedule == "step" and not self.milestones:
            raise UserError("`milestones`: none; accepted with schedule step: epochs at which the rate falls")
        rising = all(a < b for a, b in zip((0.0, *self.milestones), self.milestones, strict=False))
        if not rising or any(m >= self.epochs for m in self.milestones):
            raise UserError(
                f"`milestones`: {list(self.milestones)}; accepted: rising epochs above 0 and below {self.epochs}, the "
                "number of epochs"
            )

    def steps_per_epoch(self, images: int, processes: int = 1) -> int:
        """Return the steps of a full epoch over `images` training images."""
        # A short last batch joins the batch before it in two cases: if a process would get no image, or if the batch
        # has a single image, because a batch norm on 1 x 1 maps cannot normalise one value.
        spare = max(1, processes - 1)
        return max(1, -(-(images - spare) // self.batch_size))

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the steps of the whole training. Raise `UserError` if `steps` does not end in the last epoch."""
        most = self.epochs * steps_per_epoch
        if self.steps and not most - steps_per_epoch < self.steps <= most:
            raise UserError(
                f"`recipe`: steps is {self.steps}; accepted with {self.epochs} epochs of {steps_per_epoch} steps: "
                f"{most - steps_per_epoch + 1} to {most}, or 0 for full epochs"
            )
        return self.steps or most

    @property
    def padding(self) -> int:
        """The largest shift of this training's crops in pixels."""
        return self.crop_padding if self.epochs >= self.crop_from else 0

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step. step: counts from 0 over all epochs."""
        warmup, total = self.warmup * steps_per_epoch, self.total_steps(steps_per_epoch)
        if step < warmup:
            # At the full rate, the large gradients of initial weights can make a training diverge. The `+ 1` keeps the
            # first rate above 0, because a step at rate 0 would train nothing.
            return self.lr * (step + 1) / (warmup + 1)
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(step >= m * steps_per_epoch for m in self.milestones)
        if self.schedule == "constant":
            return self.lr
        if step < (held := self.hold * steps_per_epoch):
            return self.lr
        warmup = max(warmup, held)  # where the rate begins to fall
        # The rate reaches zero one step after the last step, so that the last step still trains.
        done = (step - warmup) / (total - warmup)
        if self.schedule == "linear":
            return self.lr * (1 - done)
        if self.schedule == "rex":
            return self.lr * (1 - done) / (1 - done / 2)
        if self.schedule == "poly":
            return self.lr * (1 - done) ** POWER
        # Keep this order of operations: another order rounds differently, and old checkpoints would not resume exactly.
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


RUN_KEYS = ("precision", "device", "seed")  # fields that belong to a single run, not to a recipe
KEYS = tuple(f.name for f in fields(Config) if f.name not in RUN_KEYS)

# For outputs of every pixel and for objects, from random weights. With SGD, either the backbone hardly learns or the
# head diverges, because their gradients differ by orders of magnitude. AdamW scales the step of each weight separately.
DENSE = Config(
    epochs=20,
    batch_size=8,
    lr=0.005,
    schedule="linear",
    warmup=1,
    label_smoothing=0,
    weight_decay=1e-4,
    crop_padding=8,
    zero_init_last=True,
    crop_from=10,
    optimizer="adamw",
)
RECIPES: Mapping[str, Config] = {
    "fast": Config(epochs=10),  # also the recipe of shared weights, and of all searches up to version 0.1
    "short": Config(  # for trainings of 1 to 20 epochs on small images
        epochs=6,
        batch_size=128,
        lr=0.4,
        schedule="linear",
        warmup=0.3,
        crop_from=10,
        zero_init_last=True,
    ),
    "dense": DENSE,
    "points": replace(DENSE, batch_size=16, crop_padding=4),
    "deeplab": Config(  # the training of DeepLab v3+ for VOC 2012 (arXiv 1802.02611)
        epochs=45,  # 30,000 steps over 10,582 images
        batch_size=16,
        lr=0.007,
        nesterov=False,
        weight_decay=4e-5,
        schedule="poly",
        warmup=0,
        label_smoothing=0,
        crop="scaled",
    ),
    # For salient objects. Momentum and weight decay are those of DSS (arXiv 1611.04849). The other values are our own:
    # DSS has a rate of 1e-8 for a loss that is summed over pixels, and no batch norms.
    "dss": Config(
        epochs=50,
        batch_size=10,
        lr=0.01,
        nesterov=False,
        schedule="poly",
        warmup=0.5,
        label_smoothing=0,
    ),
    # The shortest published training on COCO (the "1x" of Detectron), from a backbone that is trained on ImageNet. The
    # crops are our own: published trainings use whole images.
    "rcnn": Config(
        epochs=12,
        batch_size=16,
        lr=0.02,
        nesterov=False,
        weight_decay=1e-4,
        schedule="step",
        milestones=(8, 11),
        warmup=0.07,  # 500 steps
        label_smoothing=0,
        crop="scaled",
        frozen_norms=True,
    ),
    # The training of SimpleBaseline on COCO (arXiv 1804.06208), from a backbone that is trained on ImageNet.
    "simple-baseline": Config(
        epochs=140,
        batch_size=128,
        lr=0.001,
        weight_decay=0,
        schedule="step",
        milestones=(90, 120),
        warmup=0,
        label_smoothing=0,
        crop="scaled",
        optimizer="adamw",
    ),
    "paper-cifar": Config(  # the training of ResNeXt-29 (arXiv 1611.05431, section 5.3)
        epochs=300,
        batch_size=128,
        schedule="step",
        milestones=(150, 225),
        warmup=0,
        label_smoothing=0,
        crop="pad",
        crop_padding=4,
    ),
    "paper-imagenet": Config(  # the training of Res2Net (arXiv 1904.01169, section 4.1)
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
    """Return a recipe with changes. Raise `UserError` for an unknown key or a wrong value.

    text: the recipe's name, or the path of a YAML file.
    changes: new values of fields. A new value of `epochs` scales `warmup` and `milestones` in proportion,
    unless `changes` sets these fields too. It also resets `steps`: the new epochs are full.
    """
    if text in RECIPES:
        return _changed(RECIPES[text], changes or {})
    path = Path(text)
    if path.suffix not in (".yaml", ".yml", ".json") and path.name == text:
        raise unknown("`recipe`", text, (*RECIPES, "a YAML file"))
    try:
        values = read_values(path, KEYS, tuple(RECIPES))
        start = values.pop("recipe", "fast")
        if start not in tuple(RECIPES):  # a list cannot be looked up in a mapping
            raise unknown("`recipe`", start, RECIPES)
        changed = {key: converted(key, value, getattr(Config(), key)) for key, value in values.items()}
        base = _changed(RECIPES[start], changed)
    except UserError as error:
        # The command turns a name in backticks into an option: `lr` becomes --lr. A key of the file is not an option.
        # So put the key in quotes, and put the file's name before the key.
        keys = re.sub(r"`(\w+)`", r"'\1'", str(error))
        raise UserError(f"`recipe`: {text}: {keys}") from None
    return _changed(base, changes or {})


def parse_recipe(text: str | Config, field: str) -> Config:
    """Return the recipe of a name or of a YAML file's path. field: the setting, for errors."""
    return text if isinstance(text, Config) else recipe(text)


def shortened(config: Config, epochs: int, **changes: Any) -> Config:
    """Return a recipe for another number of epochs. Unlike `recipe`, keep the warm-up where it fits the training.

    changes: new values of other fields.
    """
    warmup = min(config.warmup, epochs / 2)
    return _changed(config, {"epochs": epochs, "warmup": warmup, "steps": 0, **changes})


def differences(ours: Config, theirs: Config) -> list[str]:
    """Return one text, such as `lr 0.2, not 0.1`, for each setting that differs between two trainings.

    The first value is from `theirs`, the second value is from `ours`. The device is not compared.
    """
    a, b = asdict(ours), asdict(theirs)
    return [f"{key} {b[key]}, not {a[key]}" for key in a if key != "device" and a[key] != b[key]]


def _changed(config: Config, changes: Mapping[str, Any]) -> Config:
    changes = dict(changes)
    factor = changes.get("epochs", config.epochs) / config.epochs
    if "epochs" in changes:
        changes.setdefault("steps", 0)
    if factor > 0:  # `Config` rejects a wrong number of epochs
        changes.setdefault("warmup", config.warmup * factor)
        changes.setdefault("milestones", tuple(m * factor for m in config.milestones))
    return replace(config, **changes)
