"""Networks of model folders with the images that they expect, for `trainers.explain`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from res2net import load
from res2net.backbone import Network
from res2net.cam import class_maps, scaled
from res2net.errors import UserError
from res2net.folder import TRAINING_FILE
from trainers.datasets.files import MEAN, STD
from trainers.device import placed
from trainers.evaluate import trained_on
from trainers.overlay import Overlay
from trainers.stream import scored_side

SIZE = 224  # pixels along a side for a model folder without `training.json`
LISTED = 20  # number of classes up to which an error lists all of them


class Prediction(NamedTuple):
    """A network's most probable class for an image, and its probability in 0..1."""

    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.label} {100 * self.probability:.1f} %"


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A network to explain, with the images that it expects.

    labels: the names of the classes.
    target: the number of the class that the maps explain. None: the predicted class of each image.
    size: pixels along a side.
    resize: the shorter side of an image before the centre square is cut out.
    mean, std: normalisation of each channel, for values in 0..1, [3].
    """

    net: Network
    labels: tuple[str, ...]
    target: int | None
    size: int
    resize: int
    mean: Tensor
    std: Tensor

    def overlays(self, pixels: Sequence[Tensor]) -> list[tuple[Prediction, Overlay]]:
        """Return the prediction and the overlay of each image, uint8 [size, size, 3]."""
        x = torch.stack(list(pixels)).to(self.mean.device).float() / 255
        x = ((x - self.mean) / self.std).permute(0, 3, 1, 2)
        found = class_maps(self.net, x, self.target)
        shares, cells = found.logits.softmax(1).cpu(), (found.maps.shape[1], found.maps.shape[2])
        maps = scaled(found.maps, x.shape[2:]).cpu().numpy()
        out = []
        for image, map_, share in zip(pixels, maps, shares, strict=True):
            best = int(share.argmax())
            prediction = self._prediction(share, best)
            title = str(prediction)
            if self.target is not None and self.target != best:
                title += f"\nmap: {self._prediction(share, self.target)}"
            out.append((prediction, Overlay(image.numpy(), map_, cells, title)))
        return out

    def _prediction(self, shares: Tensor, number: int) -> Prediction:
        return Prediction(self.labels[number], float(shares[number]))


def subject(folder: Path, device: torch.device, target: str | None = None, size: int | None = None) -> Subject:
    """Return the network of a model folder, on the device, with the size and normalisation of its training images.

    target: the name or the number of a class. size: replaces the size in training.
    Raise `UserError` for a folder without a network, for an unknown class, and for a network of other than RGB images.
    """
    net = load(folder)
    count, channels = net.arch.num_classes, net.arch.in_channels
    if channels != 3:
        raise UserError(f"model folder {str(folder)!r}: {channels} colour channels; accepted: 3, as image files have")
    trained, _ = trained_on(folder, net.arch)
    # Searches train on whole images. So does `fit`, unless `crop` says otherwise. Folders without `training.json` get
    # ImageNet's size and normalisation.
    is_cut = trained.get("crop", "pad" if trained else "resized") == "resized"
    try:
        size = size or int(trained.get("image_size", SIZE))
        mean, std = (_channels(trained.get(name, usual), device) for name, usual in (("mean", MEAN), ("std", STD)))
        names = tuple(str(name) for name in trained.get("classes", ()))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / TRAINING_FILE}: not written by fit or export ({error})") from None
    if names and len(names) != count:
        raise UserError(f"{folder / TRAINING_FILE}: {len(names)} classes; accepted: {count}, as the network has")
    number = None if target is None else class_number(target, names, count, folder)
    labels = tuple(printable(name) for name in names) or tuple(f"class {i}" for i in range(count))
    placed(net, device)
    return Subject(net, labels, number, size, scored_side(size) if is_cut else size, mean, std)


def _channels(values: Any, device: torch.device) -> Tensor:
    """Return one number for each colour channel, [3]."""
    return torch.tensor(values, dtype=torch.float32, device=device).reshape(3)


def class_number(text: str, names: Sequence[str], count: int, folder: Path) -> int:
    """Return the number of a class. A name takes precedence over a number, because classes may be called 0, 1, ...

    names: the names of the classes, empty if unknown. folder: the model folder, for errors.
    """
    if text in names:
        return names.index(text)
    numbers = [str(i) for i in range(count)]
    if text in numbers:
        return int(text)
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = names if len(names) <= LISTED else [f"a class name of its {TRAINING_FILE}"]
    accepted = ", ".join([*listed, f"a number from 0 to {count - 1}"])
    raise UserError(f"`target`: {text!r} is no class of {str(folder)!r}; {hint}accepted: {accepted}")


def printable(name: str) -> str:
    """Return a name without line breaks, and without bytes that are not text."""
    return " ".join(name.encode(errors="replace").decode().split())
