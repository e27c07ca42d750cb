"""The model card (`README.md`) of a model folder: the network, its scores, its training and its use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from res2net.arch import BaseArch


def machine(environment: Mapping[str, Any]) -> str:
    """Return the hardware as text. environment: the result of `trainers.meta.environment`."""
    hardware = environment["hardware"]
    return ", ".join([hardware["cpu"], f"{hardware['cores']} cores", *hardware["gpus"]])


def code(environment: Mapping[str, Any]) -> str:
    """Return the commit and the torch version as text. environment: the result of `trainers.meta.environment`."""
    return f"commit {environment['commit'] or 'unknown'}, torch {environment['versions'].get('torch')}"


def model_card(arch: BaseArch, story: str, rows: Sequence[tuple[str, str]], data: Mapping[str, Any], task: str) -> str:
    """Return the model card as Markdown.

    The card also shows the network's stages, and how to load the network and normalise images.

    arch: the network's architecture.
    story: one sentence that introduces the network.
    rows: the rows of a table: a name and a text each.
    data: the entry `data` of `training.json`, with the keys name, classes, mean and std.
    """
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    stages = "\n".join(
        f"| {i} | {s.depth} | {s.planes} | {s.width} | {s.scale} | {s.cardinality} | {s.stride} |"
        for i, s in enumerate(arch.stages, 1)
    )
    option = "" if task == "classification" else f" --task {task}"
    mean, std = (", ".join(f"{v:.4f}" for v in data[k]) for k in ("mean", "std"))
    return f"""# {arch}

{story}

| | |
|---|---|
{table}

| stage | depth | planes | width | scale | cardinality | stride |
|---|---|---|---|---|---|---|
{stages}

```python
import res2net

model = res2net.load("path/of/this/folder")  # eval mode
# images: float [N, {arch.in_channels}, H, W] in 0..1, normalised with
mean = [{mean}]
std = [{std}]
```

Classes: {", ".join(data["classes"])}.
To train it further: `python -m trainers.fit path/of/this/folder --data {data["name"]}{option}`.
"""
