"""Compare the speed of `res2net.cost` with the speed of building each network and counting its operations.

    python -m studies.bench_cost --space scale_card_depth_width --per-stage

Both ways are timed in one run, on one core, on architectures drawn with the same seed. Times are CPU seconds, so that
other programs on the machine do not count. Speeds are architectures per second.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

import res2net
import space
from res2net.commands import Parser, run_main
from space import Space
from studies.bench import check_positive, first_line, threads

PROG = "python -m studies.bench_cost"


def main(argv: Sequence[str] | None = None) -> int:
    """Print both rates and their ratio; return the exit code."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "n", "built")
    allowed = space.get(args.space, args.base, args.per_stage)
    with threads(1):
        report(allowed, args)


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--space", default="scale_card_depth_width", help="name of a space, or a YAML file")
    out.add_argument("--base", default="cifar", help=f"one of {', '.join(space.BASES)}")
    out.add_argument("--per-stage", action="store_true", help="give each stage its own values (fewer cache hits)")
    out.add_argument("--n", type=int, default=50_000, help="architectures to screen")
    out.add_argument("--built", type=int, default=10, help="architectures to build and count")
    out.add_argument("--seed", type=int, default=0, help="seed of the draws")
    return out


def report(allowed: Space, args: argparse.Namespace) -> None:
    """Time both ways; print the rates and their ratio."""
    limit = allowed.dearest()[1].macs // 4
    seconds, within, different = screen(allowed, args.n, args.seed, limit)
    screened = args.n / seconds
    counted = args.built / count(allowed, args.built, args.seed)
    kind = "per stage" if allowed.per_stage else "uniform"
    print(
        f"space {allowed.name}, base {allowed.base}, {kind}: {allowed.size:,} combinations; one core; seed {args.seed}"
    )
    found = f"{different:,} different, {within:,} within the limit"
    print(f"screened  {screened:12,.0f} architectures/s (n = {args.n:,}: {found})")
    print(f"built     {counted:12,.1f} architectures/s (n = {args.built}, FlopCounterMode on the CPU)")
    print(f"ratio     {screened / counted:12,.0f}")


def screen(allowed: Space, n: int, seed: int, limit: int) -> tuple[float, int, int]:
    """Draw `n` architectures and check their MACs against `limit`.

    Return the CPU seconds, the number within the limit and the number of different architectures.
    """
    rng = random.Random(seed)
    seen = set()
    within = 0
    start = time.process_time()
    for _ in range(n):
        arch = allowed.arch(allowed.sample(rng))
        within += res2net.cost(arch, allowed.image_size).macs <= limit
        seen.add(hash(arch))  # store only the hash: with the networks, the time would include memory allocation
    return time.process_time() - start, within, len(seen)


def count(allowed: Space, n: int, seed: int) -> float:
    """Return the CPU seconds to build `n` networks and count the MACs of one image; assert that `cost` agrees."""
    rng = random.Random(seed)
    image = torch.zeros(1, 3, allowed.image_size, allowed.image_size)
    seconds = 0.0
    for _ in range(n):
        arch = allowed.arch(allowed.sample(rng))
        start = time.process_time()
        model = res2net.create(arch).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
        macs = counter.get_total_flops() // 2
        seconds += time.process_time() - start
        assert macs == res2net.cost(arch, allowed.image_size).macs, arch
    return seconds


if __name__ == "__main__":
    sys.exit(main())
