"""Data sets: the cut is the same for every layout, only `load_test` opens the test files, errors are one line."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import pickle
import struct
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from res2net.errors import UserError
from trainers.datasets import data, shapes
from trainers.datasets.archive import Archive
from trainers.datasets.cifar import Cifar, Cifar10, Cifar100
from trainers.images import Images

TRAIN_RECORDS = {"cifar10": 40, "cifar100": 300}  # per file: the real files hold 10,000 and 50,000
TEST_RECORDS = 20
KINDS = {"cifar10": Cifar10, "cifar100": Cifar100}
CIFARS = tuple(KINDS)


def python2(record: dict[bytes, object]) -> bytes:
    """Pickle the record like the official archives: by Python 2, whose strings are the opcode BINSTRING."""
    memo = itertools.count()

    def stored() -> bytes:
        number = next(memo)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value + stored()

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def array(value: np.ndarray) -> bytes:
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R" + stored()
        shape = b"(" + b"".join(map(integer, value.shape)) + b"t"
        fields = text(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\0"
        dtype = (
            b"cnumpy\ndtype\n"
            + text(value.dtype.str[1:].encode())
            + b"K\0K\1\x87R"
            + stored()
            + b"(K\3"
            + fields
            + b"tb"
        )
        return empty + b"(K\1" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"

    def any_value(value: object) -> bytes:
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, list):
            return b"]" + stored() + b"(" + b"".join(map(integer, value)) + b"e"
        assert isinstance(value, bytes)
        return text(value)

    start = b"\x80\2}" + stored() + b"("  # first: the memo numbers follow the order of the file
    return start + b"".join(text(key) + any_value(value) for key, value in record.items()) + b"u."


def numpy1(record: dict) -> bytes:
    """Pickle the record like Python 3 and numpy 1."""
    return pickle.dumps(record, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def numpy2(record: dict) -> bytes:
    """Pickle the record like Python 3 and numpy 2, with text keys."""
    return pickle.dumps({k.decode(): v for k, v in record.items()}, 4)


def write(kind: type[Cifar], root: Path, layout: int, dump: Callable[[dict], bytes] = python2) -> Path:
    """Write a data set in its binary (0) or pickled (1) layout; the first two bytes of an image are its number."""
    rng = np.random.default_rng(7)
    at = kind.layouts[layout]
    folder = root / at.folder
    folder.mkdir(parents=True)
    number = 0
    for name in (*at.train, *at.test):
        n = kind.test_records if name in at.test else kind.train_records
        pixels = rng.integers(0, 256, (n, 3072), np.uint8)
        pixels[:, :2] = np.stack(np.divmod(np.arange(number, number + n), 256), axis=1)
        number += n
        labels = rng.permutation(np.arange(n) % len(kind.class_names)).astype(np.uint8)
        coarse = np.full((n, kind.label_bytes - 1), 19, np.uint8)
        if at.pickled:
            record = {b"data": pixels, kind.label_key.encode(): labels.tolist(), b"batch_label": b"one of some"}
            (folder / name).write_bytes(dump(record))
        else:
            (folder / name).write_bytes(np.concatenate([coarse, labels[:, None], pixels], axis=1).tobytes())
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_files() -> Iterator[None]:
    """Expect few records per file: the real files have 30 to 150 MB each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, records in TRAIN_RECORDS.items():
            patch.setattr(KINDS[name], "train_records", records)
            patch.setattr(KINDS[name], "test_records", TEST_RECORDS)
        patch.setattr(shapes, "TRAIN_POOL", (100, 1))
        patch.setattr(shapes, "TEST_SET", (30, 2))
        yield


@pytest.fixture(scope="module")
def home(small_files: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both data sets in the binary layout."""
    root = tmp_path_factory.mktemp("data")
    for name in CIFARS:
        write(KINDS[name], root, 0)
    return root


def numbers(split: data.Split) -> np.ndarray:
    """Return the numbers of the images in the files, which `write` hid in the pixels."""
    first = split.images[:, 0, 0, :2].astype(int)
    return first[:, 0] * 256 + first[:, 1]


def same(a: data.Split, b: data.Split) -> bool:
    return np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)


def message(call: Callable[[], object]) -> str:
    """Return the text of the `UserError` that a call raises; it must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["shapes", *CIFARS])
