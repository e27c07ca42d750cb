"""Networks as backbones: descriptions of feature maps, a choice of maps as output, and strides traded for dilation.

With `output_stride`, a network keeps its weights and computes its last feature maps at a higher resolution. If
the map of a stage would exceed the output stride, the stage drops its stride. The layers after the dropped stride are
dilated instead, so that they read the same pixels as before. If the dropped strides multiply to k, every k-th pixel
of the finer map equals a pixel of the ordinary map. Networks with squeeze-and-excitation are an exception, because
squeeze-and-excitation uses the mean over all pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from res2net.errors import UserError
from res2net.heads.kinds import build_head
from res2net.heads.layers import DRAWN


class DensePool(nn.Module):
    """A dilated average pool of stride 1, which PyTorch lacks.

    kernel: number of pixels along each side of the window.
    dilation: distance between neighbouring pixels of the window.
    before: number of window pixels above the output pixel, and also to its left.
    count_padding: whether the mean counts pixels outside the map as zeros, or leaves them out.
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
        # Add rows, then columns: this takes `2 * kernel` additions instead of `kernel ** 2`.
        x = sum((x[:, :, i : i + height] for i in steps[1:]), x[:, :, :height])
        return sum((x[:, :, :, i : i + width] for i in steps[1:]), x[:, :, :, :width])


class FeatureInfo(list[dict[str, Any]]):
    """The channels (`num_chs`), stride (`reduction`) and `module` of each feature map.

    The keys and methods have timm's names, because segmentation libraries use these names.
    """

    @classmethod
    def of(cls, maps: Iterable[tuple[int, int, str]]) -> FeatureInfo:
        """Return the description of maps. Each map is a tuple of channels, stride and module name."""
        return cls({"num_chs": c, "reduction": r, "module": m} for c, r, m in maps)

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        """Return the stride of each map."""
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        """Return the name of the module that outputs each map."""
        return [level["module"] for level in self]

    def get_dicts(self) -> list[dict[str, Any]]:
        """Return a copy of each map's description."""
        return [dict(level) for level in self]


def init(module: nn.Module) -> None:
    """Initialise a convolution (He et al., arXiv 1502.01852, fan-out). Skip other modules and meta tensors.

    Skip convolutions with the attribute `drawn`, too: their head has drawn their initial weights.
    """
    if isinstance(module, nn.Conv2d) and not hasattr(module, DRAWN) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def classifier(channels: int, num_classes: int) -> nn.Module:
    """Return a linear classifier. For 0 classes, return the identity."""
    return nn.Linear(channels, num_classes) if num_classes else nn.Identity()


