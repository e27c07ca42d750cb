"""The model card (`README.md`) of a model folder: what the network is, what it scored and how, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from res2net.arch import Arch


def machine(environment: Mapping[str, Any]) -> str:
    """The hardware of `trainers.meta.environment`, in words."""
    hardware = environment["hardware"]
    return ", ".join([hardware["cpu"], f"{hardware['cores']} cores", *hardware["gpus"]])


def code(environment: Mapping[str, Any]) -> str:
    """The commit and the torch of `trainers.meta.environment`, in words."""
    return f"commit {environment['commit'] or 'unknown'}, torch {environment['versions'].get('torch')}"


def model_card(arch: Arch, story: str, rows: Sequence[tuple[str, str]], data: Mapping[str, Any]) -> str:
    """Markdown: the story in a sentence, a table of the rows, the stages, and how to load and normalise.

    data: what `training.json` says of the data set: its name, classes, mean and std.
    """
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    stages = "\n".join(
        f"| {i} | {s.depth} | {s.planes} | {s.width} | {s.scale} | {s.cardinality} | {s.stride} |"
        for i, s in enumerate(arch.stages, 1)
    )
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
To train it on: `python -m trainers.fit path/of/this/folder --data {data["name"]}`.
"""
