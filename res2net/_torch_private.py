"""All uses of PyTorch's private functions in this package: oneDNN's fused convolutions, which have no public name.

`torch.compile` calls the same operators on CPUs. tests/res2net/test_torch_private.py lists every private use.
"""

from __future__ import annotations

import torch
from torch import Tensor

Geometry = tuple[list[int], list[int], list[int], int]  # padding, stride, dilation, groups


def onednn_has_bf16() -> bool:
    """Return whether oneDNN supports bf16 on this CPU."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack(weight: Tensor, geometry: Geometry, shape: torch.Size) -> Tensor:
    """Return the weight in the memory order that oneDNN chooses for inputs of `shape`."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, shape)


def convolve(x: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool) -> Tensor:
    """Return the convolution of `x`, followed by a ReLU if `relu` is set. One kernel computes both."""
    act = "relu" if relu else "none"
    return torch.ops.mkldnn._convolution_pointwise.default(x, packed, bias, *geometry, act, [], "")


def convolve_add(
    x: Tensor, other: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool, in_place: bool
) -> Tensor:
    """Return the convolution of `x` plus `other`, followed by a ReLU if `relu` is set. One kernel computes all.

    in_place: whether to write the result over `other`.
    """
    act = "relu" if relu else None
    if in_place:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, packed, bias, *geometry, "add", 1.0, act, [], ""
        )
    return torch.ops.mkldnn._convolution_pointwise.binary(x, other, packed, bias, *geometry, "add", 1.0, act, [], "")
