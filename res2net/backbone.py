"""What makes a network a backbone: its maps described, a choice of them as output, and strides traded for dilation.

With `output_stride` a network keeps its weights and computes its last maps more densely: a stage beyond that stride
does not stride, and what follows is dilated so much that each layer reads the same pixels as before. The coarse maps
lie unchanged within the dense ones, at every k-th pixel, but for squeeze-and-excitation, whose mean sees all pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from res2net.arch import Arch, BaseArch
from res2net.errors import UserError


class Level(NamedTuple):
    """How a stage is built: the stride of its map, and the dilation of its first and of its later blocks."""

    reduction: int
    first_dilation: int
    dilation: int

    @property
    def dense(self) -> bool:
        """Whether the stage's stride is replaced by dilation."""
        return self.dilation != self.first_dilation


def levels(arch: Arch, output_stride: int | None = None) -> tuple[Level, ...]:
    """Each stage's level; `UserError` for an output stride at which no stage of the network ends.

    The first block of a stage that no longer strides still has the dilation of the stage before: its convolutions
    read the finer map (as in torchvision's `replace_stride_with_dilation`).
    """
    own = [arch.stem_stride]
    for stage in arch.stages:
        own.append(own[-1] * stage.stride)
    if output_stride is not None and (type(output_stride) is not int or output_stride not in own):
        accepted = ", ".join(str(n) for n in sorted(set(own)))
        raise UserError(f"output_stride is {output_stride!r}; accepted: {accepted} (this network's own is {own[-1]})")
    limit = own[-1] if output_stride is None else output_stride
    dilations = [max(1, n // limit) for n in own]
    return tuple(Level(min(n, limit), dilations[i], dilations[i + 1]) for i, n in enumerate(own[1:]))


def own_stride(arch: BaseArch, output_stride: int | None) -> None:
    """`UserError` for an output stride other than the network's own."""
    own = arch.stem_stride * prod(stage.stride for stage in arch.stages)
    if output_stride not in (None, own):
        raise UserError(
            f"output_stride is {output_stride!r}; accepted: {own} (only the residual line trades strides for dilation)"
        )


class DensePool(nn.Module):
    """An average pool of stride 1 whose window of `kernel` x `kernel` pixels lies `dilation` apart.

    It starts `before` window steps before the pixel; what lies outside the map counts as zeros, or not at all.
    """

    def __init__(self, kernel: int, dilation: int, before: int, count_padding: bool) -> None:
        super().__init__()
        self.kernel, self.dilation, self.before, self.count_padding = kernel, dilation, before, count_padding

    def forward(self, x: Tensor) -> Tensor:
        total = self._sum(x)
        return total / (self.kernel**2 if self.count_padding else self._sum(x.new_ones(1, 1, *x.shape[2:])))

    def _sum(self, x: Tensor) -> Tensor:
        """The sum of each window, rows and then columns."""
        height, width = x.shape[2:]
        steps = [i * self.dilation for i in range(self.kernel)]
        low = self.before * self.dilation
        x = F.pad(x, (low, steps[-1] - low, low, steps[-1] - low))
        x = sum(x[:, :, i : i + height] for i in steps)  # type: ignore[assignment]
        return sum(x[:, :, :, i : i + width] for i in steps)  # type: ignore[return-value]


class FeatureInfo(list[dict[str, Any]]):
    """For each map `num_chs`, `reduction` and `module`; names and methods are timm's, which segmentation heads read."""

    @classmethod
    def of(cls, maps: Iterable[tuple[int, int, str]]) -> FeatureInfo:
        return cls({"num_chs": c, "reduction": r, "module": m} for c, r, m in maps)

    def channels(self) -> list[int]:
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        return [level["module"] for level in self]

    def get_dicts(self) -> list[dict[str, Any]]:
        return [dict(level) for level in self]


def classifier(channels: int, num_classes: int) -> nn.Module:
    """A linear layer, or nothing for 0 classes."""
    return nn.Linear(channels, num_classes) if num_classes else nn.Identity()


class Network(nn.Module):
    """What networks of every kind have: stages that give maps, and a head that is replaced with the classes.

    A kind has a `stem`, the names of its stages, its `head`, and `feature_info`.
    """

    arch: Any
    fc: nn.Module

    def stem(self, x: Tensor) -> Tensor:
        """What the first stage reads."""
        raise NotImplementedError

    def stage_names(self) -> list[str]:
        """The stages' names, first to last."""
        raise NotImplementedError

    def head(self) -> nn.Module:
        """A newly initialised classifier."""
        return classifier(self.num_features, self.arch.num_classes)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each map of `forward_features`."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        return self.arch.num_features

    def layers(self) -> list[nn.Module]:
        """The stages, first to last."""
        return [self.get_submodule(name) for name in self.stage_names()]

    def cut(self, count: int) -> None:
        """Keep the first `count` stages and no classifier: what a backbone needs."""
        for name in self.stage_names()[count:]:
            delattr(self, name)
        self.arch = replace(self.arch, stages=self.arch.stages[:count])
        self.reset_classifier(0)

    def reset_classifier(self, num_classes: int) -> None:
        """A newly initialised classifier of so many classes; 0 for none."""
        self.arch = replace(self.arch, num_classes=num_classes)
        self.fc = self.head()

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Each stage's feature maps, finest first."""
        check_images(x, self.arch.in_channels)
        x = self.stem(x)
        maps = []
        for layer in self.layers():
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x)[-1].mean((2, 3)))


