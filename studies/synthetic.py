"""Trials without training: accuracy is a formula of the network, for tests and benchmarks of the search itself."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from res2net.arch import Arch
from res2net.cost import cost
from res2net.factory import create
from res2net.folder import weights_bytes
from res2net.latency import LatencyTable
from search.carriers import plan
from search.worker import Job, Report
from space import Space
from trainers.datasets.data import Data, Split

# A YAML file with a space of 12 networks that build in milliseconds. At 32 x 32 they have 165,000 to 430,000 MACs, six
# of them less than 220,000.
TINY_SPACE = """
base: micro
planes: [4, 8]
strides: [4, 2]
stem_channels: 4
choices:
  scale: [1, 2, 4]
  cardinality: [1, 2]
  depth: [1, 2]
defaults:
  width: 64
"""
TOP, HALF_WAY = 95.0, 2e6  # limit of the accuracy in % for large MACs; MACs at which the accuracy is half this limit
NOISE = 1.0  # largest deviation in % between networks of equal MACs and their mean


def accuracy(arch: Arch, epoch: int, image_size: int = 32, seed: int = 0) -> float:
    """Return the top-1 (%) after `epoch` epochs: an S-curve in log MACs; each epoch gains half of the rest."""
    macs = cost(arch, image_size).macs
    noise = random.Random(hashlib.sha256(f"{seed} {arch.key()}".encode()).digest()).uniform(-NOISE, NOISE)
    ceiling = TOP / (1 + math.sqrt(HALF_WAY / macs)) + noise
    return max(0.0, ceiling * (1 - 0.5**epoch))


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A `search.worker.Work` that reports `accuracy`; with `weights`, also the weights of an untrained network."""

    image_size: int = 32
    seed: int = 0
    weights: bool = False

    def __call__(self, job: Job, data: Data) -> Iterator[Report]:
        for epoch in range(1, job.config.epochs + 1):
            last = epoch == job.config.epochs
            top1 = accuracy(job.arch, epoch, self.image_size, self.seed)
            loss = math.log(100 / max(top1, 1e-6))
            yield Report(epoch, top1, loss, loss, weights=self._weights(job) if last and self.weights else None)

    def _weights(self, job: Job) -> bytes:
        torch.manual_seed(job.config.seed)
        return weights_bytes(create(job.arch))


def latency_table(space: Space, networks: Sequence[Arch] = ()) -> LatencyTable:
    """Return a latency table of a space, and of more networks, by a formula in which splits are slow."""
    needed = sorted(plan(space, networks).needed, key=lambda piece: piece.key)
    entries = tuple((piece.key, 0.1 + 0.2 * piece.scale + 0.001 * piece.width, 0.0) for piece in needed)
    return LatencyTable("cpu", "formula", "optimized", 1, 1, space.image_size, (("torch", "1"),), entries, 0.05, 1.1)


def no_images() -> Data:
    """Return a data set of one blank image, for work that reads no images."""
    empty = Split(np.zeros((1, 3, 32, 32), np.uint8), np.zeros(1, np.int64))
    return Data("shapes", tuple("0123456789"), empty, empty, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
