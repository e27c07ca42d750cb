"""Images that live on the device: cropped, flipped and normalised there, a batch as one tensor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from trainers.datasets.base import Data, Files, Split
from trainers.stream import Stream


class Images:
    """A split on the device: uint8 `[N, H, W, C]`, normalised batch by batch into channels-last `[B, C, H, W]`."""

    def __init__(self, split: Split, data: Data, device: torch.device, padding: int = 0) -> None:
        self.labels = _tensor(split.labels).to(device, torch.int64)
        pixels = _tensor(split.images).to(device).permute(0, 2, 3, 1)
        self.size = pixels.shape[1]
        self.positions = 2 * padding + 1  # of a crop, along a side
        self.pixels = _pad(pixels, padding, data.mean) if padding else pixels.contiguous()
        # Every position of the crop as a view: [N, 2p+1, 2p+1, C, size, size], reordered to end in [.., size, size, C].
        self.crops = self.pixels.unfold(1, self.size, 1).unfold(2, self.size, 1).permute(0, 1, 2, 4, 5, 3)
        self.shift = 255 * torch.tensor(data.mean, device=device)
        self.factor = 1 / (255 * torch.tensor(data.std, device=device))

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(
        self, rng: torch.Generator, parts: Sequence[slice], shard: tuple[int, int] = (0, 1), flip: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in a random order drawn from `rng`: a batch for each part of it, of which the shard's images.

        shard: (rank, world). What an image gets follows from `rng` alone, however many share the work.
        """
        n, device, (rank, world) = len(self), self.labels.device, shard
        order = torch.randperm(n, generator=rng, device=device)
        offsets = torch.randint(self.positions, (2, n), generator=rng, device=device)
        flips = torch.rand(n, generator=rng, device=device) < 0.5 if flip else None
        for part in parts:
            own = slice(part.start + rank, part.stop, world)
            yield self.batch(order[own], offsets[:, own], None if flips is None else flips[own])

    def batch(self, index: Tensor, offsets: Tensor, flips: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images `index`, each cropped at its row and column of `offsets` `[2, B]` and mirrored where `flips`."""
        x = self.crops[index, offsets[0], offsets[1]]
        if flips is not None:
            x = torch.where(flips[:, None, None, None], x.flip(2), x)
        return self._normalise(x), self.labels[index]

    def batches(self, size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, unchanged (for images that were not padded); of each batch the shard's."""
        for i in range(0, len(self), size):
            own = slice(i + shard[0], min(i + size, len(self)), shard[1])
            yield self._normalise(self.pixels[own]), self.labels[own]

    def _normalise(self, x: Tensor) -> Tensor:
        return x.to(torch.float32).sub_(self.shift).mul_(self.factor).permute(0, 3, 1, 2)


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Arrays shared between processes are read-only, and so are our uses of them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _pad(pixels: Tensor, padding: int, mean: tuple[float, ...]) -> Tensor:
    """Frame each image with the mean colour, which is zero once normalised."""
    n, h, w, c = pixels.shape
    colour = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8, device=pixels.device)
    padded = colour.expand(n, h + 2 * padding, w + 2 * padding, c).contiguous()
    padded[:, padding : padding + h, padding : padding + w] = pixels
    return padded


Source = Images | Stream


def source(
    split: Split | Files, data: Data, device: torch.device, padding: int = 0, workers: int | None = None
) -> Source:
    """What gives a split's batches: on the device where the images are in memory, else read from files as they go.

    padding: pixels that training images are shifted by at most. workers: threads that decode files.
    """
    if isinstance(split, Files):
        return Stream(split, data.mean, data.std, device, workers)
    return Images(split, data, device, padding)
