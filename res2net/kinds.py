"""The kinds of architecture, by the `kind` in their JSON; a file without one is of the residual line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from res2net.arch import RESIDUAL, Arch, read_json
from res2net.errors import unknown
from res2net.hosts.biglittle.value import BigLittleArch
from res2net.hosts.dla.value import DlaArch

AnyArch = Arch | DlaArch | BigLittleArch
KINDS: dict[str, type[AnyArch]] = {cls.kind: cls for cls in (Arch, DlaArch, BigLittleArch)}


def from_dict(data: Mapping[str, Any]) -> AnyArch:
    """The architecture, of whichever kind, that `to_dict` gave."""
    kind = data.get("kind", RESIDUAL) if isinstance(data, Mapping) else RESIDUAL
    if not isinstance(kind, str) or kind not in KINDS:
        raise unknown("arch: kind", kind, KINDS)
    return KINDS[kind].from_dict(data)


def from_json(text: str) -> AnyArch:
    """The architecture, of whichever kind, that `to_json` wrote."""
    return from_dict(read_json(text))
