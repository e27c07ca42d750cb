"""`Res2Net`, the network of an `Arch`, and its blocks (section 3 of the paper).

The state-dict keys are those of released checkpoints. "As released" means: as in the paper's released code.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net.arch import Arch, Stage, se_channels
from res2net.backbone import DensePool, FeatureInfo, Network, init
from res2net.errors import UserError
from res2net.layer_cost import has_projection
from res2net.levels import levels

SAFE_CHANNELS = 8  # with fewer input channels, oneDNN's strided 1x1 convolutions corrupt memory
DENSE_CHANNELS = 32  # up to this many channels, a dense bf16 convolution on a CPU is faster than a grouped one


@lru_cache
def block_diagonal(c_out: int, c_group: int, groups: int) -> Tensor:
    """Return a mask `[c_out, c_group * groups, 1, 1]` for a dense kernel, on the CPU.

    An entry is 1 if the group of the output channel reads the input channel, else 0.
    c_group: input channels of a group.
    """
    # Training also reads the cached mask, and training cannot use a tensor that was made in inference mode.
    with torch.inference_mode(False):
        return torch.block_diag(*[torch.ones(c_out // groups, c_group, device="cpu")] * groups)[:, :, None, None]


class GroupedConv2d(nn.Conv2d):
    """A grouped convolution. Under CPU autocast, a narrow convolution is computed as a dense one, which is faster.

    A narrow convolution has at most `DENSE_CHANNELS` output channels.
    bf16 kernels process 16 or more channels at a time, so small groups would leave most of each vector idle.
    """

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.out_channels <= DENSE_CHANNELS
        if not narrow or not torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
            return super().forward(x)
        # Repeat each group's kernel over all input channels, then set all weights off the block diagonal to zero.
        dense = self.weight.repeat(1, self.groups, 1, 1)
        dense = dense * block_diagonal(self.out_channels, self.weight.shape[1], self.groups)
        return F.conv2d(x, dense, self.bias, self.stride, self.padding, self.dilation)


def conv3x3(c_in: int, c_out: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias. At stride 1, it keeps the size of the feature map."""
    kind = nn.Conv2d if groups == 1 else GroupedConv2d
    return kind(c_in, c_out, 3, stride, dilation, dilation, groups, bias=False)


