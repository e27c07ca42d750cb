"""The resolutions of a network's stages, and their feature maps. Does not import torch."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from res2net.arch import BaseArch
from res2net.errors import UserError
from res2net.heads.cost import Map


class Level(NamedTuple):
    """The resolution of a stage.

    reduction: the stride of the stage's feature map.
    first_dilation: the dilation of the first block.
    dilation: the dilation of the later blocks.
    """

    reduction: int
    first_dilation: int
    dilation: int

    @property
    def dense(self) -> bool:
        """Whether dilation replaces the stage's stride."""
        return self.dilation != self.first_dilation


def levels(arch: BaseArch, output_stride: int | None = None) -> tuple[Level, ...]:
    """Return the level of each stage. Raise `UserError` for an output stride that neither the stem nor a stage has.

    If dilation replaces a stage's stride, the first block still has the dilation of the previous stage, because this
    block reads the previous stage's map. torchvision's `replace_stride_with_dilation` does the same.
    """
    own = arch.strides
    if output_stride is not None and (type(output_stride) is not int or output_stride not in own):
        accepted = ", ".join(str(n) for n in sorted(set(own)))
        raise UserError(f"`output_stride`: {output_stride!r}; accepted: {accepted} (this network's own is {own[-1]})")
    return _levels(own, output_stride)


@lru_cache  # a search counts the cost of tens of thousands of networks with the same strides
def _levels(own: tuple[int, ...], output_stride: int | None) -> tuple[Level, ...]:
    limit = own[-1] if output_stride is None else output_stride
    dilations = [max(1, n // limit) for n in own]
    return tuple(Level(min(n, limit), dilations[i], dilations[i + 1]) for i, n in enumerate(own[1:]))


def stage_maps(arch: BaseArch) -> tuple[Map, ...]:
    """Return the map of each stage, finest first, at the output stride that the head asks for."""
    found = levels(arch, arch.output_stride)
    return tuple(Map(stage.channels, level.reduction) for stage, level in zip(arch.stages, found, strict=True))


def own_stride(arch: BaseArch, output_stride: int | None) -> None:
    """Raise `UserError` for an output stride other than the network's own."""
    own = arch.strides[-1]
    if output_stride not in (None, own):
        raise UserError(
            f"`output_stride`: {output_stride!r}; accepted: {own} (only Res2Net can trade strides for dilation)"
        )