class Network(nn.Module):
    """The base class of networks: a stem, stages with one feature map each, and a classifier or a head.

    A subclass defines `stem`, `stage_names` and `feature_info`. It may override `classifier`, `classify` and
    `forward_features`.

    fc: the classifier, or the identity if there is none.
    head: the head of `arch.head` (`res2net.heads`), or None.
    """

    arch: Any
    fc: nn.Module
    head: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.head = None

    def stem(self, x: Tensor) -> Tensor:
        """Return the first stage's input."""
        raise NotImplementedError

    def stage_names(self) -> list[str]:
        """Return the attribute names of the stages, first to last."""
        raise NotImplementedError

    def classifier(self) -> nn.Module:
        """Return a newly initialised classifier, or the identity if the network has none."""
        return classifier(self.num_features, self.arch.classifier_size)

    def build_head(self) -> None:
        """Set `fc` and `head` to newly initialised modules, as the architecture requires."""
        self.fc, self.head = self.classifier(), None
        if self.arch.head is not None and self.arch.num_classes:
            info = self.feature_info
            maps = tuple(info.channels()), tuple(info.reduction())
            self.head = build_head(self.arch.head, self.arch.num_classes, *maps).apply(init)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of each map of `forward_features`."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """Number of channels that the classifier reads."""
        return self.arch.num_features

    def layers(self) -> list[nn.Module]:
        """Return the stages, first to last."""
        return [self.get_submodule(name) for name in self.stage_names()]

    def cut(self, count: int) -> None:
        """Keep the stem and the first `count` stages. Drop the later stages and the classifier, for a backbone."""
        for name in self.stage_names()[count:]:
            delattr(self, name)
        self.arch = replace(self.arch, stages=self.arch.stages[:count])
        self.reset_classifier(0)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier or the head by a newly initialised one. For 0 classes, drop it."""
        self.arch = replace(self.arch, num_classes=num_classes)
        if self.arch.head is not None and not num_classes:
            self.arch = replace(self.arch, head=None)
        self.build_head()

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return each stage's feature map, finest first."""
        check_images(x, self.arch.in_channels)
        x = self.stem(x)
        maps = []
        for layer in self.layers():
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor, targets: Any = None) -> Any:
        """Return logits `[N, num_classes]`. Without a classifier, return the mean of the last map, `[N, C]`.

        With a head, return the head's outputs, such as logits `[N, num_classes, H, W]` (see `res2net.heads`).
        targets: the targets of each image, to train a head that detects objects. The outputs are then the losses.
        """
        maps = self.forward_features(x)
        if self.head is None:
            return self.classify(maps[-1])
        return self.head(maps, x.shape[2:]) if targets is None else self.head(maps, x.shape[2:], targets)

    def classify(self, last: Tensor) -> Tensor:
        """Return the classifier's logits, given the last map."""
        return self.fc(last.mean((2, 3)))


class Backbone(nn.Module):
    """A network without its classifier. `forward` returns the feature maps `out_indices`, in this order.

    The constructor changes the network that it receives: it drops the classifier, and the stages after the deepest
    chosen map.
    """

    def __init__(self, body: Network, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = indices(out_indices, len(body.feature_info))
        self.feature_info = FeatureInfo(body.feature_info[i] for i in self.out_indices)
        had, unused = body.state_dict().keys(), getattr(body, "unused_keys", ())
        body.cut(max(self.out_indices) + 1)
        self.body: Any = body  # a `Network` or an `Optimized`
        # Regular expressions for the unused keys: a checkpoint of the whole network has them, the backbone does not.
        self.unused_keys = (*unused, *(re.escape(k) for k in had - body.state_dict().keys()))

    def with_body(self, body: nn.Module) -> Backbone:
        """Return a backbone that chooses the same maps, but computes them with another body."""
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
    """Return the indices of the chosen maps, from 0. `wanted` may count from the end (-1). None chooses all maps."""
    if wanted is None:
        return tuple(range(count))
    is_list = isinstance(wanted, Sequence) and not isinstance(wanted, str) and len(wanted) > 0
    if not is_list or not all(type(i) is int and -count <= i < count for i in wanted):
        raise UserError(f"`out_indices`: {wanted!r}; accepted: a list of whole numbers from {-count} to {count - 1}")
    return tuple(i % count for i in wanted)


def as_backbone(model: Network, features_only: bool, out_indices: Sequence[int] | None) -> Network | Backbone:
    """Return the model. If `features_only` is set, return a `Backbone` made from the model instead."""
    if not features_only and out_indices is not None:
        raise UserError(f"`out_indices`: {out_indices!r}, but `features_only` is False; accepted: both or neither")
    return Backbone(model, out_indices) if features_only else model


def check_images(x: Tensor, channels: int, least: int = 1) -> None:
    """Raise `UserError` unless images have `channels` channels and at least `least` pixels along each side."""
    if not isinstance(x, Tensor):  # torch.fx traces the network with a stand-in for the images
        return
    if x.dim() != 4 or x.shape[1] != channels or x.shape[2] < least or x.shape[3] < least:
        raise UserError(f"images have shape {list(x.shape)}; accepted: [N, {channels}, H, W], H and W at least {least}")
