"""Containment of networks: which networks can grow into which (`res2net.grow`). This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from res2net.arch import Arch, se_channels
from res2net.errors import UserError

OWN_RULE = ("stages", "first_block", "se")  # fields that may differ; all other fields of `Arch` must be equal


def contains(large: Arch, small: Arch) -> bool:
    """Return whether the larger network can hold the smaller one's weights and compute the same function.

    Both architectures are canonical (`Arch.canonical`). The relation is reflexive and transitive:
    - Depth, width and scale of each stage are no smaller. Planes and stride are equal.
    - The smaller cardinality is a multiple of the larger network's, so groups merge.
    - Squeeze-and-excitation has no fewer hidden channels. Both networks have it, or neither.
    - `first_block` may differ if the smaller network has scale 1 everywhere, where the field has no effect.
    - All other fields are equal.
    """
    return next(_misfits(large, small), None) is None


def check_contains(large: Arch, small: Arch) -> None:
    """Raise `UserError` unless `contains(large, small)`. The error names the first field that does not fit."""
    for name, value, accepted in _misfits(large, small):
        raise UserError(f"grow: {name} is {value}; accepted: {accepted}, to contain {small}")


def _misfits(large: Arch, small: Arch) -> Iterator[tuple[str, object, object]]:
    """Yield each field that does not fit: its name, the larger network's value, and the accepted values."""
    equal = [f.name for f in fields(small) if f.name not in OWN_RULE]
    if any(stage.scale > 1 for stage in small.stages):
        equal.append("first_block")
    for name in equal:
        if (value := getattr(large, name)) != (accepted := getattr(small, name)):
            yield name, value, accepted
    if len(large.stages) != len(small.stages):
        yield "the number of stages", len(large.stages), len(small.stages)
        return
    for i, (b, a) in enumerate(zip(large.stages, small.stages, strict=True), 1):
        for name in ("planes", "stride"):
            if (value := getattr(b, name)) != (accepted := getattr(a, name)):
                yield f"stage {i}: {name}", value, accepted
        for name in ("depth", "width", "scale"):
            if (value := getattr(b, name)) < (accepted := getattr(a, name)):
                yield f"stage {i}: {name}", value, f"at least {accepted}"
        if a.cardinality % b.cardinality:
            yield f"stage {i}: cardinality", b.cardinality, f"a divisor of {a.cardinality}"
    if bool(large.se) != bool(small.se) or any(b < a for b, a in zip(hidden(large), hidden(small), strict=True)):
        yield "se", large.se, f"1 to {small.se}" if small.se else 0


def hidden(arch: Arch) -> list[int]:
    """Return the hidden channels of squeeze-and-excitation in each stage. Without it, return zeros."""
    return [se_channels(stage.channels, arch.se) if arch.se else 0 for stage in arch.stages]
