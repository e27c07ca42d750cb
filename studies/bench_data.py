"""Measure decoded training images per second: our loader against a plain `DataLoader` over Pillow.

    python -m studies.bench_data --data-dir ~/imagenet        # without it: generated photographs, small and large

Both loaders return batches of the same form from the same files: random resized crops of the same distribution and
size, mirrored with probability 1/2, as normalised float32 on the CPU. Both have the same number of decoders: our
threads or the worker processes of the `DataLoader`. They run in turns within one process.

On one shared core of an EPYC, our loader returned 2.3 times as many images per second of processor time from files of
500 x 375 pixels (84 KB), and 2.1 times as many from files of 2000 x 1500 pixels (1.1 MB), n = 3 epochs each. Decoding
takes two thirds of our loader's time. Two thirds of the decoding is entropy decoding, as slow in both loaders.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from res2net.commands import Parser, run_main
from studies.bench import check_positive, threads
from studies.bench_trainer import Seconds
from trainers.datasets import Files
from trainers.datasets.files import MEAN, STD
from trainers.datasets.folder import Folder
from trainers.meta import environment
from trainers.stream import Stream

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

PROG = "python -m studies.bench_data"
# Width, height and JPEG quality. The small files resemble ImageNet's: about as many pixels, and 110 KB on average.
KINDS = {"small": (500, 375, 92), "large": (2000, 1500, 90)}
OBJECTS = 12  # number of objects in a generated photograph
ROUGHNESS = 0.76  # amplitude of clouds relative to clouds of twice the size
GRAIN = 9.0  # standard deviation of the noise on each pixel, in 0..255


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rates of both loaders and their ratio for each set of files."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """Run the command with parsed options."""
    check_positive(args, "images", "large_images", "batch_size", "repeats", "workers", "passes")
    Folder.check_image_size(args.image_size)
    hardware = environment()["hardware"]
    print(
        f"{hardware['cpu']}, {hardware['cores']} cores; torch {torch.__version__}, Pillow {PIL.__version__}, "
        f"simplejpeg {simplejpeg.__version__}; seed 0"
    )
    print(
        f"random crops at {args.image_size} x {args.image_size}, batches of {args.batch_size}, {args.workers} "
        f"decoder(s) each; medians of n = {args.repeats} epochs each, in turns\n"
    )
    print(f"{'files':>28} {'plain/s':>8} {'ours/s':>8} {'ratio':>6}  {'plain, ours per CPU second':>26} {'ratio':>6}")
    with threads(1), tempfile.TemporaryDirectory() as temporary:
        for name, files in sets(args, Path(temporary)):
            report(name, files, args)


def parser() -> Parser:
    """Return the parser of the options."""
    out = Parser(prog=PROG, description=(__doc__ or "").partition("\n")[0])
    out.add_argument("--data-dir", metavar="DIR", help="read train/ of this folder instead of generated photographs")
    out.add_argument("--images", type=int, default=256, help="number of small files, or of files from --data-dir")
    out.add_argument("--large-images", type=int, default=16, help="number of large files")
    out.add_argument("--passes", type=int, default=4, help="how often an epoch reads each file")
    out.add_argument("--size", type=int, default=224, dest="image_size", help="pixels along a side of a crop")
    out.add_argument("--batch-size", type=int, default=64, help="images per batch")
    out.add_argument("--workers", type=int, default=1, help="our threads, and worker processes of the plain loader")
    out.add_argument("--repeats", type=int, default=5, help="timed epochs of each loader, after one untimed epoch")
    return out


def sets(args: argparse.Namespace, temporary: Path) -> Iterable[tuple[str, Files]]:
    """Yield the name and the files of each set; every file appears `--passes` times."""
    if args.data_dir:
        files = Folder(args.data_dir, args.image_size).train()
        chosen = np.random.default_rng(0).permutation(len(files))[: args.images]
        yield "given", files.take(np.tile(chosen, args.passes))
        return
    for name, count in (("small", args.images), ("large", args.large_images)):
        rng, folder = np.random.default_rng(0), temporary / name
        folder.mkdir()
        for i in range(count):
            (folder / f"{i}.jpg").write_bytes(photograph(*KINDS[name], rng))
        paths = tuple(f"{i}.jpg" for i in range(count)) * args.passes
        yield name, Files(folder, paths, np.arange(len(paths)) % 10, args.image_size)


def photograph(width: int, height: int, quality: int, rng: np.random.Generator) -> bytes:
    """Return a JPEG with the spectrum of a photograph: clouds of every size, objects with edges, grain.

    The cost of decoding depends on the spectrum: plain noise or smooth colours would be far from ImageNet's files.
    """
    canvas = np.full((height, width, 3), 128, np.float32)
    side, amplitude = 2, 45.0
    while side < width:
        shape = (max(2, side * height // width), side)
        grey, colours = rng.standard_normal(shape), rng.standard_normal((3, *shape))
        for c in range(3):
            cloud = Image.fromarray((0.75 * grey + 0.25 * colours[c]).astype(np.float32))
            canvas[..., c] += amplitude * np.asarray(cloud.resize((width, height), Image.Resampling.BICUBIC))
        side, amplitude = 2 * side, ROUGHNESS * amplitude
    y, x = np.ogrid[:height, :width]
    for _ in range(OBJECTS):
        cx, cy = rng.uniform(0, (width, height))
        radius, squeeze = width * math.exp(rng.uniform(math.log(0.03), math.log(0.35))), rng.uniform(0.6, 1.6)
        inside = (x - cx) ** 2 + ((y - cy) * squeeze) ** 2 < radius**2
        canvas[inside] = 0.6 * canvas[inside] + 0.4 * rng.uniform(0, 255, 3)
    canvas += GRAIN * rng.standard_normal((height, width, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def report(name: str, files: Files, args: argparse.Namespace) -> None:
    """Time both loaders on a set of files and print the set's row."""
    sizes = [(files.root / path).stat().st_size for path in set(files.paths)]
    plain, ours = time_both(files, args)
    seen = [[len(files) / statistics.median(t[i] for t in times) for times in (plain, ours)] for i in (0, 1)]
    ratios = [statistics.median(a[i] / b[i] for a, b in zip(plain, ours, strict=True)) for i in (0, 1)]
    what = f"{name}, {len(sizes)} of {statistics.mean(sizes) / 1000:,.0f} KB"
    print(
        f"{what:>28} {seen[0][0]:8,.0f} {seen[0][1]:8,.0f} {ratios[0]:6.2f}  "
        f"{seen[1][0]:16,.0f}, {seen[1][1]:8,.0f} {ratios[1]:6.2f}",
        flush=True,
    )


