"""The shapes of released weights, written out from the released definitions; they share no code with ours."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def bn(name: str, channels: int) -> Shapes:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def conv_bn(conv: str, norm: str, c_in: int, c_out: int, kernel: int, groups: int = 1) -> Shapes:
    return {f"{conv}.weight": (c_out, c_in // groups, kernel, kernel)} | bn(norm, c_out)


def middle(at: str, width: int, scale: int, groups: int) -> Shapes:
    if scale == 1:
        return conv_bn(f"{at}.conv2", f"{at}.bn2", width, width, 3, groups)
    parts = [conv_bn(f"{at}.convs.{i}", f"{at}.bns.{i}", width, width, 3, groups) for i in range(scale - 1)]
    return {k: v for part in parts for k, v in part.items()}


def block(at: str, c_in: int, c_out: int, width: int, scale: int, groups: int) -> Shapes:
    return {
        **conv_bn(f"{at}.conv1", f"{at}.bn1", c_in, width * scale, 1),
        **middle(at, width, scale, groups),
        **conv_bn(f"{at}.conv3", f"{at}.bn3", width * scale, c_out, 1),
    }


def residual(depths: tuple[int, ...], width: int, scale: int = 1, groups: int = 1, v1b: bool = False) -> Shapes:
    shapes = conv_bn("conv1", "bn1", 3, 64, 7)
    if v1b:
        stem = conv_bn("conv1.0", "conv1.1", 3, 32, 3) | conv_bn("conv1.3", "conv1.4", 32, 32, 3)
        shapes = stem | conv_bn("conv1.6", "bn1", 32, 64, 3)
    c_in = 64
    for i, depth in enumerate(depths):
        c_out, split = 256 * 2**i, 2**i * width * groups
        for j in range(depth):
            shapes |= block(f"layer{i + 1}.{j}", c_in, c_out, split, scale, groups)
            if j == 0:
                at = f"layer{i + 1}.0.downsample"
                shapes |= conv_bn(f"{at}.{int(v1b)}", f"{at}.{int(v1b) + 1}", c_in, c_out, 1)
            c_in = c_out
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def tree(at: str, levels: int, c_in: int, c_out: int, root: int, cells: tuple[int, int, int]) -> Shapes:
    """As the authors have it: every tree projects where channels change, whether that is used or not."""
    shapes = conv_bn(f"{at}.project.0", f"{at}.project.1", c_in, c_out, 1) if c_in != c_out else {}
    if levels > 1:
        shapes |= tree(f"{at}.tree1", levels - 1, c_in, c_out, 2 * c_out, cells)
        return shapes | tree(f"{at}.tree2", levels - 1, c_out, c_out, root + c_out, cells)
    base, scale, groups = cells
    split = c_out * base // 64 * groups // 2
    shapes |= block(f"{at}.tree1", c_in, c_out, split, scale, groups)
    shapes |= block(f"{at}.tree2", c_out, c_out, split, scale, groups)
    return shapes | conv_bn(f"{at}.root.conv", f"{at}.root.bn", root, c_out, 1)


def dla(*cells: int) -> Shapes:
    shapes = conv_bn("base_layer.0", "base_layer.1", 3, 16, 7) | conv_bn("level0.0", "level0.1", 16, 16, 3)
    shapes |= conv_bn("level1.0", "level1.1", 16, 32, 3)
    channels = (32, 128, 256, 512, 1024)
    for i, levels in enumerate((1, 2, 3, 1)):
        c_in, c_out = channels[i : i + 2]
        shapes |= tree(f"level{i + 2}", levels, c_in, c_out, 2 * c_out + (c_in if i else 0), cells)
    return shapes | {"fc.weight": (1000, 1024, 1, 1), "fc.bias": (1000,)}


RELEASED: dict[str, tuple[Callable[[], Shapes], int]] = {
    "resnet50": (lambda: residual((3, 4, 6, 3), 64), 25_557_032),
    "resnext50_32x4d": (lambda: residual((3, 4, 6, 3), 4, 1, 32), 25_028_904),
    "res2net50_48w_2s": (lambda: residual((3, 4, 6, 3), 48, 2), 25_287_304),
    "res2net50_26w_4s": (lambda: residual((3, 4, 6, 3), 26, 4), 25_699_120),
    "res2net50_14w_8s": (lambda: residual((3, 4, 6, 3), 14, 8), 25_059_816),
    "res2net50_26w_6s": (lambda: residual((3, 4, 6, 3), 26, 6), 37_051_448),
    "res2net50_26w_8s": (lambda: residual((3, 4, 6, 3), 26, 8), 48_403_776),
    "res2net101_26w_4s": (lambda: residual((3, 4, 23, 3), 26, 4), 45_206_688),
    "res2next50": (lambda: residual((3, 4, 6, 3), 4, 4, 8), 24_671_464),
    "res2net50_v1b": (lambda: residual((3, 4, 6, 3), 26, 4, v1b=True), 25_718_352),
    "res2net101_v1b": (lambda: residual((3, 4, 23, 3), 26, 4, v1b=True), 45_225_920),
    "res2net_dla60": (lambda: dla(28, 4, 1), 21_145_544),
    "res2next_dla60": (lambda: dla(4, 4, 8), 17_330_456),
    "dla60": (lambda: dla(64, 1, 1), 22_036_632 + 297_472),
    "dla60x": (lambda: dla(4, 1, 32), 17_352_344 + 297_472),
}


def contents(shapes: Shapes) -> dict[str, Tensor]:
    """Weights of those shapes, each of one value, which takes no room in a file."""
    return {k: torch.tensor(1 + i / 64).expand(shape) for i, (k, shape) in enumerate(shapes.items())}


def released(name: str, path: Path) -> Path:
    torch.save(contents(RELEASED[name][0]()), path)
    return path
