"""Each use of PyTorch's private parts: what it must do, and what breaks without it."""

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import res2net
from res2net import _torch_private as private

ROOM = Path(res2net.__file__).parent
PRIVATE = ("_torch_private.py", "vision_private.py")  # files that may use private parts
GEOMETRY: private.Geometry = [1, 1], [2, 2], [1, 1], 2
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def layer() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, a grouped 3x3 kernel, its bias, and the convolution's output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 9, 7, generator=generator).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(6, 4, 3, 3, generator=generator), torch.randn(6, generator=generator)
    return x, weight, bias, F.conv2d(x, weight, bias, 2, 1, 1, 2)


@needs_onednn
def test_reorder_convolution_weight() -> None:
    """Without it, oneDNN reorders the weights in each call, which can take ten times as long as the convolution."""
    x, weight, bias, expected = layer()
    packed = private.pack(weight, GEOMETRY, x.shape)
    assert packed.is_mkldnn
    torch.testing.assert_close(packed.to_dense(), weight)
    torch.testing.assert_close(private.convolve(x, packed, bias, GEOMETRY, False), expected)


@needs_onednn
@pytest.mark.parametrize("relu", [False, True])
def test_convolution_pointwise(relu: bool) -> None:
    """Without it, the ReLU is a pass over the map of its own: `optimize` loses its gain on a CPU."""
    x, weight, bias, expected = layer()
    found = private.convolve(x, private.pack(weight, GEOMETRY, x.shape), bias, GEOMETRY, relu)
    torch.testing.assert_close(found, expected.relu() if relu else expected)


@needs_onednn
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_convolution_pointwise_binary(relu: bool, in_place: bool) -> None:
    """Without it, the sum with the shortcut is one more pass; not in place, it needs one more map of memory."""
    x, weight, bias, expected = layer()
    other = torch.ones_like(expected)
    expected = expected + other
    found = private.convolve_add(
        x, other, private.pack(weight, GEOMETRY, x.shape), bias, GEOMETRY, relu=relu, in_place=in_place
    )
    torch.testing.assert_close(found, expected.relu() if relu else expected)
    assert (found.data_ptr() == other.data_ptr()) is in_place


@needs_onednn
def test_is_mkldnn_bf16_supported() -> None:
    """Without it, `optimize(bf16=True)` raises on CPUs whose oneDNN has no bf16 kernels."""
    x, weight, bias, expected = layer()
    if not private.onednn_has_bf16():
        pytest.skip("oneDNN has no bf16 kernels on this CPU")
    x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    found = private.convolve(x, private.pack(weight, GEOMETRY, x.shape), bias, GEOMETRY, False)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.1)


def test_no_other_file_uses_private_parts_of_a_library() -> None:
    """A name with one leading underscore is private, unless it belongs to the object itself or to this package."""
    found = []
    for path in ROOM.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        owned = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        names = [n for n in nodes if n.attr.startswith("_") and not n.attr.startswith("__") and n.attr not in owned]
        of_others = [
            n for n in names if not (isinstance(n.value, ast.Name) and n.value.id in ("self", "cls", "BaseArch"))
        ]
        found += [f"{path.name}: {ast.unparse(n)}" for n in of_others if path.name not in PRIVATE]
    assert found == []
