"""Several processes train as one process does with the same batches, to rounding."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from res2net import Arch, Stage, UserError, create
from res2net.heads import DeepLab
from trainers.ddp import ALONE, CpuSyncBatchNorm, Group, joined

ARCH = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4, num_classes=10)
ROOT = Path(__file__).parents[2]
TIMELESS = ("epoch", "train_loss", "val_loss", "val_top1", "val_top5")


def torchrun(processes: int, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run torchrun on this machine alone, on loopback and with a free port."""
    here = ["--nnodes", "1", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d", "--rdzv-endpoint"]
    command = [sys.executable, "-m", "torch.distributed.run", *here, "127.0.0.1:0", "--local-addr", "127.0.0.1", *argv]
    # The path of this checkout: scripts in a temporary folder would import the installed one.
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)


def test_alone_nothing_is_wrapped() -> None:
    model, tensor = nn.Linear(2, 2), torch.ones(3)
    assert ALONE.wrap(model, torch.device("cpu")) is model
    assert ALONE.sum(tensor) is tensor
    assert ALONE.shard == (0, 1)
    assert Group(1, 2).shard == (1, 2)


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("mps") as (group, device):
        assert (group, device) == (ALONE, "mps")


@pytest.mark.parametrize("device", ["cuda:1", "mps", "tpu"])
def test_with_torchrun_a_device_of_one_process_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match=rf"^`device`: '{device}'.*accepted with torchrun: auto, cuda, cpu$"):
        joined(device).__enter__()


def test_a_synchronised_norm_in_eval_mode_equals_an_ordinary_one() -> None:
    torch.manual_seed(0)
    norm, plain = CpuSyncBatchNorm(4), nn.BatchNorm2d(4)
    plain.running_mean.uniform_()
    norm.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4, 2, 2)
    assert torch.equal(norm.eval()(x), plain.eval()(x))


WORKER = """
import sys, torch
from torch import nn
import torch.distributed as dist
from trainers.ddp import CpuSyncBatchNorm, joined
with joined("cpu") as (group, device):
    torch.manual_seed(0)
    x = 100 + torch.randn(5, 3, 4, 4)  # one-pass variances fail at such a mean; shards of 3 and 2
    weight = torch.randn(5, 3, 4, 4)
    plain, norm = nn.BatchNorm2d(3), CpuSyncBatchNorm(3)
    own = slice(group.rank, None, group.world)
    a, b = x.clone().requires_grad_(), x[own].clone().requires_grad_()
    y, z = plain(a), norm(b)
    (y * weight).sum().backward()
    (z * weight[own]).sum().backward()
    torch.testing.assert_close(z, y[own], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.grad, a.grad[own], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-4, atol=1e-4)
    assert norm.num_batches_tracked == 1
"""


@pytest.mark.slow
def test_a_synchronised_norm_sees_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    done = torchrun(2, str(tmp_path / "worker.py"))
    assert done.returncode == 0, done.stderr


GATHERER = """
import torch
from trainers.ddp import joined
with joined("cpu") as (group, device):
    for counts in ((2, 3), (3, 0), (0, 1), (1, 1)):
        whole = torch.arange(4.0 * sum(counts)).view(-1, 4)
        own = whole[: counts[0]] if group.rank == 0 else whole[counts[0] :]
        assert torch.equal(group.gather(own if len(own) else torch.zeros(0, 0)), whole), (group, counts)
"""


@pytest.mark.slow
def test_rows_of_all_processes_are_gathered(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(GATHERER)
    done = torchrun(2, str(tmp_path / "worker.py"))
    assert done.returncode == 0, done.stderr
    rows = torch.ones(3, 4)
    assert ALONE.gather(rows) is rows


@pytest.mark.slow
class TestFit:
    @pytest.fixture
    def arch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "arch.json").write_text(ARCH.to_json())
        return "arch.json"

    def argv(self, arch: str, *more: str) -> list[str]:
        quick = ["--train-images", "53", "--val-fraction", "0.004", "--batch-size", "10", "--epochs", "3"]
        return ["-m", "trainers.fit", arch, "--precision", "fp32", "--device", "cpu", *quick, *more]

    def test_two_processes_give_the_losses_of_one(self, arch: str) -> None:
        for processes, out in ((1, "one"), (2, "two")):
            done = torchrun(processes, *self.argv(arch, "--out", out))
            assert done.returncode == 0, done.stderr
        one, two = (json.loads(Path(out, "training.json").read_text()) for out in ("one", "two"))
        assert (one["processes"], two["processes"]) == (1, 2)
        for a, b in zip(one["history"], two["history"], strict=True):
            assert [b[k] for k in TIMELESS] == pytest.approx([a[k] for k in TIMELESS], rel=1e-3)
        assert two["test_top1"] == pytest.approx(one["test_top1"], abs=0.2)
        assert done.stdout.count("epoch 1 ") + done.stdout.count("epoch 1\t") == 1  # only rank 0 prints

    def test_a_mistake_ends_all_processes(self, arch: str) -> None:
        done = torchrun(2, *self.argv(arch, "--out", "out", "--recipe", "moderm"))
        assert done.returncode != 0
        assert "did you mean 'modern'" in done.stderr
        assert not Path("out").exists()


SUPERNET = """
import torch
import space
import trainers.datasets.data
from res2net.elastic import ElasticRes2Net
from search.shared_weights import members_of
from trainers.ddp import ALONE, joined
from trainers.recipes import Config
from trainers.supernet import SupernetTrainer
data = trainers.datasets.data.load("shapes", train_images=23, val_fraction=0.002)
members = members_of(space.get("scale_card_depth", "micro"))
def gradients(group):
    # One step with 23 images, shared as 12 and 11. In double precision: deep networks amplify rounding errors.
    torch.manual_seed(0)
    model = ElasticRes2Net(space.get("scale_card_depth", "micro")).double().train()
    config = Config(epochs=1, batch_size=23, precision="fp32", device="cpu")
    trainer = SupernetTrainer(model, data, config, members, group)
    x, y = next(trainer.train_images.batches(23, group.shard))
    loss = trainer._backward(x.double(), y, 0, len(y) * group.world / 23)
    loss = group.sum(loss * len(y)) / 23
    return loss, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
with joined("cpu") as (group, device):
    assert group.world == 2
    (ours, found), (alone, expected) = gradients(group), gradients(ALONE)
    torch.testing.assert_close(ours, alone, rtol=1e-6, atol=0)  # the loss itself is computed in fp32
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
def test_two_processes_give_the_supernet_gradients_of_one(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(SUPERNET)
    done = torchrun(2, str(tmp_path / "worker.py"))
    assert done.returncode == 0, done.stderr


def test_every_batch_norm_sees_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepLab's head has norms of a class of its own."""
    monkeypatch.setattr("trainers.ddp.DistributedDataParallel", lambda model, **_: model)
    model = create(replace(ARCH, head=DeepLab(8, 4, output_stride=None)))
    Group(0, 2).wrap(model, torch.device("cpu"))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert {type(norm) for norm in norms} == {CpuSyncBatchNorm}