class StridedPointwiseConv2d(nn.Conv2d):
    """A strided 1x1 convolution that picks every `stride`-th pixel, then convolves with stride 1.

    The function and the weights are those of `nn.Conv2d`. This class avoids a bug in oneDNN
    (uxlfoundation/oneDNN#6035): the backward pass of a strided 1x1 convolution writes past its workspace and corrupts
    the heap. The bug occurs only on a CPU without AVX-512, with fewer than 8 input channels and channels-last layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def conv1x1(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1x1 convolution without bias."""
    kind = StridedPointwiseConv2d if stride > 1 and c_in < SAFE_CHANNELS else nn.Conv2d
    return kind(c_in, c_out, 1, stride, bias=False)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: scale each channel by a gate that depends on all channels' means (SENet)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = se_channels(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Block(nn.Module):
    """The base class of blocks: a 1x1 convolution, the 3x3 middle, a 1x1 convolution, and a shortcut.

    first: whether the block is the first of its stage.
    dilation: the dilation of the 3x3 convolutions.
    dense: whether the block ignores the stage's stride, because `output_stride` replaces the stride by dilation.
    """

    relu = True  # whether a ReLU follows the sum with the shortcut

    def __init__(
        self, arch: Arch, stage: Stage, c_in: int, first: bool, dilation: int = 1, dense: bool = False
    ) -> None:
        super().__init__()
        self.stride = stage.stride if first and not dense else 1
        self.dilation = dilation
        inner = stage.width * stage.scale
        self.conv1 = nn.Conv2d(c_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self._build_middle(arch, stage, first)
        self.conv3 = nn.Conv2d(inner, stage.channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(stage.channels)
        self.se = SqueezeExcite(stage.channels, arch.se) if arch.se else None
        projects = first and has_projection(stage, c_in)
        self.downsample: nn.Module | None = shortcut(arch, stage, c_in, dilation, dense) if projects else None

    def _build_middle(self, arch: Arch, stage: Stage, first: bool) -> None:
        """Build the layers between the two 1x1 convolutions."""
        raise NotImplementedError

    def middle(self, x: Tensor) -> Tensor:
        """Return the 3x3 middle's output for `[N, width * scale, H, W]`: as many channels, with the block's stride."""
        raise NotImplementedError

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the block's output. `residual` replaces the block's own shortcut (only DLA passes `residual`)."""
        # ReLUs may work in place, because nothing else reads the outputs of these batch norms and sums.
        out = self.middle(torch.relu_(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(out))
        if self.se is not None:
            out = self.se(out)
        if residual is None:
            residual = x if self.downsample is None else self.downsample(x)
        return torch.relu_(out + residual) if self.relu else out + residual


class Bottleneck(Block):
    """A block of one split: the bottleneck of ResNet and ResNeXt, with torchvision's state-dict keys."""

    def _build_middle(self, arch: Arch, stage: Stage, first: bool) -> None:
        self.conv2 = conv3x3(stage.width, stage.width, self.stride, stage.cardinality, self.dilation)
        self.bn2 = nn.BatchNorm2d(stage.width)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu_(self.bn2(self.conv2(x)))


class Bottle2neck(Block):
    """A block of several splits.

    Each convolution reads its split plus the result of the previous convolution (equation 1). Splits are in the order
    of released checkpoints: the last one passes through without a convolution.
    In a stage's first block, each convolution reads its split alone, as released. A strided convolution shrinks its
    result, which could not be added to the next split.
    """

    def _build_middle(self, arch: Arch, stage: Stage, first: bool) -> None:
        self.scale, self.width, self.first = stage.scale, stage.width, first
        count = stage.scale if first and arch.first_block == "conv" else stage.convs_per_block
        self.convs = nn.ModuleList(
            conv3x3(stage.width, stage.width, self.stride, stage.cardinality, self.dilation) for _ in range(count)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(stage.width) for _ in range(count))
        self.pool = pool3x3(self.stride, self.dilation) if first and count < stage.scale else nn.Identity()

    def middle(self, x: Tensor) -> Tensor:
        # Not `chunk`: PyTorch's older ONNX exporter would compute the sizes of the splits in each run.
        splits = x.split(self.width, 1)
        outs: list[Tensor] = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            # Copy, because element-wise kernels are several times slower on a slice of a channels-last tensor.
            split = splits[i].clone()
            y = split if self.first or i == 0 else outs[-1] + split
            outs.append(torch.relu_(bn(conv(y))))
        if len(outs) < self.scale:
            outs.append(self.pool(splits[-1].clone()))
        return torch.cat(outs, 1)


def plug(stage: Stage, c_in: int, first: bool, downsample: nn.Module | None = None) -> Block:
    """Return one of our blocks for use inside a network of another kind (section 3.3).

    downsample: the shortcut, as the other network defines it. None: the identity.
    """
    kind = Bottleneck if stage.scale == 1 else Bottle2neck
    block = kind(Arch((stage,)), stage, c_in, first)
    block.downsample = downsample
    return block


def pool3x3(stride: int, dilation: int) -> nn.Module:
    """Return the average pool for the unconvolved split of a first block. The mean counts padding, as released."""
    return nn.AvgPool2d(3, stride, 1) if dilation == 1 else DensePool(3, dilation, 1, count_padding=True)


def shortcut(arch: Arch, stage: Stage, c_in: int, dilation: int = 1, dense: bool = False) -> nn.Sequential:
    """Return the projection shortcut of a stage's first block.

    The choice `avgpool` pools before the projection, because a strided 1x1 convolution would skip pixels.
    """
    bn, stride = nn.BatchNorm2d(stage.channels), stage.stride
    if arch.shortcut == "conv":
        return nn.Sequential(conv1x1(c_in, stage.channels, 1 if dense else stride), bn)
    pool: nn.Module = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    if dense:
        pool = DensePool(stride, dilation, 0, count_padding=False)
    return nn.Sequential(pool, nn.Conv2d(c_in, stage.channels, 1, bias=False), bn)


def stem_conv(arch: Arch) -> nn.Module:
    """Return the stem's convolutions, without the last batch norm."""
    c_in, c = arch.in_channels, arch.stem_channels
    if arch.stem in ("cifar", "strided"):
        return conv3x3(c_in, c, arch.stem_stride)
    if arch.stem == "imagenet":
        return nn.Conv2d(c_in, c, 7, 2, 3, bias=False)
    half = c // 2
    return nn.Sequential(
        conv3x3(c_in, half, 2),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        conv3x3(half, half),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        conv3x3(half, c),
    )


class Res2Net(Network):
    """The network of an `Arch`: `model(x)` returns logits `[N, num_classes]` for images `[N, C, H, W]`.

    H and W may be any size from 1, because strided layers round up.
    output_stride: the stride of the last map. Dilation replaces further strides (see `res2net.backbone`). None: the
        stride that the head requires, or the network's own. It changes no weight.
    """

    def __init__(self, arch: Arch, output_stride: int | None = None) -> None:
        super().__init__()
        self.arch = arch
        of_head = arch.output_stride or arch.strides[-1]
        if arch.head is not None and arch.num_classes and output_stride not in (None, of_head):
            raise UserError(f"`output_stride`: {output_stride!r}; accepted: {of_head}, for which its head was built")
        self.levels = levels(arch, arch.output_stride if output_stride is None else output_stride)
        self.conv1 = stem_conv(arch)
        self.bn1 = nn.BatchNorm2d(arch.stem_channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if arch.stem in ("imagenet", "deep") else nn.Identity()
        c_in = arch.stem_channels
        for i, stage in enumerate(arch.stages, 1):
            kind = Bottleneck if stage.scale == 1 else Bottle2neck
            at = self.levels[i - 1]
            blocks = [kind(arch, stage, c_in, True, at.first_dilation, at.dense)]
            blocks += [kind(arch, stage, stage.channels, False, at.dilation) for _ in range(stage.depth - 1)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            c_in = stage.channels
        self.build_head()
        self.apply(init)

    def stem(self, x: Tensor) -> Tensor:
        return self.maxpool(torch.relu_(self.bn1(self.conv1(x))))

    def stage_names(self) -> list[str]:
        return [f"layer{i}" for i in range(1, len(self.arch.stages) + 1)]

    @property
    def feature_info(self) -> FeatureInfo:
        maps = enumerate(zip(self.arch.stages, self.levels, strict=True), 1)
        return FeatureInfo.of((stage.channels, level.reduction, f"layer{i}") for i, (stage, level) in maps)

    def cut(self, count: int) -> None:
        super().cut(count)
        self.levels = self.levels[:count]


def zero_init_last(model: nn.Module) -> None:
    """Set the weights of the last batch norm of every residual block to zero, so that a block starts as its shortcut.

    This works for every kind of network, because all kinds use the same blocks. timm's method has the same name.
    """
    for module in model.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.bn3.weight)
