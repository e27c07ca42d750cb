"""Heads in proportion to a backbone: the published sizes for published networks, fewer channels for thin ones."""

from __future__ import annotations

from dataclasses import replace

from res2net.arch import Arch, BaseArch
from res2net.heads import Deconv, DeepLab, Dss, FasterRcnn, MaskRcnn
from res2net.heads.cost import Map
from res2net.kinds import kind_of
from res2net.layer_cost import down

OUTPUT_STRIDE = 16  # of DeepLab, in training and scoring, as in Table 7 of the paper
SHARE = 8  # ratio of the last map's channels to the head's: 2048 / 256 for DeepLab v3+ and SimpleBaseline on ResNet-50
DSS_SHARE = 16  # the same for DSS: 2048 / 128, the channels of its finest maps
LEAST = 16  # minimum number of channels
DEEPLAB_LEAST = 32  # the same for DeepLab: with 16, a network cannot even overfit 16 images (`studies/LOG.md`)
LOW_SHARE = 3 / 16  # ratio of the finer map's channels to the other channels of the decoder: 48 / 256 in DeepLab v3+
RATES = (6, 12, 18)  # dilations for a map of `RATES_SIZE` pixels along a side, as of images of 513 pixels
RATES_SIZE = 33
HIDDEN_SHARE = 4  # ratio of a proposal's features to the channels: 1024 / 256 in Faster R-CNN
PROPOSAL_PIXELS = 256  # pixels of the image per proposal
PROPOSALS = (32, 1000)  # minimum and maximum number of proposals; Faster R-CNN has 1000
ANCHOR = 8  # maximum side of an anchor in pixels of the map, as published
ANCHOR_SHARE = 5 / 8  # maximum side of an anchor as a share of the image's: 512 pixels in images of about 800


def deeplab_for(arch: BaseArch, image_size: int) -> DeepLab:
    """Return the head of DeepLab v3+ for a network.

    The output stride is 16 if the network's own is larger. Dilations are in proportion to the size of the map.
    """
    maps = _own_maps(arch)
    own = maps[-1].stride
    # Only `Res2Net` can replace strides by dilation.
    lower = [m.stride for m in maps if m.stride <= OUTPUT_STRIDE] if isinstance(arch, Arch) else []
    stride = max(lower, default=own)
    channels = max(DEEPLAB_LEAST, maps[-1].channels // SHARE)
    side = down(image_size, stride)
    rates = tuple(max(1, round(rate * side / RATES_SIZE)) for rate in RATES)
    low = max(DEEPLAB_LEAST // 2, round(LOW_SHARE * channels))
    return DeepLab(channels, low, rates, None if stride == own else stride)


def dss_for(arch: BaseArch, image_size: int) -> Dss:
    """Return the head of DSS for a network, at the network's own stride."""
    return Dss(max(LEAST, _last_channels(arch) // DSS_SHARE))


def deconv_for(arch: BaseArch, image_size: int) -> Deconv:
    """Return the head of SimpleBaseline for a network, at the network's own stride."""
    return Deconv(max(LEAST, _last_channels(arch) // SHARE))


def faster_rcnn_for(arch: BaseArch, image_size: int) -> FasterRcnn:
    """Return the head of Faster R-CNN for a network and images of `image_size` pixels along a side."""
    return FasterRcnn(*_rcnn(arch, image_size))


def mask_rcnn_for(arch: BaseArch, image_size: int) -> MaskRcnn:
    """Return the head of Mask R-CNN for a network and images of `image_size` pixels along a side."""
    return MaskRcnn(*_rcnn(arch, image_size))


def _rcnn(arch: BaseArch, image_size: int) -> tuple[int, int, int, int]:
    """Return the channels, hidden features, anchor and number of proposals.

    The anchors of the coarsest map, whose stride is twice the network's, are the largest.
    """
    channels = max(LEAST, _last_channels(arch) // SHARE)
    anchor = min(ANCHOR, max(1, round(ANCHOR_SHARE * image_size / (2 * _own_maps(arch)[-1].stride))))
    least, most = PROPOSALS
    return channels, HIDDEN_SHARE * channels, anchor, min(most, max(least, image_size**2 // PROPOSAL_PIXELS))


def _last_channels(arch: BaseArch) -> int:
    return _own_maps(arch)[-1].channels


def _own_maps(arch: BaseArch) -> tuple[Map, ...]:
    """Return the maps of a network without a head."""
    return kind_of(arch).maps(arch if arch.head is None else replace(arch, head=None))
