"""Data sets: training images, a validation split cut from them by seed, and the test split behind its own door.

`load` returns what a search may see, `load_test` the test split. Both take a registered name (`names()`) or the import
path of a class of your own (`my_package:MyData`, see `DataSet`).
"""

from trainers.datasets.base import Data, DataSet, Files, Split
from trainers.datasets.data import classes_of, download, load, load_test
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
]