class Backbone(nn.Module):
    """A network without its head, whose forward gives the maps `out_indices`, in that order.

    It takes the network over: the classifier and the stages behind the last map that is wanted are dropped.
    """

    def __init__(self, body: nn.Module, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        info: FeatureInfo = body.feature_info  # type: ignore[assignment]
        self.out_indices = indices(out_indices, len(info))
        self.feature_info = FeatureInfo(info[i] for i in self.out_indices)
        had, in_vain = body.state_dict().keys(), getattr(body, "unused_keys", ())
        body.cut(max(self.out_indices) + 1)  # type: ignore[operator]
        self.body = body
        # Patterns of what checkpoints of the whole network still have.
        self.unused_keys = (*in_vain, *(re.escape(k) for k in had - body.state_dict().keys()))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map."""
        return tuple(self.feature_info.channels())

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels to one pixel of each map, along a side."""
        return tuple(self.feature_info.reduction())

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.body.forward_features(x)  # type: ignore[operator]
        return [maps[i] for i in self.out_indices]


def indices(wanted: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Numbers of maps, counted from 0 (or from the end, below 0); all of them for None."""
    if wanted is None:
        return tuple(range(count))
    is_list = isinstance(wanted, Sequence) and not isinstance(wanted, str) and len(wanted) > 0
    if not is_list or not all(type(i) is int and -count <= i < count for i in wanted):
        raise UserError(f"out_indices is {wanted!r}; accepted: a list of whole numbers from {-count} to {count - 1}")
    return tuple(i % count for i in wanted)


def as_backbone(model: nn.Module, features_only: bool, out_indices: Sequence[int] | None) -> nn.Module:
    """The model itself, or a backbone made of it."""
    if not features_only and out_indices is not None:
        raise UserError(f"out_indices is {out_indices!r}, but features_only is False; accepted: both, or neither")
    return Backbone(model, out_indices) if features_only else model


def check_images(x: Tensor, channels: int, least: int = 1) -> None:
    """`UserError` for what is no batch of images with that many channels and at least `least` pixels along a side."""
    if not isinstance(x, Tensor):  # a stand-in that records what is computed (torch.fx)
        return
    if x.dim() != 4 or x.shape[1] != channels or x.shape[2] < least or x.shape[3] < least:
        raise UserError(f"images have shape {list(x.shape)}; accepted: [N, {channels}, H, W], H and W at least {least}")
