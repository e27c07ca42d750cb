"""DSS (arXiv 1611.04849): side branches, short connections from deep to shallow branches, and deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from res2net.heads.layers import Pointwise, layer, resized
from res2net.heads.value import Dss


def averaging(count: int) -> Pointwise:
    """Return a 1x1 convolution of `count` score maps to one. It starts as their mean."""
    return Pointwise(count, 1, mean=1 / count, std=0)


class DssHead(nn.Module):
    """The head of a `Dss`. Deep branches find the object, shallow branches find its border.

    The paper has kernels of 3 to 7 pixels and 128 to 512 channels without batch norm. All branches here have 3x3
    kernels, batch norms and the same number of channels.
    """

    def __init__(self, head: Dss, num_classes: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        c, count = head.channels, len(channels)
        self.branches = nn.ModuleList(
            nn.Sequential(layer(c_in, c, 3), layer(c, c, 3), Pointwise(c, 1)) for c_in in channels
        )
        # Each layer fuses the score map of one branch with the score maps of all deeper branches. The deepest branch
        # has none.
        self.short = nn.ModuleList(averaging(count - i) for i in range(count - 1))
        self.fuse = averaging(count)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return logits of the images' size, `[N, 1, H, W]`. maps: the backbone's maps, finest first.

        In training mode, the result is `[N, 1 + len(maps), H, W]`: the fused logits, then those of each branch.
        """
        own = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        sides = own[-1:]
        for i in reversed(range(len(self.short))):
            sides.insert(0, self.short[i](_stacked([own[i], *sides])))
        fused = self.fuse(_stacked(sides))
        found = [fused, *sides] if self.training else [fused]
        return torch.cat([resized(x, size) for x in found], 1)


def _stacked(scores: Sequence[Tensor]) -> Tensor:
    """Resize score maps to the size of the first one. Return them as the channels of one map."""
    size = scores[0].shape[2:]
    return torch.cat([scores[0], *(resized(x, size) for x in scores[1:])], 1)
