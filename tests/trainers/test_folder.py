"""Image folders: all formats that Pillow reads, crops that depend on the seed alone, errors of one line."""

from __future__ import annotations

import gc
import io
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from streams import message, parts, rng, taken

from trainers.datasets import Files, data
from trainers.datasets import files as decoding
from trainers.datasets.cifar import Cifar10
from trainers.datasets.files import MEAN, STD
from trainers.datasets.folder import Folder
from trainers.decode import View, centre_view, decode, random_view, reduction
from trainers.stream import Stream

CPU = torch.device("cpu")
SIZE = 32


def photo(seed: int, width: int = 80, height: int = 60) -> Image.Image:
    """Return an image of smooth colours, in which neighbouring pixels are alike as in a photograph."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def write(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else None, **options)
    return path


def make(root: Path, train: int = 7, val: int = 3, classes: Sequence[str] = ("ant", "bee", "cat")) -> Path:
    """Write a folder in the layout, with a few photographs of different sizes in each class."""
    for label, name in enumerate(classes):
        for i in range(train):
            write(root / "train" / name / f"{i}.JPEG", photo(100 * label + i, 80 + 5 * i, 60 + 3 * i))
        for i in range(val):
            write(root / "val" / name / f"{i}.jpg", photo(500 + 100 * label + i))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("folder"))


@pytest.fixture
def files(root: Path) -> Files:
    return Folder(root, SIZE).train()


def stream(files: Files, **options: object) -> Stream:
    return Stream(files, MEAN, STD, CPU, **{"workers": 2, **options})


class TestScanning:
    def test_classes_are_folders_and_files_are_sorted(self, root: Path) -> None:
        classes, found = Folder(root).classes(), Folder(root, SIZE).train()
        assert classes == ("ant", "bee", "cat")
        assert found.paths[:2] == ("ant/0.JPEG", "ant/1.JPEG")
        assert list(found.paths) == sorted(found.paths)
        assert found.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
        assert found.labels.dtype == np.int64
        assert (len(Folder(root, SIZE).test()), found.image_size) == (9, SIZE)

    def test_nested_upper_case_and_hidden(self, tmp_path: Path) -> None:
        make(tmp_path, train=1)
        for name in ("deep/er/x.PNG", "y.Jpg", ".hidden.jpg", ".thumbs/z.jpg", "notes.txt"):
            path = tmp_path / "train" / "bee" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        (tmp_path / "train" / ".git").mkdir()
        classes, found = Folder(tmp_path).classes(), Folder(tmp_path, SIZE).train()
        assert classes == ("ant", "bee", "cat")
        assert [p for p in found.paths if p.startswith("bee")] == ["bee/0.JPEG", "bee/deep/er/x.PNG", "bee/y.Jpg"]

    def test_the_size_is_the_median_shorter_side_up_to_224(self, root: Path, tmp_path: Path) -> None:
        assert Folder(root).train().image_size == 60 + 3 * 3
        for name in ("a", "b"):
            write(tmp_path / "train" / name / "0.jpg", photo(0, 400, 300))
        assert Folder(tmp_path).train().image_size == 224

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda root: root.joinpath("train").rename(root / "training"), "holds no train/"),
            (lambda root: [p.rename(root / p.name) for p in (root / "train").iterdir()], "no class folder"),
            (
                lambda root: [(root / "train" / n).rename(root / n) for n in ("ant", "cat")],
                "single class folder, 'bee'",
            ),
            (lambda root: (root / "train" / "bee" / "0.JPEG").unlink(), "bee holds no image"),
        ],
    )
    def test_a_bad_layout_is_one_line(self, spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
        make(tmp_path, train=1)
        spoil(tmp_path)
        text = message(lambda: data.load("folder", tmp_path))
        assert text.startswith("`data_dir`: ")
        assert says in text
        assert "accepted: " in text

    def test_no_folder(self, tmp_path: Path) -> None:
        assert "`data_dir`: None" in message(lambda: data.load("folder"))
        assert "is no folder" in message(lambda: data.load("folder", tmp_path / "none"))
        assert "holds no val/" in message(lambda: data.load_test("folder", _without_val(tmp_path)))

    @pytest.mark.parametrize(("change", "says"), [("bee", "'bee' is missing"), ("dog", "'dog' is not among")])
    def test_classes_of_both_parts_are_the_same(self, change: str, says: str, tmp_path: Path) -> None:
        make(tmp_path, train=1, val=1)
        val = tmp_path / "val"
        if change == "bee":
            (val / "bee").rename(tmp_path / "away")
        else:
            write(val / "dog" / "0.jpg", photo(1))
        text = message(lambda: data.load_test("folder", tmp_path))
        assert says in text
        assert "the same 3 classes" in text
        assert f"with {2 if change == 'bee' else 4} classes" in text

    def test_the_size_must_be_sensible(self, root: Path) -> None:
        assert message(lambda: data.load("folder", root, image_size=2)).startswith("`image_size`: 2 is too small")
        assert message(lambda: data.load("shapes", image_size=64)).startswith("`image_size`: 64, but shapes")
        assert message(lambda: data.load_test("shapes", image_size=64)).startswith("`image_size`: 64, but shapes")
        assert message(lambda: data.download("folder", root)).startswith("`download`: ")


def _without_val(folder: Path) -> Path:
    make(folder, train=1, val=0)
    return folder


class TestSplits:
    def test_arrays_as_of_every_data_set(self, root: Path) -> None:
        loaded = data.load("folder", root, image_size=SIZE, val_fraction=1 / 3)
        test = data.load_test("folder", root, SIZE)
        for split, n in ((loaded.train, 14), (loaded.val, 7), (test, 9)):
            assert (split.images.shape, split.images.dtype) == ((n, 3, SIZE, SIZE), np.uint8)
            assert split.labels.shape == (n,)
        assert (loaded.image_size, loaded.in_channels, loaded.num_classes) == (SIZE, 3, 3)
        values = loaded.train.images / 255
        np.testing.assert_allclose(loaded.mean, values.mean((0, 2, 3)), atol=1e-6)
        np.testing.assert_allclose(loaded.std, values.std((0, 2, 3)), atol=1e-6)

    def test_files_are_cut_as_arrays_are(self, root: Path) -> None:
        loaded = data.load("folder", root, seed=3, stream=True, train_images=10, image_size=SIZE)
        arrays = data.load("folder", root, seed=3, train_images=10, image_size=SIZE)
        assert (len(loaded.train), len(loaded.val), loaded.image_size, loaded.in_channels) == (10, 2, SIZE, 3)
        assert not set(loaded.train.paths) & set(loaded.val.paths)
        assert loaded.train.labels.tolist() == arrays.train.labels.tolist()
        assert (loaded.mean, loaded.std) == (MEAN, STD)
        assert data.load_test("folder", root, stream=True).image_size == data.load("folder", root).image_size == 69

    def test_the_tests_classes_may_be_those_of_a_run(self, root: Path) -> None:
        assert "'bee'" in message(lambda: data.load_test("folder", root, SIZE, classes=("ant", "cat")))

    def test_more_than_the_memory_is_one_line(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoding, "_free_memory", lambda: 100_000)
        text = message(lambda: data.load("folder", root, image_size=SIZE))
        assert text.startswith("`image_size`: 19 images of 32 x 32")
        assert "`train_images` up to about 16" in text
        assert data.load("folder", root, image_size=SIZE, train_images=16)

    def test_free_memory_is_asked_for_in_each_system_s_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(path: Path) -> str:
            raise FileNotFoundError(path)

        assert decoding._free_memory() > 2**20
        monkeypatch.setattr(Path, "read_text", missing)  # macOS has no /proc
        monkeypatch.setattr(
            os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name], raising=False
        )
        assert decoding._free_memory() == 4_096_000
        monkeypatch.delattr(os, "sysconf")  # Windows has neither
        assert decoding._free_memory() is None

    def test_no_limit_where_the_system_does_not_say(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoding, "_free_memory", lambda: None)
        assert data.load("folder", root, image_size=SIZE)


class TestPixels:
    def decoded(self, path: Path, size: int, choose: Callable[[int, int], View]) -> np.ndarray:
        out = torch.empty(size, size, 3, dtype=torch.uint8)
        decode(str(path), choose, out)
        return out.numpy()

    @pytest.mark.parametrize(("width", "height"), [(80, 60), (61, 97), (400, 300), (33, 32), (20, 24)])
    def test_the_centre_is_pillows(self, width: int, height: int, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jpg", photo(3, width, height))
        image = Image.open(path).convert("RGB")
        short = min(width, height)
        resized = image.resize((int(37 * width / short), int(37 * height / short)), Image.Resampling.BILINEAR)
        left, top = round((resized.width - SIZE) / 2), round((resized.height - SIZE) / 2)
        expected = np.asarray(resized.crop((left, top, left + SIZE, top + SIZE))).astype(int)
        found = self.decoded(path, SIZE, partial(centre_view, 37)).astype(int)
        assert np.abs(found - expected).mean() < 1.5  # the decoder reduces large images
        if short < 4 * 37:
            assert np.abs(found - expected).max() <= 1

    def test_a_box_and_its_mirror_are_pillows(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.png", photo(3))
        image = Image.open(path).crop((10, 5, 60, 45)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        for flip in (False, True):
            expected = np.asarray(image)[:, ::-1] if flip else np.asarray(image)
            found = self.decoded(path, SIZE, lambda w, h, flip=flip: View(10, 5, 50, 40, (SIZE, SIZE), flip))
            assert np.abs(found.astype(int) - expected).max() <= 1

    @pytest.mark.parametrize(
        ("name", "modes"),
        [
            ("x.JPEG", "RGB L CMYK 1"),
            ("x.png", "RGB L P RGBA LA 1"),
            ("x.bmp", "RGB L P RGBA 1"),
            ("x.webp", "RGB L P RGBA"),
            ("png.jpg", "RGB L P RGBA LA 1"),
        ],
    )
    def test_every_kind_of_image_is_what_pillow_makes_rgb(self, name: str, modes: str, tmp_path: Path) -> None:
        for mode in modes.split():
            self.check_kind(name, mode, tmp_path)

    def check_kind(self, name: str, mode: str, tmp_path: Path) -> None:
        file = io.BytesIO()
        kind = {".JPEG": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}.get(Path(name).suffix, "PNG")
        photo(5, SIZE, SIZE).convert(mode).save(file, kind)
        (tmp_path / name).write_bytes(file.getvalue())
        expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert np.array_equal(self.decoded(tmp_path / name, SIZE, partial(centre_view, SIZE)), expected), mode

    @pytest.mark.parametrize("mode", ["I;16", "I"])
    def test_16_bit_grey_keeps_its_range(self, mode: str, tmp_path: Path) -> None:
        grey = np.asarray(photo(5, SIZE, SIZE).convert("L"))
        image = Image.fromarray(grey * np.uint16(257))
        path = write(tmp_path / "x.tif", image if mode == "I;16" else image.convert("I"))
        assert Image.open(path).mode == mode
        found = self.decoded(path, SIZE, partial(centre_view, SIZE))
        assert np.array_equal(found, np.repeat(grey[..., None], 3, axis=2))
        write(tmp_path / "x.png", image)
        assert np.array_equal(self.decoded(tmp_path / "x.png", SIZE, partial(centre_view, SIZE)), found)

    @pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70_000), ("I", -1)])
    def test_pixels_of_an_unknown_range_are_refused(self, mode: str, value: float, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", Image.new(mode, (SIZE, SIZE), value))
        with pytest.raises(ValueError, match=f"pixels of mode {mode} from {value} to {value}; accepted: 8 or 16 bits"):
            self.decoded(path, SIZE, partial(centre_view, SIZE))

    @pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
    def test_every_jpeg_is_pillows_to_the_bit(self, options: dict, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jpg", photo(5, SIZE, SIZE), **options)
        expected = np.asarray(Image.open(path))
        assert np.array_equal(self.decoded(path, SIZE, partial(centre_view, SIZE)), expected)

    @pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1), (2, 5)])
    def test_a_strange_shape_is_taken(self, width: int, height: int, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jpg", Image.new("RGB", (width, height), (200, 100, 50)))
        for choose in (partial(centre_view, 37), partial(random_view, SIZE, True, 5)):
            assert np.abs(self.decoded(path, SIZE, choose).astype(int) - (200, 100, 50)).max() < 8

    @given(st.integers(1, 5000), st.integers(1, 5000), st.integers(8, 300), st.integers(0, 2**63 - 1))
    def test_random_crops_are_within_range(self, width: int, height: int, size: int, seed: int) -> None:
        view = random_view(size, True, seed, width, height)
        assert view == random_view(size, True, seed, width, height)
        assert 0 <= view.left <= view.left + view.width <= width
        assert 0 <= view.top <= view.top + view.height <= height
        assert min(view.width, view.height) >= 1
        if 3 / 4 < width / height < 4 / 3 and min(width, height) > 100:
            assert 0.07 < view.width * view.height / (width * height) <= 1
            assert 0.74 < view.width / view.height < 1.36
        by = reduction(view)
        assert by == 1 or min(view.width, view.height) >= by * size
        centre = centre_view(size, width, height)
        assert reduction(centre) == 1 or min(width, height) >= 2 * reduction(centre) * size
        assert not random_view(size, False, seed, width, height).flip

    def test_random_crops_are_spread_over_their_ranges(self) -> None:
        views = [random_view(SIZE, True, seed, 400, 400) for seed in range(2000)]
        areas = np.array([v.width * v.height for v in views]) / 400**2
        ratios = np.log([v.width / v.height for v in views])
        assert (areas.min() < 0.1, areas.max() > 0.9) == (True, True)
        assert abs(ratios.mean()) < 0.02
        assert abs(ratios).max() > 0.9 * math.log(4 / 3)
        assert abs(np.mean([v.flip for v in views]) - 0.5) < 0.05

    def test_a_reduced_jpeg_is_like_a_whole_one(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jpg", photo(5, 640, 480), quality=95)
        view = View(100, 50, 400, 300, (SIZE, SIZE), exact=True)
        assert (reduction(view), reduction(replace(view, exact=False))) == (4, 8)
        image = Image.open(path).crop((100, 50, 500, 350)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        found = self.decoded(path, SIZE, lambda w, h: view)
        assert (
            np.abs(found.astype(int) - np.asarray(image)).mean() < 3
        )  # of colours that change by 200 within 80 pixels


class TestStream:
    def test_a_batch_is_normalised_and_channels_last(self, files: Files) -> None:
        x, y = next(stream(files).batches(4))
        assert (x.shape, x.dtype, y.dtype) == ((4, 3, SIZE, SIZE), torch.float32, torch.int64)
        assert x.is_contiguous(memory_format=torch.channels_last)
        out = torch.empty(SIZE, SIZE, 3, dtype=torch.uint8)
        decode(f"{files.root}/{files.paths[0]}", partial(centre_view, round(SIZE * 256 / 224)), out)
        expected = (out.permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        torch.testing.assert_close(x[0], expected)

    def test_all_images_in_order(self, files: Files) -> None:
        images = stream(files)
        x, y = taken(images.batches(4))
        assert torch.equal(y, images.labels)
        assert torch.equal(taken(images.batches(100))[0], x)

    @pytest.mark.parametrize("workers", [1, 3])
    def test_the_same_seed_gives_the_same_batches(self, workers: int, files: Files) -> None:
        x, y = taken(stream(files).epoch(rng(4), parts(21, 5)))
        other = taken(stream(files, workers=workers).epoch(rng(4), parts(21, 8)))
        assert torch.equal(x, other[0])  # with other threads and other batches
        assert torch.equal(y, other[1])
        assert not torch.equal(x, taken(stream(files).epoch(rng(5), parts(21, 5)))[0])

    def test_the_remaining_batches_of_an_epoch_are_those_of_the_whole(self, files: Files) -> None:
        x, y = taken(stream(files).epoch(rng(4), parts(21, 5)))
        rest = taken(stream(files).epoch(rng(4), parts(21, 5)[2:]))
        assert torch.equal(rest[0], x[10:])
        assert torch.equal(rest[1], y[10:])

    def test_each_image_once_and_a_new_order_each_epoch(self, files: Files) -> None:
        images, generator = stream(files), rng()
        (a, labels), (b, _) = (taken(images.epoch(generator, parts(21, 5))) for _ in range(2))
        assert sorted(labels.tolist()) == files.labels.tolist()
        assert not torch.equal(a, b)

    def test_what_comes_depends_on_the_generator_at_the_call(self, files: Files) -> None:
        images, generator = stream(files), rng(4)
        batches = images.epoch(generator, parts(21, 5))
        generator.manual_seed(7)
        assert torch.equal(taken(batches)[0], taken(images.epoch(rng(4), parts(21, 5)))[0])

    @pytest.mark.parametrize("world", [2, 3])
    def test_shards_are_the_batches_of_one_process(self, world: int, files: Files) -> None:
        for start in (
            lambda shard: stream(files).epoch(rng(4), parts(21, 6), shard),
            lambda shard: stream(files).batches(6, shard),
        ):
            whole = [x.clone() for x, _ in start((0, 1))]
            shards = [[x.clone() for x, _ in start((rank, world))] for rank in range(world)]
            for i, batch in enumerate(whole):
                for rank in range(world):
                    assert torch.equal(shards[rank][i], batch[rank::world])

    def test_no_mirrors_if_none_are_asked_for(self, tmp_path: Path) -> None:
        """Every crop of a left-to-right ramp is darker on the left, unless it is mirrored."""
        ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[:, None], (64, 64, 3))
        for name in ("a", "b"):
            for i in range(16):
                write(tmp_path / "train" / name / f"{i}.png", Image.fromarray(np.ascontiguousarray(ramp)))
        images = stream(Folder(tmp_path, SIZE).train())
        for flip in (False, True):
            x, _ = taken(images.epoch(rng(), parts(32, 8), flip=flip))
            mirrored = (x[:, 0, 0, 0] > x[:, 0, 0, -1]).sum().item()
            assert (mirrored > 0) == flip

    def test_batches_that_are_held_are_not_written_again(self, files: Files) -> None:
        held = list(stream(files).epoch(rng(4), parts(21, 2)))
        assert torch.equal(torch.cat([x for x, _ in held]), taken(stream(files).epoch(rng(4), parts(21, 2)))[0])

    def test_memory_is_used_again(self, files: Files) -> None:
        places = set()
        images = stream(files)
        for _ in range(2):
            for x, _ in images.epoch(rng(), parts(21, 3)):
                places.add(x.data_ptr())
                weight = torch.ones((), requires_grad=True)
                (x * weight).sum().backward()
        assert len(places) <= 3

    def test_a_graph_that_needs_a_batch_keeps_it(self, files: Files) -> None:
        images, weight = stream(files), torch.ones((), requires_grad=True)
        losses, sums = [], []
        for x, _ in images.epoch(rng(), parts(21, 3)):
            losses.append((x * weight).sum())
            sums.append(x.sum().item())
            del x
        for loss, expected in zip(losses, sums, strict=True):
            weight.grad = None
            loss.backward()
            assert weight.grad.item() == pytest.approx(expected, rel=1e-4, abs=1e-2)

    @pytest.mark.parametrize("hold", ["a view", "another tensor", "an autograd graph"])
    def test_a_batch_stays_as_it_is_for_as_long_as_anything_holds_it(self, hold: str, files: Files) -> None:
        batches = stream(files).epoch(rng(4), parts(21, 2))
        x, _ = next(batches)
        expected, weight = x.sum().item(), torch.ones((), requires_grad=True)
        holders = {
            "a view": lambda x: x[1:, 0],
            "another tensor": lambda x: x.detach(),
            "an autograd graph": lambda x: (x * weight).sum(),
        }
        kept = holders[hold](x)
        before = kept.detach().clone()
        del x
        for other, _ in batches:
            other.zero_()
        assert torch.equal(kept, before)
        if hold == "an autograd graph":
            kept.backward()
            assert weight.grad.item() == pytest.approx(expected, rel=1e-4, abs=1e-2)

    def test_memory_is_given_back_in_any_order(self, files: Files) -> None:
        """Held batches get memory of their own; the ring has room again once they are dropped."""
        images, held, places = stream(files), [], set()
        for x, _ in images.epoch(rng(), parts(21, 3)):
            held.append(x)
        assert len({x.data_ptr() for x in held}) == 7
        ring = {x.data_ptr() for x in held[:3]}
        held.clear()
        del x
        for x, _ in images.epoch(rng(), parts(21, 3)):
            places.add(x.data_ptr())
        assert places <= ring

    def test_batches_go_to_the_device_whatever_it_is(self, files: Files) -> None:
        """The meta device stands for any device that is neither a CPU nor CUDA, such as `mps`."""
        images = Stream(files, MEAN, STD, torch.device("meta"), workers=2)
        for x, y in images.epoch(rng(), parts(21, 5)):
            assert (x.device.type, y.device.type, x.dtype) == ("meta", "meta", torch.float32)
            assert x.is_contiguous(memory_format=torch.channels_last)

    def test_an_early_end_leaves_no_thread(self, files: Files) -> None:
        before = threading.active_count()
        torch_threads = torch.get_num_threads()
        batches = stream(files).epoch(rng(), parts(21, 2))
        next(batches)
        assert threading.active_count() > before
        batches.close()
        assert threading.active_count() == before
        for _ in stream(files).epoch(rng(), parts(21, 2)):
            break
        gc.collect()
        assert threading.active_count() == before
        assert torch.get_num_threads() == torch_threads

    def test_few_batches_are_decoded_ahead(self, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        images, done = stream(files.take(np.arange(210) % 21), workers=1), []
        monkeypatch.setattr(images, "_decode", lambda job, pixels, start, flip: done.append(start) or [])
        batches = images.epoch(rng(), parts(210, 10))
        next(batches)
        batches.close()
        assert len(done) <= 2 * 4  # chunks: two for each of the four batches ahead


class TestDamage:
    @pytest.fixture
    def spoilt(self, tmp_path: Path) -> Path:
        """Write 21 files, four of them no images: empty, cut short, text, a broken link."""
        make(tmp_path)
        first = tmp_path / "train" / "ant"
        (first / "0.JPEG").write_bytes(b"")
        whole = (first / "1.JPEG").read_bytes()
        (first / "1.JPEG").write_bytes(whole[: len(whole) // 2])
        (first / "2.JPEG").write_text("no image")
        (first / "3.JPEG").unlink()
        (first / "3.JPEG").symlink_to(write(tmp_path / "gone.jpg", photo(1)))
        return tmp_path

    def test_files_are_named_once_and_left_out(self, spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
        files = Folder(spoilt, SIZE).train()
        (spoilt / "gone.jpg").unlink()
        images = stream(files)
        for _ in range(2):
            x, y = taken(images.epoch(rng(), parts(21, 5)))
            assert len(x) == len(y) == 17
            assert sorted(y.tolist()) == [0] * 3 + [1] * 7 + [2] * 7
        x, y = taken(images.batches(5))
        assert torch.equal(y, images.labels[4:])
        assert torch.equal(x, taken(stream(files.take(np.arange(4, 21))).batches(5))[0])
        lines = capsys.readouterr().err.splitlines()
        assert sorted(line.split(":")[0].rsplit("/", 1)[1] for line in lines) == [f"{i}.JPEG" for i in range(4)]

    def test_arrays_lack_them_too(self, spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
        loaded = data.load("folder", spoilt, image_size=SIZE, val_fraction=0)
        assert loaded.train.labels.tolist() == [0] * 4 + [1] * 7 + [2] * 7
        assert capsys.readouterr().err.count("left out") == 3

    def test_too_many_are_one_line(self, tmp_path: Path) -> None:
        make(tmp_path, train=12, classes=("ant", "bee"))
        for path in (tmp_path / "train" / "bee").iterdir():
            path.write_text("no image")
        files = Folder(tmp_path, SIZE).train()
        for call in (
            lambda: taken(stream(files).batches(4)),
            lambda: data.load("folder", tmp_path, val_fraction=0, image_size=SIZE),
        ):
            text = message(call)
            assert text.startswith("`data_dir`: 11 of 24 images cannot be read, the last is ")
            assert "accepted: at most 10" in text

    def test_a_small_fault_that_pillow_forgives_is_forgiven(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make(tmp_path, train=1)
        path = tmp_path / "train" / "ant" / "0.JPEG"
        path.write_bytes(path.read_bytes()[:-2] + b"\0\0\0\xff\xd9")
        assert len(taken(stream(Folder(tmp_path, SIZE).train()).batches(3))[0]) == 3
        assert capsys.readouterr().err == ""

    def test_a_header_that_claims_too_much_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jpg", photo(1))
        raw = path.read_bytes()
        at = raw.index(b"\xff\xc0") + 5
        path.write_bytes(raw[:at] + b"\xff\xff\xff\xff" + raw[at + 4 :])
        with pytest.raises(Image.DecompressionBombError):
            decode(str(path), partial(centre_view, SIZE), torch.empty(SIZE, SIZE, 3, dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.skipif("RES2NET_CIFAR10_DIR" not in os.environ, reason="RES2NET_CIFAR10_DIR does not name a folder")
def test_photographs_of_cifar10_come_back(tmp_path: Path) -> None:
    test = Cifar10(os.environ["RES2NET_CIFAR10_DIR"]).test()
    images, labels = test.images, test.labels
    for i in range(200):
        name = Cifar10.class_names[labels[i]]
        write(tmp_path / "train" / name / f"{i:04}.png", Image.fromarray(images[i].transpose(1, 2, 0)))
    loaded = data.load("folder", tmp_path, val_fraction=0)
    assert loaded.image_size == 32
    order = np.argsort(labels[:200], kind="stable")
    assert np.array_equal(loaded.train.images, images[:200][order])
