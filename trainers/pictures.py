"""Pictures of predictions beside the truth, for tasks whose outputs are maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from res2net.errors import UserError
from res2net.files import write_atomic
from res2net.folder import check_creatable
from trainers.datasets.data import Data
from trainers.device import autocast
from trainers.images import Source
from trainers.tasks.task import Task

PANEL = 192  # minimum side of a panel in pixels
GAP, HEADER = 4, 16  # pixels between panels, height of the heads in pixels
HEADS = ("image", "truth", "prediction")


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Return a PNG file: a row of panels for each image, under the heads. Panels are uint8 [H, W, 3] of one size."""
    height, width = rows[0][0].shape[:2]
    factor = -(-PANEL // width)
    height, width = height * factor, width * factor
    size = len(HEADS) * (width + GAP) + GAP, len(rows) * (height + GAP) + GAP + HEADER
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for j, head in enumerate(HEADS):
        draw.text((GAP + j * (width + GAP), 3), head, fill="black")
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            place = GAP + j * (width + GAP), HEADER + GAP + i * (height + GAP)
            canvas.paste(Image.fromarray(panel).resize((width, height), Image.Resampling.NEAREST), place)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def check_pictures(path: Path, task: Task, channels: int) -> None:
    """Raise `UserError` for a task without pictures, a number of channels other than 1 or 3, and an unusable path."""
    if task.head_kind is None:
        raise UserError(f"`pictures`: not for the task {task.name}; accepted: a task whose targets have a place")
    if channels not in (1, 3):
        raise UserError(f"`pictures`: images of {channels} channels; accepted: of 1 or 3")
    if not path.absolute().parent.is_dir():
        raise UserError(f"`pictures`: no folder {str(path.parent)!r}; accepted: a file in a folder that exists")
    if path.is_dir():
        raise UserError(f"`pictures`: {str(path)!r} is a folder; accepted: a file in a folder that exists")
    check_creatable(path, "`pictures`")


@torch.no_grad()
def write_pictures(
    model: nn.Module, images: Source, data: Data, task: Task, path: Path, count: int, bf16: bool = False
) -> None:
    """Write a sheet of the first images, each beside its truth and its prediction. model: in eval mode."""
    rows: list[list[np.ndarray]] = []
    for x, y in images.batches(min(count, task.eval_batch(images.size))):
        with autocast(x.device, bf16):
            outputs = model(x)
        plain = _plain(x, data)
        truths, guesses = (task.picture(plain, found) for found in (y, task.predicted(outputs)))
        rows += [list(panels) for panels in zip(plain, truths, guesses, strict=True)]
        if len(rows) >= count:
            break
    write_atomic(path, sheet(rows[:count]))


def _plain(x: Tensor, data: Data) -> np.ndarray:
    """Return normalised images as uint8 [N, H, W, 3]."""
    mean, std = (torch.tensor(v, device=x.device)[None, :, None, None] for v in (data.mean, data.std))
    pixels = (255 * (x.float() * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
