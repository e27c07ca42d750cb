"""Find the class of a data set: a registered class by name, a class in a user's module by import path."""

from __future__ import annotations

from res2net.errors import UserError, unknown
from res2net.plugins import PATH, load_object
from trainers.datasets.base import DataSet
from trainers.datasets.cifar import Cifar10, Cifar100
from trainers.datasets.coco import Coco
from trainers.datasets.folder import Folder
from trainers.datasets.mask_folder import Masks
from trainers.datasets.scenes import Scenes
from trainers.datasets.shapes import Shapes
from trainers.datasets.voc import Voc

KINDS = (Shapes, Scenes, Cifar10, Cifar100, Folder, Voc, Coco, Masks)
DATASETS: dict[str, type[DataSet]] = {kind.name: kind for kind in KINDS}
REQUIRED = ("name", "classes", "train", "test")  # attributes without a default in `DataSet`


def names() -> tuple[str, ...]:
    """Return the names of the registered data sets."""
    return tuple(DATASETS)


def get(name_or_path: str) -> type[DataSet]:
    """Return the class of a data set, given its name or its import path, such as `my_package:MyData`.

    Raise `UserError` for an unknown name, a module that fails to import, or an incomplete data set class.
    """
    if ":" in name_or_path:
        return _imported(name_or_path)
    if name_or_path not in DATASETS:
        raise unknown("`data`", name_or_path, (*names(), PATH))
    return DATASETS[name_or_path]


def _imported(path: str) -> type[DataSet]:
    accepted = f"{PATH}, a subclass of trainers.datasets.DataSet"
    found, name = load_object(path, "data", accepted), path.partition(":")[2]
    if not isinstance(found, type):
        raise UserError(f"`data`: {path!r}: {name!r} is no class; accepted: {accepted}")
    missing = [name for name in REQUIRED if getattr(getattr(found, name, None), "__isabstractmethod__", False)]
    missing += [name for name in REQUIRED if not hasattr(found, name)]
    if missing:
        lacks = ", ".join(sorted(missing))
        raise UserError(f"`data`: {path!r}: class {name!r} lacks {lacks}; accepted: {accepted}")
    if not issubclass(found, DataSet):
        raise UserError(f"`data`: {path!r}: class {name!r} is no subclass of DataSet; accepted: {accepted}")
    return found
