"""The networks of `studies.gpu_check`: how they run on a GPU, and how fast."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import res2net
import space as spaces
from res2net.arch import Arch
from res2net.deploy.timing import WARM, Run, measured
from studies.bench_inference import LR, images, network, plain_of, random_data
from studies.bench_trainer import CLASSES, MEMBERS, SIZE, time_both
from studies.bench_trainer import random_data as small_data
from trainers.device import autocast
from trainers.recipes import Config
from trainers.train import Trainer

NETWORKS = ("res2net50_26w_4s", "resnet50")  # the first takes 153 ms in the paper, the second 149 ms
SECONDS = 1.0  # of timed runs of a network
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a part runs, and whether its sizes are tiny, as for a look at its code."""

    device: torch.device
    out: Path
    tiny: bool

    def of(self, full: Any, tiny: Any) -> Any:
        """Return the first value, or the second one for tiny sizes."""
        return tiny if self.tiny else full

    def arch(self, name: str) -> Arch:
        """Return a network; for tiny sizes, with one block a stage."""
        arch = res2net.named(name)
        assert isinstance(arch, Arch)
        return replace(arch, stages=tuple(replace(s, depth=self.of(s.depth, 1)) for s in arch.stages))

    def timed(self, run: Run, batch: int) -> Row:
        """Return the median time of a run, its interquartile range, and the images a second."""
        ms, spread = measured(run, torch.get_num_threads(), self.of(SECONDS, 0.01))
        return {"batch": batch, "ms": round(ms, 3), "iqr_ms": round(spread, 3), "images_per_s": round(1e3 * batch / ms)}


def time_networks(s: Setting) -> Iterator[Row]:
    """Time the paper's two networks, in inference and in training. A row for each way to run each network."""
    size, batches = s.of(224, 32), {"inference": s.of(64, 2), "training": s.of(64, 2)}
    for (mode, way), prepare in WAYS.items():
        for name in NETWORKS:
            run = prepare(s, network(s.arch(name), size), batches[mode], size)
            yield {"mode": mode, "way": way, "network": name, **s.timed(run, batches[mode])}


def runs(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return a function that runs a network on `x`."""

    def run() -> Tensor:
        with torch.no_grad():
            return net(x)

    return run


def graphed(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return a function that runs a network on `x` as a CUDA graph. Each run writes over the outputs of the last one.

    On a CPU, the function runs the network itself.
    """
    run = runs(net, x)
    if not x.is_cuda:
        return run
    stream = torch.cuda.Stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream):  # kernels are chosen before the graph is recorded
        for _ in range(WARM):
            run()
    torch.cuda.current_stream(x.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay() -> Tensor:
        graph.replay()
        return outputs

    return replay


def _plain(s: Setting, net: nn.Module, batch: int, size: int, bf16: bool = False) -> Run:
    dtype = torch.bfloat16 if bf16 else torch.float32
    net = net.eval().to(s.device, dtype, memory_format=_layout(bf16))  # type: ignore[call-overload]  # not in stubs
    return runs(net, images(batch, size).to(s.device, dtype, memory_format=_layout(bf16)))


def _layout(bf16: bool) -> torch.memory_format:
    """Return channels-last for bf16, and the layout of plain code for fp32."""
    return torch.channels_last if bf16 else torch.contiguous_format


def _fast(s: Setting, net: nn.Module, batch: int, size: int) -> tuple[nn.Module, Tensor]:
    return res2net.optimize(net.to(s.device).eval(), bf16=True), images(batch, size).to(s.device)


def _compiled(s: Setting, net: nn.Module, batch: int, size: int) -> Run:
    mode = "reduce-overhead" if s.device.type == "cuda" else "default"  # the first uses CUDA graphs
    return torch.compile(_plain(s, net, batch, size, bf16=True), mode=mode)


def _plain_step(s: Setting, net: nn.Module, batch: int, size: int, bf16: bool = False) -> Run:
    net = net.train().to(s.device, memory_format=_layout(bf16))  # type: ignore[call-overload]  # not in stubs
    x = images(batch, size).to(s.device, memory_format=_layout(bf16))
    y = torch.arange(batch, device=s.device)
    optimizer = torch.optim.SGD(net.parameters(), LR, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def run() -> None:
        with autocast(s.device, bf16):
            outputs = net(x)
        optimizer.zero_grad()
        F.cross_entropy(outputs.float(), y, label_smoothing=0.1).backward()
        optimizer.step()

    return run


def _our_step(s: Setting, net: nn.Module, batch: int, size: int, compiled: bool = False) -> Run:
    data = random_data(batch, size) if size > SIZE else small_data(batch, size=size)
    config = Config(batch_size=batch, lr=LR, device=str(s.device))
    trainer = Trainer(net, data, config, compiled=compiled)
    trainer.model.train()
    x, y = next(trainer.train_images.batches(batch))
    return lambda: trainer._step(x, y, 0)


# In order of worth. Those that compile come last: a compiler may be missing. On CUDA, "plain fp32" has PyTorch's
# default, convolutions in TF32.
WAYS: Mapping[tuple[str, str], Callable[..., Run]] = {
    ("inference", "plain fp32"): lambda s, net, *more: _plain(s, plain_of(net), *more),
    ("inference", "plain bf16, channels-last"): lambda s, net, *more: _plain(s, plain_of(net), *more, bf16=True),
    ("inference", "optimize bf16"): lambda s, net, *more: runs(*_fast(s, net, *more)),
    ("inference", "optimize bf16, CUDA graph"): lambda s, net, *more: graphed(*_fast(s, net, *more)),
    ("training", "plain fp32"): lambda s, net, *more: _plain_step(s, plain_of(net), *more),
    ("training", "plain bf16, channels-last"): lambda s, net, *more: _plain_step(s, plain_of(net), *more, bf16=True),
    ("training", "trainer"): _our_step,
    ("inference", "bf16 compiled"): _compiled,
    ("training", "trainer, compiled"): partial(_our_step, compiled=True),
}
SMALL = [way for way in WAYS if way[1].startswith(("optimize", "trainer"))]  # also of networks without a plain form


def time_small_networks(s: Setting) -> Iterator[Row]:
    """Time networks of the base micro with and without graphs, and whole epochs against a plain loop."""
    batch, allowed = s.of(64, 4), spaces.get("scale_card_depth", "micro", num_classes=CLASSES)
    archs = [allowed.arch(params) for params in MEMBERS["micro"]][: s.of(None, 1)]
    for mode, way in SMALL:
        for arch in archs:
            run = WAYS[mode, way](s, res2net.create(arch), batch, SIZE)
            yield {"mode": mode, "way": way, "network": str(arch), **s.timed(run, batch)}
    args = argparse.Namespace(batch_size=batch, workers=0, device=str(s.device), precision="auto", repeats=s.of(3, 1))
    count = s.of(4096, 16)
    for arch in archs:
        for way, times in zip(("plain loop", "trainer"), time_both(arch, small_data(count), args), strict=True):
            wall = float(np.median([seconds for seconds, _ in times]))
            row = {"batch": batch, "ms": round(1e3 * wall, 1), "images_per_s": round(count / wall)}
            yield {"mode": "epochs", "way": way, "network": str(arch), **row}
