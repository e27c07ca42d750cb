"""Model folders that tests train."""

from __future__ import annotations

from pathlib import Path

from res2net import Arch
from trainers import fit
from trainers.fit import FitConfig


def trained_folder(base: Path, arch: Arch, data: str, task: str) -> Path:
    """Return the model folder of a network that was trained for two epochs, inside the folder `base`."""
    (base / "arch.json").write_text(arch.to_json())
    known = {"data": data, "task": task, "epochs": 2, "device": "cpu", "precision": "fp32"}
    assert not fit.fit(FitConfig(base / "arch.json", base / "out", **known)).interrupted
    return base / "out"
