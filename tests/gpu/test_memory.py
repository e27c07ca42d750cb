"""Memory that does not suffice, and several trials on one GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from res2net import Arch, Stage, UserError, create
from res2net.deploy.memory import peak_of
from res2net.folder import weights_bytes
from search.api import search
from search.worker import Job, Report, guarded, train_trial
from trainers.datasets.data import Data, Split
from trainers.loop import _epoch
from trainers.recipes import Config
from trainers.train import Trainer

ARCH = Arch((Stage(1, 2, 4, 2, 3, 2),), stem="cifar", stem_channels=4, num_classes=10)
MOST = 56  # images for which the memory of the device suffices


class Hungry(nn.Module):
    """A network that takes all memory of the GPU for `MOST` images. On a CPU, it says that more are too many."""

    def __init__(self) -> None:
        super().__init__()
        self.body = create(ARCH)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            memory = torch.cuda.get_device_properties(x.device).total_memory
            torch.empty(len(x) * (memory // MOST), dtype=torch.uint8, device=x.device)
        elif len(x) > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 200 GiB")
        return self.body(x)


def noise(n: int = 128) -> Data:
    split = Split(np.zeros((n, 3, 8, 8), np.uint8), np.arange(n) % 10)
    return Data("noise", tuple("abcdefghij"), split, split, (0.5,) * 3, (0.3,) * 3)


def config(device: torch.device, batch_size: int) -> Config:
    return Config(epochs=1, batch_size=batch_size, precision="fp32", device=str(device))


def test_too_little_memory_is_answered_with_a_batch_size_that_fits(device: torch.device) -> None:
    trainer = Trainer(Hungry(), replace(noise(), val=noise(8).val), config(device, 128))
    with pytest.raises(UserError, match=r"^`batch_size`: 128; memory does not suffice .* accepted: 32 \(a step of"):
        _epoch(trainer)
    small = Trainer(Hungry(), replace(noise(), val=noise(8).val), config(device, 32))
    assert _epoch(small).train_loss > 0


def test_a_trial_without_memory_is_lost_and_the_worker_goes_on(device: torch.device) -> None:
    data = replace(noise(), val=noise(8).val)

    def work(job: Job, data: Data) -> Iterator[Report]:
        return train_trial(job, data, lambda arch: Hungry())

    failed, ended = (list(guarded(work, Job(0, ARCH, config(device, size)), data)) for size in (128, 32))
    assert len(failed) == 1
    assert failed[0].lost
    assert failed[0].reason.startswith("out of memory with batches of 128 ")
    assert [(report.epoch, report.reason) for report in ended] == [(1, None)]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "tune"])
def test_two_trials_share_a_gpu(
    executor: str, device: torch.device, make_settings: Callable, loaded: Data, tmp_path: Path
) -> None:
    if executor == "tune":
        pytest.importorskip("ray")
    share = 0.5 if device.type == "cuda" else 0.0
    settings = make_settings(executor=executor, workers=2, trials=4, epochs=1, gpus_per_trial=share)
    result = search(settings, tmp_path / "run")
    assert len(result.trials) == 4
    assert result.ledger.trained
    assert not result.unfinished


def test_the_peak_of_a_network_counts_its_weights_and_maps(device: torch.device, tmp_path: Path) -> None:
    arch = Arch((Stage(1, 64, 64, 1, 1, 1),), stem="cifar", stem_channels=64, num_classes=10)
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights_bytes(create(arch)))
    map_of_a_batch = 4 * 8 * 64 * 64**2 / 1e6  # MB: the stem's output
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # freed memory of this process would hide the peak
        assert pool.submit(peak_of, path, arch, str(device), 8, 64).result() > map_of_a_batch
