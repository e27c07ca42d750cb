"""The data sets by name, and those of users' own modules by import path."""

from __future__ import annotations

from importlib import import_module

from res2net.errors import UserError, unknown
from trainers.datasets.base import DataSet
from trainers.datasets.cifar import Cifar10, Cifar100
from trainers.datasets.folder import Folder
from trainers.datasets.shapes import Shapes

DATASETS: dict[str, type[DataSet]] = {kind.name: kind for kind in (Shapes, Cifar10, Cifar100, Folder)}
PATH = "PACKAGE.MODULE:CLASS"  # how an import path is written
REQUIRED = ("name", "classes", "train", "test")  # attributes without a default in `DataSet`


def names() -> tuple[str, ...]:
    """Return the names of the registered data sets."""
    return tuple(DATASETS)


def get(name_or_path: str) -> type[DataSet]:
    """Return the class of a data set: by its name, or by its import path, as in `my_package:MyData`.

    `UserError` for an unknown name, a module that does not import, and a class that is no complete data set.
    """
    if ":" in name_or_path:
        return _imported(name_or_path)
    if name_or_path not in DATASETS:
        raise unknown("`data`", name_or_path, (*names(), f"your own {PATH}"))
    return DATASETS[name_or_path]


def _imported(path: str) -> type[DataSet]:
    module_name, _, class_name = path.partition(":")
    accepted = f"accepted: {PATH}, a subclass of trainers.datasets.DataSet"
    try:
        module = import_module(module_name)
    except Exception as error:  # a module's own code may raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"`data`: {path!r}: module {module_name!r} does not import ({cause}); {accepted}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise UserError(f"`data`: {path!r}: module {module_name!r} has no class {class_name!r}; {accepted}")
    missing = [name for name in REQUIRED if getattr(getattr(found, name, None), "__isabstractmethod__", False)]
    missing += [name for name in REQUIRED if not hasattr(found, name)]
    if missing:
        raise UserError(f"`data`: {path!r}: class {class_name!r} lacks {', '.join(sorted(missing))}; {accepted}")
    if not issubclass(found, DataSet):
        raise UserError(f"`data`: {path!r}: class {class_name!r} is no subclass of DataSet; {accepted}")
    return found
