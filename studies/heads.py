"""Count parameters and MACs of each head over published networks: `python -m studies.heads`.

The image sizes and numbers of outputs are those of each method's paper. The table also shows published figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from res2net import cost, named
from res2net.commands import Parser, run_main
from studies.bench import first_line
from trainers.start import adapted
from trainers.tasks import TASKS

PROG = "python -m studies.heads"
NETWORKS = ("resnet50", "res2net50_26w_4s")
# Task, number of outputs, pixels along a side. 513: DeepLab v3+ on VOC. 256: SimpleBaseline, whose images are
# 256 x 192. 800: the shorter side of images in detection.
CASES = (
    ("classification", 1000, 224),
    ("segment", 21, 513),
    ("saliency", 1, 320),
    ("keypoints", 17, 256),
    ("detect", 91, 800),
    ("instances", 91, 800),
)
# Parameters (millions) of published networks with the same head, by network and task.
PUBLISHED = {
    ("resnet50", "keypoints"): "34.0 M (arXiv 1902.09212, Table 1)",
    ("resnet50", "detect"): "41.76 M without 0.05 M of norms (torchvision)",
    ("resnet50", "instances"): "44.40 M without 0.05 M of norms (torchvision)",
}


def table() -> pd.DataFrame:
    """Return a row for each network and task."""
    rows = []
    for name in NETWORKS:
        for key, outputs, size in CASES:
            task = TASKS[key]
            arch = adapted(named(name), outputs, 3, task, size)
            whole = cost(arch, size)
            # With 0 outputs, the backbone keeps the output stride of its head.
            body = cost(replace(arch, num_classes=0), size)
            rows.append(
                {
                    "network": name,
                    "task": key,
                    "head": task.head_kind or "classifier",
                    "pixels": size,
                    "params_M": round(whole.params / 1e6, 2),
                    "head_params_M": round((whole.params - body.params) / 1e6, 2),
                    "GMACs": round(whole.macs / 1e9, 2),
                    "head_GMACs": round((whole.macs - body.macs) / 1e9, 2),
                    "published": PUBLISHED.get((name, key), ""),
                }
            )
    return pd.DataFrame(rows)


def build_parser() -> Parser:
    """Return the command's options."""
    return Parser(prog=PROG, description=first_line(__doc__))


def _main(args: argparse.Namespace) -> None:
    print(table().to_string(index=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
