"""Show where networks look: `python -m trainers.explain MODEL IMAGES --to DIR` draws Grad-CAM maps over images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from res2net.commands import Parser, run_main
from res2net.errors import UserError
from res2net.files import write_atomic
from res2net.folder import check_creatable
from res2net.options import add_options, fields_of, from_options
from trainers.datasets.base import MIN_SIZE
from trainers.datasets.files import SUFFIXES, left_out
from trainers.decode import centre_view, decode
from trainers.device import DEVICES, device_of
from trainers.overlay import Overlay, overlay_png, sheet_png
from trainers.subjects import SIZE, Prediction, Subject, printable, subject

PROG = "python -m trainers.explain"
SHEET = "sheet.png"
MAX_SIZE = 4096  # pixels along a side; larger images need more memory than most machines have
PIXELS = 16 * 224**2  # maximum number of pixels of a batch, to bound the memory
SHOWN = 32  # minimum number of images for a progress bar
ROWS = 100  # maximum number of images on the sheet; viewers and matplotlib cannot show a much higher picture


@dataclass(frozen=True, slots=True)
class ExplainConfig:
    """The settings of `explain`. The command's options are these fields, with the same defaults."""

    model: Path = field(
        metadata={"help": "a model folder that fit, export or save wrote", "metavar": "MODEL", "positional": True}
    )
    images: tuple[Path, ...]  # files and folders; `build_parser` adds this option, because it takes several values
    to: Path = field(
        metadata={"help": f"folder for the pictures: NAME.png for each image, and {SHEET}", "metavar": "DIR"}
    )
    beside: Path | None = field(
        default=None,
        metadata={
            "help": f"a second model folder; {SHEET} shows its maps beside those of MODEL (default: none)",
            "metavar": "MODEL2",
        },
    )
    target: str | None = field(
        default=None,
        metadata={
            "help": "the class that the maps explain: a name from training.json, or a number "
            "(default: the predicted class)",
            "metavar": "CLASS",
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": f"pixels along a side (default: the size in training, or {SIZE})", "metavar": "N"},
    )
    device: str = field(default="auto", metadata={"help": DEVICES})

    def __post_init__(self) -> None:
        images = (self.images,) if isinstance(self.images, str | Path) else self.images
        object.__setattr__(self, "images", tuple(Path(path) for path in images))
        object.__setattr__(self, "model", Path(self.model))
        object.__setattr__(self, "to", Path(self.to))
        object.__setattr__(self, "beside", None if self.beside is None else Path(self.beside))
        if self.image_size is not None and not MIN_SIZE <= self.image_size <= MAX_SIZE:
            raise UserError(f"`image_size`: {self.image_size}; accepted: {MIN_SIZE} to {MAX_SIZE} pixels along a side")

    @property
    def folders(self) -> list[Path]:
        """The model folders."""
        return [self.model] if self.beside is None else [self.model, self.beside]

    @property
    def heads(self) -> list[str]:
        """The name of each model folder, or its path if two folders have the same name."""
        names = [folder.resolve().name for folder in self.folders]
        return [printable(n if names.count(n) == 1 else str(f)) for n, f in zip(names, self.folders, strict=True)]


class Explained(NamedTuple):
    """An image, the file with its overlay, and the prediction of each network."""

    image: Path
    overlay: Path
    predictions: tuple[Prediction, ...]


def explain(
    config: ExplainConfig, report: Callable[[Explained], None] = lambda _: None, console: Console | None = None
) -> list[Explained]:
    """Write an overlay for each image, and the sheet; return the images that could be read.

    report: called for each image after its overlay is written.
    console: shows a progress bar for many images.

    Unreadable images are named on stderr and left out. Raise `UserError` before anything is written if the settings are
    wrong or no image can be read.
    """
    device = device_of(config.device)
    _check_folder(config.to)
    images = image_files(config.images)
    files = [config.to / name for name in file_names(images)]
    _check_kept(images, [*files, config.to / SHEET])
    subjects = [subject(folder, device, config.target, config.image_size) for folder in config.folders]
    size = max(s.size for s in subjects)
    batch = max(1, PIXELS // size**2)
    done: list[Explained] = []
    rows: list[tuple[str, list[Overlay]]] = []
    columns = (TextColumn("explaining"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    shown = console is not None and console.is_terminal and len(images) >= SHOWN
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=len(images))
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            for explained, overlays in _batch(images[part], files[part], subjects):
                _write(explained.overlay, overlay_png(overlays[0]))
                done.append(explained)
                if len(rows) < ROWS:
                    rows.append((printable(explained.image.name), overlays))
                report(explained)
            bar.advance(task, batch)
    if not done:
        raise UserError(f"`images`: none of {len(images)} images can be read; accepted: {', '.join(SUFFIXES)}")
    _write(config.to / SHEET, sheet_png(config.heads, rows))
    return done


def _check_folder(to: Path) -> None:
    """Raise `UserError` unless `to` is a folder, or can become one."""
    if to.exists() and not to.is_dir():
        raise UserError(f"`to`: {str(to)!r} is a file; accepted: a folder, or a new name")
    if not to.exists():
        check_creatable(to, "`to`")


def _check_kept(images: Iterable[Path], files: Iterable[Path]) -> None:
    """Raise `UserError` if a picture would replace one of the images."""
    known = {path.resolve() for path in images}
    for file in files:
        if file.resolve() in known:
            raise UserError(f"`to`: {str(file)!r} is one of the images and would be replaced; accepted: another folder")


def image_files(given: Iterable[Path]) -> list[Path]:
    """Return the given files and all images below the given folders, each once. Raise `UserError` if there is none."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            # Hidden folders hold thumbnails and version control.
            found += [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"`images`: {str(path)!r} does not exist; accepted: image files, or folders of images")
    if not found:
        names = ", ".join(str(path) for path in given)
        raise UserError(f"`images`: {names}: no image there; accepted: files ending in {', '.join(SUFFIXES)}")
    return list(dict.fromkeys(found))


def file_names(images: Iterable[Path]) -> list[str]:
    """Return a different file name for the overlay of each image: NAME.png, or NAME-2.png if NAME.png is taken."""
    taken, names = {SHEET}, []
    for image in images:
        name, number = f"{image.stem}.png", 2
        while name.casefold() in taken:  # some file systems ignore case
            name, number = f"{image.stem}-{number}.png", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def _batch(
    images: Iterable[Path], files: Iterable[Path], subjects: Sequence[Subject]
) -> list[tuple[Explained, list[Overlay]]]:
    """Return the readable images of a batch, each with one overlay for each network."""
    read = [(i, f, pixels) for i, f in zip(images, files, strict=True) if (pixels := _decoded(i, subjects)) is not None]
    if not read:
        return []
    columns = [s.overlays([pixels[n] for _, _, pixels in read]) for n, s in enumerate(subjects)]
    out = []
    for (image, file, _), row in zip(read, zip(*columns, strict=True), strict=True):
        out.append((Explained(image, file, tuple(p for p, _ in row)), [overlay for _, overlay in row]))
    return out


def _decoded(path: Path, subjects: Sequence[Subject]) -> list[Tensor] | None:
    """Return the pixels of an image for each network. Name an unreadable image on stderr and return None."""
    found = []
    for each in subjects:
        pixels = torch.empty(each.size, each.size, 3, dtype=torch.uint8)
        try:
            decode(str(path), partial(centre_view, each.resize), pixels)
        except Exception as error:  # decoders raise almost anything on a damaged file
            print(left_out(printable(str(path)), error), file=sys.stderr)
            return None
        found.append(pixels)
    return found


def _write(path: Path, content: bytes) -> None:
    """Write a file, in a folder that may be new. Raise `UserError` if the system refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise UserError(f"`to`: {str(path)!r} cannot be written: {error.strerror}") from None


def build_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(prog=PROG, description="Draw over images which regions raise the score of a class (Grad-CAM).")
    add_options(parser, fields_of(ExplainConfig))
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of images")
    return parser


def _line(explained: Explained, heads: Sequence[str]) -> str:
    """Return the line that the command prints for an image."""
    said = [str(prediction) for prediction in explained.predictions]
    if len(said) > 1:
        said = [f"{head}: {text}" for head, text in zip(heads, said, strict=True)]
    is_renamed = explained.overlay.stem != explained.image.stem
    note = f" ({printable(explained.overlay.name)})" if is_renamed else ""
    return f"{printable(str(explained.image))}: {', '.join(said)}{note}"


def _main(args: argparse.Namespace) -> None:
    config = from_options(ExplainConfig, args)
    done = explain(config, lambda explained: print(_line(explained, config.heads)), Console())
    note = f", the first {ROWS} of {len(done):,} images" if len(done) > ROWS else ""
    print(f"{config.to / SHEET}{note}")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures, print the predictions and the sheet's path; return the exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
