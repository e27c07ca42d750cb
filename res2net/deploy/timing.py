"""Time networks on a device: as a whole, or piece by piece inside the whole network.

A block that runs alone, again and again, finds its weights and its input in the cache. In eager mode it took 0.90 to
0.96 times as long as inside a network (medians of seven networks; 0.77 to 1.16 for single blocks; AMD EPYC, one
thread). So `piece_times` runs whole networks and records the time at the borders between pieces.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.benchmark import Timer

from res2net.deploy import onnx_timing
from res2net.deploy.export import need_onnx
from res2net.deploy.optimize import Optimized, optimize
from res2net.errors import UserError, unknown
from res2net.model import Res2Net

TORCH_FORMS = ("eager", "optimized", "optimized-bf16")
ONNX_FORMS = ("onnx", "onnx-int8")
FORMS = TORCH_FORMS + ONNX_FORMS
WARM = 3  # untimed runs: the first ones pack weights, choose kernels and allocate memory
LEAST_RUNS = 30  # minimum number of timed runs, piece by piece
LEAST_WHOLE_RUNS = 10  # minimum number of timed runs of whole networks, whose times vary less than those of pieces
SECONDS = 0.2  # minimum duration of all timed runs
Run = Callable[[], object]


def check_form(form: str, device: torch.device) -> None:
    """Raise `UserError` for an unknown form, and for one that does not run on the device."""
    if form not in FORMS:
        raise unknown("`form`", form, FORMS)
    if form in ONNX_FORMS:
        if device.type != "cpu":
            raise UserError(f"`form`: {form!r} on device {device.type!r}; accepted there: {', '.join(TORCH_FORMS)}")
        need_onnx(what="`form`: ONNX")


def runner(model: nn.Module, form: str, images: Tensor, threads: int = 1, quick: bool = False) -> Run:
    """Return a function that runs a network once on a batch of images `[N, C, H, W]`, in one of `FORMS`.

    The network runs on the images' device. The model is unchanged.
    threads: number of ONNX Runtime's threads. `measured` sets the number of PyTorch's threads.
    quick: whether ONNX files come from PyTorch's older exporter, as in `piece_times`.
    """
    check_form(form, images.device)
    if form in ONNX_FORMS:
        return onnx_timing.runner(model, images, threads, form == "onnx-int8", quick)
    network = prepared(model, form)

    def run() -> Tensor:
        with torch.no_grad():
            return network(images)

    return run


def prepared(model: nn.Module, form: str) -> nn.Module:
    """Return the network in one of `TORCH_FORMS`. `eager` is the model itself, in eval mode."""
    return model.eval() if form == "eager" else optimize(model, bf16=form == "optimized-bf16")


def measured(run: Run, threads: int = 1, seconds: float = SECONDS) -> tuple[float, float]:
    """Return the median and the interquartile range of a function's time in ms, on `threads` threads of PyTorch.

    The function runs for at least `seconds`, and at least `LEAST_WHOLE_RUNS` times. The time includes work on a GPU.
    """
    timer = Timer("run()", globals={"run": run}, num_threads=threads)
    timer.timeit(WARM)
    once = timer.timeit(WARM).mean
    found = timer.blocked_autorange(min_run_time=max(seconds, LEAST_WHOLE_RUNS * once))
    return 1e3 * found.median, 1e3 * found.iqr


def piece_times(model: Res2Net, form: str, images: Tensor, threads: int = 1, seconds: float = SECONDS) -> np.ndarray:
    """Return the times of a network's pieces in ms, `[runs, pieces]`, in the order of `res2net.pieces.sequence`.

    The arguments are those of `runner` and `measured`. The model may get hooks, so do not use it afterwards.
    """
    check_form(form, images.device)
    if form in ONNX_FORMS:
        return onnx_timing.piece_times(model, images, threads, form == "onnx-int8", LEAST_RUNS, seconds)
    stamps, network = Stamps(images.device), prepared(model, form)
    if isinstance(network, Optimized):
        mark_graph(network.body, stamps)
    else:
        mark_modules(network, stamps)

    def once() -> list[float]:
        stamps.mark()
        network(images)
        stamps.mark()
        return stamps.take()

    with pinned(threads), torch.no_grad():
        for _ in range(WARM):
            once()
        out, end = [], time.perf_counter() + seconds
        while len(out) < LEAST_RUNS or time.perf_counter() < end:
            out.append(once())
    return np.array(out)


def finish(device: torch.device) -> None:
    """Wait until a GPU has done its queued work. On a CPU, nothing is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """A context with a fixed number of PyTorch's threads, and without garbage collection."""
    before, collects = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collects:
            gc.enable()


class Stamps:
    """The times at which a run passes the borders between pieces.

    On a GPU, a border is a CUDA event, because kernels run later than Python launches them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self.found: list[int] = []
        self.events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Record a border."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.events.append(event)
        else:
            self.found.append(time.perf_counter_ns())

    def take(self) -> list[float]:
        """Return the ms between the borders of a run, and forget the borders."""
        if self.on_gpu:
            finish(self.device)
            out = [a.elapsed_time(b) for a, b in zip(self.events, self.events[1:], strict=False)]
            self.events = []
        else:
            out = [(b - a) / 1e6 for a, b in zip(self.found, self.found[1:], strict=False)]
            self.found = []
        return out


def mark_modules(model: nn.Module, stamps: Stamps) -> None:
    """Let a `Res2Net` mark the start of each block, and the end of the last one."""
    assert isinstance(model, Res2Net)
    blocks = [block for layer in model.layers() for block in layer.children()]
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: stamps.mark())
    blocks[-1].register_forward_hook(lambda *_: stamps.mark())


def mark_graph(body: fx.GraphModule, stamps: Stamps) -> None:
    """Let the graph of `deploy.optimize.fused` mark the start of each block, and the end of the last one."""

    def mark() -> None:
        stamps.mark()

    before = ""
    for node in list(body.graph.nodes):
        block = "end" if node.op == "output" else block_of(node)
        if block and block != before:
            with body.graph.inserting_before(node):
                body.graph.call_function(mark)
            before = block
    body.recompile()


def block_of(node: fx.Node) -> str:
    """Return the name of the block that a node computes (`layer1.0`), or an empty text for the stem."""
    names = [str(node.target)] if node.op == "call_module" else list(node.meta.get("nn_module_stack", ()))
    return next((found[0] for name in names if (found := re.match(r"layer\d+\.\d+", name))), "")
