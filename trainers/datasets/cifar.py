"""CIFAR-10 and CIFAR-100 from the official files: the binary layout, or the pickled one read without trusting it."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from res2net.errors import UserError

SHAPE = (3, 32, 32)  # one image: red, green and blue planes
PIXELS = 3 * 32 * 32  # bytes of one image
CHUNK = 1 << 20  # bytes read at once from the network

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


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder of one official archive, and the files that hold each part."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    pickled: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """An official archive of the binary layout, as its publisher lists it."""

    url: str
    size: int  # bytes
    md5: str


@dataclass(frozen=True, slots=True)
class Cifar:
    """One of the two data sets: its classes, its layouts and what a whole file holds."""

    name: str
    classes: tuple[str, ...]
    label_bytes: int  # ahead of each image in the binary layout; the last one is the class
    label_key: str  # of the class numbers in the pickled layout
    train_records: int  # images in each training file
    test_records: int
    layouts: tuple[Layout, ...]  # the first found is read: the binary one needs no unpickling
    archive: Archive

    def records(self, part: Part) -> int:
        """Images in each file of the part."""
        return self.train_records if part == "train" else self.test_records


Part = Literal["train", "test"]
Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, 3, 32, 32], labels int64 [N]

CIFAR10 = Cifar(
    name="cifar10",
    classes=CIFAR10_CLASSES,
    label_bytes=1,
    label_key="labels",
    train_records=10_000,
    test_records=10_000,
    layouts=(
        Layout("cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), False),
        Layout("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), True),
    ),
    archive=Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"
    ),
)
CIFAR100 = Cifar(
    name="cifar100",
    classes=CIFAR100_CLASSES,
    label_bytes=2,  # the coarse class, then the fine one
    label_key="fine_labels",
    train_records=50_000,
    test_records=10_000,
    layouts=(
        Layout("cifar-100-binary", ("train.bin",), ("test.bin",), False),
        Layout("cifar-100-python", ("train",), ("test",), True),
    ),
    archive=Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8"
    ),
)
KINDS = {kind.name: kind for kind in (CIFAR10, CIFAR100)}


def read(cifar: Cifar, data_dir: str | Path | None, part: Part) -> Arrays:
    """The images and labels of one part, opening that part's files only."""
    layout, folder = _find(cifar, data_dir)
    files = _files(layout, part)
    records = cifar.records(part)
    images = np.empty((len(files) * records, PIXELS), np.uint8)
    labels = np.empty(len(files) * records, np.int64)
    read_file = _read_pickled if layout.pickled else _read_binary
    for i, name in enumerate(files):
        rows = slice(i * records, (i + 1) * records)
        images[rows], labels[rows] = read_file(cifar, folder / name, records)
        _check_labels(folder / name, labels[rows], len(cifar.classes))
    return images.reshape(-1, *SHAPE), labels


def download(cifar: Cifar, data_dir: str | Path | None) -> None:
    """Fetch the official binary archive into `data_dir`; nothing is left there unless all of it is right."""
    root = _root(cifar, data_dir)
    layout = cifar.layouts[0]
    if (root / layout.folder).exists():
        _check_sizes(cifar, layout, root / layout.folder)
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Inside data_dir, so that the last step is a rename on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{layout.folder}-", dir=root) as temporary:
            archive = Path(temporary) / "archive"
            _fetch(cifar.archive, archive)
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(temporary, filter="data")
            _check_sizes(cifar, layout, Path(temporary) / layout.folder)
            os.rename(Path(temporary) / layout.folder, root / layout.folder)
    except (OSError, http.client.HTTPException, tarfile.TarError) as error:
        raise UserError(
            f"--download: {cifar.archive.url} could not be fetched into {root}: {error or type(error).__name__}; "
            f"accepted: a network that reaches it, or --data-dir with {_folders(cifar)}"
        ) from error


