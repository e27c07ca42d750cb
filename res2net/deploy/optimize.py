"""Networks for inference: batch norms folded, channels last, and what follows a convolution done in its own kernel.

The network is traced, not rewritten: whatever a block computes, a convolution takes over the batch norm behind it, the
sum with a shortcut and the ReLU. On a CPU these are oneDNN's kernels with packed weights, the ones that
`torch.compile` uses.
"""

from __future__ import annotations

import copy
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from res2net.backbone import Backbone, DensePool, check_images
from res2net.errors import UserError
from res2net.hosts.biglittle.model import BigLittle
from res2net.hosts.dla.model import Dla
from res2net.model import Bottle2neck, Bottleneck, Res2Net

KINDS = (Res2Net, Dla, BigLittle)


def optimize(model: nn.Module, *, bf16: bool = False) -> Optimized | Backbone:
    """A copy of a network (or `Backbone`) for inference alone: faster, with the same outputs to fp32 rounding.

    It has `forward`, `forward_features`, `feature_info`, `num_features` and `arch`, and stays on the device that the
    model is on: it can be neither trained, saved nor moved. The model itself is left as it is.

    bf16: compute in bf16 with outputs in float32, which differ by about 1 % of the largest.
    """
    if isinstance(model, Backbone):
        out = copy.copy(model)
        out._modules = {"body": optimize(model.body, bf16=bf16)}
        return out.eval()
    if not isinstance(model, KINDS):
        accepted = ", ".join(kind.__name__ for kind in (*KINDS, Backbone))
        raise UserError(f"model is a {type(model).__name__}; accepted: {accepted}")
    return Optimized(model, bf16)


class Optimized(nn.Module):
    """What `optimize` makes of a network."""

    def __init__(self, model: Res2Net | Dla | BigLittle, bf16: bool) -> None:
        super().__init__()
        self.arch, self.num_features, self.feature_info = model.arch, model.num_features, model.feature_info
        model = copy.deepcopy(model).eval().requires_grad_(False)
        weight = next(model.parameters())
        self.dtype = torch.bfloat16 if bf16 else weight.dtype
        self.out_dtype = torch.float32 if bf16 else weight.dtype
        self.fc = as_linear(model.fc)
        onednn = has_onednn(weight.device, self.dtype)
        recast(model, onednn)
        self.body = fused(model, onednn)
        self.to(self.dtype, memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def _maps(self, x: Tensor) -> list[Tensor]:
        check_images(x, self.arch.in_channels)
        return self.body(x.to(self.dtype, memory_format=torch.channels_last))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Each stage's feature maps, finest first."""
        return [y.to(self.out_dtype) for y in self._maps(x)]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self._maps(x)[-1].mean((2, 3))).to(self.out_dtype)


def as_linear(fc: nn.Module) -> nn.Module:
    """The classifier over `[N, C]`, where it may be a 1x1 convolution."""
    if not isinstance(fc, nn.Conv2d):
        return fc
    out = nn.utils.skip_init(nn.Linear, fc.in_channels, fc.out_channels)
    out.weight, out.bias = nn.Parameter(fc.weight.flatten(1), False), fc.bias
    return out


class Conv(nn.Module):
    """A convolution, the sum with another map, and a ReLU, where the network has them, at once."""

    def __init__(self, conv: nn.Conv2d, onednn: bool) -> None:
        super().__init__()
        self.onednn = onednn
        self.weight, self.bias = conv.weight, conv.bias
        self.shape = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.relu = False
        self.in_place = False  # whether the sum may replace the other map
        self.packed: tuple[torch.Size | None, Tensor] = None, self.weight

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if not self.onednn:
            return self._plain(x, other)
        relu = "relu" if self.relu else None
        layer = self._pack(x), self.bias, *self.shape
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise.default(x, *layer, relu or "none", [], "")
        if self.in_place:
            return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *layer, "add", 1.0, relu, [], "")
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *layer, "add", 1.0, relu, [], "")

    def _plain(self, x: Tensor, other: Tensor | None) -> Tensor:
        padding, stride, dilation, groups = self.shape
        x = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        x = x if other is None else x.add_(other)
        return x.relu_() if self.relu else x

    def _pack(self, x: Tensor) -> Tensor:
        """The weights in the order that oneDNN wants them in for images of this shape.

        Packed for others, they would be reordered at each call, which can take ten times as long as the convolution.
        """
        shape, packed = self.packed
        if shape != x.shape:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.shape, x.shape)
            self.packed = x.shape, packed
        return packed


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves numbers of that type there."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class InPlace(Bottle2neck):
    """A later block, whose splits are replaced one after the other in the map that they are read from."""

    def middle(self, x: Tensor) -> Tensor:
        splits, y = x.chunk(self.scale, 1), None
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            split = splits[i].clone()
            y = torch.relu_(bn(conv(split if y is None else split.add_(y))))
            splits[i].copy_(y)
        return x


