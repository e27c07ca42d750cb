"""`create` builds a network from an architecture or a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

from res2net.arch import Arch, BaseArch
from res2net.backbone import Backbone, Network, as_backbone
from res2net.hub import load_pretrained
from res2net.kinds import build
from res2net.model import Res2Net
from res2net.named import named


@overload
def create(
    arch: Arch,
    *,
    pretrained: bool = False,
    features_only: Literal[False] = False,
    output_stride: int | None = None,
    **overrides: Any,
) -> Res2Net: ...


@overload
def create(
    arch: BaseArch | str,
    *,
    pretrained: bool = False,
    features_only: Literal[False] = False,
    output_stride: int | None = None,
    **overrides: Any,
) -> Network: ...


@overload
def create(
    arch: BaseArch | str,
    *,
    pretrained: bool = False,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    **overrides: Any,
) -> Backbone: ...


def create(
    arch: BaseArch | str,
    *,
    pretrained: bool = False,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    **overrides: Any,
) -> Network | Backbone:
    """Return a new network in training mode.

    arch: an architecture, or the name of a published network.
    pretrained: whether to load timm's weights from the Hugging Face hub. If `num_classes` differs from timm's, the
        classifier is newly initialised.
    features_only: whether to return a `Backbone`, whose forward returns feature maps instead of logits.
    out_indices: indices of the feature maps to return. None: all maps.
    output_stride: the stride of the last map, reached by dilation (8, 16 or 32 for ImageNet networks). None: the
        network's own stride.
    overrides: fields of the architecture to replace, such as `num_classes=10`.
    """
    value = named(arch) if isinstance(arch, str) else arch
    value = replace(value, **overrides) if overrides else value
    model = load_pretrained(arch, value, output_stride) if pretrained else build(value, output_stride)
    return as_backbone(model, features_only, out_indices)
