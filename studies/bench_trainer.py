"""Training images a second of our trainer, beside the loop that most people write, for the same networks.

    python -m studies.bench_trainer --threads 1
    python -m studies.bench_trainer --base paper --images 128 --batch-size 32 --threads 2

The plain loop: a `DataLoader` over PIL images with torchvision's transforms, fp32, `loss.item()` every step. Both train
the same network on the same images with the same batch size, optimizer and number of threads, in turns in one run; one
thread is what a search gives each trial on a CPU.

On one core of a Xeon with AMX: 1.5 to 2.0 times as many images a second for the micro base (0.8 to 15 MMACs, n = 3
epochs), 3.4 to 3.8 times for the cifar base (705 and 827 MMACs, n = 2). Small networks spend their time in element-wise
passes over activations, which cost both sides nearly the same (studies/LOG.md).
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
from res2net import Arch
from res2net.commands import Parser, run_main
from res2net.errors import UserError, unknown
from studies.bench import check_positive, threads
from trainers.datasets.data import Data, Split
from trainers.device import PRECISIONS, device_of
from trainers.meta import environment
from trainers.recipes import Config
from trainers.train import Trainer

PROG = "python -m studies.bench_trainer"
CLASSES, SIZE = 10, 32
OTHER = "resnet50"  # whose speed the paper's other networks are compared with
LR = 0.01  # noise is not learned faster by more

Seconds = tuple[float, float]  # by the clock, of the processor

# Members of scale_card_depth on each base, from cheap to dear.
MEMBERS = {
    "micro": (
        {"scale": 1, "cardinality": 8, "depth": 2},
        {"scale": 4, "cardinality": 4, "depth": 2},
        {"scale": 8, "cardinality": 1, "depth": 1},
        {"scale": 8, "cardinality": 1, "depth": 3},
    ),
    "cifar": ({"scale": 4, "cardinality": 1, "depth": 1}, {"scale": 4, "cardinality": 6, "depth": 2}),
}

# The paper's networks, with the size of their images.
PAPER = (("res2next29_6c24w_4s", 32), (OTHER, 224), ("res2net50_26w_4s", 224))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of both rates and their ratio, a row for each network."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """The command's body."""
    check_positive(args, "images", "batch_size", "repeats", "threads")
    if args.workers < 0:
        raise UserError(f"--workers: {args.workers}; accepted: at least 0")
    if args.base not in (*MEMBERS, "paper"):
        raise unknown("--base", args.base, (*MEMBERS, "paper"))
    args.device = str(device_of(args.device))
    with threads(args.threads):
        report(networks(args), args)


def networks(args: argparse.Namespace) -> list[tuple[str, Arch, int]]:
    """What is trained: its name, the network, the size of its images."""
    if args.arch or args.base == "paper":
        named = [(name, args.image_size or SIZE) for name in args.arch] if args.arch else PAPER
        return [(name, replace(res2net.named(name), num_classes=CLASSES), size) for name, size in named]
    allowed = space.get("scale_card_depth", args.base, num_classes=CLASSES)
    archs = [allowed.arch(p) for p in MEMBERS[args.base]]
    return [(str(arch), arch, args.image_size or SIZE) for arch in archs]


def parser() -> Parser:
    """The command's options."""
    out = Parser(prog=PROG, description=__doc__.splitlines()[0])
    out.add_argument(
        "--base", default="micro", help="networks of the base micro, cifar, or the paper's (minutes, with --images 128)"
    )
    out.add_argument("--arch", action="append", metavar="NAME", help="a network's name instead; may be repeated")
    out.add_argument("--images", type=int, default=2000, help="training images, of noise")
    out.add_argument("--image-size", type=int, metavar="N", help="pixels along their sides (32; of paper, its own)")
    out.add_argument("--batch-size", type=int, default=64, help="images a step")
    out.add_argument("--repeats", type=int, default=3, help="epochs timed of each, in turns, after one that is not")
    out.add_argument("--threads", type=int, default=1, help="threads of both sides' arithmetic")
    out.add_argument("--workers", type=int, default=0, help="processes of the plain loop's DataLoader")
    out.add_argument("--device", default="auto", help="of both sides: auto, cpu, cuda or cuda:N")
    out.add_argument("--precision", default="auto", help=f"of ours: {', '.join(PRECISIONS)}")
    return out


def report(rows: Sequence[tuple[str, Arch, int]], args: argparse.Namespace) -> None:
    """Time both sides on each network and print a row for it."""
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


def time_both(arch: Arch, data: Data, args: argparse.Namespace) -> tuple[list[Seconds], list[Seconds]]:
    """Seconds of each epoch of the plain loop and of ours, in turns; each side's first one is not counted."""
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
            if repeat:
                side.append(taken)
    return times


def timed(f: Callable[[], object]) -> Seconds:
    """How long a call takes by the clock, and the processor's time in it, of worker processes too."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    f()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def random_data(n: int, val: int = 0, size: int = SIZE) -> Data:
    """Images of noise: what they show does not change how long they take; the first `val` are for validation too."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (n, 3, size, size), np.uint8), rng.integers(0, CLASSES, n)
    classes = tuple(map(str, range(CLASSES)))
    return Data("random", classes, Split(images, labels), Split(images[:val], labels[:val]), (0.5,) * 3, (0.25,) * 3)


class PilImages(Dataset):
    """PIL images with the usual transforms, one image at a time."""

    def __init__(self, data: Data, padding: int = 4) -> None:
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
    """The loop that most people write."""

    def __init__(self, model: nn.Module, data: Data, batch_size: int, workers: int, device: str) -> None:
        self.model, self.device = model.to(device), device
        self.loader = DataLoader(PilImages(data), batch_size, shuffle=True, num_workers=workers)
        self.optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def epoch(self) -> float:
        """Train on every image once; the mean loss."""
        self.model.train()
        total = 0.0
        for x, y in self.loader:
            x, y = x.to(self.device), y.to(self.device)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y, label_smoothing=0.1)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(y)
        return total / len(self.loader.dataset)


if __name__ == "__main__":
    sys.exit(main())
