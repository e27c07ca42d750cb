"""The registry of heads' modules: build the head of an architecture from its value."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from res2net.heads.value import Deconv, DeepLab, Dss, FasterRcnn, Head, KeypointRcnn, MaskRcnn

# "module:Class" for each kind of head. A class takes (head, num_classes, channels of each map, stride of each map).
MODULES = {
    DeepLab.kind: "res2net.heads.deeplab:DeepLabHead",
    Dss.kind: "res2net.heads.dss:DssHead",
    Deconv.kind: "res2net.heads.deconv:DeconvHead",
    FasterRcnn.kind: "res2net.heads.rcnn:RcnnHead",
    MaskRcnn.kind: "res2net.heads.rcnn:RcnnHead",
    KeypointRcnn.kind: "res2net.heads.rcnn:RcnnHead",
}


def build_head(head: Head, num_classes: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Return a newly initialised head, whose `forward` takes the feature maps and the size of the images.

    channels, strides: the channels and the stride of each of the backbone's maps, finest first.
    """
    module, _, name = MODULES[head.kind].partition(":")
    return getattr(import_module(module), name)(head, num_classes, channels, strides)
