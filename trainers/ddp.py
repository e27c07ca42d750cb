"""Training of one network by several processes (`torchrun -m trainers.fit ...`) with DistributedDataParallel (DDP).

All processes draw the same random numbers, and each process takes a share of every batch. Batch norms use the
statistics of the whole batch. So the losses equal the losses of a single process at the same batch size, up to
rounding.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from res2net.elastic import ElasticRes2Net
from res2net.errors import UserError
from res2net.heads.layers import PooledNorm

TIMEOUT = datetime.timedelta(hours=1)  # longest wait for another process: process 0 may score or write for long


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together: the index of this process (`rank`) and the number of processes (`world`)."""

    rank: int = 0
    world: int = 1

    @property
    def shard(self) -> tuple[int, int]:
        """(rank, world): this process takes every `world`-th image of a batch, starting at image `rank`."""
        return self.rank, self.world

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum the tensor over all processes in place, and return the tensor."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows `[n, columns]` of all processes, those of process 0 first. A process may have none: [0, 0].

        Every process must call this method. It waits for the device.
        """
        if self.world == 1:
            return rows
        shapes = torch.zeros(self.world, 2, dtype=torch.int64, device=rows.device)
        shapes[self.rank] = torch.tensor(rows.shape)
        counts, columns = self.sum(shapes).T.tolist()
        # Messages have equal sizes, so fill up the rows of each process.
        own = rows.new_zeros(max(counts), max(columns))
        own[: len(rows), : rows.shape[1]] = rows
        found = [torch.empty_like(own) for _ in counts]
        dist.all_gather(found, own)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    def gather_objects(self, items: list[Any]) -> list[Any]:
        """Return the items of all processes, those of process 0 first. Every process must call this method."""
        if self.world == 1:
            return items
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, items)
        return [item for part in found for item in part]

    def wrap(self, model: nn.Module, device: torch.device, part: bool = False) -> nn.Module:
        """Return the network, wrapped for training by all processes.

        Gradients are averages over all processes, and batch norms use the statistics of the whole batch.
        part: whether a step may leave some weights without a gradient. These must be the same weights in all processes.
        """
        if self.world == 1:
            return model
        on_gpu = device.type == "cuda"
        if isinstance(model, ElasticRes2Net):
            norm: Any = GpuSyncBatchNorm if on_gpu else CpuSyncBatchNorm
            model.norm = norm
        elif on_gpu:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            # Change the class of each module instead of replacing the module: the optimizer and the averaged weights
            # already refer to the modules' tensors. The state dict also keeps its keys.
            for module in model.modules():
                if type(module) in (nn.BatchNorm2d, PooledNorm):
                    module.__class__ = CpuSyncBatchNorm
        ids = [device.index] if on_gpu else None
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=part)


ALONE = Group()


class GpuSyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's synchronised batch norm, to replace the class of an `nn.BatchNorm2d` (`res2net.elastic._plain`)."""

    # None means all processes. `nn.SyncBatchNorm.__init__`, which would set this attribute, does not run.
    process_group = None


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes. The gradients are summed over all processes too."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        out = x.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        # The input of each process enters the sums of all processes. So the gradient of an input is the sum of all
        # processes' gradients.
        return _Sum.forward(ctx, gradient)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """A batch norm over the batches of all processes. PyTorch's own (`nn.SyncBatchNorm`) runs on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps `[B, C, H, W]`. B may differ between processes.

        In eval mode, this is `nn.BatchNorm2d`, without messages between processes.
        """
        if not self.training:
            return super().forward(x)
        # Compute the statistics in fp32: a bf16 sum over many pixels would lose all but the first pixels.
        values = x.float() if x.dtype == torch.bfloat16 else x
        # One message carries the sums and the count. An average of the processes' means would be wrong, because the
        # processes' counts may differ.
        sums = torch.cat([values.sum((0, 2, 3)), values.new_tensor([x.numel() / x.shape[1]])])
        sums = _Sum.apply(sums)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # Compute the variance in a second pass, which costs a second message. A single pass would compute
        # E[x^2] - E[x]^2. With a mean far from zero, this is a small difference of two large numbers, and fp32 loses
        # most of its digits.
        centred = values - mean[:, None, None]
        var = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        self._track(mean, var, count)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the running statistics with a batch. Do nothing without them (norms of a supernet in training).

        mean, var: biased statistics of each channel. count: number of values of each channel in the batch.
        """
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        assert self.momentum is not None, "the cumulative mean is not needed here"
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        # As in PyTorch, `forward` normalises with the biased variance, but the running variance averages the unbiased
        # variance.
        self.running_var.lerp_(var * count / (count - 1), self.momentum)


@contextlib.contextmanager
def joined(device: str) -> Iterator[tuple[Group, str]]:
    """Yield the group of processes that `torchrun` started, and the device of this process.

    Entering the context joins the group, and leaving the context leaves the group.
    Without torchrun, the group is this process alone, and the device is the requested device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    local = int(os.environ["LOCAL_RANK"])  # index of this process on this machine
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if device not in ("auto", "cuda", "cpu"):
        raise UserError(f"`device`: {device!r} cannot serve every process; accepted with torchrun: auto, cuda, cpu")
    if on_gpu:
        if local >= torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            raise UserError(f"torchrun: process {local} has no GPU; accepted: at most {gpus} processes per machine")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)  # NCCL sends from the current device
    else:
        device = "cpu"  # `auto` could choose mps, and the gloo backend cannot send from it
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield Group(dist.get_rank(), dist.get_world_size()), device
    finally:
        # `DistributedDataParallel` keeps the group alive in reference cycles, so collect them now. Otherwise, threads
        # of the group could still run while Python ends, and torch 2.13 then aborts some processes.
        gc.collect()
        dist.destroy_process_group()
