"""Heads as frozen values that can be written as JSON. A head takes the place of an architecture's classifier.

This module does not import torch. To add a head, write a value here, its cost in `res2net.heads.cost`, and its module
in a file of its own, named in `res2net.heads.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from res2net.errors import UserError, unknown

LOW_STRIDE = 4  # the stride of the finer map that a decoder reads
HEAT_STRIDE = 4  # the stride of heat maps
ASPECTS = (0.5, 1.0, 2.0)  # height / width of the anchors at each pixel of a map
DETECTIONS = 100  # maximum number of detected objects in an image


class Head:
    """The base class of heads. Each kind of head has its own subclass.

    channels: channels of the head's inner layers.
    output_stride: the stride of the backbone's last map, reached by dilation. None: the network's own stride.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]
    kind: ClassVar[str]
    detects: ClassVar[bool] = False  # whether the head detects objects; its outputs are then not a tensor
    channels: int
    output_stride: int | None

    def __post_init__(self) -> None:
        self._check_whole(channels=self.channels)
        if self.output_stride is not None:
            self._check_whole(output_stride=self.output_stride)

    def to_dict(self) -> dict[str, Any]:
        """Return the head as plain lists, numbers and strings."""
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(data: object) -> Head:
        """Return the head that `to_dict` wrote. Raise `UserError` for wrong values or keys."""
        kind = data.get("kind") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(kind, str) or kind not in HEADS:
            raise UserError(f"arch: head is {data!r}; accepted: a table of keys whose kind is {' or '.join(HEADS)}")
        found = HEADS[kind]
        names = ("kind", *(f.name for f in fields(found)))
        for key in data:
            if key not in names:
                raise unknown("arch: head: key", key, names)
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "kind"}
        return found(**values)

    def check(self, num_classes: int) -> None:
        """Raise `UserError` if the head cannot have this number of outputs. Networks of 0 outputs have no head."""

    def _check_whole(self, **values: object) -> None:
        """Raise `UserError` unless each value is a whole number of at least 1."""
        for name, value in values.items():
            if type(value) is not int or value < 1:
                raise UserError(f"arch: head: {name} is {value!r}; accepted: a whole number of at least 1")


@dataclass(frozen=True, slots=True)
class DeepLab(Head):
    """The head of DeepLab v3+ (arXiv 1802.02611), for semantic segmentation: the logits of every pixel.

    channels: channels of each branch of the spatial pyramid (ASPP), and of the decoder.
    low_channels: channels to which the decoder reduces the finer map that it reads.
    rates: dilations of the pyramid's 3x3 convolutions. The paper has 6, 12 and 18 at output stride 16.
    """

    kind: ClassVar[str] = "deeplab"
    channels: int = 256
    low_channels: int = 48
    rates: tuple[int, ...] = (6, 12, 18)
    output_stride: int | None = 16

    def __post_init__(self) -> None:
        Head.__post_init__(self)
        self._check_whole(low_channels=self.low_channels)
        if not isinstance(self.rates, tuple):
            raise UserError(f"arch: head: rates is {self.rates!r}; accepted: a list of whole numbers")
        self._check_whole(**{f"rate {i}": rate for i, rate in enumerate(self.rates, 1)})


@dataclass(frozen=True, slots=True)
class Dss(Head):
    """The head of DSS (arXiv 1611.04849), for salient objects: the logit of every pixel, so `num_classes` is 1.

    Every map has a side branch with a score map of its own, and reads the score maps of all deeper branches.

    channels: channels of each side branch. The paper has 128 at the finest maps, and up to 512 at the deepest.
    """

    kind: ClassVar[str] = "dss"
    channels: int = 128
    output_stride: int | None = None

    def check(self, num_classes: int) -> None:
        """Raise `UserError` unless there is one output, or none."""
        if num_classes not in (0, 1):
            raise UserError(f"arch: num_classes is {num_classes!r}; accepted with the head {self.kind}: 1")


@dataclass(frozen=True, slots=True)
class Deconv(Head):
    """The head of SimpleBaseline (arXiv 1804.06208), for key points: a heat map of stride 4 for each key point.

    Transposed convolutions double the last map until its stride is 4; there is at least one of them.

    channels: channels of the transposed convolutions. The paper has 256.
    """

    kind: ClassVar[str] = "deconv"
    channels: int = 256
    output_stride: int | None = None


@dataclass(frozen=True, slots=True)
class FasterRcnn(Head):
    """The head of Faster R-CNN (arXiv 1506.01497) over a feature pyramid (FPN, arXiv 1612.03144): boxes of objects.

    The pyramid has a map for each of the backbone's maps, and one more of half the last map's size. `num_classes`
    counts the background, which is class 0.

    channels: channels of the pyramid.
    hidden: features of each of the two layers that describe a proposal.
    anchor: side of a square anchor, in pixels of its map.
    proposals: maximum number of scored proposals of an image. Training samples from twice as many.
    """

    kind: ClassVar[str] = "faster_rcnn"
    detects: ClassVar[bool] = True
    channels: int = 256
    hidden: int = 1024
    anchor: int = 8
    proposals: int = 1000
    output_stride: int | None = None

    def __post_init__(self) -> None:
        Head.__post_init__(self)
        self._check_whole(hidden=self.hidden, anchor=self.anchor, proposals=self.proposals)

    def check(self, num_classes: int) -> None:
        """Raise `UserError` unless there are a background and a class, or no outputs."""
        if num_classes == 1:
            raise UserError(
                f"arch: num_classes is 1; accepted with the head {self.kind}: at least 2, with the background"
            )


@dataclass(frozen=True, slots=True)
class MaskRcnn(FasterRcnn):
    """The head of Mask R-CNN (arXiv 1703.06870): a `FasterRcnn` that also returns the mask of each object."""

    kind: ClassVar[str] = "mask_rcnn"


@dataclass(frozen=True, slots=True)
class KeypointRcnn(FasterRcnn):
    """The head of Mask R-CNN for key points (arXiv 1703.06870, section 5): a `FasterRcnn` with points for each object.

    points: key points of an object.
    """

    kind: ClassVar[str] = "keypoint_rcnn"
    points: int = 17

    def __post_init__(self) -> None:
        FasterRcnn.__post_init__(self)
        self._check_whole(points=self.points)


HEADS: dict[str, type[Head]] = {head.kind: head for head in (DeepLab, Dss, Deconv, FasterRcnn, MaskRcnn, KeypointRcnn)}


def low_index(strides: tuple[int, ...]) -> int:
    """Return the index of the map that a decoder reads: the coarsest of stride 4 or less, but not the last map."""
    fine = [i for i, stride in enumerate(strides[:-1]) if stride <= LOW_STRIDE]
    return fine[-1] if fine else 0


def doublings(stride: int) -> int:
    """Return the number of transposed convolutions from a map of this stride to the stride of heat maps, at least 1."""
    return max(1, (-(-stride // HEAT_STRIDE) - 1).bit_length())
