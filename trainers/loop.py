"""Run the epochs of a training, with a progress bar, a log and checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from res2net.errors import UserError
from trainers import resume
from trainers.device import out_of_memory
from trainers.log import Log
from trainers.tasks.task import described
from trainers.train import Epoch, Trainer


def run_epochs(trainer: Trainer, run: resume.Run, folder: Path, epochs: list[Epoch], console: Console) -> None:
    """Train the remaining epochs and append them to `epochs`. Only the first process writes to the folder."""
    config, log = run.config, None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            steps = bar.add_task("steps", total=trainer.total_steps, completed=trainer.done_steps)
            trainer.on_step = lambda: bar.advance(steps)
            while trainer.done_epochs < config.epochs:
                e = _epoch(trainer)
                epochs.append(e)
                if trainer.group.rank == 0:
                    # Create the folder only now, so that a training stopped in its first epoch leaves nothing behind.
                    folder.mkdir(parents=True, exist_ok=True)
                    log = log or Log(folder, trainer.task, len(epochs) - 1)
                    # Write the log before the checkpoint. After a crash between the two, the epoch is trained and
                    # logged again. With the opposite order, the log would then lack the epoch's row and events.
                    log.add(epochs, trainer.optimizer.param_groups[0]["lr"])
                    resume.save(folder, run, trainer, epochs)
                bar.console.print(_line(e, trainer), highlight=False)
    finally:
        if log is not None:
            log.close()


def _line(e: Epoch, trainer: Trainer) -> str:
    epochs = trainer.config.epochs
    val = f"  val {described(trainer.task, e.val, 6)}" if len(trainer.val_images) else ""
    return (
        f"epoch {e.epoch:>{len(str(epochs))}}  train loss {e.train_loss:.4f}{val}  {e.images_per_second:,.0f} images/s"
    )


def _epoch(trainer: Trainer) -> Epoch:
    """Train the next epoch. If memory does not suffice, raise `UserError` with a batch size that fits."""
    try:
        return trainer.epoch()
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Search outside the `except` block: inside it, the exception's frames keep the failed step's tensors in memory.
    size, fits = trainer.config.batch_size, largest_batch(trainer)
    accepted = f"{fits} (a step of this size fits)" if fits else "a smaller network or smaller images"
    raise UserError(f"`batch_size`: {size}; memory does not suffice for a step; accepted: {accepted}")


def largest_batch(trainer: Trainer) -> int | None:
    """Try steps with a half, a quarter, ... of the batch size. Return the first size that fits into memory, or None.

    The attempted steps change the weights, so the training cannot continue. With several processes, return None
    without a step: all processes must take part in a step, and the other processes may not have run out of memory.
    """
    size = trainer.config.batch_size // 2
    while size and trainer.group.world == 1:
        try:
            trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()  # has no effect without CUDA
            x, y = next(trainer.train_images.batches(size))
            trainer._step(x, y, trainer.total_steps - 1)  # the first steps may train on smaller images
            return size
        except Exception as error:
            if not out_of_memory(error):
                raise
        size //= 2
    return None
