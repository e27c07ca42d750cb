"""Faster, Mask and Keypoint R-CNN over a feature pyramid: torchvision's parts, with its state-dict keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from res2net.heads.cost import BOX_SIDE, MASK_LAYERS, MASK_SIDE, POINT_LAYERS, POINT_WIDTH
from res2net.heads.layers import DRAWN
from res2net.heads.value import ASPECTS, DETECTIONS, FasterRcnn, KeypointRcnn, MaskRcnn
from res2net.heads.vision_private import load_torchvision

SAMPLES = 2  # sampled points along each side of a pooled pixel
ANCHORS = 256  # anchors per image in the loss of the proposals
FOREGROUND = 0.25  # maximum share of objects among the proposals in the loss of the boxes
MOST_TRAINED = 512  # maximum number of proposals per image in the loss of the boxes
LEAST_SCORE = 0.05  # minimum score of a detected object

# An image's targets, as in torchvision: `boxes` [n, 4], `labels` [n], `masks` [n, H, W], `keypoints` [n, points, 3].
Target = dict[str, Tensor]


class RcnnHead(nn.Module):
    """The head of a `FasterRcnn`, a `MaskRcnn` or a `KeypointRcnn`.

    In eval mode, it returns a dict for each image: `boxes` [n, 4] as x1, y1, x2, y2 in pixels of the image, `labels`
    [n] from 1, and `scores` [n], the best first. A `MaskRcnn` adds `masks` [n, 1, H, W], the probability of each pixel.
    A `KeypointRcnn` adds `keypoints` [n, points, 3] (x, y, 1) and `keypoints_scores` [n, points]. In training mode, a
    head returns a dict of losses, and needs the targets of the images. It computes in fp32.
    """

    def __init__(self, head: FasterRcnn, num_classes: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        load_torchvision()
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.roi_heads import RoIHeads
        from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
        from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        c, names = head.channels, [str(i) for i in range(len(channels))]
        self.fpn = FeaturePyramidNetwork(list(channels), c, LastLevelMaxPool())
        sizes = tuple((head.anchor * stride,) for stride in (*strides, 2 * strides[-1]))
        kept = {"training": 2 * head.proposals, "testing": head.proposals}
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(sizes, (ASPECTS,) * len(sizes)),
            RPNHead(c, len(ASPECTS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=ANCHORS,
            positive_fraction=0.5,
            pre_nms_top_n=kept,
            post_nms_top_n=kept,
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            MultiScaleRoIAlign(names, BOX_SIDE, SAMPLES),
            TwoMLPHead(c * BOX_SIDE**2, head.hidden),
            FastRCNNPredictor(head.hidden, num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=min(MOST_TRAINED, 2 * head.proposals),
            positive_fraction=FOREGROUND,
            bbox_reg_weights=None,
            score_thresh=LEAST_SCORE,
            nms_thresh=0.5,
            detections_per_img=DETECTIONS,
        )
        if isinstance(head, MaskRcnn):
            self._add_masks(num_classes, c, names)
        if isinstance(head, KeypointRcnn):
            self._add_points(head.points, c, names)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                setattr(module, DRAWN, True)

    def _add_masks(self, num_classes: int, channels: int, names: list[str]) -> None:
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
        from torchvision.ops import MultiScaleRoIAlign

        self.roi_heads.mask_roi_pool = MultiScaleRoIAlign(names, MASK_SIDE, SAMPLES)
        self.roi_heads.mask_head = MaskRCNNHeads(channels, [channels] * MASK_LAYERS, 1)
        self.roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes)

    def _add_points(self, points: int, channels: int, names: list[str]) -> None:
        from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
        from torchvision.ops import MultiScaleRoIAlign

        wide = POINT_WIDTH * channels
        self.roi_heads.keypoint_roi_pool = MultiScaleRoIAlign(names, MASK_SIDE, SAMPLES)
        self.roi_heads.keypoint_head = KeypointRCNNHeads(channels, [wide] * POINT_LAYERS)
        self.roi_heads.keypoint_predictor = KeypointRCNNPredictor(wide, points)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int], targets: list[Target] | None = None) -> Any:
        """Return the objects of each image. In training mode, return the losses.

        maps: the backbone's maps. size: height and width of the images.
        targets: the targets of each image, for training. An image may have no objects: boxes [0, 4].
        """
        from torchvision.models.detection.image_list import ImageList
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        n, shape = len(maps[0]), (int(size[0]), int(size[1]))
        shapes = [shape] * n
        images = ImageList(maps[0].new_empty(n, 0, *shape), shapes)  # only the sizes are read
        # bf16 has too few digits for the places of boxes.
        with torch.autocast(maps[0].device.type, enabled=False):
            own = self.roi_heads.box_predictor.cls_score.weight.dtype
            features = self.fpn(OrderedDict((str(i), m.to(own)) for i, m in enumerate(maps)))
            proposals, losses = self.rpn(images, features, targets)
            found, more = self.roi_heads(features, proposals, shapes, targets)
        if self.training:
            return losses | more
        for image in found:
            if "masks" in image:
                image["masks"] = paste_masks_in_image(image["masks"], image["boxes"], shape)
        return found
