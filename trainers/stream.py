"""Normalised batches of image files on the device. Threads decode the files a few batches ahead of the training.

Images may have masks or annotations, which get the geometry of their images (`trainers.datasets.pairs`).

The decoders release the interpreter's lock, so threads suffice. Worker processes would copy the list of files and
pickle every batch. Each random crop has a separate seed, so the pixels do not depend on the number of threads.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from res2net.errors import UserError
from trainers.datasets.base import COCO_SIZES, Files
from trainers.datasets.files import Damaged, choose_view, decode_row, target_form
from trainers.datasets.pairs import colour_of
from trainers.decode import decoders
from trainers.meta import cores

CHUNK = 8  # images that a thread decodes per task
KEPT = 3  # float buffers reused on a CPU: for the current batch, the next batch, and a batch that is still in use
Batch = tuple[Tensor, Tensor]  # float32 [B, 3, H, W] channels-last; int64 [B], or targets (`TARGETS`)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """The images of one batch: rows in the list of files, and a seed for each random crop.

    Without seeds, decoding takes the centre of each image, or the whole image if it has a mask or annotations.
    """

    index: np.ndarray  # int64 [B]
    seeds: np.ndarray | None = None  # int64 [B]


@dataclass(slots=True, eq=False)
class _Pixels:
    """Memory for one batch of decoded bytes."""

    bytes: Tensor  # uint8 [B, H, W, 3]
    targets: Tensor | None  # [B, ...], see `target_form`
    read: torch.cuda.Event | None = None  # fires when the GPU has copied the bytes, which must not change before


def scored_side(size: int) -> int:
    """Return the shorter side of a scored image before the centre square of `size` pixels is cut out.

    The ratio 256/224 is usual on ImageNet.
    """
    return round(size * 256 / 224)


class Stream:
    """Batches of image files, decoded on demand.

    The labels of images with masks or annotations are those of `TARGETS`. The padding of a mask is `VOID`.

    A damaged file is left out of its batch and named on stderr. A training batch without a readable image raises
    `UserError`. A scoring batch without a readable image is skipped.

    A batch is never overwritten while any tensor or autograd graph shares its memory.

    files: the image files and their labels.
    mean, std: normalisation of each channel, in 0..1.
    device: device of the batches.
    workers: decoding threads; one per core if None.
    resize: shorter side of a scored image in pixels, before the centre square is cut out. None: see `scored_side`.
    Has no effect on images with masks or annotations, which are scored whole.
    classes: names of the classes.
    sizes: bounds between small, medium and large objects.
    """

    def __init__(
        self,
        files: Files,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        workers: int | None = None,
        resize: int | None = None,
        classes: tuple[str, ...] = (),
        sizes: tuple[float, float] = COCO_SIZES,
    ) -> None:
        self.classes, self.sizes = classes, sizes
        self.files, self.size, self.device = files, files.image_size, device
        self.workers = workers or cores()
        self.resize = max(self.size, resize or scored_side(self.size))
        self.labels = torch.from_numpy(files.labels).to(device)
        self._damaged, self._colour = Damaged.of(files), colour_of(mean)
        self._spare: list[_Pixels] = []
        self._floats = _Floats()
        # Repeat mean and std over a row of pixels. With only three values, the inner loop of the arithmetic would have
        # length three, which is slow.
        self._shift = 255 * torch.tensor(mean, dtype=torch.float32, device=device).repeat(self.size)
        self._factor = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=device).repeat(self.size))

    def __len__(self) -> int:
        return len(self.files)

    def epoch(
        self, rng: torch.Generator, parts: Sequence[slice], shard: tuple[int, int] = (0, 1), flip: bool = True
    ) -> Iterator[Batch]:
        """Return an iterator over the batches of one pass, each image a random crop (`choose_view`).

        rng: draws the order of the images, and a seed for each crop.
        parts: one slice of the random order for each batch.
        shard: (rank, world). A batch holds every `world`-th image of a slice, starting at image `rank`.
        flip: whether to mirror images with probability 1/2.
        """
        # The images must depend on the state of `rng` at the call. So this function is no generator: the body of a
        # generator would draw the numbers only at the first batch.
        n, rank, world = len(self), *shard
        order = torch.randperm(n, generator=rng, device=rng.device).cpu().numpy()
        seeds = torch.randint(2**63 - 1, (n,), generator=rng, device=rng.device).cpu().numpy()
        return self._batches([_Job(order[p][rank::world], seeds[p][rank::world]) for p in parts], flip)

    def batches(self, size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Return an iterator over all images in order, in batches of `size` images over all processes.

        Each image is resized and cut to the centre square. An image with a mask or annotations is kept whole.
        """
        rank, world = shard
        rows = np.arange(len(self))
        return self._batches([_Job(rows[i : i + size][rank::world]) for i in range(0, len(self), size)])

    def _batches(self, jobs: Sequence[_Job], flip: bool = False) -> Iterator[Batch]:
        jobs = [job for job in jobs if len(job.index)]
        most = max((len(job.index) for job in jobs), default=1)
        # Decode so many batches ahead that two chunks per thread wait in the queue. Then no thread is idle, even if
        # batches are small.
        ahead = 1 + -(-2 * CHUNK * self.workers // most)
        waiting: deque[tuple[_Job, _Pixels, list[Future[list[int]]]]] = deque()
        # A consumer that stops early closes this generator. This leaves the `with` block, which stops the threads.
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
                        del batch  # otherwise this frame would hold the batch and block the reuse of its memory

    def _memory(self, count: int) -> _Pixels:
        """Return memory for a batch of bytes. Reuse the memory of an earlier batch if it is large enough."""
        while self._spare:
            if len((pixels := self._spare.pop(0)).bytes) >= count:
                return pixels
        shape = (count, self.size, self.size)
        # Pin the memory, so that the copy to the GPU does not block this thread.
        pin = self.device.type == "cuda"
        form = target_form(self.files)
        targets = torch.empty((count, *form[0]), dtype=form[1], pin_memory=pin) if form else None
        return _Pixels(torch.empty((*shape, 3), dtype=torch.uint8, pin_memory=pin), targets)

    def _start(self, pool: ThreadPoolExecutor, job: _Job, pixels: _Pixels, flip: bool) -> list[Future[list[int]]]:
        if pixels.read is not None:
            pixels.read.synchronize()  # the GPU may still be copying an earlier batch from this memory
        starts = range(0, len(job.index), CHUNK)
        return [pool.submit(self._decode, job, pixels, start, flip) for start in starts]

    def _decode(self, job: _Job, pixels: _Pixels, start: int, flip: bool) -> list[int]:
        """Decode the chunk that begins at row `start` of a batch into `pixels`; return the rows of damaged files."""
        lost = []
        for row in range(start, min(start + CHUNK, len(job.index))):
            index, seed = int(job.index[row]), None if job.seeds is None else int(job.seeds[row])
            choose = choose_view(self.files, index, self.resize, flip, seed)
            target = None if pixels.targets is None else pixels.targets[row]
            if not decode_row(self.files, index, choose, self._damaged, pixels.bytes[row], target, self._colour):
                lost.append(row)
        return lost

    def _finish(self, job: _Job, pixels: _Pixels, chunks: list[Future[list[int]]]) -> Batch | None:
        """Wait for the chunks of a batch and return the batch on the device.

        Return None for a scored batch without a readable image.
        """
        lost = [row for chunk in chunks for row in chunk.result()]
        index, n = np.delete(job.index, lost), len(job.index) - len(lost)
        if not n and job.seeds is not None:
            raise UserError(
                f"`batch_size`: none of a batch's {len(lost)} images can be read; accepted: a larger batch size"
            )
        if not n:
            return None
        if lost:
            whole = torch.from_numpy(np.delete(np.arange(len(job.index)), lost))
            pixels.bytes[:n] = pixels.bytes[whole]
            if pixels.targets is not None:
                pixels.targets[:n] = pixels.targets[whole]
        # Copy the targets, because later batches overwrite their memory.
        y = torch.from_numpy(self.files.labels[index]) if pixels.targets is None else pixels.targets[:n].clone()
        return self._normalised(pixels.bytes[:n].view(n, self.size, 3 * self.size), pixels), self._on_device(y)

    def _normalised(self, x: Tensor, pixels: _Pixels) -> Tensor:
        """Return bytes [n, H, 3 W] as normalised floats [n, 3, H, W] on the device."""
        if self.device.type == "cpu":
            floats = self._floats.take((len(pixels.bytes), self.size, 3 * self.size))[: len(x)].copy_(x)
        else:
            # Copy bytes instead of floats to the device, because bytes take a quarter of the traffic.
            floats = x.to(self.device, non_blocking=self.device.type == "cuda").to(torch.float32)
            if self.device.type == "cuda":
                pixels.read = torch.cuda.Event()
                pixels.read.record(torch.cuda.current_stream(self.device))
        floats = floats.sub_(self._shift).mul_(self._factor)
        return floats.view(len(x), self.size, self.size, 3).permute(0, 3, 1, 2)

    def _on_device(self, y: Tensor) -> Tensor:
        return y.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else y.to(self.device)


class _Floats:
    """Up to `KEPT` reused float buffers on the CPU. Page faults of fresh memory would cost more than the normalisation.

    `take` makes a new numpy view of a buffer, and the storage of the returned tensor keeps this view alive. The storage
    lives as long as any tensor or autograd graph uses it. So a dead weak reference to the view means that the buffer is
    free.
    """

    def __init__(self) -> None:
        self._lent: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Return an uninitialised float32 tensor of this shape, whose memory nothing else uses."""
        self._lent = [(buffer, loan) for buffer, loan in self._lent if buffer.shape == shape]
        free = next((i for i, (_, loan) in enumerate(self._lent) if loan() is None), None)
        # Let torch allocate the buffer: torch's alignment suits vector instructions, but numpy's may be only 16 bytes.
        buffer = torch.empty(shape, dtype=torch.float32).numpy() if free is None else self._lent.pop(free)[0]
        view = buffer[:]
        if len(self._lent) < KEPT:  # beyond KEPT, a buffer is freed with its batch
            self._lent.append((buffer, weakref.ref(view)))
        return torch.from_numpy(view)
