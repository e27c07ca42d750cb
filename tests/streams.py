"""Batches of image files, and the errors of their data sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from res2net import UserError
from trainers.datasets import Files
from trainers.datasets.files import MEAN, STD
from trainers.stream import Stream


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(n: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def taken(batches: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of some batches, and their labels."""
    found = [(x.clone(), y) for x, y in batches]
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


def message(call: Callable[[], object]) -> str:
    """Return the text of the `UserError` that a call raises; it must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stream(files: Files) -> Stream:
    """Return the batches of files on the CPU, decoded by two threads."""
    return Stream(files, MEAN, STD, torch.device("cpu"), 2)


def pixels_of(x: torch.Tensor) -> np.ndarray:
    """Return the images of a batch, uint8 [B, H, W, 3]."""
    pixels = (x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
