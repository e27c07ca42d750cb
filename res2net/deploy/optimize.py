"""Faster networks for inference: fused convolutions in channels-last layout.

torch.fx traces the network to a graph. In the graph, each convolution is fused with the batch norm, the sum with a
shortcut and the ReLU that follow it. On a CPU, the fused convolutions are oneDNN's kernels with packed weights (weights
in oneDNN's own memory order). `torch.compile` uses the same kernels.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from res2net._torch_private import Geometry, convolve, convolve_add, onednn_has_bf16, pack
from res2net.backbone import Backbone, DensePool, Network, check_images
from res2net.errors import UserError
from res2net.kinds import network_names
from res2net.model import Bottle2neck, Bottleneck


def optimize(model: nn.Module, *, bf16: bool = False) -> Optimized | Backbone:
    """Return a faster copy of a network or `Backbone` for inference.

    The outputs of the copy equal the model's up to fp32 rounding. The copy has `forward`, `forward_features`,
    `feature_info`, `num_features` and `arch`. It stays on the model's device, and cannot be trained, saved or moved.
    The model is unchanged.

    bf16: whether to compute in bf16. If so, outputs are still float32, but they differ from the model's by about 1 %
        of the largest output.
    """
    if isinstance(model, Backbone):
        return model.with_body(optimize(model.body, bf16=bf16)).eval()
    if not isinstance(model, Network):
        raise UserError(f"`model`: a {type(model).__name__}; accepted: {network_names()}, Backbone")
    return Optimized(model, bf16)


class Optimized(nn.Module):
    """The module that `optimize` returns."""

    def __init__(self, model: Network, bf16: bool) -> None:
        super().__init__()
        self.arch, self.num_features, self.feature_info = model.arch, model.num_features, model.feature_info
        model = copy.deepcopy(model).eval().requires_grad_(False)
        weight = next(model.parameters())
        self.dtype = torch.bfloat16 if bf16 else weight.dtype
        self.out_dtype = torch.float32 if bf16 else weight.dtype
        self.fc, self.head = as_linear(model.fc), folded(model.head)
        onednn = has_onednn(weight.device, self.dtype)
        recast(model, onednn)
        self.body = fused(model, onednn)
        self.to(self.dtype).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in stubs
        if self.head is not None and self.arch.head.detects:
            self.head.to(self.out_dtype)  # bf16 has too few digits for the places of boxes

    @torch.no_grad()
    def _maps(self, x: Tensor) -> list[Tensor]:
        check_images(x, self.arch.in_channels)
        return self.body(x.to(self.dtype, memory_format=torch.channels_last))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the feature map of each stage, finest first."""
        return [y.to(self.out_dtype) for y in self._maps(x)]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        """Return logits `[N, num_classes]`. Without a classifier, return the mean of the last map, `[N, C]`.

        With a head, return the head's outputs.
        """
        maps = self._maps(x)
        outputs = self.fc(maps[-1].mean((2, 3))) if self.head is None else self.head(maps, x.shape[2:])
        return outputs.to(self.out_dtype) if isinstance(outputs, Tensor) else outputs


