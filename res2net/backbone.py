"""Networks as backbones: descriptions of feature maps, a choice of maps as output, and strides traded for dilation.

With `output_stride` a network keeps its weights and computes its last maps more densely. A stage beyond that stride
does not stride; the layers after it are dilated, so each layer reads the same pixels as before. Every k-th pixel of a
dense map equals the coarse map. The exception is squeeze-and-excitation, whose mean runs over all pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from res2net.arch import BaseArch
from res2net.errors import UserError


class Level(NamedTuple):
    """How a stage is built: the stride of its map, the dilation of its first block and of its later blocks."""

    reduction: int
    first_dilation: int
    dilation: int

    @property
    def dense(self) -> bool:
        """Whether dilation replaces the stage's stride."""
        return self.dilation != self.first_dilation


def levels(arch: BaseArch, output_stride: int | None = None) -> tuple[Level, ...]:
    """Return each stage's level; raise `UserError` for an output stride that no stage has.

    The first block of a stage that no longer strides has the dilation of the previous stage, because its convolutions
    read the finer map (as in torchvision's `replace_stride_with_dilation`).
    """
    own = [arch.stem_stride]
    for stage in arch.stages:
        own.append(own[-1] * stage.stride)
    if output_stride is not None and (type(output_stride) is not int or output_stride not in own):
        accepted = ", ".join(str(n) for n in sorted(set(own)))
        raise UserError(f"`output_stride`: {output_stride!r}; accepted: {accepted} (this network's own is {own[-1]})")
    limit = own[-1] if output_stride is None else output_stride
    dilations = [max(1, n // limit) for n in own]
    return tuple(Level(min(n, limit), dilations[i], dilations[i + 1]) for i, n in enumerate(own[1:]))


def own_stride(arch: BaseArch, output_stride: int | None) -> None:
    """Raise `UserError` for an output stride other than the network's own."""
    own = arch.stem_stride * prod(stage.stride for stage in arch.stages)
    if output_stride not in (None, own):
        raise UserError(
            f"`output_stride`: {output_stride!r}; accepted: {own} (only the residual line trades strides for dilation)"
        )


class DensePool(nn.Module):
    """A dilated average pool of stride 1, which PyTorch lacks.

    kernel, dilation: the window has `kernel` x `kernel` pixels that lie `dilation` apart.
    before: the steps of the window that lie before the output's pixel.
    count_padding: whether pixels outside the map count as zeros in the mean, or are left out of it.
    """

    def __init__(self, kernel: int, dilation: int, before: int, count_padding: bool) -> None:
        super().__init__()
        self.kernel, self.dilation, self.before, self.count_padding = kernel, dilation, before, count_padding

    def forward(self, x: Tensor) -> Tensor:
        total = self._sum(x)
        return total / (self.kernel**2 if self.count_padding else self._sum(x.new_ones(1, 1, *x.shape[2:])))

    def _sum(self, x: Tensor) -> Tensor:
        """Return the sum of each window."""
        height, width = x.shape[2:]
        steps = [i * self.dilation for i in range(self.kernel)]
        low = self.before * self.dilation
        x = F.pad(x, (low, steps[-1] - low, low, steps[-1] - low))
        # Rows, then columns: `2 * kernel` additions instead of `kernel ** 2`.
        x = sum((x[:, :, i : i + height] for i in steps[1:]), x[:, :, :height])
        return sum((x[:, :, :, i : i + width] for i in steps[1:]), x[:, :, :, :width])


class FeatureInfo(list[dict[str, Any]]):
    """`num_chs`, `reduction` and `module` of each map, with timm's names and methods, which segmentation heads read."""

    @classmethod
    def of(cls, maps: Iterable[tuple[int, int, str]]) -> FeatureInfo:
        """Return the description of maps, each given as channels, stride and module."""
        return cls({"num_chs": c, "reduction": r, "module": m} for c, r, m in maps)

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        """Return the stride of each map."""
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        """Return the name of the module that puts out each map."""
        return [level["module"] for level in self]

    def get_dicts(self) -> list[dict[str, Any]]:
        """Return a copy of each map's description."""
        return [dict(level) for level in self]


def classifier(channels: int, num_classes: int) -> nn.Module:
    """Return a linear classifier; for 0 classes, the identity."""
    return nn.Linear(channels, num_classes) if num_classes else nn.Identity()


class Network(nn.Module):
    """The base of networks of every kind: a stem, stages with one feature map each, and a classifier.

    A kind defines `stem`, `stage_names` and `feature_info`; it may define `head` and the forward passes.
    """

    arch: Any
    fc: nn.Module

    def stem(self, x: Tensor) -> Tensor:
        """Return the first stage's input."""
        raise NotImplementedError

    def stage_names(self) -> list[str]:
        """Return the attribute names of the stages, first to last."""
        raise NotImplementedError

    def head(self) -> nn.Module:
        """Return a newly initialised classifier."""
        return classifier(self.num_features, self.arch.num_classes)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each map of `forward_features`."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """Channels that the classifier reads."""
        return self.arch.num_features

    def layers(self) -> list[nn.Module]:
        """Return the stages, first to last."""
        return [self.get_submodule(name) for name in self.stage_names()]

    def cut(self, count: int) -> None:
        """Drop the classifier and all but the first `count` stages, as a backbone needs."""
        for name in self.stage_names()[count:]:
            delattr(self, name)
        self.arch = replace(self.arch, stages=self.arch.stages[:count])
        self.reset_classifier(0)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a newly initialised one; 0 classes: by the identity."""
        self.arch = replace(self.arch, num_classes=num_classes)
        self.fc = self.head()

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return each stage's feature map, finest first."""
        check_images(x, self.arch.in_channels)
        x = self.stem(x)
        maps = []
        for layer in self.layers():
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[N, num_classes]`; without a classifier, the mean of the last map."""
        return self.fc(self.forward_features(x)[-1].mean((2, 3)))


class Backbone(nn.Module):
    """A network without its head; its forward returns the maps `out_indices`, in that order.

    The network is taken over, not copied: its classifier and the stages after the last chosen map are dropped.
    """

    def __init__(self, body: Network, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = indices(out_indices, len(body.feature_info))
        self.feature_info = FeatureInfo(body.feature_info[i] for i in self.out_indices)
        had, unused = body.state_dict().keys(), getattr(body, "unused_keys", ())
        body.cut(max(self.out_indices) + 1)
        self.body: Any = body  # a `Network`, or what `optimize` makes of one
        # Patterns of keys that checkpoints of the whole network hold and the backbone does not use.
        self.unused_keys = (*unused, *(re.escape(k) for k in had - body.state_dict().keys()))

    def with_body(self, body: nn.Module) -> Backbone:
        """Return a backbone of the same maps whose forward passes are those of another module."""
        out = Backbone.__new__(Backbone)  # the constructor would cut the body again
        nn.Module.__init__(out)
        out.out_indices, out.feature_info, out.unused_keys = self.out_indices, self.feature_info, self.unused_keys
        out.body = body
        return out

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map."""
        return tuple(self.feature_info.channels())

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each map, in image pixels."""
        return tuple(self.feature_info.reduction())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the chosen maps of images `[N, C, H, W]`."""
        maps = self.body.forward_features(x)
        return [maps[i] for i in self.out_indices]


def indices(wanted: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Return the chosen maps' indices from 0; negative ones count from the end, None chooses all maps."""
    if wanted is None:
        return tuple(range(count))
    is_list = isinstance(wanted, Sequence) and not isinstance(wanted, str) and len(wanted) > 0
    if not is_list or not all(type(i) is int and -count <= i < count for i in wanted):
        raise UserError(f"`out_indices`: {wanted!r}; accepted: a list of whole numbers from {-count} to {count - 1}")
    return tuple(i % count for i in wanted)


def as_backbone(model: Network, features_only: bool, out_indices: Sequence[int] | None) -> Network | Backbone:
    """Return the model, or a backbone made of it if `features_only`."""
    if not features_only and out_indices is not None:
        raise UserError(f"`out_indices`: {out_indices!r}, but `features_only` is False; accepted: both, or neither")
    return Backbone(model, out_indices) if features_only else model


def check_images(x: Tensor, channels: int, least: int = 1) -> None:
    """Raise `UserError` unless images have `channels` channels and at least `least` pixels along each side."""
    if not isinstance(x, Tensor):  # torch.fx traces the network with a stand-in for the images
        return
    if x.dim() != 4 or x.shape[1] != channels or x.shape[2] < least or x.shape[3] < least:
        raise UserError(f"images have shape {list(x.shape)}; accepted: [N, {channels}, H, W], H and W at least {least}")
