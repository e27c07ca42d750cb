"""Time networks in int8 against fp32, both by ONNX Runtime, and compare their logits.

    python -m studies.bench_int8 --models resnet50 res2net50_26w_4s exported/ --rounds 15

A model is a name (random weights, batch-norm statistics of noise), or a model folder. Each round runs every network
once in every form, so that a ratio compares times from about the same moment. The table also has the fp32 time of
`res2net.optimize`. Calibration images and test images are noise: `search.export --int8` measures the loss on real
images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import res2net
from res2net.commands import Parser, run_main
from res2net.deploy.int8 import Quantized
from res2net.deploy.timing import runner
from res2net.folder import load
from studies.bench import check_positive, first_line, threads
from studies.bench_inference import images, network, ratio, time_all
from trainers.meta import environment

PROG = "python -m studies.bench_int8"
CALIBRATION = 32  # number of calibration images


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each network and batch size; return the exit code."""
    return run_main(bench, parser, argv)


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument(
        "--models", nargs="+", default=["resnet50", "res2net50_26w_4s"], metavar="NAME", help="names or model folders"
    )
    out.add_argument("--batches", nargs="+", type=int, default=[1, 8], metavar="N", help="batch sizes")
    out.add_argument("--rounds", type=int, default=15, metavar="N", help="timed runs of each, after two untimed ones")
    out.add_argument("--size", type=int, metavar="N", help="pixels along a side (default: 224; 32 for thin stems)")
    out.add_argument("--threads", type=int, default=1, metavar="N", help="threads of all forms")
    return out


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "rounds", "threads")
    print(f"{environment()['hardware']['cpu']}, {args.threads} thread(s); torch {torch.__version__}; n = {args.rounds}")
    titles = f"{'batch':>6}{'optimized ms':>14}{'onnx ms':>9}{'int8 ms':>9}  {'onnx / int8':<17}  difference of logits"
    print(f"{'network':22}{titles}")
    with threads(args.threads):
        for name in args.models:
            for batch in args.batches:
                report(name, batch, args)


def report(name: str, batch: int, args: argparse.Namespace) -> None:
    """Print a row."""
    model, size = _model(name, args.size)
    x = images(batch, size)
    small = res2net.quantize(model, images(CALIBRATION, size))
    own = Quantized(small.data, args.threads)
    runs: Any = {
        (name, "optimized"): runner(model, "optimized", x, args.threads),
        (name, "onnx"): runner(model, "onnx", x, args.threads),
        (name, "int8"): lambda: own(x),
    }
    times = time_all(runs, args.rounds, f"{name}, batch {batch}")
    median = {way: statistics.median(values) for (_, way), values in times.items()}
    with torch.no_grad():
        expected, got = model(x), own(x)
    lost = _difference(expected, got)
    print(
        f"{Path(name).name:22}{batch:>6}{median['optimized']:>14.3f}{median['onnx']:>9.3f}{median['int8']:>9.3f}  "
        f"{ratio(times[name, 'onnx'], times[name, 'int8'])}  {lost:.3f}",
        flush=True,
    )


def _model(name: str, size: int | None) -> tuple[nn.Module, int]:
    """Return a network in eval mode, and the side of its images in pixels."""
    if name in res2net.names():
        return network(name, size or 224), size or 224
    model: Any = load(name)
    return model, size or (32 if model.arch.stem in ("cifar", "strided") else 224)


def _difference(expected: Tensor, got: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest logit."""
    return ((expected - got).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    sys.exit(main())