def test_splits_have_the_promised_form(name: str, home: Path) -> None:
    loaded = data.load(name, home)
    for split in (loaded.train, loaded.val, data.load_test(name, home)):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.images.shape == (len(split), 3, 32, 32)
        assert len(split) == len(split.labels) > 0
    assert (loaded.name, loaded.in_channels, loaded.image_size) == (name, 3, 32)
    assert loaded.num_classes == len(set(loaded.classes)) == (100 if name == "cifar100" else 10)


@pytest.mark.parametrize("dump", [python2, numpy1, numpy2])
@pytest.mark.parametrize("name", CIFARS)
def test_binary_and_pickled_layouts_give_the_same_splits(name: str, dump: Callable, home: Path, tmp_path: Path) -> None:
    write(KINDS[name], tmp_path, 1, dump)
    binary, pickled = data.load(name, home, seed=3), data.load(name, tmp_path, seed=3)
    assert same(binary.train, pickled.train)
    assert same(binary.val, pickled.val)
    assert same(data.load_test(name, home), data.load_test(name, tmp_path))


def test_a_class_is_the_fine_one_and_pixels_are_planes(home: Path) -> None:
    raw = np.fromfile(home / "cifar-100-binary" / "test.bin", np.uint8).reshape(TEST_RECORDS, 3074)
    test = data.load_test("cifar100", home)
    assert test.labels.tolist() == raw[:, 1].tolist()
    assert test.images[4, 2, 31, 30] == raw[4, 2 + 2 * 1024 + 31 * 32 + 30]


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("name", CIFARS)
def test_data_dir_may_be_the_folder_itself_also_renamed(name: str, layout: int, tmp_path: Path) -> None:
    folder = write(KINDS[name], tmp_path, layout)
    around, itself = data.load(name, str(tmp_path)), data.load(name, folder)
    renamed = folder.rename(tmp_path / "renamed")
    assert same(around.val, itself.val)
    assert same(around.val, data.load(name, renamed).val)


def test_data_dir_may_start_at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home.parent))
    assert len(data.load_test("cifar10", f"~/{home.name}")) == TEST_RECORDS


@pytest.mark.parametrize(
    ("name", "target"),
    [("cifar10", "class"), ("folder", "class"), ("voc", "mask"), ("coco", "boxes"), ("masks", "mask")],
)
def test_a_home_of_nobody_is_one_line(name: str, target: str) -> None:
    text = message(lambda: data.load(name, "~nobody-has-this-name/photos", target=target))
    assert text.startswith("`data_dir`: ~nobody-has-this-name/photos starts at an unknown home; accepted: ")


@given(
    name=st.sampled_from(CIFARS),
    seed=st.integers(0, 2**32),
    fraction=st.floats(0, 0.9),
    share=st.floats(0.01, 1),
)
@settings(max_examples=20, deadline=None)
def test_the_cut_is_disjoint_stratified_and_repeats(
    home: Path, name: str, seed: int, fraction: float, share: float
) -> None:
    whole = data.load(name, home, seed=seed, val_fraction=fraction)
    pool = len(whole.train) + len(whole.val)
    assert len(whole.val) == round(fraction * pool)
    assert sorted([*numbers(whole.train), *numbers(whole.val)]) == list(range(pool))

    kept = max(1, int(share * len(whole.train)))
    fewer = data.load(name, home, seed=seed, val_fraction=fraction, train_images=kept)
    assert same(fewer.val, whole.val)
    assert len(fewer.train) == kept
    assert set(numbers(fewer.train)) <= set(numbers(whole.train))
    for split in (whole.train, whole.val, fewer.train):
        counts = np.bincount(split.labels, minlength=whole.num_classes)
        assert counts.max() - counts.min() <= 2  # the pool's classes are even


