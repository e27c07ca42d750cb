"""CIFAR-10 and CIFAR-100 from the official files, in the binary or the pickled layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from res2net.errors import UserError
from trainers.datasets.archive import Archive, fetch
from trainers.datasets.base import DataSet, Split
from trainers.datasets.safe_pickle import Array, Forbidden, loads

SHAPE = (3, 32, 32)  # one image: the red, green and blue planes
PIXELS = 3 * 32 * 32  # bytes of one image

# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on

Part = Literal["train", "test"]
Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, 3072], class numbers [N]


@dataclass(frozen=True, slots=True)
class Layout:
    """The folder of one official archive, and the names of its training and test files."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    pickled: bool

    def files(self, part: Part) -> tuple[str, ...]:
        """Return the names of the training or test files."""
        return self.train if part == "train" else self.test


class Cifar(DataSet):
    """The base class of CIFAR-10 and CIFAR-100. The files of both differ only in the class variables below."""

    class_names: ClassVar[tuple[str, ...]]
    label_bytes: ClassVar[int]  # label bytes before each image in the binary layout; the last byte is the class
    label_key: ClassVar[str]  # key of the class numbers in the pickled layout
    train_records: ClassVar[int]  # images in each training file
    test_records: ClassVar[int]  # images in the test file
    layouts: ClassVar[tuple[Layout, ...]]  # in order of preference; binary is first, as it needs no unpickling
    archive: ClassVar[Archive]  # the archive of the first layout

    def classes(self) -> tuple[str, ...]:
        """Return the class names: for CIFAR-100, the fine classes and not the coarse classes."""
        return self.class_names

    def train(self) -> Split:
        """Return the training images without opening the test file."""
        return self._read("train")

    def test(self) -> Split:
        """Return the test images without opening the training files."""
        return self._read("test")

    def download(self) -> None:
        """Fetch the binary archive into `data_dir`, and unpack it.

        If the unpacked folder exists already, only check that the files in the folder are complete.
        """
        folder = self._root() / self.layouts[0].folder
        if folder.exists():
            self._check_sizes(folder)
        else:
            fetch(self.archive, folder, self._check_sizes)

    def _read(self, part: Part) -> Split:
        layout, folder = self._find()
        files, records = layout.files(part), self._records(part)
        images = np.empty((len(files) * records, PIXELS), np.uint8)
        labels = np.empty(len(files) * records, np.int64)
        read_file = self._read_pickled if layout.pickled else self._read_binary
        for i, name in enumerate(files):
            rows = slice(i * records, (i + 1) * records)
            images[rows], labels[rows] = read_file(folder / name, records)
            self._check_labels(folder / name, labels[rows])
        return Split(images.reshape(-1, *SHAPE), labels)

    def _records(self, part: Part) -> int:
        """Return the number of images in each training or test file."""
        return self.train_records if part == "train" else self.test_records

    def _root(self) -> Path:
        return self.root(f"a folder that holds {self._folders()}, or any folder with `download`")

    def _folders(self) -> str:
        return " or ".join(layout.folder for layout in self.layouts)

    def _find(self) -> tuple[Layout, Path]:
        """Return the first layout found in `data_dir`, and the layout's folder, which may be `data_dir` itself."""
        root = self._root()
        for layout in self.layouts:
            if (root / layout.folder).is_dir():
                return layout, root / layout.folder
        for layout in self.layouts:
            # The folder may be renamed, or be a link. So recognise the folder by a file as well as by the name.
            if root.is_dir() and (root.name == layout.folder or (root / layout.train[0]).is_file()):
                return layout, root
        state = "holds no" if root.is_dir() else "is no folder; it should hold"
        raise UserError(
            f"`data_dir`: {root} {state} {self._folders()}; "
            f"accepted: a folder that holds one of these folders, or one of them (`download` fetches the first)"
        )

    def _check_sizes(self, folder: Path) -> None:
        """Raise `UserError` unless every file of the binary layout exists in full size."""
        for part in ("train", "test"):
            for name in self.layouts[0].files(part):
                self._check_size(folder / name, self._records(part))

    def _check_size(self, path: Path, records: int) -> None:
        expected = records * (self.label_bytes + PIXELS)
        if not path.is_file():
            raise UserError(f"`data_dir`: {path} is missing; accepted: the official file of {expected} bytes")
        if (actual := path.stat().st_size) != expected:
            raise UserError(f"`data_dir`: {path} has {actual} bytes; expected {expected}")

    def _check_labels(self, path: Path, labels: np.ndarray) -> None:
        classes = len(self.class_names)
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if wrong.size:
            raise UserError(
                f"`data_dir`: {path}, record {wrong[0]}: label {labels[wrong[0]]}; accepted: 0 to {classes - 1}"
            )

    def _read_binary(self, path: Path, records: int) -> Arrays:
        """Return the images and class numbers of a binary file. Each record has label bytes, then pixels."""
        self._check_size(path, records)
        try:
            rows = np.fromfile(path, np.uint8).reshape(records, self.label_bytes + PIXELS)
        except OSError as error:
            raise UserError(f"`data_dir`: {path} cannot be read: {error}") from error
        return rows[:, self.label_bytes :], rows[:, self.label_bytes - 1]

    def _read_pickled(self, path: Path, records: int) -> Arrays:
        """Return the images and class numbers of a pickled dictionary."""
        if not path.is_file():
            raise UserError(f"`data_dir`: {path} is missing; accepted: the official pickled file of {records} records")
        least, actual = records * PIXELS, path.stat().st_size
        if actual < least:
            raise UserError(f"`data_dir`: {path} has {actual} bytes; expected more than {least}")
        try:
            found = loads(path.read_bytes())
        except Forbidden as error:
            raise UserError(
                f"`data_dir`: {path} names {error}; accepted: the official file, which needs only numpy arrays"
            ) from None
        except Exception as error:  # a damaged pickle raises almost anything
            cause = " ".join((str(error) or type(error).__name__).split())
            raise UserError(
                f"`data_dir`: {path} ({actual} bytes) is not a complete pickle of {records} records: {cause}"
            ) from error
        return self._checked_record(found, f"`data_dir`: {path}", records)

    def _checked_record(self, found: object, where: str, records: int) -> Arrays:
        """Return the images and class numbers of an unpickled dictionary. Raise `UserError` for any other form."""
        if not isinstance(found, dict):
            raise UserError(f"{where} holds a {type(found).__name__}; expected a dictionary")
        # Python 2 wrote the official files, so their strings arrive as bytes. Copies written by Python 3 have text.
        record = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in found.items()}
        if missing := {"data", self.label_key} - record.keys():
            raise UserError(f"{where} has keys {sorted(map(str, record))}; expected also {sorted(missing)}")
        data, labels = record["data"], record[self.label_key]
        shape = getattr(getattr(data, "values", None), "shape", None)
        if not isinstance(data, Array) or shape != (records, PIXELS):
            raise UserError(f"{where}: data is {shape or type(data).__name__}; expected uint8 {(records, PIXELS)}")
        if not isinstance(labels, list) or len(labels) != records or any(type(label) is not int for label in labels):
            size = f" of {len(labels)}" if isinstance(labels, list) else ""
            raise UserError(
                f"{where}: {self.label_key} is a {type(labels).__name__}{size}; expected a list of {records} integers"
            )
        # A pickled integer may be too large for int64. Clip the labels, so that `_check_labels` reports a wrong
        # label and no conversion fails.
        return data.values, np.clip(labels, -1, np.iinfo(np.int64).max).astype(np.int64)


class Cifar10(Cifar):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes."""

    name = "cifar10"
    class_names = CIFAR10_CLASSES
    label_bytes = 1
    label_key = "labels"
    train_records = 10_000
    test_records = 10_000
    layouts = (
        Layout("cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), False),
        Layout("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), True),
    )
    archive = Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"
    )


class Cifar100(Cifar):
    """CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels in 100 classes."""

    name = "cifar100"
    class_names = CIFAR100_CLASSES
    label_bytes = 2  # the coarse class, then the fine class
    label_key = "fine_labels"
    train_records = 50_000
    test_records = 10_000
    layouts = (
        Layout("cifar-100-binary", ("train.bin",), ("test.bin",), False),
        Layout("cifar-100-python", ("train",), ("test",), True),
    )
    archive = Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8"
    )
