"""Compare our trainer with a plain training loop: training images per second on the same networks.

    python -m studies.bench_trainer --threads 1
    python -m studies.bench_trainer --base paper --images 128 --batch-size 32 --threads 2

The plain loop is a `DataLoader` over PIL images with the usual transforms, in fp32, with `loss.item()` at every step.
Both sides train the same network on the same images with the same batch size, optimizer and number of threads. They
take turns in one run. One thread is what a search gives each trial on a CPU.

On one core of a Xeon with AMX, our trainer's rate is 1.5 to 2.0 times the plain one for the micro base (0.8 to 15
MMACs, n = 3 epochs), and 3.4 to 3.8 times for the cifar base (705 and 827 MMACs, n = 2). Small networks spend their
time in element-wise passes over activations, whose cost is nearly the same on both sides (studies/LOG.md).
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import res2net
import space
from res2net.arch import BaseArch
from res2net.commands import Parser, run_main
from res2net.errors import UserError, unknown
from studies.bench import check_positive, threads
from trainers.datasets.data import Data, Split
from trainers.device import DEVICES, PRECISIONS, device_of
from trainers.meta import environment
from trainers.recipes import Config
from trainers.train import Trainer

PROG = "python -m studies.bench_trainer"
CLASSES, SIZE = 10, 32
OTHER = "resnet50"  # the network that the paper's other networks are compared with
LR = 0.01  # low: the images are noise, and a loss that diverges would end the benchmark

Seconds = tuple[float, float]  # wall time, processor time

# Members of the space scale_card_depth on each base, cheapest first.
MEMBERS = {
    "micro": (
        {"scale": 1, "cardinality": 8, "depth": 2},
        {"scale": 4, "cardinality": 4, "depth": 2},
        {"scale": 8, "cardinality": 1, "depth": 1},
        {"scale": 8, "cardinality": 1, "depth": 3},
    ),
    "cifar": ({"scale": 4, "cardinality": 1, "depth": 1}, {"scale": 4, "cardinality": 6, "depth": 2}),
}

# The paper's networks, with the sizes of their images.
PAPER: tuple[tuple[str, int], ...] = (("res2next29_6c24w_4s", 32), (OTHER, 224), ("res2net50_26w_4s", 224))


def main(argv: Sequence[str] | None = None) -> int:
    """Print both rates and their ratio, a row for each network; return the exit code."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """Check the options and run the benchmark."""
    check_positive(args, "images", "batch_size", "repeats", "threads")
    if args.workers < 0:
        raise UserError(f"`workers`: {args.workers}; accepted: at least 0")
    if args.base not in (*MEMBERS, "paper"):
        raise unknown("`base`", args.base, (*MEMBERS, "paper"))
    args.device = str(device_of(args.device))
    with threads(args.threads):
        report(networks(args), args)


def networks(args: argparse.Namespace) -> list[tuple[str, BaseArch, int]]:
    """Return the networks to train: name, architecture, size of the images."""
    if args.arch or args.base == "paper":
        named = [(name, args.image_size or SIZE) for name in args.arch] if args.arch else list(PAPER)
        return [(name, replace(res2net.named(name), num_classes=CLASSES), size) for name, size in named]
    allowed = space.get("scale_card_depth", args.base, num_classes=CLASSES)
    archs = [allowed.arch(p) for p in MEMBERS[args.base]]
    return [(str(arch), arch, args.image_size or SIZE) for arch in archs]


def parser() -> Parser:
    """Return the parser of the command's options."""
    out = Parser(prog=PROG, description="Compare our trainer with a plain training loop on the same networks.")
    out.add_argument(
        "--base",
        default="micro",
        help="networks of the base micro or cifar, or paper for the paper's (minutes, with --images 128)",
    )
    out.add_argument(
        "--arch", action="append", metavar="NAME", help="a network's name, in place of --base; may be repeated"
    )
    out.add_argument("--images", type=int, default=2000, help="number of training images (noise)")
    out.add_argument("--image-size", type=int, metavar="N", help="pixels along a side (32; for paper, its own sizes)")
    out.add_argument("--batch-size", type=int, default=64, help="images per step")
    out.add_argument("--repeats", type=int, default=3, help="timed epochs of each side, after one that is not timed")
    out.add_argument("--threads", type=int, default=1, help="PyTorch threads of both sides")
    out.add_argument("--workers", type=int, default=0, help="worker processes of the plain loop's DataLoader")
    out.add_argument("--device", default="auto", help=f"device of both sides: {DEVICES}")
    out.add_argument("--precision", default="auto", help=f"precision of our trainer: {', '.join(PRECISIONS)}")
    return out