def test_the_seed_moves_the_cut(home: Path) -> None:
    assert not np.array_equal(numbers(data.load("cifar10", home).val), numbers(data.load("cifar10", home, seed=1).val))


def test_no_validation_split_is_an_empty_one(home: Path) -> None:
    loaded = data.load("cifar10", home, val_fraction=0)
    assert loaded.val.images.shape == (0, 3, 32, 32)
    assert len(loaded.train) == 5 * TRAIN_RECORDS["cifar10"]


def test_default_fractions() -> None:
    assert len(data.load("shapes").val) == 20


def test_mean_and_std_are_those_of_the_train_images(home: Path) -> None:
    loaded = data.load("cifar10", home, train_images=50)
    scaled = loaded.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(loaded.mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(loaded.std, scaled.std(axis=(0, 2, 3)), rtol=1e-9)


@given(values=st.tuples(*[st.integers(0, 255)] * 3))
def test_a_constant_channel_is_zero_after_normalisation(values: tuple[int, int, int]) -> None:
    constant = np.array(values, np.uint8)[:, None, None] * np.ones((20, 3, 4, 4), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes.Shapes, "train", lambda self: data.Split(constant, np.arange(20) % 10))
        loaded = data.load("shapes", val_fraction=0)
    for x, _ in Images(loaded.train, loaded, torch.device("cpu")).batches(10):
        assert torch.isfinite(x).all()
        assert x.abs().max() < 1e-3


@pytest.mark.parametrize("layout", [0, 1])
def test_only_the_files_of_a_split_are_opened(layout: int, tmp_path: Path) -> None:
    folder = write(Cifar100, tmp_path, layout)
    train, test = (folder / (files[0]) for files in (Cifar100.layouts[layout].train, Cifar100.layouts[layout].test))
    kept = test.read_bytes()
    test.unlink()
    data.load("cifar100", tmp_path)
    test.write_bytes(kept)
    train.unlink()
    assert len(data.load_test("cifar100", tmp_path)) == TEST_RECORDS


def test_unknown_name() -> None:
    for call in (data.load, data.load_test, lambda name: data.download(name, None)):
        assert "`data`: unknown value 'cifar1O'; did you mean 'cifar10'?" in message(lambda call=call: call("cifar1O"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"train_images": 81}, "`train_images`: 81; accepted: 1 to 80"),
        ({"train_images": 0}, "`train_images`: 0; accepted: 1 to 80"),
        ({"val_fraction": 1.0}, "`val_fraction`: 1.0; accepted: 0 up to"),
        ({"val_fraction": float("nan")}, "`val_fraction`: nan; accepted: 0 up to"),
        ({"seed": -1}, "`seed`: -1; accepted: 0 or more"),
    ],
)
def test_options_out_of_range(options: dict, text: str) -> None:
    assert text in message(lambda: data.load("shapes", **options))


@pytest.mark.parametrize("call", [data.load, data.load_test, data.download])
def test_no_data_dir(call: Callable) -> None:
    text = message(lambda: call("cifar100", None))
    assert text.startswith("`data_dir`: None")
    assert "`download`" in text


def test_missing_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        text = message(lambda root=root: data.load("cifar10", root))
        assert all(part in text for part in (str(root), "cifar-10-batches-bin", "cifar-10-batches-py"))


@pytest.mark.parametrize("layout", [0, 1])
def test_missing_file(layout: int, tmp_path: Path) -> None:
    folder = write(Cifar10, tmp_path, layout)
    gone = folder / Cifar10.layouts[layout].train[3]
    gone.unlink()
    assert f"{gone} is missing" in message(lambda: data.load("cifar10", tmp_path))


@pytest.mark.parametrize("change", [-1, 1, -40 * 3073])
def test_binary_file_of_the_wrong_size(change: int, tmp_path: Path) -> None:
    file = write(Cifar10, tmp_path, 0) / "data_batch_2.bin"
    file.write_bytes((file.read_bytes() + b"\0")[: 40 * 3073 + change])
    text = message(lambda: data.load("cifar10", tmp_path))
    assert f"{file} has {40 * 3073 + change} bytes; expected {40 * 3073}" in text


