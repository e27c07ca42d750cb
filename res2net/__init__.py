"""What a Res2Net is: architectures, their cost, the networks, and model folders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from res2net.arch import Arch, Stage
from res2net.cost import Cost, cost
from res2net.errors import UserError
from res2net.named import named, names

if TYPE_CHECKING:
    from res2net.files import load, save
    from res2net.model import Res2Net, create

# These need torch, which takes seconds to import; a space or a cost needs none of it.
_LAZY = {"create": "model", "Res2Net": "model", "load": "files", "save": "files"}

__all__ = ["Arch", "Cost", "Res2Net", "Stage", "UserError", "cost", "create", "load", "named", "names", "save"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"res2net.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'res2net' has no attribute {name!r}")
