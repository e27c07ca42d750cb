"""Image files as normalised batches on the device: decoded by threads, a few batches ahead of what is trained.

The decoders release the interpreter's lock, so that threads are enough: no copies of the list of files, no pickling,
and what an image gets depends on its seed alone, never on the threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from res2net.errors import UserError
from trainers.datasets.base import Files
from trainers.datasets.files import Damaged
from trainers.decode import centre_view, decode, decoders, random_view
from trainers.meta import cores

CHUNK = 8  # images that a thread decodes at a time
KEPT = 3  # batches on a CPU whose memory is used again: the one trained on, the next, one that is still looked at
Batch = tuple[Tensor, Tensor]  # float32 [B, 3, H, W] channels-last, int64 [B]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """The images of a batch, and a seed for each; without seeds their centre is taken."""

    index: np.ndarray
    seeds: np.ndarray | None = None


@dataclass(slots=True, eq=False)
class _Pixels:
    """Memory of one batch as bytes; `read` is when the device has them."""

    bytes: Tensor  # uint8 [B, H, W, 3]
    read: torch.cuda.Event | None = None


class Stream:
    """Image files, decoded as they are asked for. A damaged one is left out of its batch, and named on stderr.

    A batch of which nothing is left ends a training, and is left out of what is scored. `resize`: the shorter side that
    the centre is cut from.
    """

    def __init__(
        self,
        files: Files,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        workers: int | None = None,
        resize: int | None = None,
    ) -> None:
        self.files, self.size, self.device = files, files.image_size, device
        self.workers = workers or cores()
        self.resize = max(self.size, resize or round(self.size * 256 / 224))
        self.labels = torch.from_numpy(files.labels).to(device)
        self._damaged = Damaged(len(files))
        self._spare: list[_Pixels] = []
        self._floats: list[tuple[Tensor, int]] = []
        # As long as a row of an image: with three values alone, the arithmetic's inner loop would be three long.
        self._shift = 255 * torch.tensor(mean, dtype=torch.float32, device=device).repeat(self.size)
        self._factor = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=device).repeat(self.size))

    def __len__(self) -> int:
        return len(self.files)

    def epoch(
        self, rng: torch.Generator, parts: Sequence[slice], shard: tuple[int, int] = (0, 1), flip: bool = True
    ) -> Iterator[Batch]:
        """One pass in a random order drawn from `rng`: for each part of it a batch, of it the images `rank::world`.

        Each image is a random crop, mirrored half of the time if `flip`.
        """
        # Here, not at the first batch: what follows depends on the generator's state at the call alone.
        n, rank, world = len(self), *shard
        order = torch.randperm(n, generator=rng, device=rng.device).cpu().numpy()
        seeds = torch.randint(2**63 - 1, (n,), generator=rng, device=rng.device).cpu().numpy()
        return self._batches([_Job(order[p][rank::world], seeds[p][rank::world]) for p in parts], flip)

    def batches(self, size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """All images in order: resized, the centre; of each batch the shard's."""
        rank, world = shard
        rows = np.arange(len(self))
        return self._batches([_Job(rows[i : i + size][rank::world]) for i in range(0, len(self), size)])

    def _batches(self, jobs: Sequence[_Job], flip: bool = False) -> Iterator[Batch]:
        jobs = [job for job in jobs if len(job.index)]
        most = max((len(job.index) for job in jobs), default=1)
        ahead = 1 + -(-2 * CHUNK * self.workers // most)  # enough for every thread, also where batches are small
        waiting: deque[tuple[_Job, _Pixels, list[Future[list[int]]]]] = deque()
        with decoders(self.workers) as pool:
            for job in [*jobs, *[None] * ahead]:
                if job is not None:
                    pixels = self._memory(most)
                    waiting.append((job, pixels, self._start(pool, job, pixels, flip)))
                if waiting and (job is None or len(waiting) > ahead):
                    done, pixels, chunks = waiting.popleft()
                    batch = self._finish(done, pixels, chunks)
                    self._spare.append(pixels)
                    if batch is not None:
                        yield batch
                        del batch

    def _memory(self, count: int) -> _Pixels:
        """Memory for a batch of so many: what an earlier one has left, if it is large enough."""
        while self._spare:
            if len((pixels := self._spare.pop(0)).bytes) >= count:
                return pixels
        shape = (count, self.size, self.size, 3)
        return _Pixels(torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda"))

    def _start(self, pool: ThreadPoolExecutor, job: _Job, pixels: _Pixels, flip: bool) -> list[Future[list[int]]]:
        if pixels.read is not None:
            pixels.read.synchronize()
        starts = range(0, len(job.index), CHUNK)
        return [pool.submit(self._decode, job, pixels.bytes, start, flip) for start in starts]

    def _decode(self, job: _Job, pixels: Tensor, start: int, flip: bool) -> list[int]:
        """Decode one chunk of a batch into its rows; the rows that could not be."""
        lost = []
        for row in range(start, min(start + CHUNK, len(job.index))):
            path = f"{self.files.root}/{self.files.paths[job.index[row]]}"
            if job.seeds is None:
                choose = partial(centre_view, self.resize)
            else:
                choose = partial(random_view, self.size, flip, int(job.seeds[row]))
            try:
                decode(path, choose, pixels[row])
            except Exception as error:  # a damaged file raises almost anything
                self._damaged.add(path, error)
                lost.append(row)
        return lost

    def _finish(self, job: _Job, pixels: _Pixels, chunks: list[Future[list[int]]]) -> Batch | None:
        """The batch on the device, when its last image is there."""
        lost = [row for chunk in chunks for row in chunk.result()]
        index, n = np.delete(job.index, lost), len(job.index) - len(lost)
        if not n and job.seeds is not None:
            raise UserError(f"--batch-size: none of a batch's {len(lost)} images can be read; accepted: a larger one")
        if not n:
            return None
        if lost:
            pixels.bytes[:n] = pixels.bytes[torch.from_numpy(np.delete(np.arange(len(job.index)), lost))]
        x, y = pixels.bytes[:n].view(n, self.size, 3 * self.size), torch.from_numpy(self.files.labels[index])
        if self.device.type == "cuda":
            x, y = x.to(self.device, non_blocking=True), y.pin_memory().to(self.device, non_blocking=True)
            pixels.read = torch.cuda.current_stream(self.device).record_event()
            x = x.to(torch.float32)
        else:
            x = self._float(n, len(pixels.bytes)).copy_(x)
        return x.sub_(self._shift).mul_(self._factor).view(n, self.size, self.size, 3).permute(0, 3, 1, 2), y

    def _float(self, count: int, most: int) -> Tensor:
        """`count` rows on the CPU, of memory that nobody holds a view of: fresh pages cost more than the arithmetic."""
        self._floats = [(tensor, idle) for tensor, idle in self._floats if len(tensor) == most]
        for tensor, idle in self._floats:
            if _uses(tensor) == idle:
                return tensor[:count]
        tensor = torch.empty(most, self.size, 3 * self.size)
        if len(self._floats) < KEPT:
            self._floats.append((tensor, _uses(tensor)))
        return tensor[:count]


def _uses(tensor: Tensor) -> int:
    """How many tensors share the memory, and the autograd graphs that saved one."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
