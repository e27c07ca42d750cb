"""What a training writes as it goes: `log.csv`, and events for TensorBoard."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from res2net.files import write_atomic
from res2net.folder import BOARD_FOLDER, LOG_FILE
from trainers.train import Epoch

SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "val_top1": "accuracy/val_top1",
    "val_top5": "accuracy/val_top5",
    "images_per_second": "speed/images_per_second",
}


class Log:
    """The log of a training in its folder; what an earlier process wrote of epochs still to come is taken back."""

    def __init__(self, folder: Path, done_epochs: int = 0) -> None:
        from tensorboardX import SummaryWriter  # slow to import

        self.folder = folder
        if not done_epochs:
            shutil.rmtree(folder / BOARD_FOLDER, ignore_errors=True)  # of a training that this one takes the place of
        self.board = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=done_epochs + 1 if done_epochs else None)

    def add(self, epochs: Sequence[Epoch], lr: float) -> None:
        """Write the last of these epochs, which ended with that learning rate."""
        last = epochs[-1]
        write_atomic(self.folder / LOG_FILE, table(epochs))
        for name, tag in SCALARS.items():
            if (value := getattr(last, name)) == value:  # no NaN: there may be no validation split
                self.board.add_scalar(tag, value, last.epoch)
        self.board.add_scalar("lr", lr, last.epoch)
        self.board.flush()

    def close(self) -> None:
        """Flush and close the events."""
        self.board.close()


def table(epochs: Sequence[Epoch]) -> str:
    """CSV, a row an epoch, empty where there is no number."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(asdict(epochs[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if v == v else "" for k, v in asdict(e).items()} for e in epochs)
    return out.getvalue()
