"""Images and masks decoded together: they stay aligned under scale, crop and mirroring; padding has no class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mask_trees import COLOURS, agreement, image_of, mask, palette, write
from PIL import Image

from trainers.datasets.base import VOID
from trainers.datasets.pairs import MaskError, colour_of, decode_pair, read_mask, scaled_view, whole_view
from trainers.decode import View, reduction

SIZE = 48
GREY = (124, 116, 104)  # fills the canvas beside an image
Choose = Callable[[int, int], View]


def decoded(path: Path, mask_path: Path, choose: Choose, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and the labels of a view, 4 classes."""
    pixels, labels = torch.empty(size, size, 3, dtype=torch.uint8), torch.empty(size, size, dtype=torch.uint8)
    decode_pair(str(path), str(mask_path), 4, choose, GREY, pixels, labels)
    return pixels.numpy(), labels.numpy()


@pytest.fixture(scope="module", params=["png", "jpg"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, labels = tmp_path_factory.mktemp("pair"), mask(3)
    return write(folder / f"x.{request.param}", image_of(labels)), write(folder / "mask.png", palette(labels))


class TestViews:
    @given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 600), st.integers(0, 2**63 - 1))
    def test_a_random_crop_lies_in_the_image_and_on_the_canvas(
        self, width: int, height: int, size: int, seed: int
    ) -> None:
        view = scaled_view(size, True, seed, width, height)
        assert view == scaled_view(size, True, seed, width, height)
        assert view.left >= 0
        assert view.top >= 0
        assert view.left + view.width <= width * (1 + 1e-12)
        assert view.top + view.height <= height * (1 + 1e-12)
        assert 1 <= min(view.resized) <= max(view.resized) <= size
        plain = scaled_view(size, False, seed, width, height)
        assert not plain.flip
        assert (plain.left, plain.top, plain.resized) == (view.left, view.top, view.resized)

    def test_scales_are_spread_from_a_half_to_two(self) -> None:
        views = [scaled_view(1000, True, seed, 400, 300) for seed in range(2000)]
        scales = np.array([view.resized[1] / view.width for view in views])
        assert scales.min() == pytest.approx(0.5, abs=0.01)
        assert scales.max() == pytest.approx(2, abs=0.01)
        assert scales.mean() == pytest.approx(1.25, abs=0.03)
        assert np.mean([view.flip for view in views]) == pytest.approx(0.5, abs=0.05)

    def test_a_larger_image_is_scaled_from_the_size_of_the_canvas(self) -> None:
        views = [scaled_view(100, True, seed, 400, 300) for seed in range(500)]
        scales = np.array([view.resized[1] / view.width for view in views])
        assert scales.min() == pytest.approx(0.125, abs=0.01)
        assert scales.max() == pytest.approx(0.5, abs=0.01)

    def test_crops_are_spread_over_the_image(self) -> None:
        views = [scaled_view(100, True, seed, 100, 100) for seed in range(500)]
        large = [view for view in views if view.resized == (100, 100) and view.width < 60]
        assert {view.left < 10 for view in large} == {view.top > 30 for view in large} == {True, False}

    @given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 600))
    def test_a_scored_image_is_whole_and_never_enlarged(self, width: int, height: int, size: int) -> None:
        view = whole_view(size, width, height)
        assert (view.left, view.top, view.width, view.height) == (0, 0, width, height)
        assert max(view.resized) == min(size, max(width, height))
        if max(width, height) <= size:
            assert view.resized == (height, width)


