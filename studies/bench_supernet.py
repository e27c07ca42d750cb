"""Time a supernet's sandwich step against stand-alone steps of the same four networks, and the scoring of members.

    python -m studies.bench_supernet

Both sides train the four networks of a sandwich step (largest, smallest, two random ones) on the same batch, with the
same precision and threads, in turns in one run. On the stand-alone side each network has its own model and optimizer.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import res2net
import space
from res2net import Arch
from res2net.commands import Parser, run_main
from res2net.deploy.timing import finish
from res2net.elastic import ElasticRes2Net
from search.shared_weights import members_of
from space import Space
from studies.bench import check_positive, first_line, threads
from studies.bench_trainer import CLASSES, SIZE, random_data
from trainers.datasets.data import Data
from trainers.device import DEVICES, device_of
from trainers.images import Images
from trainers.meta import environment
from trainers.recipes import Config
from trainers.supernet import CALIBRATION_IMAGES, Scorer, SupernetTrainer
from trainers.train import Trainer

PROG = "python -m studies.bench_supernet"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the ms of both steps, their ratio, the members scored per second and the memory; return the exit code."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "steps", "batch_size", "threads", "scored")
    args.device = str(device_of(args.device))
    allowed = space.get(args.space, args.base, args.per_stage, num_classes=CLASSES)
    with threads(args.threads):
        report(allowed, args)


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--space", default="scale_card_depth", help="name of a space, or a YAML file")
    out.add_argument("--base", default="micro", help=f"one of {', '.join(space.BASES)}")
    out.add_argument("--per-stage", action="store_true", help="give each stage its own values")
    out.add_argument("--steps", type=int, default=20, help="timed steps, each with new members")
    out.add_argument("--scored", type=int, default=20, help="members to score")
    out.add_argument("--batch-size", type=int, default=64, help="images per step")
    out.add_argument("--threads", type=int, default=1, help="threads of both sides")
    out.add_argument("--device", default="cpu", help=f"device of both sides: {DEVICES}")
    return out


def report(allowed: Space, args: argparse.Namespace) -> None:
    """Time both sides; print the figures."""
    hardware = environment()["hardware"]
    print(f"{hardware['cpu']}, {hardware['cores']} cores; torch {torch.__version__}; {args.threads} thread(s); seed 0")
    print(f"space {allowed.name}, base {allowed.base}: {allowed.size:,} combinations; batches of {args.batch_size}")
    data = random_data(2000, val=2000)
    config = Config(batch_size=args.batch_size, lr=0.01, device=args.device)
    trainer = supernet(allowed, data, config)
    shared, alone = time_steps(trainer, data, config, args.steps)
    ratio = statistics.median(a / b for a, b in zip(shared, alone, strict=True))
    rate = scored_a_second(trainer.scorer, allowed, args.scored)
    weights = sum(p.numel() for p in trainer.model.parameters())
    largest = res2net.cost(trainer.members.largest, SIZE).params
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux
    print(f"sandwich step       {1000 * statistics.median(shared):8.1f} ms  (median of n = {args.steps})")
    print(f"four stand-alone    {1000 * statistics.median(alone):8.1f} ms")
    print(f"ratio               {ratio:8.2f}     (median of paired steps)")
    print(
        f"members scored      {rate:8.2f} /s  (n = {args.scored}: {CALIBRATION_IMAGES} images calibrate, 2,000 score)"
    )
    print(f"shared weights      {weights / 1e6:8.2f} M   (the largest member has {largest / 1e6:.2f} M)")
    print(f"peak memory         {peak:8.0f} MiB (of this process, both sides)")


def supernet(allowed: Space, data: Data, config: Config) -> SupernetTrainer:
    """Return a trainer of newly initialised shared weights."""
    torch.manual_seed(0)
    return SupernetTrainer(ElasticRes2Net(allowed), data, config, members_of(allowed))


def time_steps(trainer: SupernetTrainer, data: Data, config: Config, n: int) -> tuple[list[float], list[float]]:
    """Return the seconds of `n` sandwich steps and of the members' stand-alone steps, after an untimed pair.

    Both sides build a member's modules before the clock starts. This takes about 15 ms, once per member.
    """
    times: tuple[list[float], list[float]] = ([], [])
    index = torch.arange(config.batch_size, device=trainer.device)
    assert isinstance(trainer.train_images, Images)
    x, y = trainer.train_images.batch(index, torch.zeros_like(torch.stack([index, index])), None)
    trainer.model.train()
    for step in range(n + 1):
        archs = trainer.step_members(step)
        alone = [Alone(arch, data, config) for arch in archs]
        with torch.no_grad():
            for arch in archs:
                trainer.model(x[:2], arch)
        finish(trainer.device)
        start = time.perf_counter()
        trainer._step(x, y, step)
        finish(trainer.device)
        middle = time.perf_counter()
        for member in alone:
            member.step(x, y, step)
        finish(trainer.device)
        end = time.perf_counter()
        if step:
            times[0].append(middle - start)
            times[1].append(end - middle)
    return times


class Alone:
    """A network with its own optimizer. One warm-up step creates the momentum buffers."""

    def __init__(self, arch: Arch, data: Data, config: Config) -> None:
        self.trainer = Trainer(res2net.create(arch), data, config)
        self.trainer.model.train()
        x, y = next(self.trainer.train_images.batches(config.batch_size))
        self.trainer._step(x[:, :, :SIZE, :SIZE].contiguous(memory_format=torch.channels_last), y, 0)

    def step(self, x: Tensor, y: Tensor, step: int) -> None:
        """Train one step on a batch."""
        self.trainer._step(x, y, step)


def scored_a_second(scorer: Scorer, allowed: Space, n: int) -> float:
    """Return how many members, drawn evenly over MACs, are scored per second, one by one."""
    rng = random.Random(0)
    members = members_of(allowed)
    archs = [members.sample(rng) for _ in range(n)]
    start = time.perf_counter()
    for arch in archs:
        scorer(arch)
    return n / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
