"""Layers that heads share."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

DRAWN = "drawn"  # the attribute that makes `res2net.backbone.init` skip a convolution


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with bias that draws its own initial weights. `res2net.backbone.init` leaves them as they are.

    A layer with few outputs, such as scores, needs its own weights: `init` would make the outputs far larger than 1.

    mean, std: mean and standard deviation of the initial weights. The bias starts at 0. If `std` is None, outputs are
        as large as inputs. With a smaller `std`, such as 0.01, networks learn far more slowly.
    """

    def __init__(self, c_in: int, c_out: int, mean: float = 0.0, std: float | None = None) -> None:
        super().__init__(c_in, c_out, 1)
        setattr(self, DRAWN, True)
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, mean, c_in**-0.5 if std is None else std)
            assert self.bias is not None
            nn.init.zeros_(self.bias)


class PooledNorm(nn.BatchNorm2d):
    """A batch norm for maps of one pixel. In training, the running statistics normalise a batch of one image."""

    def forward(self, input: Tensor) -> Tensor:
        alone = self.training and input.numel() == self.num_features and self.running_mean is not None
        if not alone:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def layer(c_in: int, c_out: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size of the map, with batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(c_in, c_out, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map in another size, interpolated bilinearly."""
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)
