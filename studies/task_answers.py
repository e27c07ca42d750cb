"""Trivial answers to each task: outputs without a network, computed only from the training targets.

To add a task, write a function that takes the data and returns an `Answer`, and name it in `ANSWERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from res2net.heads.value import HEAT_STRIDE
from res2net.layer_cost import down
from trainers.datasets.base import OBJECTS, VOID, Data, Split
from trainers.tasks import heatmaps

Answer = Callable[[int], Any]  # number of images -> the outputs of a head for these images
LEAST_SHARE = 1e-6  # keeps shares away from 0 and 1, which have no logit


class Trivial(nn.Module):
    """A network without weights, whose outputs are the same for every image."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        """Return the outputs for a batch of images, on the CPU."""
        return self.answer(len(x))


def background(data: Data) -> Answer:
    """Answer with the background at every pixel: logits [B, classes, S, S]."""
    logits = torch.zeros(1, data.num_classes, data.image_size, data.image_size)
    logits[:, 0] = 1
    return lambda count: logits.expand(count, -1, -1, -1)


def mean_mask(data: Data) -> Answer:
    """Answer with the share of training images in which each pixel is salient: logits [B, 1, S, S]."""
    labels = targets(data)
    known = (labels != VOID).sum(0).clip(min=1)
    share = torch.from_numpy((labels == 1).sum(0) / known).float()
    logits = torch.logit(share, eps=LEAST_SHARE)
    return lambda count: logits.expand(count, 1, -1, -1)


def mean_points(data: Data) -> Answer:
    """Answer with the mean place of each labelled key point: heat maps [B, K, H / 4, W / 4] with a peak there.

    The meter reads a point from a heat map with a precision of a quarter of a pixel, as for a network.
    """
    places, seen = targets(data)[:, :-1, :2], targets(data)[:, :-1, 2:] > 0
    mean = (places * seen).sum(0, dtype=np.float64) / seen.sum(0).clip(min=1)
    side = down(data.image_size, HEAT_STRIDE)
    maps = heatmaps.draw(torch.from_numpy(mean).float()[None], (side, side))
    return lambda count: maps.expand(count, -1, -1, -1)


def mean_box(data: Data) -> Answer:
    """Answer with one box in each image: the mean of all training boxes, of the commonest class, with the score 1.

    Crowds do not count. The outputs are a list with a dictionary for each image, as those of a detector.
    """
    rows = targets(data).reshape(-1, 6)
    rows = rows[(rows[:, 4] > 0) & (rows[:, 5] == 0)]
    found = detection(rows[:, :4], rows[:, 4])
    return lambda count: [dict(found) for _ in range(count)]


def mean_instance(data: Data) -> Answer:
    """Answer as `mean_box`. The mask of the object is its whole box, rounded to pixels: [1, 1, S, S]."""
    labels, size = targets(data), data.image_size
    found = detection(*objects(labels))
    mask = torch.zeros(1, 1, size, size)
    x1, y1, x2, y2 = found["boxes"][0].round().int().tolist()
    mask[..., y1:y2, x1:x2] = 1
    return lambda count: [found | {"masks": mask} for _ in range(count)]


def targets(data: Data) -> np.ndarray:
    """Return the labels of the training images, in the form of `trainers.datasets.base.TARGETS`."""
    assert isinstance(data.train, Split), "generated images are in memory"
    return data.train.labels


def objects(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes [M, 4] and the classes [M] of all objects but crowds. maps: target "instances", [N, S, S]."""
    boxes, classes = [], []
    for image in maps:
        for value in np.unique(image):
            if value % OBJECTS:
                boxes.append(box_of(image == value))
                classes.append(value // OBJECTS)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(classes)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box of the pixels of a mask [S, S]: x1, y1, x2, y2 (x2 and y2 are exclusive)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def detection(boxes: np.ndarray, classes: np.ndarray) -> dict[str, Tensor]:
    """Return the outputs for an image: the mean box and the commonest class. boxes: [M, 4], at least one."""
    box = torch.from_numpy(boxes.mean(0, dtype=np.float64)).float()[None]
    label = int(np.bincount(classes.astype(np.int64)).argmax())
    return {"boxes": box, "labels": torch.tensor([label]), "scores": torch.ones(1)}


ANSWERS: dict[str, Callable[[Data], Answer]] = {
    "segment": background,
    "saliency": mean_mask,
    "keypoints": mean_points,
    "detect": mean_box,
    "instances": mean_instance,
}