def recast(model: nn.Module, onednn: bool) -> None:
    """Give blocks of several splits the kind that is faster here."""
    for block in model.modules():
        if isinstance(block, Bottle2neck) and not block.first:
            block.__class__ = InPlace
        # Of two splits, the one that is pooled would be half of the convolution.
        elif isinstance(block, Bottle2neck) and onednn and (block.scale > 2 or len(block.convs) == block.scale):
            block.conv2, block.bn2 = merged(block), nn.Identity()
            block.__class__ = Bottleneck


def merged(block: Bottle2neck) -> nn.Conv2d:
    """What a first block does between its 1x1 convolutions, as one convolution: its splits do not meet.

    Each split is a group, and the pool a kernel that is a ninth everywhere. Copies of the splits would take longer than
    these products.
    """
    convs = [fuse_conv_bn_eval(conv, bn) for conv, bn in zip(block.convs, block.bns, strict=True)]
    conv = convs[0]
    if len(convs) < block.scale:
        pool = copy.deepcopy(conv)
        channels = torch.arange(conv.out_channels)
        nn.init.zeros_(pool.weight)[channels, channels % conv.weight.shape[1]] = 1 / 9
        nn.init.zeros_(pool.bias)
        convs.append(pool)
    inner, groups = conv.out_channels * block.scale, conv.groups * block.scale
    out = nn.Conv2d(inner, inner, 3, conv.stride, conv.padding, conv.dilation, groups, device="meta")
    for name in ("weight", "bias"):
        setattr(out, name, nn.Parameter(torch.cat([getattr(c, name) for c in convs]), False))
    return out


class Tracer(fx.Tracer):
    """Records `forward_features`."""

    traced_func_name = "forward_features"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | DensePool) or super().is_leaf_module(m, module_qualified_name)


def fused(model: nn.Module, onednn: bool) -> fx.GraphModule:
    """`forward_features` made of `Conv`s, of a model in eval mode that is not needed any more."""
    body = fx.GraphModule(model, Tracer().trace(model))
    for node in list(body.graph.nodes):
        if isinstance(module(body, node), nn.Identity):
            drop(node)
    for node in list(body.graph.nodes):
        if isinstance(module(body, node), nn.Conv2d):
            fuse(body, node, onednn)
    order = {node: i for i, node in enumerate(body.graph.nodes)}
    for node in order:
        if isinstance(conv := module(body, node), Conv) and len(node.args) == 2:
            # No other name for the map, and nobody who reads it later.
            others = [user for user in node.args[1].users if user is not node]
            is_free = all(isinstance(module(body, user), Conv) and order[user] < order[node] for user in others)
            conv.in_place = is_free and isinstance(module(body, node.args[1]), Conv)
    body.recompile()
    body.delete_all_unused_submodules()
    return body


def fuse(body: fx.GraphModule, node: fx.Node, onednn: bool) -> None:
    """Make the convolution at a node take over what alone reads its result."""
    conv, act = module(body, node), reader(node)
    if isinstance(bn := module(body, act), nn.BatchNorm2d):
        conv = fuse_conv_bn_eval(conv, bn)
        drop(act)
    conv = Conv(conv, onednn)
    body.set_submodule(node.target, conv)
    if (act := reader(node)) is not None and act.target is operator.add:
        other = act.args[act.args[0] is node]
        act.append(node)  # where the other map is known as well
        act.replace_all_uses_with(node)
        body.graph.erase_node(act)
        node.args = (*node.args, other)
    act = reader(node)
    if act is not None and (act.target in (torch.relu, torch.relu_) or isinstance(module(body, act), nn.ReLU)):
        conv.relu = True
        drop(act)


def module(body: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """What a node calls, if that is a module."""
    return body.get_submodule(node.target) if node is not None and node.op == "call_module" else None


def reader(node: fx.Node) -> fx.Node | None:
    """Who alone reads a node's result."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def drop(node: fx.Node) -> None:
    """Take a node out; what it reads stands for it."""
    node.replace_all_uses_with(node.args[0])
    node.graph.erase_node(node)
