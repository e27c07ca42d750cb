"""Images kept on the device. The device crops, mirrors and normalises each batch as one tensor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from trainers.datasets.base import Data, Files, Split
from trainers.stream import Stream
from trainers.targets import dtype_of, mover


class Images:
    """The images of a data split, kept on the device as uint8 [N, H, W, C].

    Batches are normalised float32 [B, C, H, W], channels-last.
    Labels have the form of `TARGETS`. Maps, points and boxes move with the crops and the mirroring of the images.
    padding: largest shift of a random crop in each direction, in pixels; 0 for images that are only scored.
    """

    def __init__(self, split: Split, data: Data, device: torch.device, padding: int = 0) -> None:
        self.classes, self.sizes = data.classes, data.sizes
        self.labels = _tensor(split.labels).to(device, dtype_of(data.target))
        pixels = _tensor(split.images).to(device).permute(0, 2, 3, 1)
        self.size = pixels.shape[1]
        self.move = mover(self.labels, data, self.size, padding)
        self.positions = 2 * padding + 1  # number of possible crop positions along each side
        self.pixels = _pad(pixels, padding, data.mean) if padding else pixels.contiguous()
        # All crops as one strided view [N, positions, positions, size, size, C]. A batch then takes one index
        # operation, not a loop over images.
        self.crops = self.pixels.unfold(1, self.size, 1).unfold(2, self.size, 1).permute(0, 1, 2, 4, 5, 3)
        # Scale mean and std to bytes, so that normalising a batch takes one subtraction and one product.
        self.shift = 255 * torch.tensor(data.mean, device=device)
        self.factor = 1 / (255 * torch.tensor(data.std, device=device))

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(
        self, rng: torch.Generator, parts: Sequence[slice], shard: tuple[int, int] = (0, 1), flip: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one pass over the images, each image cropped at a random place.

        rng: draws the order of the images, the crops and the mirroring.
        parts: one slice of the random order for each batch.
        shard: (rank, world). A batch holds every `world`-th image of a slice, starting at image `rank`. The crop of an
        image does not depend on the shard, because every process draws the numbers of all images.
        flip: whether to mirror images with probability 1/2.
        """
        n, device, (rank, world) = len(self), self.labels.device, shard
        order = torch.randperm(n, generator=rng, device=device)
        offsets = torch.randint(self.positions, (2, n), generator=rng, device=device)
        flips = torch.rand(n, generator=rng, device=device) < 0.5 if flip else None
        for part in parts:
            own = slice(part.start + rank, part.stop, world)
            yield self.batch(order[own], offsets[:, own], None if flips is None else flips[own])

    def batch(self, index: Tensor, offsets: Tensor, flips: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the images at rows `index` [B], cropped, mirrored and normalised, and their labels.

        offsets: row and column of each crop, [2, B]. flips: whether to mirror each image, [B].
        """
        x = self.crops[index, offsets[0], offsets[1]]
        if flips is not None:
            x = torch.where(flips[:, None, None, None], x.flip(2), x)
        return self._normalise(x), self.move(index, offsets, flips)

    def batches(self, size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order, without their padding, in batches of `size` over all processes."""
        for i in range(0, len(self), size):
            own = slice(i + shard[0], min(i + size, len(self)), shard[1])
            if self.positions == 1:
                yield self._normalise(self.pixels[own]), self.labels[own]
            else:
                index = torch.arange(len(self), device=self.labels.device)[own]
                yield self.batch(index, torch.full((2, len(index)), self.positions // 2, device=index.device), None)

    def _normalise(self, x: Tensor) -> Tensor:
        return x.to(torch.float32).sub_(self.shift).mul_(self.factor).permute(0, 3, 1, 2)


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Arrays that Ray shares between processes are read-only. `Images` never writes to the tensors of such arrays.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _pad(pixels: Tensor, padding: int, mean: tuple[float, ...]) -> Tensor:
    """Return the images with a border of the mean colour, which normalisation turns into zero."""
    n, h, w, c = pixels.shape
    colour = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8, device=pixels.device)
    padded = colour.expand(n, h + 2 * padding, w + 2 * padding, c).contiguous()
    padded[:, padding : padding + h, padding : padding + w] = pixels
    return padded


Source = Images | Stream


def source(
    split: Split | Files, data: Data, device: torch.device, padding: int = 0, workers: int | None = None
) -> Source:
    """Return the source of a data split's batches: `Images` for images in memory, `Stream` for image files.

    padding: largest shift of a random crop in each direction, in pixels; `Images` only.
    workers: threads that decode files, one per core if None; `Stream` only.
    """
    if isinstance(split, Files):
        return Stream(split, data.mean, data.std, device, workers, classes=data.classes, sizes=data.sizes)
    return Images(split, data, device, padding)
