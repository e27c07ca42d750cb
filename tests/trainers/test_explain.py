"""`trainers.explain`: an overlay for each image, a sheet, and one line for a mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import res2net
from res2net import Arch, Stage, create, grad_cam
from res2net.options import from_options
from trainers import explain
from trainers.datasets.files import MEAN, STD
from trainers.explain import ExplainConfig, Explained, file_names
from trainers.overlay import CELL, COLOURS, DPI, GAP, SIDE, Overlay, overlay_png, sheet
from trainers.subjects import SIZE, Prediction, subject

ARCH = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4, num_classes=3)
CLASSES = ("ant", "bee", "1")
VALUES = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25), "image_size": 16, "crop": "pad"}
CPU = torch.device("cpu")
Run = Callable[..., int]


def model(folder: str, arch: Arch = ARCH, classes: tuple[str, ...] | None = CLASSES, **values: Any) -> None:
    torch.manual_seed(len(folder))
    res2net.save(create(arch), folder)
    if classes is not None:
        training = {"data": {"classes": list(classes), **VALUES, **values}}
        Path(folder, "training.json").write_text(json.dumps(training))


def picture(path: str, width: int = 16, height: int = 16) -> None:
    """Write a picture whose pixels depend on its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a temporary folder with a model folder and three pictures."""
    monkeypatch.chdir(tmp_path)
    model("model")
    picture("photos/one.png")
    picture("photos/three.jpg", 40, 30)
    picture("photos/sub/two.png", 16, 20)
    return tmp_path


def run(*argv: object) -> int:
    return explain.main(["--device", "cpu", *map(str, argv)])


def drawn(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Overlay], list[Any]]:
    """Return the overlays and the sheets that the following commands draw."""
    overlays, sheets = [], []
    monkeypatch.setattr(explain, "overlay_png", lambda o: (overlays.append(o), overlay_png(o))[1])
    monkeypatch.setattr(explain, "sheet_png", lambda *parts: (sheets.append(parts), b"sheet")[1])
    return overlays, sheets


def size(path: Path | str) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


# ---- Pictures ------------------------------------------------------------------------------------------------------


def test_each_image_has_a_picture_and_a_row_of_the_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "photos", "--to", "new/maps") == 0
    out = Path("new/maps")
    assert sorted(p.name for p in out.iterdir()) == ["one.png", "sheet.png", "three.png", "two.png"]
    width, height = size(out / "one.png")
    assert width == SIDE * DPI < height
    width, height = size(out / "sheet.png")
    assert width == int(DPI * (2 * (CELL + GAP) + GAP))
    assert height > 3 * CELL * DPI
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == [
        f"photos/{n}" for n in ("one.png", "sub/two.png", "three.jpg")
    ]
    assert all(re.fullmatch(r".*: (ant|bee|1) \d+\.\d %", line) for line in lines[:-1])
    assert lines[-1] == "new/maps/sheet.png"


def test_a_second_model_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    model("other", replace(ARCH, num_classes=2), ("yes", "no"), image_size=24)
    assert run("model", "photos/one.png", "--beside", "other", "--to", "out") == 0
    assert size("out/sheet.png")[0] == int(DPI * (3 * (CELL + GAP) + GAP))
    line = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"photos/one\.png: model: (ant|bee|1) [\d.]+ %, other: (yes|no) [\d.]+ %", line)


@pytest.mark.parametrize("count", [1, 2])
def test_a_sheet_has_a_panel_for_each_image_and_network(count: int) -> None:
    overlay = Overlay(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)), (2, 3), "a $cat$ of $5\nmap: dog 3.0 %")
    figure = sheet(["first", "second"][:count], [(f"{i}.png", [overlay] * count) for i in range(4)])
    assert len(figure.axes) == 4 * (1 + count)
    assert [len(axes.images) for axes in figure.axes] == ([1] + [2] * count) * 4
    texts = [text.get_text() for text in figure.texts]
    assert [text for text in texts if text in ("image", "first", "second")] == ["image", "first", "second"][: 1 + count]
    assert texts.count("2 x 3 maps") == count
    assert texts.count(overlay.title) == 4 * count
    figure.savefig("sheet.png")  # dollar signs are no formulas


def test_the_map_is_drawn_over_the_image() -> None:
    map_ = np.zeros((6, 6))
    map_[:, :3] = 1
    Path("a.png").write_bytes(overlay_png(Overlay(np.zeros((6, 6, 3), np.uint8), map_, (6, 6), "left")))
    pixels = np.asarray(Image.open("a.png").convert("RGB")).astype(int)
    left, right = pixels[-180, 60], pixels[-180, 300]
    assert COLOURS == "jet"
    assert left[0] > 50 > left[2]  # red over black
    assert right[2] > 50 > right[0]  # blue over black


def test_no_pixel_of_a_large_image_is_lost() -> None:
    big = Overlay(np.zeros((500, 500, 3), np.uint8), np.zeros((500, 500)), (16, 16), "big")
    Path("a.png").write_bytes(overlay_png(big))
    assert size("a.png")[0] >= 500


# ---- What is shown -------------------------------------------------------------------------------------------------


def test_maps_and_probabilities_are_those_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    overlays, _ = drawn(monkeypatch)
    found = explain.explain(ExplainConfig("model", "photos/one.png", "out", device="cpu"))
    net, pixels = res2net.load("model"), np.asarray(Image.open("photos/one.png"))
    x = (torch.from_numpy(pixels / 255) - torch.tensor(VALUES["mean"])) / torch.tensor(VALUES["std"])
    x = x.permute(2, 0, 1)[None].float()
    share = net(x).softmax(1)[0]
    best = int(share.argmax())
    assert np.array_equal(overlays[0].image, pixels)
    assert overlays[0].cells == (4, 4)
    torch.testing.assert_close(torch.from_numpy(overlays[0].map), grad_cam(net, x)[0], rtol=0, atol=1e-4)
    assert found == [
        Explained(
            Path("photos/one.png"),
            Path("out/one.png"),
            (Prediction(CLASSES[best], pytest.approx(share[best].item(), abs=1e-4)),),
        )
    ]
    assert overlays[0].title == f"{CLASSES[best]} {100 * share[best].item():.1f} %"


@pytest.mark.parametrize(("text", "number"), [("ant", 0), ("bee", 1), ("1", 2), ("0", 0), ("2", 2)])
def test_a_target_is_a_name_or_else_a_number(text: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subject(Path("model"), CPU, text).target == number
    overlays, _ = drawn(monkeypatch)
    assert run("model", "photos", "--to", "out", "--target", text) == 0
    for overlay in overlays:
        titles = overlay.title.split("\n")
        others = [] if titles[0].startswith(f"{CLASSES[number]} ") else [f"map: {CLASSES[number]}"]
        assert [line.rsplit(" ", 2)[0] for line in titles[1:]] == others


def test_a_name_is_looked_up_in_each_model() -> None:
    model("other", classes=("1", "ant", "bee"))
    assert subject(Path("other"), CPU, "ant").target == 1
    assert run("model", "photos/one.png", "--beside", "other", "--target", "ant", "--to", "out") == 0


def test_images_are_those_of_scoring() -> None:
    """A recipe of crops scores the centre of a larger image. ImageNet's values stand in for `training.json`."""
    model("crops", crop="resized", image_size=28)
    model("bare", classes=None)
    crops, whole, bare = (subject(Path(name), CPU) for name in ("crops", "model", "bare"))
    assert (crops.size, crops.resize) == (28, 32)
    assert (whole.size, whole.resize) == (16, 16)
    assert (bare.size, bare.resize) == (SIZE, 256)
    assert (tuple(bare.mean.tolist()), tuple(bare.std.tolist())) == (pytest.approx(MEAN), pytest.approx(STD))
    assert bare.labels == ("class 0", "class 1", "class 2")
    assert subject(Path("crops"), CPU, size=56).resize == 64


