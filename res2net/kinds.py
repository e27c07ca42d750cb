"""The registry of kinds of network (residual, DLA, Big-Little). Each kind is one entry of `KINDS`.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from res2net.arch import RESIDUAL, Arch, BaseArch, read_json
from res2net.errors import unknown
from res2net.heads.cost import Map
from res2net.hosts.biglittle.value import BigLittleArch, biglittle_cost, biglittle_maps
from res2net.hosts.dla.value import DlaArch, dla_cost
from res2net.layer_cost import Cost
from res2net.levels import stage_maps
from res2net.residual_cost import residual_cost

if TYPE_CHECKING:
    from res2net.backbone import Network


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of network.

    arch: the class of architectures.
    cost: a function that returns the cost of an architecture at an image size, without the cost of a head.
    network: the class of networks as "module:Class". The module is imported when the first network is built, because
        it imports torch. Importing torch takes seconds, and costs do not need torch.
    maps: a function that returns the feature maps that a head reads.
    """

    arch: type[BaseArch]
    cost: Callable[[Any, int], Cost]
    network: str
    maps: Callable[[Any], tuple[Map, ...]] = stage_maps

    @property
    def network_name(self) -> str:
        """The name of the network's class."""
        return self.network.partition(":")[2]

    def build(self, arch: BaseArch, output_stride: int | None = None) -> Network:
        """Return a newly initialised network."""
        module, _, name = self.network.partition(":")
        return getattr(import_module(module), name)(arch, output_stride)


KINDS: dict[str, Kind] = {
    kind.arch.kind: kind
    for kind in (
        Kind(Arch, residual_cost, "res2net.model:Res2Net"),
        Kind(DlaArch, dla_cost, "res2net.hosts.dla.model:Dla"),
        Kind(BigLittleArch, biglittle_cost, "res2net.hosts.biglittle.model:BigLittle", biglittle_maps),
    )
}


def kind_of(arch: BaseArch) -> Kind:
    """Return the kind of an architecture."""
    return KINDS[arch.kind]


def network_names() -> str:
    """Return the class names of all networks, joined by commas, for error messages."""
    return ", ".join(kind.network_name for kind in KINDS.values())


def build(arch: BaseArch, output_stride: int | None = None) -> Network:
    """Return a newly initialised network of an architecture of any kind, in training mode."""
    return kind_of(arch).build(arch, output_stride)


def from_dict(data: Mapping[str, Any]) -> BaseArch:
    """Return the architecture that `BaseArch.to_dict` wrote, of any kind. Data without "kind" describe an `Arch`."""
    kind = data.get("kind", RESIDUAL) if isinstance(data, Mapping) else RESIDUAL
    if not isinstance(kind, str) or kind not in KINDS:
        raise unknown("arch: kind", kind, KINDS)
    return KINDS[kind].arch.from_dict(data)


def from_json(text: str) -> BaseArch:
    """Return the architecture that `BaseArch.to_json` wrote, of any kind."""
    return from_dict(read_json(text))
