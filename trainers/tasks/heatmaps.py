"""Heat maps of key points: draw them from points, and find the points in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from res2net.heads.value import HEAT_STRIDE

SIGMA, SIGMA_SIDE = 2, 64  # standard deviation of a point in pixels, for a heat map of 64 pixels along a side


def sigma_of(side: int) -> float:
    """Return the standard deviation of a point, in pixels of a heat map of `side` pixels along a side."""
    return max(1.0, SIGMA * side / SIGMA_SIDE)


def draw(points: Tensor, size: Sequence[int]) -> Tensor:
    """Return heat maps [B, K, H, W]: a Gaussian of height 1 around each point.

    points: [B, K, 2 or more], x and y in pixels of the image. size: height and width of the maps.
    """
    spread = 2 * sigma_of(max(size)) ** 2

    def bell(places: Tensor, count: int) -> Tensor:
        # Pixel i of a map lies at the image pixel HEAT_STRIDE * (i + 1/2).
        pixels = torch.arange(count, device=points.device) + 0.5
        return torch.exp(-((pixels - places[..., None] / HEAT_STRIDE) ** 2) / spread)

    x, y = bell(points[..., 0], size[1]), bell(points[..., 1], size[0])
    return y[..., None] * x[..., None, :]


def peaks(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest point of each heat map [B, K, H, W]: x and y in pixels of the image [B, K, 2], and its height.

    As published, a point lies a quarter of a pixel from the highest pixel towards its higher neighbour, along each
    axis. A pixel at the border has only one neighbour, so its point is not moved.
    """
    height, width = maps.shape[2:]
    flat = maps.flatten(2)
    top, index = flat.max(2)
    row, column = index.div(width, rounding_mode="floor"), index % width

    def shift(place: Tensor, count: int, step: int) -> Tensor:
        before, after = ((index + s).clamp(0, flat.shape[2] - 1)[..., None] for s in (-step, step))
        inside = (place > 0) & (place < count - 1)
        return 0.25 * inside * (flat.gather(2, after) - flat.gather(2, before))[..., 0].sign()

    x, y = column + shift(column, width, 1), row + shift(row, height, width)
    return HEAT_STRIDE * (torch.stack([x, y], 2) + 0.5), top
