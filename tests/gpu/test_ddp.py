"""The messages of several processes over the device's backend (NCCL), with one process: two need two GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# A group of two processes in name, of which one exists: with one, `Group` sends no messages.
WORKER = """
import copy, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from res2net import Arch, Stage, create
from trainers.ddp import Group
backend, name, folder = sys.argv[1:]
device = torch.device(name)
dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
group = Group(0, 2)
torch.manual_seed(0)
arch = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(2, 4, 4, 1, 2, 1)), stem="cifar", stem_channels=4, num_classes=3)
plain = create(arch).to(device)
wrapped = group.wrap(copy.deepcopy(plain), device)
assert isinstance(wrapped, DistributedDataParallel)
x = torch.randn(8, 3, 16, 16).to(device)
outputs = [model(x) for model in (plain, wrapped)]
torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)
for y in outputs:
    y.square().mean().backward()
for a, b in zip(plain.parameters(), wrapped.parameters()):
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-3)
assert group.sum(torch.ones(3, device=device)).tolist() == [1, 1, 1]
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_and_norms_are_those_of_an_ordinary_network(device: torch.device, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    backend, name = ("nccl", "cuda:0") if device.type == "cuda" else ("gloo", "cpu")
    command = [sys.executable, str(tmp_path / "worker.py"), backend, name, str(tmp_path)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode == 0, done.stderr