@pytest.mark.parametrize("left", [0, 100, 40 * 3072 + 200])
def test_pickled_file_cut_short(left: int, tmp_path: Path) -> None:
    file = write(Cifar10, tmp_path, 1) / "data_batch_2"
    file.write_bytes(file.read_bytes()[:left])
    text = message(lambda: data.load("cifar10", tmp_path))
    assert str(file) in text
    assert f"{left} bytes" in text


def test_label_out_of_range(tmp_path: Path) -> None:
    file = write(Cifar10, tmp_path, 0) / "test_batch.bin"
    raw = bytearray(file.read_bytes())
    raw[3 * 3073] = 10
    file.write_bytes(raw)
    assert f"{file}, record 3: label 10; accepted: 0 to 9" in message(lambda: data.load_test("cifar10", tmp_path))


PIXELS = np.zeros((TEST_RECORDS, 3072), np.uint8)
LABELS = [0] * TEST_RECORDS


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({b"data": PIXELS, b"classes": LABELS}, "has keys ['classes', 'data']; expected also ['labels']"),
        ({b"data": PIXELS.reshape(-1, 3), b"labels": LABELS}, "data is (20480, 3); expected uint8 (20, 3072)"),
        ({b"data": PIXELS.tobytes(), b"labels": LABELS}, "data is bytes; expected uint8 (20, 3072)"),
        ({b"data": PIXELS.astype(np.int16), b"labels": LABELS}, "an array of i2, not of uint8"),
        ({b"data": PIXELS, b"labels": LABELS[1:]}, "labels is a list of 19; expected a list of 20 integers"),
        ({b"data": PIXELS, b"labels": ["0"] * TEST_RECORDS}, "expected a list of 20 integers"),
        ({b"data": PIXELS, b"labels": bytes(TEST_RECORDS)}, "labels is a bytes; expected a list"),
        ({b"data": PIXELS, b"labels": [-1, *LABELS[1:]]}, "record 0: label -1; accepted: 0 to 9"),
        ({b"data": PIXELS, b"labels": [2**80, *LABELS[1:]]}, "record 0: label"),
        ([PIXELS, LABELS], "holds a list; expected a dictionary"),
    ],
)
def test_pickled_record_of_the_wrong_form(record: object, text: str, tmp_path: Path) -> None:
    file = write(Cifar10, tmp_path, 1) / "test_batch"
    file.write_bytes(pickle.dumps(record, 2).ljust(70_000, b"\0"))
    found = message(lambda: data.load_test("cifar10", tmp_path))
    assert text in found
    assert str(file) in found


class Calls:
    """Pickles as a call of a given function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        (Calls(os.system, "touch {mark}"), f"{os.system.__module__}.system"),
        (Calls(eval, "open('{mark}', 'w')"), "builtins.eval"),
        (Calls(np.save, "{mark}", 0), "numpy.save"),
        (Calls(getattr, PIXELS, "tofile"), "builtins.getattr"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_unpickler_calls_nothing_that_a_file_names(
    call: Calls, refused: str, protocol: int, tmp_path: Path
) -> None:
    file = write(Cifar10, tmp_path, 1) / "test_batch"
    mark = tmp_path / "mark"
    function, arguments = call.reduced
    filled = [a.format(mark=mark) if isinstance(a, str) else a for a in arguments]
    record = {b"data": PIXELS, b"labels": Calls(function, *filled)}
    file.write_bytes(pickle.dumps(record, protocol))
    text = message(lambda: data.load_test("cifar10", tmp_path))
    assert str(file) in text
    assert refused.replace("builtins", "__builtin__" if protocol == 2 else "builtins") in text
    assert not mark.exists()


@pytest.mark.parametrize(
    ("opcodes", "says"),
    [
        (b"}r" + struct.pack("<I", 2**32 - 1), "memo index 4294967295"),  # LONG_BINPUT: a memo of 64 GiB
        (b"}p4294967295\n", "memo index 4294967295"),  # PUT, in decimal
        (b"\x8e" + struct.pack("<Q", 2**40), "expected 1099511627776 bytes"),  # BINBYTES8
        (b"T" + struct.pack("<i", 2**31 - 1), "expected 2147483647 bytes"),  # BINSTRING
    ],
)
def test_a_pickle_gets_no_memory_for_a_mere_number(opcodes: bytes, says: str, tmp_path: Path) -> None:
    file = write(Cifar10, tmp_path, 1) / "test_batch"
    file.write_bytes((b"\x80\x02" + opcodes + b".").ljust(70_000, b"\0"))
    tracemalloc.start()
    try:
        assert says in message(lambda: data.load_test("cifar10", tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@given(place=st.integers(0, 400), value=st.integers(0, 255))
@settings(max_examples=50, deadline=None)
def test_a_damaged_pickle_is_read_or_refused(place: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    raw = bytearray(python2({b"labels": LABELS, b"data": PIXELS}))
    raw[place] = value
    folder = tmp_path_factory.getbasetemp() / "damaged" / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test_batch").write_bytes(raw)
    with contextlib.suppress(UserError):
        assert len(data.load_test("cifar10", folder)) == TEST_RECORDS


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return an archive of the binary layout, packed like the official one."""
    folder = write(Cifar10, tmp_path / "packed", 0)
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


