"""Model folders that tests train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from res2net import Arch
from trainers import evaluate, fit
from trainers.fit import FitConfig


def trained_folder(base: Path, arch: Arch, data: str, task: str) -> Path:
    """Return the model folder of a network that was trained for two epochs, inside the folder `base`."""
    (base / "arch.json").write_text(arch.to_json())
    known = {"data": data, "task": task, "epochs": 2, "device": "cpu", "precision": "fp32"}
    assert not fit.fit(FitConfig(base / "arch.json", base / "out", **known)).interrupted
    return base / "out"


def evaluated_with_pictures(folder: Path, data: str, picture: Path) -> dict[str, Any]:
    """Evaluate a model folder, write a sheet of two images, and return the content of `training.json`."""
    command = [str(folder), "--data", data, "--device", "cpu", "--precision", "fp32", "--count", "2"]
    assert evaluate.main([*command, "--pictures", str(picture)]) == 0
    assert Image.open(picture).size[1] > 2 * 192
    return json.loads((folder / "training.json").read_text())
