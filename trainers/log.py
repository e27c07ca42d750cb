"""The log of a training: `log.csv`, and events for TensorBoard."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from res2net.files import write_atomic
from res2net.folder import BOARD_FOLDER, LOG_FILE
from trainers.tasks.task import Task
from trainers.train import Epoch


class Log:
    """Writes the log of a training.

    folder: the training's folder.
    done_epochs: number of epochs in the checkpoint that a training resumes from. Events of later epochs are discarded,
    and the first call of `add` replaces all rows.
    """

    def __init__(self, folder: Path, task: Task, done_epochs: int = 0) -> None:
        from tensorboardX import SummaryWriter  # slow to import

        self.folder = folder
        self.tags = {
            "train_loss": "loss/train",
            "val_loss": "loss/val",
            "images_per_second": "speed/images_per_second",
            **{f"val_{m.name}": f"{m.quantity}/val_{m.name}" for m in task.metrics},
        }
        if not done_epochs:
            shutil.rmtree(folder / BOARD_FOLDER, ignore_errors=True)  # events of an earlier training
        # A killed process may have logged an epoch without writing a checkpoint. The resumed training logs this epoch
        # again, so discard the old events of the epoch.
        self.board = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=done_epochs + 1 if done_epochs else None)

    def add(self, epochs: Sequence[Epoch], lr: float) -> None:
        """Write all epochs to `log.csv`, and add events for the last epoch. lr: learning rate of the last step."""
        last = epochs[-1]
        write_atomic(self.folder / LOG_FILE, table(epochs))
        for name, value in last.row().items():
            if name in self.tags and value == value:  # validation values are NaN without a validation split
                self.board.add_scalar(self.tags[name], value, last.epoch)
        self.board.add_scalar("lr", lr, last.epoch)
        self.board.flush()

    def close(self) -> None:
        """Flush and close the events."""
        self.board.close()


def table(epochs: Sequence[Epoch]) -> str:
    """Return the epochs as CSV with one row for each epoch. NaN becomes an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(epochs[0].row()), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if v == v else "" for k, v in e.row().items()} for e in epochs)
    return out.getvalue()
