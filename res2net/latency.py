"""The latency of a network as a sum over its pieces, looked up in a table. Does not import torch.

`python -m search.latency` measures a table once on an idle device. After that, a network's latency needs no device and
never changes.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from res2net.arch import BaseArch
from res2net.errors import UserError, unknown
from res2net.layer_cost import down
from res2net.pieces import Piece, pieces

if TYPE_CHECKING:  # scipy takes a second to import, and most lookups need no interpolation
    import numpy as np

COMMAND = "python -m search.latency"
LEAST_KNOWN = 4  # minimum number of measured pieces that differ only in shape, for interpolation
SLACK = 2.0  # how far an interpolated shape may lie outside the measured range, as a factor

Entry = tuple[str, float, float]  # the key of a piece, the median and the spread of its time in ms


@dataclass(frozen=True)
class LatencyTable:
    """The measured times of pieces on one device. A network's latency is `overhead + factor * sum of its pieces`.

    device: `cpu` or `cuda`.
    hardware: the name of the processor.
    form: how networks run, one of `res2net.deploy.timing.FORMS`.
    batch_size, threads, image_size: the conditions of the measurement. Times are those of the whole batch.
    versions: names and versions of the packages that ran the networks.
    entries: for each measured piece its key, the median and the spread of its time in ms. The spread is the
        interquartile range.
    overhead, factor: the numbers in the formula above, fitted on whole networks. The overhead is in ms.
    """

    device: str
    hardware: str
    form: str
    batch_size: int
    threads: int
    image_size: int
    versions: tuple[tuple[str, str], ...]
    entries: tuple[Entry, ...]
    overhead: float = 0.0
    factor: float = 1.0

    def of(self, arch: BaseArch, image_size: int) -> float:
        """Return the latency of one batch in ms.

        Raise `UserError` for another image size, and for a piece that is neither measured nor interpolated.
        """
        if image_size != self.image_size:
            raise UserError(
                f"latency table: image size {image_size}; accepted: {self.image_size}, the size the table was made for"
            )
        total = 0.0
        for piece, count in pieces(arch, image_size).items():
            total += count * self.piece(piece)
        return self.overhead + self.factor * total

    def piece(self, piece: Piece) -> float:
        """Return the time of a piece in ms: measured, or interpolated between pieces that differ only in shape."""
        found = self._times.get(piece)
        if found is None:
            if not self.covers(piece):
                raise UserError(
                    f"latency table: {piece.key!r} was not measured; accepted: a table of a space that contains it, "
                    f"or one made with {COMMAND} --networks NAME|arch.json"
                )
            family = _family(piece)
            if family not in self._curves:
                self._curves[family] = _Curve(self._families[family])
            found = self._times[piece] = self._curves[family](piece)
        return found

    def covers(self, piece: Piece) -> bool:
        """Return whether the piece was measured, or can be interpolated."""
        if piece in self._times:
            return True
        known = self._families.get(_family(piece), {})
        if piece.kind != "block" or len(known) < LEAST_KNOWN:
            return False
        axes = zip(_shape(piece), zip(*map(_shape, known), strict=True), strict=True)
        return all(min(values) / SLACK <= x <= max(values) * SLACK for x, values in axes)

    @cached_property
    def _times(self) -> dict[Piece, float]:
        """The times of pieces. `piece` adds the times that it interpolates."""
        return {Piece.from_key(key): median for key, median, _ in self.entries}

    @cached_property
    def _families(self) -> dict[Piece, dict[Piece, float]]:
        """The measured times of pieces that differ only in shape."""
        found: dict[Piece, dict[Piece, float]] = defaultdict(dict)
        for key, median, _ in self.entries:
            piece = Piece.from_key(key)
            found[_family(piece)][piece] = median
        return dict(found)

    @cached_property
    def _curves(self) -> dict[Piece, _Curve]:
        return {}

    @property
    def text(self) -> str:
        """The conditions of the measurement, in one short line."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.device} ({self.hardware}), {self.form}, batch {self.batch_size}, {threads}"

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain lists, numbers and texts."""
        return asdict(self) | {"versions": dict(self.versions), "entries": [list(e) for e in self.entries]}

    def to_json(self) -> str:
        """Return the table as JSON text with one line for each piece."""
        data = self.to_dict()
        entries = ",\n".join(f"    {json.dumps(e)}" for e in data.pop("entries"))
        head = json.dumps(data, indent=2).removesuffix("\n}")
        return f'{head},\n  "entries": [\n{entries}\n  ]\n}}\n'

    @classmethod
    def from_dict(cls, data: object) -> LatencyTable:
        """Return the table that `to_dict` wrote. Raise `UserError` for a wrong or missing key, or a wrong value."""
        names = [f.name for f in fields(cls)]
        if not isinstance(data, Mapping):
            raise UserError(f"latency table: not a table of keys; accepted keys: {', '.join(names)}")
        for key in data:
            if key not in names:
                raise unknown("latency table: key", key, names)
        for key in names:
            if key not in data:
                raise UserError(f"latency table: key {key!r} is missing; required: {', '.join(names)}")
        for key in ("device", "hardware", "form"):
            if not isinstance(data[key], str):
                raise UserError(f"latency table: {key} is {data[key]!r}; accepted: a text")
        for key in ("batch_size", "threads", "image_size"):
            if type(data[key]) is not int or data[key] < 1:
                raise UserError(f"latency table: {key} is {data[key]!r}; accepted: a whole number of at least 1")
        for key in ("overhead", "factor"):
            if not _is_number(data[key]):
                raise UserError(f"latency table: {key} is {data[key]!r}; accepted: a finite number")
        versions = data["versions"]
        if not isinstance(versions, Mapping) or not all(isinstance(v, str) for v in versions.values()):
            raise UserError(f"latency table: versions is {versions!r}; accepted: a table of names and versions")
        if not isinstance(data["entries"], list | tuple):
            raise UserError("latency table: entries is not a list; accepted: a list of [key, median, spread]")
        entries = tuple(map(_entry, data["entries"]))
        return cls(**{**data, "versions": tuple(versions.items()), "entries": entries})


def _entry(row: object) -> Entry:
    """Return the entry of a row of JSON. Raise `UserError` for an invalid row."""
    is_row = isinstance(row, list | tuple) and len(row) == 3 and isinstance(row[0], str)
    if not is_row or not all(_is_number(v) for v in row[1:]) or row[1] <= 0 or row[2] < 0:  # type: ignore[index]
        raise UserError(f"latency table: entry {row!r}; accepted: [key, median, spread] with times above 0 in ms")
    Piece.from_key(row[0])  # type: ignore[index]
    return tuple(row)  # type: ignore[arg-type,return-value]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shape(piece: Piece) -> tuple[int, int, int]:
    """Return the fields over which times are interpolated."""
    return piece.width, piece.scale, piece.cardinality


def _family(piece: Piece) -> Piece:
    """Return a stand-in for all pieces that differ only in shape.

    Blocks of one split and blocks of several splits run different kernels, so they are different families. The
    stand-in has scale 1 for one split, and scale 2 for several.
    """
    if piece.kind != "block":
        return piece
    return replace(piece, width=1, scale=min(piece.scale, 2), cardinality=1)


class _Curve:
    """The time of a family's pieces as a function of their shape. It is exact at measured pieces.

    A trend is fitted: a constant, and factors for the number of convolutions, the products of 1x1 convolutions and the
    products of 3x3 convolutions. The logarithm of the ratio of time to trend is interpolated in logarithms of the
    shape. In leave-one-out tests, the median error was 3.2 % with the trend and 6.3 % without (360 blocks of base
    imagenet, optimized, one thread). With only a third of the other pieces, it was 3.9 % and 15.9 %.
    """

    def __init__(self, known: Mapping[Piece, float]) -> None:
        import numpy as np
        from scipy.interpolate import RBFInterpolator
        from scipy.optimize import nnls

        times = np.array(list(known.values()))
        terms = self._terms(*known)
        self._scale = terms.max(0)
        # Divide by the times, so that the fit minimises relative errors. Factors below 0 could make a trend negative.
        self._factors, _ = nnls(terms / self._scale / times[:, None], np.ones(len(times)))
        # The linear kernel without a polynomial also works if all pieces have the same scale, width or cardinality.
        ratio = np.log(times / self._trend(*known))
        self._ratio = RBFInterpolator(self._place(*known), ratio, kernel="linear", degree=0)

    def __call__(self, piece: Piece) -> float:
        """Return the time in ms."""
        return float(self._trend(piece)[0]) * math.exp(float(self._ratio(self._place(piece))[0]))

    def _trend(self, *found: Piece) -> np.ndarray:
        return self._terms(*found) / self._scale @ self._factors

    @staticmethod
    def _terms(*found: Piece) -> np.ndarray:
        """Return the terms of the trend, `[pieces, 4]`."""
        import numpy as np

        rows = []
        for p in found:
            inner, convs, out = p.width * p.scale, max(1, p.scale - 1), down(p.size, p.stride) ** 2
            pointwise = inner * (p.c_in * p.size**2 + p.channels * out)
            rows.append((1, convs, pointwise, convs * 9 * p.width**2 // p.cardinality * out))
        return np.array(rows, dtype=float)

    @staticmethod
    def _place(*found: Piece) -> np.ndarray:
        import numpy as np

        return np.log(np.array([_shape(piece) for piece in found], dtype=float))
