"""Data sets: training images, a validation split that a seed draws from these images, and a separate test split.

`load` returns the training and validation splits, which a search may see. `load_test` returns the test split. Both take
a registered name (see `names`) or the import path of your own class (`my_package:MyData`, see `DataSet`).
"""

from trainers.datasets.base import Data, DataSet, Files, Split
from trainers.datasets.data import classes_of, download, load, load_test, sizes_of
from trainers.datasets.registry import get, names

__all__ = [
    "Data",
    "DataSet",
    "Files",
    "Split",
    "classes_of",
    "download",
    "get",
    "load",
    "load_test",
    "names",
    "sizes_of",
]
