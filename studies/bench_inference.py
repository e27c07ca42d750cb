"""Time `res2net.optimize` and a training step against plain PyTorch modules with the same weights.

    python -m studies.bench_inference --batches 1 8 --rounds 15

"plain" is `studies/plain.py`: NCHW, fp32, eager. "ours" is `res2net.optimize` in fp32; "bf16" is the same in bf16. Each
round runs every network once in every way, so that a ratio compares times of about the same moment. The last column is
our fp32 time divided by our fp32 time of the first network. A training step is a forward pass, a backward pass and SGD.
Our step is the trainer's: channels last, with the crop and the flip of the images. The plain step gets a ready batch.

On two cores of a Xeon with AMX, with batch 8 and n = 9 rounds, the five default networks run 1.51 to 1.60 times as fast
as plain in fp32, and 6.0 to 7.2 times in bf16. The largest logit difference is 8e-5. Our training step is 2.05 to 2.52
times as fast (n = 3). After these measurements, blocks began to write their splits in place, which saves 3 % for 26w4s
and 14w8s (n = 17). Convolutions of oneDNN take nine tenths of our fp32 time. 26w4s takes 1.2 times as long as resnet50,
mostly in oneDNN: 26w4s has more 1x1 products, and its 3x3 convolutions of 26 channels reach two thirds of the rate of
64 channels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import res2net
from res2net.commands import Parser, run_main
from res2net.errors import UserError
from studies.bench import check_positive, first_line, threads
from studies.plain import PlainRes2Net
from trainers.datasets.data import Data, Split
from trainers.device import uses_bf16
from trainers.meta import cores, environment
from trainers.recipes import Config
from trainers.train import Trainer

PROG = "python -m studies.bench_inference"
MODELS = ("resnet50", "res2net50_48w_2s", "res2net50_26w_4s", "res2net50_14w_8s", "res2next50")
WAYS = ("plain", "ours", "bf16")
LR = 1e-3  # low, so that training on noise does not diverge

Run = Callable[[], object]
Times = dict[tuple[str, str], list[float]]  # ms of each round, by network and way


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each batch size and network; return the exit code."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "rounds", "train_rounds", "size", "threads")
    if min(args.batches, default=1) < 1 or args.train_batch < 0:
        raise UserError(
            f"`batches`: {args.batches}, `train_batch`: {args.train_batch}; accepted: at least 1 (`train_batch` also 0)"
        )
    for name in args.models:
        PlainRes2Net.check(res2net.named(name))
    with threads(args.threads):
        report(args)


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="networks, the first for comparison")
    out.add_argument("--batches", nargs="*", type=int, default=(1, 8), metavar="N", help="batch sizes of inference")
    out.add_argument("--train-batch", type=int, default=8, metavar="N", help="batch of a training step, or 0")
    out.add_argument("--rounds", type=int, default=15, metavar="N", help="timed runs of each, after two untimed ones")
    out.add_argument("--train-rounds", type=int, default=5, metavar="N", help="timed training steps of each")
    out.add_argument("--size", type=int, default=224, metavar="N", help="image height and width in pixels")
    out.add_argument("--threads", type=int, default=cores(), metavar="N", help="threads of both sides")
    return out


def report(args: argparse.Namespace) -> None:
    """Time all networks; print the header and the rows."""
    hardware = environment()["hardware"]
    bf16 = "bf16 autocast" if uses_bf16("auto", torch.device("cpu")) else "fp32"
    print(
        f"{hardware['cpu']}, {args.threads} thread(s) of {hardware['cores']} cores; torch {torch.__version__}; seed 0"
    )
    print(
        f"{args.size}x{args.size}; medians of n = {args.rounds} rounds, of training steps {args.train_rounds}; ", end=""
    )
    print(f"ratios of each round's neighbours [least-most]; ours trains in {bf16}\n")
    first = args.models[0]
    print(f"{'network':18} {'batch':>8} {'plain ms':>9} {'ours ms':>9} {'ratio':>17} ", end="")
    print(f"{'difference':>11} {'bf16 ms':>8} {'ratio':>17}  / {first}")
    for batch in args.batches:
        models, x = [network(name, args.size) for name in args.models], images(batch, args.size)
        runs = {k: v for name, model in zip(args.models, models, strict=True) for k, v in inference(name, model, x)}
        with torch.inference_mode():
            differences = {name: difference(runs, name) for name in args.models}
            times = time_all(runs, args.rounds, f"batch {batch}")
        show(args.models, times, str(batch), differences)
    if args.train_batch:
        data = random_data(args.train_batch, args.size)
        times = {}
        for name in args.models:  # one after the other, because five optimizer states take much memory
            runs = training(name, network(name, args.size), data, args.train_rounds)
            times |= time_all(runs, args.train_rounds, f"training {name}")
        show(args.models, times, f"train {args.train_batch}", {})


def show(names: Sequence[str], times: Times, batch: str, differences: Mapping[str, float]) -> None:
    """Print a row for each network."""
    for name in names:
        plain, ours, bf16 = (times.get((name, way), []) for way in WAYS)
        row = (
            f"{name:18} {batch:>8} {statistics.median(plain):9.1f} {statistics.median(ours):9.1f} {ratio(plain, ours)}"
        )
        other = f"{differences[name]:11.1e}" if differences else f"{'-':>11}"
        fast = f"{statistics.median(bf16):8.1f} {ratio(plain, bf16)}" if bf16 else f"{'-':>8} {'-':>17}"
        beside = statistics.median(a / b for a, b in zip(ours, times[names[0], "ours"], strict=True))
        print(f"{row} {other} {fast}  {beside:6.3f}", flush=True)


def ratio(a: Sequence[float], b: Sequence[float]) -> str:
    """Return the ratio of the times `a` to `b`: the median over the rounds, and the range."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(ratios):5.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


