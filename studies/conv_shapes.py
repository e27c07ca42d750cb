"""Find convolutions that crash oneDNN or give wrong results: every shape of the named spaces, and thin shapes.

    python -m studies.conv_shapes                  # about five minutes on two cores
    python -m studies.conv_shapes --plain          # PyTorch's own classes instead of ours: shows the known crash

Each shape runs forward and backward in channels-last fp32, with the convolution class that the networks use. The
reference is the same convolution in NCHW without oneDNN. Shapes run in subprocesses, once with all of the machine's
instructions and once with oneDNN and PyTorch limited to AVX2. After a crash, bisection finds the guilty shapes.

Known faults: uxlfoundation/oneDNN#6035 (backward of thin strided 1x1 convolutions without AVX-512) and
pytorch#195394 / oneDNN#5942 (forward on maps of one pixel, channels-last, with outputs that read only padding).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from ctypes.util import find_library
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import res2net.model
import space
from res2net import Arch, create
from res2net.commands import Parser, run_main
from studies.bench import check_positive

PROG = "python -m studies.conv_shapes"
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
MACHINES: dict[str, dict[str, str]] = {"as it is": {}, "AVX2": AVX2}
# Two image sizes for each base: a usual one, and one whose last maps have one pixel. ImageNet's layers are the same for
# small images, and small images take less time. Size 17 gives maps with odd sides.
IMAGE_SIZES = {"micro": (8, 32), "thin": (16, 32), "cifar": (4, 32), "imagenet": (17, 64)}
BATCHES = (2, 32)
TOLERANCE = 1e-3  # relative to the largest value; the rounding of fp32 reaches 1e-5
CRASH_REPEATS = 20  # repeats of a shape during bisection: a process with a corrupted heap may survive a few steps
CHUNK_TIMEOUT = 300  # seconds; oneDNN#6035 can hang a subprocess instead of crashing it


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """A convolution and the side of its square input map; `kind` is the name of its class."""

    kind: str
    c_in: int
    c_out: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    groups: int
    size: int

    @classmethod
    def of(cls, conv: nn.Conv2d, size: int) -> Shape:
        """Return the shape of a convolution's module."""
        (kernel, _), (stride, _), (dilation, _) = conv.kernel_size, conv.stride, conv.dilation
        padding = int(conv.padding[0])
        kind = type(conv).__name__
        return cls(kind, conv.in_channels, conv.out_channels, kernel, stride, padding, dilation, conv.groups, size)

    def build(self, plain: bool) -> nn.Conv2d:
        """Return the convolution, of the class `kind`; if `plain`, of PyTorch's class."""
        kind = nn.Conv2d if plain else getattr(res2net.model, self.kind, nn.Conv2d)
        geometry = (self.kernel, self.stride, self.padding, self.dilation, self.groups)
        return kind(self.c_in, self.c_out, *geometry, bias=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        out = -(-self.size // self.stride)
        return out * out * self.kernel**2 * self.c_in // self.groups * self.c_out

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.c_in}->{self.c_out} {self.kernel}x{self.kernel} stride {self.stride} padding "
            f"{self.padding} dilation {self.dilation} groups {self.groups} on {self.size}x{self.size}"
        )


# ---- The shapes to try ---------------------------------------------------------------------------------------------


def shapes_of(arch: Arch, image_sizes: Iterable[int]) -> set[Shape]:
    """Return the shapes of a network's convolutions at some image sizes, observed on the meta device."""
    found = set()

    def record(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)
        found.add(Shape.of(conv, inputs[0].shape[-1]))

    with torch.device("meta"):
        model = create(arch).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(record)
        for size in image_sizes:
            model(torch.empty(1, arch.in_channels, size, size))
    return found


def space_shapes(bases: Iterable[str]) -> set[Shape]:
    """Return the shapes of all networks of the named spaces over some bases.

    Every combination of scale, cardinality and width is built, with at most two blocks in a stage, because later blocks
    have the shapes of the second block.
    """
    found: set[Shape] = set()
    for base in bases:
        allowed = space.get("scale_card_depth_width", base)
        values = allowed.parameters | {"depth": (2,)}
        for combination in itertools.product(*values.values()):
            arch = allowed.arch(dict(zip(values, combination, strict=True)))
            stages = tuple(replace(stage, depth=min(2, stage.depth)) for stage in arch.stages)
            found |= shapes_of(replace(arch, stages=stages), IMAGE_SIZES[base])
    return found


