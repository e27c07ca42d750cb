"""The class of network for each kind of architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from res2net.arch import Arch
from res2net.hosts.biglittle.model import BigLittle
from res2net.hosts.biglittle.value import BigLittleArch
from res2net.hosts.dla.model import Dla
from res2net.hosts.dla.value import DlaArch
from res2net.kinds import AnyArch
from res2net.model import Res2Net

AnyNetwork = Res2Net | Dla | BigLittle
CLASSES: dict[type, Callable[[Any, int | None], AnyNetwork]] = {Arch: Res2Net, DlaArch: Dla, BigLittleArch: BigLittle}


def build(arch: AnyArch, output_stride: int | None = None) -> AnyNetwork:
    """The freshly initialised network that an architecture of any kind describes."""
    return CLASSES[type(arch)](arch, output_stride)
