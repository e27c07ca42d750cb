"""Res2Net: architectures, their cost, the networks, weights and model folders."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from res2net.arch import Arch, Stage
from res2net.containment import contains
from res2net.cost import cost
from res2net.errors import UserError
from res2net.hosts.biglittle.value import BigLittleArch
from res2net.hosts.dla.value import DlaArch
from res2net.layer_cost import Cost
from res2net.named import named, names

if TYPE_CHECKING:
    from res2net.cam import grad_cam
    from res2net.deploy.export import export_onnx, export_program
    from res2net.deploy.int8 import quantize
    from res2net.deploy.optimize import optimize
    from res2net.elastic import ElasticRes2Net
    from res2net.factory import create
    from res2net.folder import load, save
    from res2net.hosts.biglittle.model import BigLittle
    from res2net.hosts.dla.model import Dla
    from res2net.model import Res2Net
    from res2net.weights import load_checkpoint

# Public names that need torch, each with its module. `__getattr__` imports the module at the first use of the name:
# importing torch takes seconds, and spaces and costs do not need it.
_LAZY = {
    "create": "factory",
    "Res2Net": "model",
    "Dla": "hosts.dla.model",
    "BigLittle": "hosts.biglittle.model",
    "ElasticRes2Net": "elastic",
    "load": "folder",
    "save": "folder",
    "load_checkpoint": "weights",
    "export_onnx": "deploy.export",
    "export_program": "deploy.export",
    "optimize": "deploy.optimize",
    "quantize": "deploy.int8",
    "grad_cam": "cam",
}

__all__ = [
    "Arch",
    "BigLittle",
    "BigLittleArch",
    "Cost",
    "Dla",
    "DlaArch",
    "ElasticRes2Net",
    "Res2Net",
    "Stage",
    "UserError",
    "contains",
    "cost",
    "create",
    "export_onnx",
    "export_program",
    "grad_cam",
    "load",
    "load_checkpoint",
    "named",
    "names",
    "optimize",
    "quantize",
    "save",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # from pyproject.toml; read at first use, because the reading takes milliseconds
        return version("res2net-search")
    if name in _LAZY:
        return getattr(import_module(f"res2net.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'res2net' has no attribute {name!r}")
