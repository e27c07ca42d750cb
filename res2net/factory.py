"""`create`: a network from a value or a name."""

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
    """Return a network in training mode, from a value or a name; overrides are fields of the value (`num_classes=10`).

    pretrained: load timm's weights from the Hugging Face hub; a head of other `num_classes` is newly initialised.
    features_only: return a `Backbone`, whose forward returns the maps `out_indices` (None: all maps).
    output_stride: the last map's stride, reached by dilation (8, 16 or 32 for ImageNet networks).
    """
    value = named(arch) if isinstance(arch, str) else arch
    value = replace(value, **overrides) if overrides else value
    model = load_pretrained(arch, value, output_stride) if pretrained else build(value, output_stride)
    return as_backbone(model, features_only, out_indices)
