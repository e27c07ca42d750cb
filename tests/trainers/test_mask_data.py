"""Data sets of images and masks: their layouts, both loaders, broken annotations, and errors of one line."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_trees import agreement, image_of, mask, masks_tree, palette, voc_tree, write, write_list, write_pair
from PIL import Image
from rich.console import Console
from streams import message, parts, rng, taken

from trainers.datasets import Files, data
from trainers.datasets import files as decoding
from trainers.datasets.base import VOID
from trainers.datasets.files import MEAN, STD
from trainers.datasets.mask_folder import LAYOUTS, Masks
from trainers.datasets.voc import CLASSES, Voc
from trainers.images import Images, source
from trainers.stream import Stream

CPU = torch.device("cpu")
SIZE = 64  # larger than every image of the trees
ROWS = {"own": 0, "DUTS": 1, "MSRA-B and ECSSD": 2, "ECSSD": 3, "images and masks": 4, "MSRA-B": 5}


def stream(files: Files, workers: int = 2) -> Stream:
    return Stream(files, MEAN, STD, CPU, workers)


def aligned(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of pixels of a batch whose colour is that of their label (`mask_trees.agreement`)."""
    pixels = (x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    return agreement(pixels.permute(0, 2, 3, 1).numpy(), y.numpy())


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_tree(tmp_path_factory.mktemp("voc"), train=21)


@pytest.fixture
def files(voc: Path) -> Files:
    return Voc(voc, 48, target="mask").train()


class TestVoc:
    def test_lists_name_the_images_and_their_masks(self, tmp_path: Path) -> None:
        voc_tree(tmp_path)
        dataset = Voc(tmp_path, target="mask")
        train, test = dataset.train(), dataset.test()
        assert (len(train), len(test), train.image_size, train.mask_classes) == (6, 3, 513, 21)
        assert train.paths[0] == "JPEGImages/2007_000000.jpg"
        assert train.masks is not None
        assert train.masks[0] == "SegmentationClass/2007_000000.png"
        assert list(train.paths) == sorted(train.paths)
        assert (train.labels.dtype, train.labels.any()) == (np.int64, False)
        assert dataset.classes() == CLASSES
        assert (len(CLASSES), CLASSES[0], CLASSES[15]) == (21, "background", "person")
        assert dataset.base(None) == "imagenet"

    def test_the_augmented_list_needs_its_masks(self, tmp_path: Path) -> None:
        voc_tree(tmp_path, augmented=4)
        dataset = Voc(tmp_path, target="mask")
        assert len(dataset.train()) == 10
        assert dataset.note() == f"{tmp_path}: training images of trainaug.txt, masks of SegmentationClassAug"
        assert {m.split("/")[0] for m in dataset.test().masks or ()} == {"SegmentationClass"}
        shutil.rmtree(tmp_path / "SegmentationClassAug")
        assert len(dataset.train()) == 6
        assert dataset.note() == f"{tmp_path}: training images of train.txt, masks of SegmentationClass"

    def test_augmented_masks_alone_serve_all_lists(self, tmp_path: Path) -> None:
        voc_tree(tmp_path, augmented=4)
        shutil.rmtree(tmp_path / "SegmentationClass")
        (tmp_path / "ImageSets/Segmentation/trainaug.txt").unlink()
        dataset = Voc(tmp_path, target="mask")
        assert [len(dataset.train()), len(dataset.test())] == [6, 3]
        assert {m.split("/")[0] for m in dataset.train().masks or ()} == {"SegmentationClassAug"}

    def test_the_folder_may_be_that_of_the_archive(self, tmp_path: Path) -> None:
        voc_tree(tmp_path / "VOCdevkit/VOC2012")
        assert len(Voc(tmp_path, target="mask").train()) == 6

    def test_a_list_may_hold_paths(self, tmp_path: Path) -> None:
        voc_tree(tmp_path)
        expected = Voc(tmp_path, target="mask").train().paths
        lines = [f"/{path} /SegmentationClassAug/{Path(path).stem}.png" for path in expected]
        write_list(tmp_path, "train", [*reversed(lines), "", lines[0]])
        assert Voc(tmp_path, target="mask").train().paths == expected

    def test_the_note_is_shown_once_the_data_is_loaded(self, voc: Path) -> None:
        console = Console(file=io.StringIO(), width=20)
        data.load("voc", voc, target="mask", stream=True, console=console)
        assert console.file.getvalue() == f"{voc}: training images of train.txt, masks of SegmentationClass\n"

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (
                lambda root: shutil.rmtree(root / "JPEGImages"),
                "holds no JPEGImages/ and no VOCdevkit/VOC2012/JPEGImages/",
            ),
            (lambda root: shutil.rmtree(root / "SegmentationClass"), "holds no mask of an image of ImageSets/"),
            (lambda root: (root / "ImageSets/Segmentation/train.txt").unlink(), "No such file"),
            (lambda root: write_list(root, "train", []), "train.txt names no image"),
            (lambda root: (root / "ImageSets/Segmentation/train.txt").write_bytes(b"\xff\xfe"), "not UTF-8"),
        ],
    )
    def test_a_bad_layout_is_one_line(self, spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
        voc_tree(tmp_path)
        spoil(tmp_path)
        text = message(lambda: data.load("voc", tmp_path, target="mask"))
        assert text.startswith("`data_dir`: ")
        assert says in text
        assert "accepted: " in text

    def test_no_folder_and_no_such_targets(self, tmp_path: Path) -> None:
        assert "`data_dir`: None" in message(lambda: data.load("voc", target="mask"))
        assert "is no folder" in message(lambda: data.load("voc", tmp_path / "none", target="mask"))
        assert message(lambda: data.load("voc", tmp_path)).startswith("`data`: voc has no targets of the kind class")
        assert "`download`" in message(lambda: data.download("voc", tmp_path))


class TestMasks:
    @pytest.mark.parametrize("name", ROWS)
    def test_every_layout_gives_pairs_of_equal_names(self, name: str, tmp_path: Path) -> None:
        layout = LAYOUTS[ROWS[name]]
        masks_tree(tmp_path, layout.train, layout.test, salient=True)
        dataset = Masks(tmp_path, SIZE, target="salient")
        for part, pair in ((dataset.train, layout.train), (dataset.test, layout.test)):
            if pair is None:
                text = message(part)
                assert "training images" in text if part == dataset.train else "test images" in text
                assert all(str(other) in text for other in LAYOUTS)
                continue
            found = part()
            assert len(found) == 6
            assert [Path(p).stem for p in found.paths] == [Path(m).stem for m in found.masks or ()]
            assert {Path(p).suffix for p in found.paths} == {".jpg"}
            x, y = taken(stream(found).batches(4))
            assert aligned(x, torch.where(y == 1, VOID, y)) > 0.98  # the background is black
            assert {0, 1, VOID} == set(y.unique().tolist())

    def test_classes_are_numbered_from_the_training_masks(self, tmp_path: Path) -> None:
        masks_tree(tmp_path, LAYOUTS[0].train, LAYOUTS[0].test)
        loaded = data.load("masks", tmp_path, target="mask", image_size=SIZE, stream=True)
        assert loaded.classes == ("background", "class 1", "class 2", "class 3")
        assert loaded.train.mask_classes == 4
        assert data.load_test("masks", tmp_path, target="mask", stream=True, classes=("a", "b")).mask_classes == 2

    def test_a_file_may_name_the_classes(self, tmp_path: Path) -> None:
        masks_tree(tmp_path, LAYOUTS[0].train, LAYOUTS[0].test)
        (tmp_path / "classes.txt").write_text("nothing\n tree \n\nhouse\ncar\nsky\n")
        assert data.classes_of("masks", tmp_path, "mask") == ("nothing", "tree", "house", "car", "sky")
        assert data.load_test("masks", tmp_path, target="mask", stream=True).mask_classes == 5

    def test_salient_objects_have_one_class(self, tmp_path: Path) -> None:
        masks_tree(tmp_path, LAYOUTS[0].train, LAYOUTS[0].test, salient=True)
        loaded = data.load("masks", tmp_path, target="salient", stream=True)
        assert (loaded.classes, loaded.train.mask_classes, loaded.target) == (("object",), None, "salient")

    def test_the_size_is_the_median_longer_side_up_to_513(self, tmp_path: Path) -> None:
        masks_tree(tmp_path / "a", LAYOUTS[0].train, None, salient=True)
        assert Masks(tmp_path / "a", target="salient").train().image_size == 61
        write_pair(tmp_path / "b/train/images", tmp_path / "b/train/masks", "x", mask(0, 900, 700), salient=True)
        assert Masks(tmp_path / "b", target="salient").train().image_size == 513

    def test_hidden_and_other_files_are_no_images(self, tmp_path: Path) -> None:
        masks_tree(tmp_path, LAYOUTS[0].train, None, salient=True)
        for name in (".hidden.jpg", "notes.txt", "Thumbs.db"):
            (tmp_path / "train/images" / name).write_bytes(b"")
        assert len(Masks(tmp_path, target="salient").train()) == 6

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda root: shutil.rmtree(root / "train/masks"), "train/masks holds no mask of the same name (000.png)"),
            (lambda root: [p.unlink() for p in (root / "train/masks").iterdir()], "images holds images, but "),
            (lambda root: [p.unlink() for p in (root / "train/images").iterdir()], "images holds no image"),
            (lambda root: shutil.rmtree(root / "train"), "holds no training images"),
            (lambda root: [shutil.rmtree(root / part) for part in ("train", "test")], "holds no image"),
        ],
    )
    def test_a_bad_layout_is_one_line(self, spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
        masks_tree(tmp_path, LAYOUTS[0].train, LAYOUTS[0].test, salient=True)
        spoil(tmp_path)
        text = message(lambda: data.load("masks", tmp_path, target="salient"))
        assert text.startswith(f"`data_dir`: {tmp_path}")
        assert says in text
        assert all(str(layout) in text for layout in LAYOUTS)

    def test_no_folder(self, tmp_path: Path) -> None:
        assert "`data_dir`: None" in message(lambda: data.load("masks", target="mask"))
        assert "is no folder" in message(lambda: data.load("masks", tmp_path / "none", target="mask"))
        assert message(lambda: data.load("masks", tmp_path)).startswith(
            "`data`: masks has no targets of the kind class"
        )

    @pytest.mark.parametrize(
        ("text", "says"), [(b"only\n", "names 1 classes; accepted: 2 to 255"), (b"\xff\xfe", "not UTF-8")]
    )
    def test_a_bad_file_of_classes_is_one_line(self, text: bytes, says: str, tmp_path: Path) -> None:
        masks_tree(tmp_path, LAYOUTS[0].train, None)
        (tmp_path / "classes.txt").write_bytes(text)
        assert says in message(lambda: data.load("masks", tmp_path, target="mask"))

    def test_masks_for_another_task_are_one_line(self, tmp_path: Path) -> None:
        masks_tree(tmp_path / "numbers", LAYOUTS[0].train, None)
        shutil.copytree(tmp_path / "numbers", tmp_path / "grey")
        for path in (tmp_path / "grey/train/masks").iterdir():
            Image.fromarray(np.asarray(Image.open(path))).save(path)
        for name in ("numbers", "grey"):
            text = message(lambda name=name: data.load("masks", tmp_path / name, target="salient"))
            assert "none of 6 sampled masks" in text
            assert "`task` segment" in text
        masks_tree(tmp_path / "white", LAYOUTS[0].train, None, salient=True)
        text = message(lambda: data.load("masks", tmp_path / "white", target="mask"))
        assert "hold no class number but 0" in text
        assert "`task` saliency" in text
        grey = Image.fromarray(np.arange(250, dtype=np.uint8)[None])
        write(tmp_path / "white/train/masks/000.png", grey)
        assert "values up to 249; accepted: class numbers below 200" in message(
            lambda: data.load("masks", _copied(tmp_path / "white"), target="mask")
        )

    def test_a_test_set_alone_needs_the_names_of_its_classes(self, tmp_path: Path) -> None:
        masks_tree(tmp_path, None, LAYOUTS[3].test)
        assert "accepted: a file classes.txt" in message(lambda: data.load_test("masks", tmp_path, target="mask"))
        (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
        assert len(data.load_test("masks", tmp_path, SIZE, target="mask")) == 6


def _copied(root: Path) -> Path:
    """Return a copy of a tree: the classes of a folder are read once."""
    return shutil.copytree(root, root.with_name(f"{root.name}-copy"))


class TestLoaders:
    def test_arrays_are_whole_images_and_their_masks(self, voc: Path) -> None:
        loaded = data.load("voc", voc, target="mask", image_size=SIZE, val_fraction=1 / 3)
        for split, n in ((loaded.train, 14), (loaded.val, 7)):
            assert (split.images.shape, split.images.dtype) == ((n, 3, SIZE, SIZE), np.uint8)
            assert (split.labels.shape, split.labels.dtype) == ((n, SIZE, SIZE), np.uint8)
        assert (loaded.mean, loaded.std) == (MEAN, STD)  # not changed by the padding
        assert set(np.unique(loaded.train.labels)) == {0, 1, 2, 3, VOID}

    def test_both_score_the_same_pixels(self, voc: Path) -> None:
        for size in (SIZE, 32):
            arrays = data.load("voc", voc, target="mask", image_size=size)
            files = data.load("voc", voc, target="mask", image_size=size, stream=True)
            for part in ("train", "val"):
                x, y = taken(source(getattr(arrays, part), arrays, CPU).batches(4))
                other, masks = taken(source(getattr(files, part), files, CPU).batches(5))
                torch.testing.assert_close(x, other)
                assert torch.equal(y, masks)
                assert aligned(x, y) > 0.97

    def test_both_train_on_aligned_pairs(self, voc: Path) -> None:
        arrays = data.load("voc", voc, target="mask", image_size=48)
        for images in (Images(arrays.train, arrays, CPU, padding=8), stream(Voc(voc, 48, target="mask").train())):
            x, y = taken(images.epoch(rng(), parts(len(images), 4)))
            assert (x.shape[1:], y.shape[1:], y.dtype) == ((3, 48, 48), (48, 48), torch.uint8)
            assert aligned(x, y) > 0.97
            assert x[(y == VOID)[:, None].expand_as(x)].abs().median() < 0.02  # padding is the mean colour

    def test_memory_counts_the_masks(self, voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoding, "_free_memory", lambda: 2 * 4 * 48 * 48 * 10)
        text = message(lambda: data.load("voc", voc, target="mask", image_size=48))
        assert "`train_images` up to about 10" in text
        assert data.load("voc", voc, target="mask", image_size=48, train_images=10)


class TestStream:
    @pytest.mark.parametrize("workers", [1, 3])
    def test_the_same_seed_gives_the_same_batches(self, workers: int, files: Files) -> None:
        x, y = taken(stream(files).epoch(rng(4), parts(21, 5)))
        other = taken(stream(files, workers).epoch(rng(4), parts(21, 8)))  # with other threads and other batches
        assert torch.equal(x, other[0])
        assert torch.equal(y, other[1])
        assert not torch.equal(y, taken(stream(files).epoch(rng(5), parts(21, 5)))[1])

    def test_the_remaining_batches_of_an_epoch_are_those_of_the_whole(self, files: Files) -> None:
        x, y = taken(stream(files).epoch(rng(4), parts(21, 5)))
        rest = taken(stream(files).epoch(rng(4), parts(21, 5)[2:]))
        assert torch.equal(rest[0], x[10:])
        assert torch.equal(rest[1], y[10:])

    def test_shards_are_the_batches_of_one_process(self, files: Files) -> None:
        whole = [y for _, y in stream(files).epoch(rng(4), parts(21, 6))]
        shards = [[y for _, y in stream(files).epoch(rng(4), parts(21, 6), (rank, 2))] for rank in range(2)]
        for i, batch in enumerate(whole):
            for rank in range(2):
                assert torch.equal(shards[rank][i], batch[rank::2])

    def test_masks_that_are_held_are_not_written_again(self, files: Files) -> None:
        held = list(stream(files).epoch(rng(4), parts(21, 2)))
        assert torch.equal(torch.cat([y for _, y in held]), taken(stream(files).epoch(rng(4), parts(21, 2)))[1])

    def test_rows_are_taken_with_their_masks(self, files: Files) -> None:
        index = np.array([4, 2])
        x, y = taken(stream(files.take(index)).batches(2))
        whole = taken(stream(files).batches(4))
        assert torch.equal(x, whole[0][index])
        assert torch.equal(y, whole[1][index])

    @pytest.mark.gpu
    def test_batches_on_cuda_are_the_cpu_s(self, files: Files) -> None:
        images = Stream(files, MEAN, STD, torch.device("cuda"), workers=2)
        x, y = taken(images.epoch(rng(4), parts(21, 2)))
        expected, masks = taken(stream(files).epoch(rng(4), parts(21, 2)))
        torch.testing.assert_close(x.cpu(), expected)
        assert torch.equal(y.cpu(), masks)


class TestDamage:
    @pytest.fixture
    def spoilt(self, tmp_path: Path) -> Path:
        """Write 21 images with masks. Six of them have a fault each, in the image or in the mask."""
        voc_tree(tmp_path, train=21)
        masks = tmp_path / "SegmentationClass"
        (masks / "2007_000000.png").unlink()
        (masks / "2007_000001.png").write_text("no image")
        whole = (masks / "2007_000002.png").read_bytes()
        (masks / "2007_000002.png").write_bytes(whole[: len(whole) - 40])
        palette(mask(0, 30, 30)).save(masks / "2007_000003.png")
        Image.fromarray(np.full((48, 61), 21, np.uint8)).save(masks / "2007_000004.png")
        (tmp_path / "JPEGImages/2007_000005.jpg").write_text("no image")
        return tmp_path

    def test_files_are_named_once_and_left_out(self, spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
        images = stream(Voc(spoilt, SIZE, target="mask").train())
        for _ in range(2):
            x, y = taken(images.epoch(rng(), parts(21, 5)))
            assert len(x) == len(y) == 15
            assert aligned(x, y) > 0.97
        x, y = taken(images.batches(5))
        assert torch.equal(y, taken(stream(images.files.take(np.arange(6, 21))).batches(5))[1])
        assert aligned(x, y) > 0.97
        self.check(capsys.readouterr().err)

    def test_arrays_lack_them_too(self, spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
        loaded = data.load("voc", spoilt, target="mask", image_size=SIZE, val_fraction=0)
        assert loaded.train.images.shape[0] == loaded.train.labels.shape[0] == 15
        assert aligned(*taken(Images(loaded.train, loaded, CPU).batches(5))) > 0.97
        self.check(capsys.readouterr().err)

    def check(self, err: str) -> None:
        lines = sorted(err.splitlines(), key=lambda line: line.split(":")[0][-10:])
        reasons = ["there is no such mask", "no image", "", "30 x 30 pixels", "class 21; accepted: 0 to 20", "no image"]
        assert len(lines) == 6
        for i, (line, reason) in enumerate(zip(lines, reasons, strict=True)):
            assert f"2007_{i:06}." in line
            assert ": left out, it cannot be read (" in line
            assert reason in line
            assert ("JPEGImages" in line) == (i == 5)

    def test_too_many_are_one_line(self, tmp_path: Path) -> None:
        voc_tree(tmp_path, train=24)
        for i in range(11):
            (tmp_path / f"SegmentationClass/2007_{i:06}.png").unlink()
        for call in (
            lambda: taken(stream(Voc(tmp_path, SIZE, target="mask").train()).batches(4)),
            lambda: data.load("voc", tmp_path, target="mask", val_fraction=0, image_size=SIZE),
        ):
            text = message(call)
            assert text.startswith("`data_dir`: 11 of 24 images with masks cannot be read, the last is ")
            assert "accepted: at most 10" in text

    def test_classes_of_a_test_mask_are_those_of_training(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        masks_tree(tmp_path, LAYOUTS[0].train, LAYOUTS[0].test)
        labels = mask(100, 61, 44)
        labels[0, 0] = 7
        write(tmp_path / "test/images/100.jpg", image_of(mask(100, 61, 44)))
        write(tmp_path / "test/masks/100.png", palette(labels))
        assert len(data.load_test("masks", tmp_path, SIZE, target="mask")) == 5
        assert "100.png: left out, it cannot be read (class 7; accepted: 0 to 3" in capsys.readouterr().err
