"""Several processes that train one network: `torchrun -m trainers.fit ...`, by PyTorch's DistributedDataParallel.

They draw the same random numbers and each takes its share of every batch; batch norms see the whole batch. So the
losses are those of one process with batches of the same size, to rounding.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from res2net.elastic import ElasticRes2Net
from res2net.errors import UserError

TIMEOUT = datetime.timedelta(hours=1)  # that a process waits for the others: rank 0 may write for long


@dataclass(frozen=True, slots=True)
class Group:
    """This process's place among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def shard(self) -> tuple[int, int]:
        """As batches are shared out."""
        return self.rank, self.world

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over all processes, in its place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def wrap(self, model: nn.Module, device: torch.device, part: bool = False) -> nn.Module:
        """The network whose gradients are the mean over all processes, and whose batch norms see the whole batch.

        part: a step may leave weights without a gradient, the same ones in every process.
        """
        if self.world == 1:
            return model
        on_gpu = device.type == "cuda"
        if isinstance(model, ElasticRes2Net):
            model.norm = GpuSyncBatchNorm if on_gpu else CpuSyncBatchNorm
        elif on_gpu:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            for module in model.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = CpuSyncBatchNorm
        ids = [device.index] if on_gpu else None
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=part)


ALONE = Group()


class GpuSyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's, as the class of a norm that was made as an ordinary one."""

    process_group = None


class _Sum(torch.autograd.Function):
    """A tensor's sum over all processes, through which gradients flow back to each of them."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        out = x.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """A batch norm over the batches of all processes: PyTorch's own (`nn.SyncBatchNorm`) is for GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.BatchNorm2d`, but for the statistics in training. x: `[B, C, H, W]`; processes may differ in B."""
        if not self.training:
            return super().forward(x)
        values = x.float() if x.dtype == torch.bfloat16 else x
        sums = torch.cat([values.sum((0, 2, 3)), values.new_tensor([x.numel() / x.shape[1]])])
        sums = _Sum.apply(sums)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean[:, None, None]
        var = _Sum.apply(centred.square().sum((0, 2, 3))) / count  # two passes: squares of large means would cancel
        if self.running_mean is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


@contextlib.contextmanager
def joined(device: str) -> Iterator[tuple[Group, str]]:
    """The group that `torchrun` started this process in, and the device of its own; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu and ":" in device:
        raise UserError(f"--device: {device!r} for every process; accepted with torchrun: auto, cuda, cpu")
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node: process {local} has no GPU; there are {torch.cuda.device_count()}")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield Group(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