def time_all(runs: Mapping[tuple[str, str], Run], rounds: int, title: str) -> Times:
    """Run all `runs` in turns; return the ms of each run in each round, after two untimed rounds."""
    times: Times = {key: [] for key in runs}
    for i in range(-2, rounds):
        progress(f"{title}: round {max(i, 0) + 1} of {rounds}")
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= 0:
                times[key].append(1e3 * (time.perf_counter() - start))
    progress("")
    return times


def progress(text: str) -> None:
    """Show the progress on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


def network(name: str | res2net.Arch, size: int) -> res2net.Res2Net:
    """Return a network with random weights and batch-norm statistics of one batch, in eval mode."""
    torch.manual_seed(0)
    model = res2net.create(name)
    assert isinstance(model, res2net.Res2Net)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(images(4, size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.eval()


def images(batch: int, size: int) -> Tensor:
    """Return a batch of normal noise, float32 [batch, 3, size, size]."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def plain_of(model: res2net.Res2Net) -> PlainRes2Net:
    """Return the plain network with the weights of `model`."""
    plain = PlainRes2Net(model.arch)
    plain.load_state_dict(model.state_dict())
    return plain


def inference(name: str, model: res2net.Res2Net, x: Tensor) -> list[tuple[tuple[str, str], Run]]:
    """Return one forward pass for each way."""
    ways = (plain_of(model).eval(), res2net.optimize(model), res2net.optimize(model, bf16=True))
    return [((name, way), lambda net=net: net(x)) for way, net in zip(WAYS, ways, strict=True)]


def difference(runs: Mapping[tuple[str, str], Run], name: str) -> float:
    """Return the largest difference between the logits of plain and ours, relative to the largest logit."""
    plain, ours = runs[name, "plain"](), runs[name, "ours"]()
    return ((plain - ours).abs().max() / plain.abs().max()).item()  # type: ignore[operator,union-attr]


def training(name: str, model: res2net.Res2Net, data: Data, rounds: int) -> dict[tuple[str, str], Run]:
    """Return one training step for each way. The trainer's schedule covers `rounds` and the two untimed rounds."""
    plain = plain_of(model).train()
    optimizer = torch.optim.SGD(plain.parameters(), LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x, y = images(len(data.train.labels), data.image_size), torch.from_numpy(data.train.labels)

    def step() -> None:
        loss = F.cross_entropy(plain(x), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    config = Config(epochs=rounds + 2, batch_size=len(y), lr=LR, device="cpu")
    return {(name, "plain"): step, (name, "ours"): Trainer(model, data, config).epoch}


def random_data(n: int, size: int) -> Data:
    """Return `n` images of noise with random labels: content does not affect speed. The validation split is empty."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (n, 3, size, size), np.uint8), rng.integers(0, 1000, n)
    return Data("random", ("",) * 1000, Split(pixels, labels), Split(pixels[:0], labels[:0]), (0.5,) * 3, (0.25,) * 3)


if __name__ == "__main__":
    sys.exit(main())