def thin_shapes() -> set[Shape]:
    """Return the shapes of thin stems, shortcuts and splits (1 to 8 channels) on maps of 1, 2, 3 and 8 pixels."""
    found = set()
    sides, strides = (1, 2, 3, 8), (1, 2, 3)
    for size, stride, c_in in itertools.product(sides, strides, range(1, 9)):
        for c_out in sorted({c_in, 4, 16}):
            found.add(Shape.of(res2net.model.conv1x1(c_in, c_out, stride), size))
            found.add(Shape.of(res2net.model.conv3x3(c_in, c_out, stride), size))
            found.add(Shape.of(nn.Conv2d(c_in, c_out, 7, stride, 3, bias=False), size))
        for groups in (g for g in range(2, c_in + 1) if c_in % g == 0):
            found.add(Shape.of(res2net.model.conv3x3(c_in, c_in, stride, groups), size))
        found.add(Shape.of(res2net.model.conv3x3(c_in, c_in, 1, dilation=stride), size))
    return found


# ---- One subprocess: try shapes ------------------------------------------------------------------------------------


def outputs(conv: nn.Conv2d, x: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return a convolution's output, and the gradients of its input and its weight."""
    x = x.detach().requires_grad_()
    y = conv(x)
    y.backward(torch.ones_like(y) if grad is None else grad)
    assert x.grad is not None
    assert conv.weight.grad is not None
    out = y.detach(), x.grad, conv.weight.grad
    conv.weight.grad = None
    return out


def channels_last(x: Tensor) -> Tensor:
    """Return a copy in channels-last; `contiguous` would keep the strides of a map of one pixel."""
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return torch.empty_strided(x.shape, strides).copy_(x)


def difference(shape: Shape, batch: int, repeats: int, plain: bool) -> float:
    """Return the largest difference between oneDNN channels-last and the reference, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    conv = shape.build(plain)
    x = torch.randn(batch, shape.c_in, shape.size, shape.size, generator=generator)
    with torch.backends.mkldnn.flags(enabled=False):
        side = conv(x[:1]).shape[-1]
        grad = torch.randn(batch, shape.c_out, side, side, generator=generator)
        expected = outputs(conv, x, grad)
    conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
    x, grad = channels_last(x), channels_last(grad)
    worst = 0.0
    for _ in range(repeats):
        for a, b in zip(outputs(conv, x, grad), expected, strict=True):
            worst = max(worst, ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item())
    return worst


def try_shapes(text: str) -> None:
    """Run the shapes of a JSON text in this process. Print a shape's number before its run, and its result after it."""
    task = json.loads(text)
    torch.set_num_threads(task["threads"])
    for number, values in enumerate(task["shapes"]):
        shape = Shape(*values)
        print(json.dumps({"starts": number}), flush=True)  # after a crash, the last line names the shape
        batches = [b for b in BATCHES if b == min(BATCHES) or b * shape.macs <= task["most_macs"]]
        found = [difference(shape, batch, task["repeats"], task["plain"]) for batch in batches]
        # A NaN is counted as infinite, because `max` could pass over it.
        worst = max(f if f == f else float("inf") for f in found)
        print(json.dumps({"difference": worst, "runs": len(batches)}), flush=True)


# ---- Chunks, and the search for guilty shapes ----------------------------------------------------------------------


@dataclass(slots=True)
class Findings:
    """The findings on one machine: the number of runs (shape and batch), shapes that crash, and wrong shapes."""

    runs: int = 0
    crashes: list[Shape] = field(default_factory=list)
    wrong: list[tuple[Shape, float]] = field(default_factory=list)
    unexplained: int = 0  # chunks that crashed once, but not again during bisection


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs shapes in subprocesses."""

    variables: dict[str, str]
    threads: int = 1
    most_macs: int = 300_000_000
    plain: bool = False

    def chunk(self, shapes: Sequence[Shape], repeats: int) -> tuple[list[dict[str, Any]], bool]:
        """Run shapes in one subprocess; return the lines that the process printed, and whether it survived."""
        task = {"shapes": [astuple(s) for s in shapes], "threads": self.threads, "repeats": repeats}
        task |= {"most_macs": self.most_macs, "plain": self.plain}
        environment = os.environ | self.variables
        if library := find_library("c_malloc_debug"):
            # glibc's checks find most writes past a buffer at the next `free` instead of some allocations later.
            environment |= {"LD_PRELOAD": library, "GLIBC_TUNABLES": "glibc.malloc.check=3"}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "studies.conv_shapes", "--chunk"],
                input=json.dumps(task),
                cwd=Path(__file__).parent.parent,
                env=environment,
                capture_output=True,
                text=True,
                timeout=CHUNK_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""
            return _lines(printed.decode() if isinstance(printed, bytes) else printed), False
        if done.returncode > 0:  # a Python exception; signals are negative
            raise RuntimeError(done.stderr)
        return _lines(done.stdout), done.returncode == 0

    def run(self, shapes: Sequence[Shape], findings: Findings) -> None:
        """Run shapes and add their results to the findings. After a crash, a new subprocess runs the other shapes."""
        while shapes:
            lines, survived = self.chunk(shapes, 2)
            results = [line for line in lines if "difference" in line]
            findings.runs += sum(line["runs"] for line in results)
            for shape, line in zip(shapes, results, strict=False):
                if line["difference"] > TOLERANCE:
                    findings.wrong.append((shape, line["difference"]))
            if survived:
                return
            started = shapes[: len(results) + 1]
            guilty = self.guilty(started)
            findings.crashes += guilty
            findings.unexplained += not guilty
            shapes = shapes[len(started) :]

    def guilty(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shapes that crash on their own, found by bisection; the last shape is tried first."""
        last = list(shapes[-1:])
        if not self.chunk(last, CRASH_REPEATS)[1]:
            return last
        return self._bisect(shapes[:-1])

    def _bisect(self, shapes: Sequence[Shape]) -> list[Shape]:
        if not shapes or self.chunk(shapes, CRASH_REPEATS)[1]:
            return []
        if len(shapes) == 1:
            return list(shapes)
        half = len(shapes) // 2
        return self._bisect(shapes[:half]) + self._bisect(shapes[half:])


def _lines(text: str) -> list[dict[str, Any]]:
    """Return the whole lines of a subprocess's output; a crash may cut the last one off."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]


def chunks(shapes: Sequence[Shape], length: int) -> Iterator[Sequence[Shape]]:
    """Yield the shapes in lists of a length."""
    return (shapes[i : i + length] for i in range(0, len(shapes), length))


# ---- The command ---------------------------------------------------------------------------------------------------


def report(name: str, shapes: int, findings: Findings, seconds: float) -> str:
    """Return a machine's row and its faulty shapes."""
    row = (
        f"{name:<9} {shapes:>7} {findings.runs:>7} {len(findings.crashes):>8} {len(findings.wrong):>6} {seconds:>8.0f}"
    )
    lines = [row, *(f"  crash: {shape}" for shape in findings.crashes)]
    lines += [f"  wrong by {by:.1e}: {shape}" for shape, by in findings.wrong]
    if findings.unexplained:
        lines.append(f"  {findings.unexplained} subprocesses crashed whose shapes survive alone")
    return "\n".join(lines)


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description="Find convolutions that crash oneDNN or get wrong results.")
    out.add_argument(
        "--bases", nargs="*", choices=tuple(IMAGE_SIZES), default=list(IMAGE_SIZES), help="bases of spaces"
    )
    out.add_argument("--machines", nargs="+", choices=tuple(MACHINES), default=list(MACHINES), help="CPU capabilities")
    out.add_argument("--plain", action="store_true", help="use PyTorch's convolution class instead of the networks'")
    out.add_argument("--threads", type=int, default=1, help="threads of each subprocess")
    out.add_argument("--chunk-size", type=int, default=250, help="shapes of each subprocess")
    out.add_argument(
        "--most-macs", type=int, default=300_000_000, help="MACs of a batch beyond which the larger batch is left out"
    )
    out.add_argument("--chunk", action="store_true", help=argparse.SUPPRESS)  # our subprocesses set it
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a shape crashes or is wrong."""
    return run_main(_main, parser, argv)


def _main(args: argparse.Namespace) -> int:
    if args.chunk:
        try_shapes(sys.stdin.read())
        return 0
    check_positive(args, "threads", "chunk_size", "most_macs")
    shapes = sorted(space_shapes(args.bases) | thin_shapes())
    print(f"{'machine':<9} {'shapes':>7} {'runs':>7} {'crashes':>8} {'wrong':>6} {'seconds':>8}", flush=True)
    faults = 0
    for name in args.machines:
        findings, start = Findings(), time.monotonic()
        runner = Runner(MACHINES[name], args.threads, args.most_macs, args.plain)
        for part in chunks(shapes, args.chunk_size):
            runner.run(part, findings)
        print(report(name, len(shapes), findings, time.monotonic() - start), flush=True)
        faults += len(findings.crashes) + len(findings.wrong) + findings.unexplained
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
