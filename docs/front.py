"""Draw the README's picture, `docs/front.png`, from the front of a recorded search: `python docs/front.py`."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from search.report.figures import label_counts, new_figure, png, tidy

HERE = Path(__file__).parent
FRONT = HERE.parent / "studies" / "results" / "front-cifar10-60m" / "fronts.csv"
STAGE = re.compile(r"\d+x\[\d+w (\d+)s \d+c\]")  # all stages of this space share their scale


def main() -> None:
    """Draw each network in the colour of its scale, with a label where the scale first occurs."""
    front = pd.read_csv(FRONT)
    scale = [int(STAGE.match(network)[1]) for network in front.network]  # type: ignore[index]  # each one matches
    figure = new_figure(8, 4)
    ax = figure.add_subplot()
    ax.step(front.macs, front.test_top1, where="post", color="0.6", zorder=1)
    ax.scatter(front.macs, front.test_top1, c=scale, cmap="viridis", s=60, zorder=2)
    for i, splits in enumerate(scale):
        if splits not in scale[:i]:
            text = "1 split" if splits == 1 else f"{splits} splits"
            place = front.macs[i], front.test_top1[i]
            ax.annotate(text, place, (8, -4), textcoords="offset points", fontsize=9, va="top")
    ax.set_xscale("log")
    label_counts(ax.xaxis)
    ax.set_xlim(front.macs.min() * 0.85, front.macs.max() * 1.45)
    ax.set_ylim(front.test_top1.min() - 1.2, front.test_top1.max() + 1)
    tidy(ax)
    ax.set_xlabel("multiply-accumulates of one image")
    ax.set_ylabel("top-1 accuracy on the test split (%)")
    ax.set_title("CIFAR-10: the front after one hour on two CPU cores (one search)")
    (HERE / "front.png").write_bytes(png(figure))


if __name__ == "__main__":
    main()
