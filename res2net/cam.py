"""Class activation maps by gradients (Grad-CAM, arXiv 1610.02391): the regions of an image that raise a class's score.

The module is not called `grad_cam`: importing a module of this name would hide the function `res2net.grad_cam`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net.backbone import Network, check_images
from res2net.errors import UserError
from res2net.kinds import network_names


class ClassMaps(NamedTuple):
    """The logits of images and a map for one class of each image.

    logits: [N, classes].
    classes: the class number of each map, int64 [N].
    maps: equation 2 of the paper, [N, h, w], with the size of the last stage's feature map.
    """

    logits: Tensor
    classes: Tensor
    maps: Tensor


def grad_cam(model: Network, images: Tensor, target: int | Tensor | None = None, *, raw: bool = False) -> Tensor:
    """Return class activation maps `[N, H, W]` in 0..1 for images `[N, C, H, W]` (Grad-CAM, arXiv 1610.02391).

    The maps of equation 2 are resized bilinearly to the size of the images. Then each map is divided by its maximum. A
    map without positive values is zero everywhere.

    A map is as coarse as the last stage's feature map. At stride s, cell i reads the pixels around i * s, because the
    strided convolutions start at the first pixel. The resized map shows this cell around (i + 1/2) * s. So maps may lie
    half a stride too far down and to the right, as in every implementation that resizes them.

    target: a class number, a tensor `[N]` of class numbers, or None for the predicted class of each image.
    raw: whether to return the maps of equation 2 as they are, `[N, h, w]`.

    The network computes in eval mode, also without gradients around the call (`torch.no_grad`). The call does not
    change the network: modes, flags, gradients and hooks stay as they are.
    Raise `UserError` for a network without a classifier, for images of a wrong shape, and for a wrong target.
    """
    maps = class_maps(model, images, target).maps
    return maps if raw else scaled(maps, images.shape[2:])


def class_maps(model: Network, images: Tensor, target: int | Tensor | None = None) -> ClassMaps:
    """Return the maps of equation 2 with the logits. Arguments and errors are those of `grad_cam`."""
    if not isinstance(model, Network):
        raise UserError(f"`model`: a {type(model).__name__}; accepted: {network_names()}, with a classifier")
    if isinstance(model.fc, nn.Identity):
        raise UserError(f"`model`: a {type(model).__name__} without a classifier; accepted: 1 class or more")
    if not isinstance(images, Tensor):
        raise UserError(f"`images`: a {type(images).__name__}; accepted: a tensor [N, C, H, W]")
    check_images(images, model.arch.in_channels)
    # Tensors that are made in inference mode cannot be differentiated, so leave this mode.
    with torch.inference_mode(False), torch.no_grad(), _evaluating(model), _last_map(model) as last:
        logits = model(images)
        classes = _class_numbers(target, logits)
        # An image's score depends on the map of this image alone. So the gradient of the sum holds all gradients.
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), last)
        weights = gradient.mean((2, 3), keepdim=True)  # equation 1
        maps = (weights * last[0].detach()).sum(1).relu()  # equation 2
    return ClassMaps(logits.detach(), classes, maps)


def scaled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps `[N, h, w]` resized bilinearly to `size` (height, width) and divided by their maxima."""
    maps = F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    peaks = maps.amax((1, 2), keepdim=True)
    return maps / peaks.masked_fill(peaks == 0, 1)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode. Afterwards, restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _last_map(model: Network) -> Iterator[list[Tensor]]:
    """Yield a list that receives the last stage's map in the next forward pass. Gradients are recorded from this map.

    Enter this context inside `torch.no_grad`, which restores the recording of gradients when it ends.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # Record gradients only from here: the graph of all stages would take as much memory as a training step.
        torch.set_grad_enabled(True)
        found.append(output.detach().requires_grad_())
        return found[0]

    handle = model.layers()[-1].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _class_numbers(target: int | Tensor | None, logits: Tensor) -> Tensor:
    """Return the class number of each image, int64 [N]. Raise `UserError` for a wrong target."""
    if target is None:
        return logits.argmax(1)
    n, count = logits.shape
    accepted = f"accepted: a class number from 0 to {count - 1}, or a tensor [{n}] of class numbers"
    if isinstance(target, Tensor):
        if target.shape != (n,) or target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise UserError(f"`target`: a tensor {list(target.shape)} of {target.dtype}; {accepted}")
        numbers = target.tolist()
    else:
        if type(target) is not int:
            raise UserError(f"`target`: a {type(target).__name__}; {accepted}")
        numbers = [target] * n
    for number in numbers:
        if not 0 <= number < count:
            raise UserError(f"`target`: {number}; {accepted}")
    return torch.tensor(numbers, dtype=torch.int64, device=logits.device)
