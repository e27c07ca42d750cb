"""DeepLab v3+ (arXiv 1802.02611): a pyramid of dilated convolutions, and a decoder that refines edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from res2net.heads.layers import Pointwise, PooledNorm, layer, resized
from res2net.heads.value import DeepLab, low_index


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling (ASPP): branches with different receptive fields, and the mean over the image."""

    def __init__(self, c_in: int, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([layer(c_in, channels), *(layer(c_in, channels, 3, rate) for rate in rates)])
        self.pooled = nn.Sequential(
            nn.Conv2d(c_in, channels, 1, bias=False), PooledNorm(channels), nn.ReLU(inplace=True)
        )
        self.project = layer((len(rates) + 2) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.pooled(x.mean((2, 3), keepdim=True))
        maps = [*(branch(x) for branch in self.branches), mean.expand(-1, -1, *x.shape[2:])]
        return self.project(torch.cat(maps, 1))


class DeepLabHead(nn.Module):
    """The head of a `DeepLab`: it returns logits `[N, num_classes, H, W]` of the images' size.

    The paper's dropout is omitted: a resumed training could not repeat its random numbers.
    """

    def __init__(self, head: DeepLab, num_classes: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.low = low_index(strides)
        self.pyramid = Pyramid(channels[-1], head.channels, head.rates)
        self.reduce = layer(channels[self.low], head.low_channels)
        self.refine = nn.Sequential(
            layer(head.channels + head.low_channels, head.channels, 3), layer(head.channels, head.channels, 3)
        )
        self.classify = Pointwise(head.channels, num_classes)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return the logits of every pixel. maps: the backbone's maps. size: height and width of the images."""
        fine = self.reduce(maps[self.low])
        coarse = resized(self.pyramid(maps[-1]), fine.shape[2:])
        return resized(self.classify(self.refine(torch.cat([coarse, fine], 1))), size)