def time_both(files: Files, args: argparse.Namespace) -> tuple[list[Seconds], list[Seconds]]:
    """Return the times of each epoch of the plain loader and of ours, in turns, without the first epoch of each."""
    torch.manual_seed(0)
    plain = DataLoader(Plain(files), args.batch_size, shuffle=True, num_workers=args.workers)
    ours = Stream(files, MEAN, STD, torch.device("cpu"), args.workers)
    rng = torch.Generator().manual_seed(0)
    parts = [slice(i, i + args.batch_size) for i in range(0, len(files), args.batch_size)]
    sides: tuple[Callable[[], Iterable[tuple[Tensor, Tensor]]], ...] = (
        lambda: plain,
        lambda: ours.epoch(rng, parts),
    )
    times: tuple[list[Seconds], list[Seconds]] = ([], [])
    for repeat in range(args.repeats + 1):
        for side, batches in zip(times, sides, strict=True):
            taken = timed(batches, files)
            if repeat:
                side.append(taken)
    return times


def timed(batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], files: Files) -> Seconds:
    """Return the wall-clock time and the processor time of one epoch, worker processes included."""
    wall, cpu = time.perf_counter(), processor_time()
    check(batches(), files)
    return time.perf_counter() - wall, processor_time() - cpu


def processor_time() -> float:
    """Return the processor seconds of this process and its finished children (on Windows, without the children)."""
    if resource is None:
        return sum(os.times()[:4])
    # `os.times` would be too coarse: its clock ticks are 10 ms.
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def check(batches: Iterable[tuple[Tensor, Tensor]], files: Files) -> None:
    """Consume all batches; assert their form and the number of images."""
    seen = 0
    for x, y in batches:
        assert x.shape == (len(y), 3, files.image_size, files.image_size)
        assert x.dtype == torch.float32
        seen += len(y)
    assert seen == len(files)


class Plain(Dataset):
    """The plain data set: one image at a time by Pillow, with the usual transforms."""

    def __init__(self, files: Files) -> None:
        self.files, self.size = files, files.image_size
        self.mean, self.std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with open(self.files.root / self.files.paths[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        left, top, width, height = self.crop(*image.size)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
        return x.sub_(self.mean).div_(self.std), int(self.files.labels[index])

    @staticmethod
    def crop(width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, width and height of a random crop, as torchvision's RandomResizedCrop draws it."""
        for _ in range(10):
            area = width * height * random.uniform(0.08, 1)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return random.randint(0, width - w), random.randint(0, height - h), w, h
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (width - w) // 2, (height - h) // 2, w, h


if __name__ == "__main__":
    sys.exit(main())