def folded(head: nn.Module | None) -> nn.Module | None:
    """Return a head with the batch norms after convolutions folded into them. This changes the head."""
    for module in () if head is None else list(head.modules()):
        if isinstance(module, nn.Sequential) and len(module) > 1:
            first, norm = module[0], module[1]
            if isinstance(first, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
                module[0] = fuse_conv_bn_eval(first, norm, transpose=isinstance(first, nn.ConvTranspose2d))
                module[1] = nn.Identity()
    return head


def as_linear(fc: nn.Module) -> nn.Module:
    """Return the classifier for inputs `[N, C]`. A 1x1 convolution (as in DLA) becomes a linear layer."""
    if not isinstance(fc, nn.Conv2d):
        return fc
    out = nn.utils.skip_init(nn.Linear, fc.in_channels, fc.out_channels)
    out.weight = nn.Parameter(fc.weight.flatten(1), False)
    out.bias = cast("Tensor", fc.bias)  # all classifiers have a bias
    return out


class Conv(nn.Module):
    """A convolution, an optional sum with another map and an optional ReLU, computed by one kernel where possible."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, onednn: bool) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)  # our networks set padding in numbers, not as "same" or "valid"
        self.onednn = onednn
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry: Geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.relu = False
        self.in_place = False  # whether the sum may overwrite the added map (`other` in `forward`)
        self.packed: tuple[torch.Size | None, Tensor] = None, self.weight

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the convolution of `x`, plus `other` if given, after the ReLU if `self.relu`."""
        if not self.onednn:
            return self._plain(x, other)
        packed = self._pack(x)
        if other is None:
            return convolve(x, packed, self.bias, self.geometry, self.relu)
        return convolve_add(x, other, packed, self.bias, self.geometry, self.relu, self.in_place)

    def _plain(self, x: Tensor, other: Tensor | None) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        x = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        x = x if other is None else x.add_(other)
        return x.relu_() if self.relu else x

    def _pack(self, x: Tensor) -> Tensor:
        """Return the weights in oneDNN's memory order for inputs of this shape. Repack them when the shape changes.

        If the weights are packed for another shape, oneDNN reorders them again in each call. This can take ten times as
        long as the convolution itself.
        """
        shape, packed = self.packed
        if shape != x.shape:
            packed = pack(self.weight, self.geometry, x.shape)
            self.packed = x.shape, packed
        return packed


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN supports convolutions of this type on this device."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and onednn_has_bf16())


class InPlace(Bottle2neck):
    """A block of several splits that writes each result over its split. This saves the final concatenation.

    This class replaces only the later blocks of a stage, where results have the same size as splits. In a stage's
    first block, a stride can make the results smaller.
    """

    def middle(self, x: Tensor) -> Tensor:
        splits, y = x.chunk(self.scale, 1), None
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            split = splits[i].clone()
            y = torch.relu_(bn(conv(split if y is None else split.add_(y))))
            splits[i].copy_(y)
        return x


def recast(model: nn.Module, onednn: bool) -> None:
    """Change the class of blocks with several splits to a class that is faster at inference."""
    for block in model.modules():
        if isinstance(block, Bottle2neck) and not block.first:
            block.__class__ = InPlace
        # Do not merge a block of two splits if one of them is pooled. The pooled split would be half of the merged
        # convolution. Its additional products would take longer than the copies that merging saves.
        elif isinstance(block, Bottle2neck) and onednn and (block.scale > 2 or len(block.convs) == block.scale):
            block.conv2, block.bn2 = merged(block), nn.Identity()
            block.__class__ = Bottleneck  # type: ignore[assignment]  # `Bottleneck.middle` reads only `conv2` and `bn2`


def merged(block: Bottle2neck) -> nn.Conv2d:
    """Return the middle of a stage's first block as one grouped convolution.

    This is possible because the splits of a first block do not read each other's results. The result stacks the groups
    of all splits' convolutions. An average-pooled split becomes a convolution too, with weights of 1/9 on its own
    channel and 0 elsewhere. This adds multiplications, but saves the copies that splitting and concatenating the map
    would take.
    """
    pairs = cast("list[tuple[nn.Conv2d, nn.BatchNorm2d]]", list(zip(block.convs, block.bns, strict=True)))
    convs = [fuse_conv_bn_eval(conv, bn) for conv, bn in pairs]
    conv = convs[0]
    if len(convs) < block.scale:
        pool = copy.deepcopy(conv)
        channels = torch.arange(conv.out_channels)
        nn.init.zeros_(pool.weight)[channels, channels % conv.weight.shape[1]] = 1 / 9
        nn.init.zeros_(cast("Tensor", pool.bias))
        convs.append(pool)
    inner, groups = conv.out_channels * block.scale, conv.groups * block.scale
    out = nn.Conv2d(inner, inner, 3, block.stride, block.dilation, block.dilation, groups, device="meta")
    for name in ("weight", "bias"):
        setattr(out, name, nn.Parameter(torch.cat([getattr(c, name) for c in convs]), False))
    return out


class Tracer(fx.Tracer):
    """A tracer of `forward_features`. In its graph, each convolution and each `DensePool` is a single call."""

    traced_func_name = "forward_features"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | DensePool) or super().is_leaf_module(m, module_qualified_name)


def fused(model: nn.Module, onednn: bool) -> fx.GraphModule:
    """Return the graph of `forward_features` with fused convolutions.

    The model must be in eval mode. This function changes the model, so do not use the model afterwards.
    """
    body = fx.GraphModule(model, Tracer().trace(model))
    for node in list(body.graph.nodes):
        if isinstance(module(body, node), nn.Identity):
            drop(node)
    for node in list(body.graph.nodes):
        if isinstance(conv := module(body, node), nn.Conv2d):
            fuse(body, node, conv, onednn)
    order = {node: i for i, node in enumerate(body.graph.nodes)}
    for node in order:
        if isinstance(conv := module(body, node), Conv) and len(node.args) == 2:
            # The sum may overwrite the added map under two conditions. A `Conv` made the map, and all other readers
            # of the map are `Conv` modules that run earlier.
            others = [user for user in node.args[1].users if user is not node]
            is_free = all(isinstance(module(body, user), Conv) and order[user] < order[node] for user in others)
            conv.in_place = is_free and isinstance(module(body, node.args[1]), Conv)
    body.recompile()
    body.delete_all_unused_submodules()
    return body


def fuse(body: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, onednn: bool) -> None:
    """Fuse a convolution with the batch norm, the sum and the ReLU after it.

    Fuse each of these only if it is the sole reader of the result before it.
    """
    act = reader(node)
    if act is not None and isinstance(bn := module(body, act), nn.BatchNorm2d):
        conv = fuse_conv_bn_eval(conv, bn)
        drop(act)
    fused_conv = Conv(conv, onednn)
    body.set_submodule(str(node.target), fused_conv)
    if (act := reader(node)) is not None and act.target is operator.add:
        other = act.args[act.args[0] is node]
        act.append(node)  # move to the sum's place: earlier in the graph, the other map may not exist yet
        act.replace_all_uses_with(node)
        body.graph.erase_node(act)
        node.args = (*node.args, other)
    act = reader(node)
    if act is not None and (act.target in (torch.relu, torch.relu_) or isinstance(module(body, act), nn.ReLU)):
        fused_conv.relu = True
        drop(act)


def module(body: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """Return the module that a node calls, or None if it calls no module."""
    return body.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def reader(node: fx.Node) -> fx.Node | None:
    """Return the only reader of a node's result. Return None if the result has no reader or several readers."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def drop(node: fx.Node) -> None:
    """Remove a node from the graph. The readers of its result then read its input instead."""
    node.replace_all_uses_with(cast("fx.Node", node.args[0]))
    node.graph.erase_node(node)
