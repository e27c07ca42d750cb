"""Image files on the device: pinned memory that is not written before the GPU has read it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from streams import parts, rng, taken

from trainers.datasets import Files
from trainers.datasets.files import MEAN, STD
from trainers.datasets.folder import Folder
from trainers.stream import Stream

CPU = torch.device("cpu")
SIZE, IMAGES = 32, 48


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Write images of one colour each, all different: a row of a wrong image is far from the right one."""
    root = tmp_path_factory.mktemp("folder")
    for i in range(IMAGES):
        folder = root / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 48, 3), 5 * i, np.uint8)).save(folder / f"{i:02}.png")
    return Folder(root, SIZE).train()


def stream(files: Files, device: torch.device) -> Stream:
    return Stream(files, MEAN, STD, device, workers=2)


def test_batches_are_those_of_the_cpu(files: Files, device: torch.device) -> None:
    x, y = taken(stream(files, device).epoch(rng(4), parts(IMAGES, 4)))
    expected, labels = taken(stream(files, CPU).epoch(rng(4), parts(IMAGES, 4)))
    assert {x.device.type, y.device.type} == {device.type}
    torch.testing.assert_close(x.cpu(), expected)
    assert torch.equal(y.cpu(), labels)


def test_a_busy_device_gets_the_right_images(files: Files, device: torch.device) -> None:
    """The GPU reads a batch long after the host has queued its copy. Until then, no thread writes to the memory."""
    expected, _ = taken(stream(files, CPU).epoch(rng(4), parts(IMAGES, 4)))
    work = torch.ones(4096 if device.type == "cuda" else 8, 4096 if device.type == "cuda" else 8, device=device)
    found = []
    for x, _ in stream(files, device).epoch(rng(4), parts(IMAGES, 4)):
        for _ in range(20):
            work = work @ work * 1e-4
        found.append(x.clone())
    torch.testing.assert_close(torch.cat(found).cpu(), expected)


def test_memory_is_pinned_for_a_gpu_alone(files: Files, device: torch.device) -> None:
    images = stream(files, device)
    held = images._memory(4)
    assert held.bytes.is_pinned() == (device.type == "cuda")
    for _ in images.epoch(rng(), parts(IMAGES, 4)):
        pass
    spare = list(images._spare)
    assert spare
    assert all((pixels.read is not None) == (device.type == "cuda") for pixels in spare)