class TestPixels:
    def test_image_and_mask_stay_aligned(self, pair: tuple[Path, Path]) -> None:
        for seed in range(40):
            pixels, labels = decoded(*pair, partial(scaled_view, SIZE, True, seed))
            assert agreement(pixels, labels) > 0.98
            shifted = np.roll(labels, 1, axis=1)
            assert agreement(pixels, shifted) < agreement(pixels, labels) - 0.005

    def test_a_mirrored_canvas_is_the_mirror_of_the_other(self, pair: tuple[Path, Path]) -> None:
        mirrored = 0
        for seed in range(10):
            plain = decoded(*pair, partial(scaled_view, SIZE, False, seed))
            other = decoded(*pair, partial(scaled_view, SIZE, True, seed))
            flip = scaled_view(SIZE, True, seed, 60, 44).flip
            mirrored += flip
            for a, b in zip(plain, other, strict=True):
                assert np.array_equal(a, b[:, ::-1] if flip else b)
        assert 0 < mirrored < 10

    def test_crops_are_those_of_the_whole_image_resized(self, pair: tuple[Path, Path]) -> None:
        image, labels = Image.open(pair[0]).convert("RGB"), np.asarray(Image.open(pair[1]))
        for seed in range(20):
            view = scaled_view(SIZE, False, seed, 60, 44)
            h, w = view.resized
            whole = (round(w * 60 / view.width), round(h * 44 / view.height))
            left, top = round(view.left * whole[0] / 60), round(view.top * whole[1] / 44)
            box = (left, top, left + w, top + h)
            pixels, found = decoded(*pair, lambda width, height, view=view: view)
            expected = np.asarray(image.resize(whole, Image.Resampling.BILINEAR).crop(box)).astype(int)
            difference = np.abs(pixels[:h, :w] - expected)
            # The decoder of JPEGs for training is less exact: it may also reduce an image before it is resized.
            assert difference.mean() < 3 if pair[0].suffix == ".jpg" else difference.max() <= 1
            # The pixel below the centre of pixel i of W is the one at (i + 1/2) * 60 / W, rounded down.
            rows = (2 * (top + np.arange(h)) + 1) * 44 // (2 * whole[1])
            columns = (2 * (left + np.arange(w)) + 1) * 60 // (2 * whole[0])
            assert np.array_equal(found[:h, :w], labels[rows[:, None], columns])

    def test_a_scored_image_keeps_its_pixels_if_it_fits(self, pair: tuple[Path, Path]) -> None:
        pixels, labels = decoded(*pair, partial(whole_view, 64), 64)
        assert np.array_equal(pixels[:44, :60], np.asarray(Image.open(pair[0])))
        assert np.array_equal(labels[:44, :60], np.asarray(Image.open(pair[1])))
        for beside in (np.s_[44:], np.s_[:44, 60:]):
            assert (pixels[beside] == GREY).all()
            assert (labels[beside] == VOID).all()

    def test_a_larger_scored_image_is_reduced(self, pair: tuple[Path, Path]) -> None:
        pixels, labels = decoded(*pair, partial(whole_view, 30), 30)
        assert (labels[:22] != VOID).all()
        assert (labels[22:] == VOID).all()
        assert (pixels[22:] == GREY).all()
        assert agreement(pixels, labels) > 0.97

    def test_a_reduced_jpeg_stays_aligned(self, tmp_path: Path) -> None:
        labels = mask(5).repeat(7, 0).repeat(7, 1)[:301, :413]  # no multiple of 8
        pair = write(tmp_path / "x.jpg", image_of(labels)), write(tmp_path / "x.png", palette(labels))
        for choose, by in ((partial(whole_view, 48), 4), (partial(scaled_view, 48, True, 0), None)):
            found = reduction(choose(413, 301))
            assert found == by if by else found > 1
            assert agreement(*decoded(*pair, choose)) > 0.98

    @pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1), (2, 5)])
    def test_a_strange_shape_is_taken(self, width: int, height: int, tmp_path: Path) -> None:
        labels = np.full((height, width), 2, np.uint8)
        pair = write(tmp_path / "x.png", image_of(labels)), write(tmp_path / "y.png", palette(labels))
        for choose in (partial(whole_view, SIZE), partial(scaled_view, SIZE, True, 5)):
            pixels, found = decoded(*pair, choose)
            assert (pixels[found == 2] == COLOURS[2]).all()
            assert (found == 2).sum() == np.prod(choose(width, height).resized)

    def test_the_mean_becomes_a_colour(self) -> None:
        assert colour_of((0.485, 0.456, 0.406)) == GREY


class TestMasks:
    @pytest.mark.parametrize("make", [palette, Image.fromarray], ids=["palette", "grey"])
    def test_values_are_class_numbers(self, make: Callable[[np.ndarray], Image.Image], tmp_path: Path) -> None:
        values = np.array([[0, 1, 3, VOID]], np.uint8)
        assert np.array_equal(read_mask(str(write(tmp_path / "x.png", make(values))), 4), values)

    def test_black_and_white_are_the_first_two_classes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.png", Image.fromarray(np.array([[False, True]])))
        assert read_mask(str(path), 2).tolist() == [[0, 1]]

    @pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
    def test_salient_pixels_are_lighter_than_the_middle(self, mode: str, tmp_path: Path) -> None:
        grey = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
        path = write(tmp_path / "x.png", grey.convert(mode))
        found = read_mask(str(path), None)
        assert (found.dtype, found.tolist()) == (np.uint8, [[0, 0, 1, 1]])

    def test_colours_do_not_say_what_is_salient(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.png", palette(mask(3)))
        with pytest.raises(MaskError, match="it has colours; accepted: a grey mask"):
            read_mask(str(path), None)

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda path: path.unlink(), "there is no such mask"),
            (lambda path: path.write_text("no image"), "no image"),
            (lambda path: path.write_bytes(path.read_bytes()[:-30]), "truncated"),
            (
                lambda path: palette(mask(3)).convert("RGB").save(path),
                "pixels of mode RGB; accepted: a palette",
            ),
            (lambda path: palette(mask(3)).resize((30, 22)).save(path), "30 x 22 pixels, but its image has 60 x 44"),
            (lambda path: palette(mask(3) + np.uint8(1)).save(path), "class 4; accepted: 0 to 3, or 255 for none"),
        ],
    )
    def test_a_broken_mask_says_why(self, spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
        paths = write(tmp_path / "x.png", image_of(mask(3))), write(tmp_path / "y.png", palette(mask(3)))
        spoil(paths[1])
        with pytest.raises(MaskError) as caught:
            decoded(*paths, partial(whole_view, SIZE))
        assert says in str(caught.value)
        assert caught.value.path == str(paths[1])
