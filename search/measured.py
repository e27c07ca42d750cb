"""The results of `python -m search.measure` in a run's folder: a row of values for each network of the front."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from res2net.errors import UserError
from res2net.files import write_atomic

FILE = "measured.json"
MEMORY, INT8_TOP1 = "peak_mb", "int8_val_top1"


def column(form: str, batch_size: int) -> str:
    """Return the name of the column that holds the latency in ms of a form and a batch size."""
    return f"ms_{form.replace('-', '_')}_{batch_size}"


@dataclass(frozen=True, slots=True)
class Measured:
    """The values that were measured on one device.

    device: the device, its hardware and the threads, in words.
    versions: the versions of packages in the measurement. date: the date of the measurement.
    shown: the column that plots show.
    rows: for each network's key, its values by column. Spreads have the column's name and `_iqr`.
    """

    device: str
    versions: Mapping[str, str]
    date: str
    shown: str
    rows: Mapping[str, Mapping[str, float]]

    def write(self, folder: Path) -> None:
        """Write the values to a run's folder."""
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    def joined(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a table of networks with the values as further columns; NaN for networks that were not measured."""
        values = pd.DataFrame([{"key": key, **row} for key, row in self.rows.items()])
        return frame.merge(values, on="key", how="left")


def read(folder: Path) -> Measured | None:
    """Return the values in a run's folder; None without any."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Measured(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        text = f"{path}: not as python -m search.measure writes it ({error}); accepted: no such file"
        raise UserError(text) from None