def test_the_size_may_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    overlays, _ = drawn(monkeypatch)
    assert run("model", "photos", "--to", "out", "--image-size", 20) == 0
    assert {(o.image.shape, o.map.shape) for o in overlays} == {((20, 20, 3), (20, 20))}


def test_many_images_are_computed_in_batches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overlays, sheets = drawn(monkeypatch)
    assert run("model", "photos", "--to", "out") == 0
    whole, before = [o.map for o in overlays], capsys.readouterr().out
    monkeypatch.setattr(explain, "PIXELS", 2 * 16**2)
    monkeypatch.setattr(explain, "ROWS", 2)
    assert run("model", "photos", "--to", "out") == 0
    for one, other in zip(whole, overlays[3:], strict=True):
        np.testing.assert_allclose(one, other.map, atol=1e-4)
    assert [len(rows) for _, rows in sheets] == [3, 2]
    assert capsys.readouterr().out == before[:-1] + ", the first 2 of 3 images\n"


# ---- Files ---------------------------------------------------------------------------------------------------------


def test_images_of_equal_names_have_files_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    paths = ("a/cat.png", "b/cat.png", "a/Cat.bmp", "a/cat-2.png", "a/sheet.png")
    for path in paths:
        picture(path)
    assert run("model", *paths, "--to", "out") == 0
    names = ["cat.png", "cat-2.png", "Cat-3.png", "cat-2-2.png", "sheet-2.png"]
    assert sorted(p.name for p in Path("out").iterdir()) == sorted([*names, "sheet.png"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("b/cat.png: ")
    assert lines[1].endswith(" % (cat-2.png)")
    assert lines[0].endswith(" %")
    assert file_names(map(Path, paths)) == names


def test_an_image_that_is_named_twice_is_drawn_once() -> None:
    assert run("model", "photos/one.png", "photos", "photos/one.png", "--to", "out") == 0
    assert len(list(Path("out").iterdir())) == 4


def test_hidden_files_and_other_files_of_a_folder_are_ignored() -> None:
    picture("photos/.thumbnails/one.png")
    Path("photos/notes.txt").write_text("no image")
    assert run("model", "photos", "--to", "out") == 0
    assert len(list(Path("out").iterdir())) == 4


def test_earlier_pictures_are_replaced_and_other_files_kept() -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    Path("out/one.png").write_text("old")
    assert run("model", "photos/one.png", "--to", "out") == 0
    assert size("out/one.png")
    assert Path("out/notes.txt").read_text() == "mine"


def test_models_of_one_name_are_told_apart_by_their_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    _, sheets = drawn(monkeypatch)
    model("a/best")
    model("b/best")
    assert run("a/best", "photos", "--beside", "b/best", "--to", "out") == 0
    assert run("model/", "photos", "--beside", "b/best/.", "--to", "out") == 0
    assert [heads for heads, _ in sheets] == [["a/best", "b/best"], ["model", "best"]]


def test_unreadable_images_are_named_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/bad.png").write_text("no image")
    whole = Path("photos/three.jpg").read_bytes()
    Path("photos/half.jpg").write_bytes(whole[: len(whole) // 2])
    assert run("model", "photos", "--to", "out") == 0
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["photos/bad.png", "photos/half.jpg"]
    assert said.err.count("left out, it cannot be read") == 2
    assert len(said.out.splitlines()) == 4
    assert len(list(Path("out").iterdir())) == 4


# ---- Mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["none", "photos"], ["model folder 'none'", "accepted: a folder with arch.json"]),
        (["photos", "photos"], ["model folder 'photos'", "arch.json is missing"]),
        (["model"], ["required", "IMAGES"]),
        (["model", "gone.png"], ["'gone.png' does not exist", "accepted: image files"]),
        (["model", "model"], ["model: no image there", ".jpg"]),
        (["model", "photos", "--beside", "none"], ["model folder 'none'"]),
        (["model", "photos", "--target", "ent"], ["--target: 'ent'", "did you mean 'ant'?", "a number from 0 to 2"]),
        (["model", "photos", "--target", "3"], ["--target: '3'", "'model'", "ant, bee, 1, a number from 0 to 2"]),
        (["model", "photos", "--target", "-1"], ["--target"]),
        (["model", "photos", "--beside", "other", "--target", "ant"], ["--target: 'ant'", "'other'", "yes, no"]),
        (["many", "photos", "--target", "x"], ["--target: 'x'", "a class name of its training.json", "0 to 29"]),
        (["model", "photos", "--image-size", "7"], ["--image-size: 7", "8 to 4096"]),
        (["model", "photos", "--image-size", "100000"], ["--image-size: 100000", "8 to 4096"]),
        (["model", "photos", "--device", "tpu"], ["--device", "'tpu'"]),
        (["headless", "photos"], ["without a classifier"]),
        (["grey", "photos"], ["'grey'", "1 colour channels; accepted: 3"]),
        (["broken", "photos"], ["training.json: not written by fit or export"]),
        (["odd", "photos"], ["training.json: not written by fit or export"]),
        (["listed", "photos"], ["training.json: not written by fit or export"]),
        (["fewer", "photos"], ["training.json: 2 classes; accepted: 3"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model("other", replace(ARCH, num_classes=2), ("yes", "no"))
    model("many", replace(ARCH, num_classes=30), tuple(f"class{i}" for i in range(30)))
    model("headless", replace(ARCH, num_classes=0), ())
    model("grey", replace(ARCH, in_channels=1))
    model("odd", mean=(0.5, 0.5))
    model("fewer", classes=("a", "b"))
    for name, text in (("broken", "[]"), ("listed", '{"data": [1]}')):
        model(name)
        Path(name, "training.json").write_text(text)
    assert stopped(*argv, "--to", "out") == 2
    one_line(capsys, *parts)
    assert not Path("out").exists()


def stopped(*argv: object) -> int:
    """Return the exit code. The parser exits by itself."""
    try:
        return run(*argv)
    except SystemExit as end:
        return int(end.code or 0)


def one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Check that the last line of stderr is the only error, and that it contains all the parts."""
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("error: ") == 1
    last = said.err.splitlines()[-1]
    assert last.startswith("python -m trainers.explain: error: ")
    for part in parts:
        assert part in last


def test_without_a_readable_image_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_text("no image")
    assert run("model", "bad.png", "--to", "out") == 2
    one_line(capsys, "none of 1 images can be read")
    assert not Path("out").exists()


@pytest.mark.parametrize("to", ["model/arch.json", "model/arch.json/out"])
def test_a_file_is_no_folder_for_pictures(to: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("model/arch.json").read_bytes()
    assert run("model", "photos", "--to", to) == 2
    one_line(capsys, "--to: ", to)
    assert Path("model/arch.json").read_bytes() == before


@pytest.mark.parametrize("names", [["photos/one.png"], ["photos/one.jpg", "photos/sheet.png"]])
def test_an_image_is_never_replaced(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name in names:
        picture(name)
    before = {p: p.read_bytes() for p in Path("photos").rglob("*.*")}
    assert run("model", *names, "--to", "photos/../photos") == 2
    one_line(capsys, "--to: ", "is one of the images and would be replaced; accepted: another folder")
    assert {p: p.read_bytes() for p in Path("photos").rglob("*.*")} == before


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(explain, "write_atomic", full)
    assert run("model", "photos", "--to", "out") == 2
    one_line(capsys, "--to: 'out/one.png' cannot be written: No space left on device")


def test_defaults_equal_those_of_the_command() -> None:
    args = explain.build_parser().parse_args(["DIR", "a.png", "b.png", "--to", "out"])
    assert from_options(ExplainConfig, args) == ExplainConfig(Path("DIR"), (Path("a.png"), Path("b.png")), Path("out"))