def publish(patch: pytest.MonkeyPatch, path: Path, **changes: object) -> None:
    """Make `download` fetch this file instead of the official archive."""
    content = path.read_bytes() if path.exists() else b""
    entry = {"url": path.as_uri(), "size": len(content), "md5": hashlib.md5(content).hexdigest()}
    patch.setattr(Cifar10, "archive", Archive(**{**entry, **changes}))


def test_download_gives_the_binary_layout_and_is_done_once(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, archive)
    root = tmp_path / "new" / "data"
    data.download("cifar10", root)
    assert [p.name for p in root.iterdir()] == ["cifar-10-batches-bin"]
    assert same(data.load("cifar10", root).train, data.load("cifar10", tmp_path / "packed").train)
    archive.unlink()
    data.download("cifar10", root)


def test_download_finds_a_damaged_folder(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, archive)
    (tmp_path / "packed" / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    assert "test_batch.bin is missing" in message(lambda: data.download("cifar10", tmp_path / "packed"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"md5": "0" * 32}, f"expected {'0' * 32}"),
        ({"size": 10}, "bytes; expected 10"),
        ({"size": 10**9}, "bytes; expected 1000000000"),
        ({"url": "file:///no/such/archive"}, "could not be fetched"),
        ({"url": "http://127.0.0.1:9/closed"}, "could not be fetched"),
    ],
)
def test_a_wrong_download_leaves_nothing(
    changes: dict, text: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, archive, **changes)
    root = tmp_path / "data"
    found = message(lambda: data.download("cifar10", root))
    assert text in found
    assert Cifar10.archive.url in found
    assert not list(root.iterdir())


def test_an_archive_that_writes_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO())
    publish(monkeypatch, archive)
    assert "could not be fetched" in message(lambda: data.download("cifar10", tmp_path / "data"))
    assert not list(tmp_path.rglob("escaped"))
    assert not list((tmp_path / "data").iterdir())


def test_shapes_need_no_download() -> None:
    data.download("shapes", None)


@pytest.mark.slow
@pytest.mark.skipif("RES2NET_CIFAR10_DIR" not in os.environ, reason="RES2NET_CIFAR10_DIR does not name a folder")
def test_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar10, "train_records", 10_000)
    monkeypatch.setattr(Cifar10, "test_records", 10_000)
    root = Path(os.environ["RES2NET_CIFAR10_DIR"])
    loaded = [data.load("cifar10", root / at.folder) for at in Cifar10.layouts if (root / at.folder).is_dir()]
    assert loaded
    for one in loaded:
        assert same(one.val, loaded[0].val)
        assert np.bincount(one.val.labels).tolist() == [500] * 10
        np.testing.assert_allclose(one.mean, (0.4914, 0.4822, 0.4465), atol=2e-3)
