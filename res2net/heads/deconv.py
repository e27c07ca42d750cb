"""The head of SimpleBaseline (arXiv 1804.06208): transposed convolutions enlarge the last map to heat maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from res2net.heads.cost import DECONV_KERNEL
from res2net.heads.layers import Pointwise, resized
from res2net.heads.value import HEAT_STRIDE, Deconv, doublings
from res2net.layer_cost import down

STD = 0.001  # standard deviation of the initial weights, as published


def doubling(c_in: int, c_out: int) -> nn.Sequential:
    """Return a transposed convolution that doubles the size of the map, with batch norm and ReLU."""
    conv = nn.ConvTranspose2d(c_in, c_out, DECONV_KERNEL, stride=2, padding=1, bias=False)
    if not conv.weight.is_meta:  # `res2net.backbone.init` skips transposed convolutions
        nn.init.normal_(conv.weight, std=STD)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class DeconvHead(nn.Module):
    """The head of a `Deconv`: it returns heat maps `[N, num_classes, H / 4, W / 4]`, rounded up.

    Heat map pixel i spans the image pixels 4 i to 4 i + 4.
    """

    def __init__(self, head: Deconv, num_classes: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        count = doublings(strides[-1])
        self.is_exact = strides[-1] == HEAT_STRIDE << count  # whether the enlarged map has the stride of heat maps
        c_in = (channels[-1], *[head.channels] * (count - 1))
        self.enlarge = nn.Sequential(*(doubling(c, head.channels) for c in c_in))
        self.points = Pointwise(head.channels, num_classes, std=STD)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return the heat map of every key point. maps: the backbone's maps. size: height and width of the images."""
        heat = self.points(self.enlarge(maps[-1]))
        height, width = (down(n, HEAT_STRIDE) for n in size)
        # The maps of a backbone may extend beyond the image, because strided layers round up.
        return heat[:, :, :height, :width] if self.is_exact else resized(heat, (height, width))
