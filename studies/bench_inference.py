"""Milliseconds of an optimised network beside the plain modules of the same one, and of a training step.

    python -m studies.bench_inference --batches 1 8 --rounds 15

Plain is what is commonly written (studies/plain.py): NCHW, fp32, eager. Ours is `res2net.optimize` in fp32, then in
bf16, with the same weights; every round runs each network each way once, so ratios are of neighbours in time, and the
last column is ours in fp32 against our own first network. A training step is a forward and a backward pass and
SGD: ours the trainer's way (channels last, its crop and flip of the images included), plain on a batch that is ready.

On two cores of a Xeon with AMX, n = 9 rounds at batch 8: the five networks of the default 1.51 to 1.60 times as fast in
fp32 and 6.0 to 7.2 times in bf16, largest logit difference 8e-5; a training step 2.05 to 2.52 times (n = 3). That was
before blocks wrote their splits in place, which took 3 % off 26w4s and 14w8s (n = 17). Nine tenths of our fp32 time are
oneDNN's convolutions. What 26w4s takes beyond resnet50 (1.2 times) is mostly theirs: it has more 1x1 products, and 3x3
ones of 26 channels run at two thirds of the rate of 64.
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
from studies.bench import check_positive, threads
from studies.plain import PlainRes2Net
from trainers.datasets.data import Data, Split
from trainers.device import uses_bf16
from trainers.meta import cores, environment
from trainers.recipes import Config
from trainers.train import Trainer

PROG = "python -m studies.bench_inference"
MODELS = ("resnet50", "res2net50_48w_2s", "res2net50_26w_4s", "res2net50_14w_8s", "res2next50")
WAYS = ("plain", "ours", "bf16")
LR = 1e-3  # noise need not be learned, only not diverge

Run = Callable[[], object]
Times = dict[tuple[str, str], list[float]]  # ms of each round, by network and way


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each batch size and network."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """The command's body."""
    check_positive(args, "rounds", "train_rounds", "size", "threads")
    if min(args.batches, default=1) < 1 or args.train_batch < 0:
        raise UserError("--batches and --train-batch: accepted: whole numbers of at least 1 (no training step: 0)")
    for name in args.models:
        PlainRes2Net.check(res2net.named(name))
    with threads(args.threads):
        report(args)


def parser() -> Parser:
    """The command's options."""
    out = Parser(prog=PROG, description=__doc__.splitlines()[0])
    out.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="networks; the first is compared with")
    out.add_argument("--batches", nargs="*", type=int, default=(1, 8), metavar="N", help="images at a time")
    out.add_argument("--train-batch", type=int, default=8, metavar="N", help="images of a training step; 0 for none")
    out.add_argument("--rounds", type=int, default=15, metavar="N", help="runs of each that are counted, after two")
    out.add_argument("--train-rounds", type=int, default=5, metavar="N", help="the same of training steps")
    out.add_argument("--size", type=int, default=224, metavar="N", help="pixels along a side")
    out.add_argument("--threads", type=int, default=cores(), metavar="N", help="threads of every side's arithmetic")
    return out


def report(args: argparse.Namespace) -> None:
    """Time everything and print it."""
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
        for name in args.models:  # one after the other: the state of five trainings is large
            runs = training(name, network(name, args.size), data, args.train_rounds)
            times |= time_all(runs, args.train_rounds, f"training {name}")
        show(args.models, times, f"train {args.train_batch}", {})


def show(names: Sequence[str], times: Times, batch: str, differences: Mapping[str, float]) -> None:
    """A row for each network."""
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
    """How many times as long `a` took: the median of the rounds, and their range."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(ratios):5.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


def time_all(runs: Mapping[tuple[str, str], Run], rounds: int, title: str) -> Times:
    """Each run's time in every round, in turns; two rounds go first that are not counted."""
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
    """Where it is, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


def network(name: str, size: int) -> res2net.Res2Net:
    """A network with random weights, whose batch norms know their inputs' statistics."""
    torch.manual_seed(0)
    model = res2net.create(name).train()
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
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def plain_of(model: res2net.Res2Net) -> PlainRes2Net:
    """The plain modules with the same weights."""
    plain = PlainRes2Net(model.arch)
    plain.load_state_dict(model.state_dict())
    return plain


def inference(name: str, model: res2net.Res2Net, x: Tensor) -> list[tuple[tuple[str, str], Run]]:
    """One forward pass, each way."""
    ways = (plain_of(model).eval(), res2net.optimize(model), res2net.optimize(model, bf16=True))
    return [((name, way), lambda net=net: net(x)) for way, net in zip(WAYS, ways, strict=True)]


def difference(runs: Mapping[tuple[str, str], Run], name: str) -> float:
    """Of the logits of plain and ours, the largest, relative to the largest logit."""
    plain, ours = runs[name, "plain"](), runs[name, "ours"]()
    return ((plain - ours).abs().max() / plain.abs().max()).item()  # type: ignore[operator,union-attr]


def training(name: str, model: res2net.Res2Net, data: Data, rounds: int) -> dict[tuple[str, str], Run]:
    """One step, each way, for that many rounds and the two before."""
    plain = plain_of(model).train()
    optimizer = torch.optim.SGD(plain.parameters(), LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x, y = images(len(data.train.labels), data.train.images.shape[-1]), torch.from_numpy(data.train.labels)

    def step() -> None:
        loss = F.cross_entropy(plain(x), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    config = Config(epochs=rounds + 2, batch_size=len(y), lr=LR, device="cpu")
    return {(name, "plain"): step, (name, "ours"): Trainer(model, data, config).epoch}


def random_data(n: int, size: int) -> Data:
    """One batch of noise: what images show does not change how long they take. No validation split to be scored."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (n, 3, size, size), np.uint8), rng.integers(0, 1000, n)
    return Data("random", ("",) * 1000, Split(pixels, labels), Split(pixels[:0], labels[:0]), (0.5,) * 3, (0.25,) * 3)


if __name__ == "__main__":
    sys.exit(main())
