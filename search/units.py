"""Counts (`300M`, `4.2G`) and times (`90s`, `6h`) as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from res2net.errors import UserError

_COUNT = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_TIME = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MS = {"": 1, "ms": 1, "us": 1e-3, "s": 1e3}


def parse_count(text: str | int, field: str) -> int:
    """Return a text's count: 20000000 for `20M`. Raise `UserError` with the field's name for another text."""
    value = _parse(str(text), _COUNT)
    if value is None or value < 1:
        raise UserError(f"`{field}`: {text!r} is not a count; accepted: a number above 0, with K, M or G (say 300M)")
    return round(value)


def parse_seconds(text: str | float, field: str) -> float:
    """Return a text's seconds: 21600.0 for `6h`. Raise `UserError` with the field's name for another text."""
    value = _parse(str(text), _TIME)
    if not value:
        raise UserError(f"`{field}`: {text!r} is not a time; accepted: a number above 0, with s, m, h or d (say 90m)")
    return value


def parse_ms(text: str | float, field: str) -> float:
    """Return a text's milliseconds: 5.0 for `5ms`. Raise `UserError` for another text."""
    value = _parse(str(text), _MS)
    if not value:
        raise UserError(f"`{field}`: {text!r} is not a latency; accepted: a number above 0, with us, ms or s (say 5ms)")
    return value


def _parse(text: str, units: Mapping[str, float]) -> float | None:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in units:
        return None
    value = float(match[1]) * units[match[2]]
    return value if math.isfinite(value) else None  # hundreds of digits overflow to infinity


def format_count(value: float) -> str:
    """Return a count as three digits and a unit: `4.16G`, `20.0M`, `512`."""
    value = float(f"{value:.3g}")  # round first, so that 999,999 becomes 1.00M
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if value >= size:
            scaled = value / size
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.0f}"


def format_ms(value: float) -> str:
    """Return milliseconds with three digits: `0.412`, `5.3`, `120`."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def format_seconds(value: float) -> str:
    """Return seconds as text: `2 h 05 min`, `3 min 20 s`, `12 s`."""
    seconds = max(0, round(value))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def parse_share(text: str, field: str) -> float:
    """Return the share that a text such as `60%` names: 0.6. Raise `UserError` for another text."""
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise UserError(f"`{field}`: {text!r} is no share; accepted: a number above 0 with a percent sign (say 60%)")
    return share


def parse_bound(text: str, field: str) -> float | str:
    """Return the value of a limit such as 20M or 5ms, or the text of a share of the baseline's cost (60%)."""
    if text.strip().endswith("%"):
        return f"{parse_share(text, field) * 100:g}%"
    return parse_ms(text, field) if field.endswith("latency") else parse_count(text, field)