def _fetch(archive: Archive, to: Path) -> None:
    """Write the archive's bytes, having checked their number and MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    with urllib.request.urlopen(archive.url, timeout=60) as source, to.open("wb") as sink:
        # One byte too many is enough to know: an endless answer does not fill the disk.
        while size <= archive.size and (chunk := source.read(CHUNK)):
            sink.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if size != archive.size:
        more = " or more" if size > archive.size else ""
        raise UserError(f"--download: {archive.url} gave {size}{more} bytes; expected {archive.size}")
    if digest.hexdigest() != archive.md5:
        raise UserError(f"--download: {archive.url} has MD5 {digest.hexdigest()}; expected {archive.md5}")


def _root(cifar: Cifar, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise UserError(
            f"--data-dir: None, and {cifar.name} needs a folder; accepted: one that holds {_folders(cifar)}, "
            f"or any with --download to fetch it there"
        )
    return Path(data_dir).expanduser()


def _folders(cifar: Cifar) -> str:
    return " or ".join(layout.folder for layout in cifar.layouts)


def _files(layout: Layout, part: Part) -> tuple[str, ...]:
    return layout.train if part == "train" else layout.test


def _find(cifar: Cifar, data_dir: str | Path | None) -> tuple[Layout, Path]:
    """The first layout that `data_dir` holds, or is."""
    root = _root(cifar, data_dir)
    for layout in cifar.layouts:
        if (root / layout.folder).is_dir():
            return layout, root / layout.folder
    for layout in cifar.layouts:
        # By content as well as by name, since a folder may have been renamed or be a link.
        if root.is_dir() and (root.name == layout.folder or (root / layout.train[0]).is_file()):
            return layout, root
    state = "holds no" if root.is_dir() else "is no folder; looked in it for"
    raise UserError(
        f"--data-dir: {root} {state} {_folders(cifar)}; "
        f"accepted: the folder that holds one of them, or that folder itself (--download fetches the first)"
    )


def _check_sizes(cifar: Cifar, layout: Layout, folder: Path) -> None:
    """Every file of a binary layout is there and whole."""
    for part in ("train", "test"):
        for name in _files(layout, part):
            _check_size(folder / name, cifar.records(part) * (cifar.label_bytes + PIXELS))


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise UserError(f"--data-dir: {path} is missing; accepted: the official file of {expected} bytes")
    if (actual := path.stat().st_size) != expected:
        raise UserError(f"--data-dir: {path} has {actual} bytes; expected {expected}")


def _check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise UserError(
            f"--data-dir: {path}, record {wrong[0]}: label {labels[wrong[0]]}; accepted: 0 to {classes - 1}"
        )


def _read_binary(cifar: Cifar, path: Path, records: int) -> Arrays:
    _check_size(path, records * (cifar.label_bytes + PIXELS))
    try:
        rows = np.fromfile(path, np.uint8).reshape(records, cifar.label_bytes + PIXELS)
    except OSError as error:
        raise UserError(f"--data-dir: {path} cannot be read: {error}") from error
    return rows[:, cifar.label_bytes :], rows[:, cifar.label_bytes - 1]


def _read_pickled(cifar: Cifar, path: Path, records: int) -> Arrays:
    """One pickled dictionary: `data` [records, 3072] and the list of class numbers."""
    if not path.is_file():
        raise UserError(f"--data-dir: {path} is missing; accepted: the official pickled file of {records} records")
    least, actual = records * PIXELS, path.stat().st_size
    if actual < least:
        raise UserError(f"--data-dir: {path} has {actual} bytes; expected more than {least}")
    try:
        with path.open("rb") as file:
            found = _Unpickler(file, path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        cause = str(error) or type(error).__name__
        raise UserError(
            f"--data-dir: {path} ({actual} bytes) is no whole pickle of {records} records: {cause}"
        ) from error
    return _checked_record(found, cifar, path, records)


def _checked_record(found: object, cifar: Cifar, path: Path, records: int) -> Arrays:
    where = f"--data-dir: {path}"
    if not isinstance(found, dict):
        raise UserError(f"{where} holds a {type(found).__name__}; expected a dictionary")
    # Written by Python 2, so its strings arrive as bytes; a copy made by Python 3 has text.
    record = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in found.items()}
    if missing := {"data", cifar.label_key} - record.keys():
        raise UserError(f"{where} has keys {sorted(map(str, record))}; expected also {sorted(missing)}")
    data, labels = record["data"], record[cifar.label_key]
    shape = getattr(getattr(data, "values", None), "shape", None)
    if not isinstance(data, _Array) or shape != (records, PIXELS):
        raise UserError(f"{where}: data is {shape or type(data).__name__}; expected uint8 {(records, PIXELS)}")
    if not isinstance(labels, list) or len(labels) != records or any(type(label) is not int for label in labels):
        size = f" of {len(labels)}" if isinstance(labels, list) else ""
        raise UserError(
            f"{where}: {cifar.label_key} is a {type(labels).__name__}{size}; expected a list of {records} integers"
        )
    return data.values, np.clip(labels, -1, np.iinfo(np.int64).max).astype(np.int64)


class _Dtype:
    """Stands in for `numpy.dtype`: remembers the code that it was called with."""

    __slots__ = ("code",)

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and fields, of which single bytes have none."""


class _Array:
    """Stands in for `numpy.ndarray`: takes a pickled array's state, if it is plain bytes."""

    __slots__ = ("values",)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.code.lstrip("|") not in ("u1", "uint8"):
            raise ValueError(f"an array of {dtype.code}, not of uint8")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: type, *_: object) -> _Array:
    """Stands in for numpy's `_reconstruct`: the empty array that its state is then set on."""
    if kind is not _Array:
        raise ValueError("an array of an unknown kind")
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, by which Python 3 writes bytes into old pickles."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


# A pickle may name any callable of any module. These four are all that the official files name, and each gets a
# stand-in of ours: not even numpy's own loading code, which trusts shapes and types, sees the file's values.
_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle._Unpickler):
    """An unpickler that resolves the stand-ins above and refuses every other name.

    It is Python's, not the one in C, which makes room for as many objects as a damaged byte claims: tens of gigabytes.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise UserError(
                f"--data-dir: {self._path} asks for {module}.{name}; accepted: the official file, which needs only "
                f"numpy arrays"
            ) from None
