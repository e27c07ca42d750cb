"""The model card (`README.md`) of a model folder: the network, its scores, how it was trained, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from res2net.arch import BaseArch


def machine(environment: Mapping[str, Any]) -> str:
    """Return the hardware of `trainers.meta.environment` in words."""
    hardware = environment["hardware"]
    return ", ".join([hardware["cpu"], f"{hardware['cores']} cores", *hardware["gpus"]])


def code(environment: Mapping[str, Any]) -> str:
    """Return the commit and the torch version of `trainers.meta.environment` in words."""
    return f"commit {environment['commit'] or 'unknown'}, torch {environment['versions'].get('torch')}"


def model_card(arch: BaseArch, story: str, rows: Sequence[tuple[str, str]], data: Mapping[str, Any]) -> str:
    """Return the card as Markdown: the story, a table of the rows, the stages, how to load and how to normalise.

    story: one sentence. data: the entry of that name in `training.json`: name, classes, mean and std.
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
To train it further: `python -m trainers.fit path/of/this/folder --data {data["name"]}`.
"""