def report(rows: Sequence[tuple[str, BaseArch, int]], args: argparse.Namespace) -> None:
    """Time both sides on each network and print a row for each."""
    hardware = environment()["hardware"]
    where = f"{args.workers} worker processes" if args.workers else "the same process"
    cards = f", {', '.join(hardware['gpus'])}" if args.device != "cpu" else ""
    print(f"{hardware['cpu']}, {hardware['cores']} cores{cards}; torch {torch.__version__}; seed 0")
    print(
        f"{args.images:,} random images, batches of {args.batch_size}; both sides {args.threads} thread(s), the "
        f"plain loop loads in {where}; ours {args.precision}"
    )
    print(f"medians of n = {args.repeats} epochs of each, in turns; ratios also of processor time\n")
    print(f"{'network':44} {'size':>4} {'MMACs':>7} {'plain/s':>8} {'ours/s':>8} {'ratio':>6} {'of CPU time':>12}")
    speeds = {}
    for name, arch, size in rows:
        plain, ours = time_both(arch, random_data(args.images, size=size), args)
        macs = res2net.cost(arch, size).macs
        shape = f"{name:44} {size:4} {macs / 1e6:7.1f}"
        rates = [args.images / statistics.median(wall for wall, _ in times) for times in (plain, ours)]
        ratios = [statistics.median(a[i] / b[i] for a, b in zip(plain, ours, strict=True)) for i in (0, 1)]
        print(f"{shape} {rates[0]:8,.0f} {rates[1]:8,.0f} {ratios[0]:6.2f} {ratios[1]:12.2f}", flush=True)
        speeds[name, size] = rates[1], rates[1] * macs
    for (name, size), (rate, work) in speeds.items():
        if name != OTHER and (OTHER, size) in speeds:
            other_rate, other_work = speeds[OTHER, size]
            print(f"{name}: {rate / other_rate:.2f} of {OTHER}'s images a second, {work / other_work:.2f} of its MACs")


def time_both(arch: BaseArch, data: Data, args: argparse.Namespace) -> tuple[list[Seconds], list[Seconds]]:
    """Return the seconds of each epoch of the plain loop and of ours. The first epoch of each side is left out."""
    # In turns: a machine that slows down (heat, other programs) then slows down both sides.
    torch.manual_seed(0)
    model = res2net.create(arch)
    plain = Plain(copy.deepcopy(model), data, args.batch_size, args.workers, args.device)
    ours = Trainer(
        model,
        data,
        Config(
            epochs=args.repeats + 1, batch_size=args.batch_size, lr=LR, precision=args.precision, device=args.device
        ),
    )
    times: tuple[list[Seconds], list[Seconds]] = ([], [])
    for repeat in range(args.repeats + 1):
        for side, epoch in zip(times, (plain.epoch, ours.epoch), strict=True):
            taken = timed(epoch)
            if repeat:  # the first epoch pays for memory, caches and the choice of kernels
                side.append(taken)
    return times


def timed(f: Callable[[], object]) -> Seconds:
    """Return the wall time of a call and its processor time, worker processes included."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    f()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def random_data(n: int, val: int = 0, size: int = SIZE) -> Data:
    """Return images of noise: content does not affect speed. The first `val` images also serve for validation."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (n, 3, size, size), np.uint8), rng.integers(0, CLASSES, n)
    classes = tuple(map(str, range(CLASSES)))
    return Data("random", classes, Split(images, labels), Split(images[:val], labels[:val]), (0.5,) * 3, (0.25,) * 3)


class PilImages(Dataset):
    """PIL images with the usual transforms (random crop, mirror, normalise), one image at a time."""

    def __init__(self, data: Data, padding: int = 4) -> None:
        assert isinstance(data.train, Split), "the images of `random_data` are in memory"
        self.pixels = np.ascontiguousarray(data.train.images.transpose(0, 2, 3, 1))
        self.labels = data.train.labels.tolist()
        self.padding, self.size = padding, data.image_size
        self.mean = torch.tensor(data.mean).view(-1, 1, 1)
        self.std = torch.tensor(data.std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.pixels[index])
        image = ImageOps.expand(image, self.padding)
        top, left = torch.randint(2 * self.padding + 1, (2,)).tolist()
        image = image.crop((left, top, left + self.size, top + self.size))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
        return x.sub_(self.mean).div_(self.std), self.labels[index]


class Plain:
    """A training loop as most people write it."""

    def __init__(self, model: nn.Module, data: Data, batch_size: int, workers: int, device: str) -> None:
        self.model, self.device = model.to(device), device
        self.images = PilImages(data)
        self.loader = DataLoader(self.images, batch_size, shuffle=True, num_workers=workers)
        self.optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def epoch(self) -> float:
        """Train on every image once and return the mean loss."""
        self.model.train()
        total = 0.0
        for x, y in self.loader:
            x, y = x.to(self.device), y.to(self.device)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y, label_smoothing=0.1)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(y)
        return total / len(self.images)


if __name__ == "__main__":
    sys.exit(main())
