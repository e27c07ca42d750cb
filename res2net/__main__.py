"""The command `python -m res2net`: list the named networks, or compare them with published figures (`--check`).

A figure is a published number of parameters or GMACs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from res2net.commands import Parser, run_main
from res2net.cost import cost
from res2net.hosts.dla.value import DlaArch, unused_projections
from res2net.layer_cost import Cost
from res2net.named import named, names
from res2net.published import PRINTED, PUBLISHED, RELEASED, Entry, Figure

PROG = "python -m res2net"


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return the rows as aligned text. Left-align the first `left` columns and the last one, right-align the others."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    lines = (
        "  ".join(
            cell.ljust(w) if i < left or i == last else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def listing() -> str:
    """Return a table of the paper's networks: parameters, GMACs, the paper's test errors, input size and data set."""
    rows = [("name", "params", "GMACs", "top-1 error %", "top-5 error %", "input", "data")]
    for name in dict.fromkeys((*PUBLISHED, *names())):
        entry = PUBLISHED.get(name, Entry())
        found, size = cost(named(name), entry.image_size), f"{entry.image_size} x {entry.image_size}"
        rows.append(
            (name, f"{found.params:,}", f"{found.macs / 1e9:.4f}", entry.top1, entry.top5, size, entry.data),
        )
    return table(rows)


def measured(figure: Figure) -> Cost:
    """Return the cost that this package computes for the network of a published figure."""
    arch = named(figure.name)
    if figure.classes is not None:
        arch = replace(arch, num_classes=figure.classes)
    size = PUBLISHED[figure.name].image_size
    if not figure.as_released:
        return cost(arch, size)
    assert isinstance(arch, DlaArch)  # only released DLA definitions have unused projections
    return cost(arch, size) + unused_projections(arch, size)


def as_printed(value: int, figure: str, unit: float) -> str:
    """Return a value in multiples of `unit`, with as many decimals as a published figure.

    A figure without a decimal point is an exact count, so return all digits. If nothing is published, return "".
    """
    if not figure:
        return ""
    digits = len(figure.partition(".")[2])
    return f"{value / unit:.{digits}f}" if digits else f"{value:,}"


def verdict(figure: Figure) -> tuple[str, str, str, bool]:
    """Return our parameters and GMACs in the figure's digits, a remark, and whether the outcome is expected.

    Equal values are expected. If the figure states a reason for a difference, different values are expected.
    """
    found = measured(figure)
    params, gmacs = as_printed(found.params, figure.params, 1e6), as_printed(found.macs, figure.gmacs, 1e9)
    if (params, gmacs) == (figure.params, figure.gmacs):
        return params, gmacs, "EQUAL, BUT SAID TO DIFFER" if figure.differs else "equal", not figure.differs
    return params, gmacs, f"differs: {figure.differs}" if figure.differs else "NOT EQUAL", bool(figure.differs)


def comparison(title: str, figures: Sequence[Figure]) -> tuple[str, bool]:
    """Return two values: a table of our figures beside the published ones, and whether all outcomes are expected."""
    rows = [("name", "source", "params", "published", "GMACs", "published", "")]
    verdicts = [verdict(figure) for figure in figures]
    for figure, (params, gmacs, said, _) in zip(figures, verdicts, strict=True):
        kind = f", {figure.classes} classes" if figure.classes else ""
        rows.append((figure.name, figure.source + kind, params, figure.params, gmacs, figure.gmacs, said))
    equal = sum(said == "equal" for _, _, said, _ in verdicts)
    wrong = sum(not is_right for *_, is_right in verdicts)
    known = len(figures) - equal - wrong
    summary = f"{title}: {equal} of {len(figures)} equal, {known} differ for the reason given, {wrong} wrong"
    return f"{table(rows, left=2)}\n\n{summary}\n", wrong == 0


def check() -> tuple[str, bool]:
    """Compare our figures with released definitions and with papers.

    Return two values: the text of both comparisons, and whether all outcomes are expected.
    """
    released, printed = comparison("Definitions", RELEASED), comparison("Printed in papers", PRINTED)
    return f"{released[0]}\n{printed[0]}", released[1] and printed[1]


def parser() -> Parser:
    """Return the command's parser."""
    out = Parser(prog=PROG, description="List the networks of the Res2Net paper (arXiv 1904.01169).")
    out.add_argument(
        "--check",
        action="store_true",
        help="compare sizes and complexities with published figures; exit with code 1 on an unexpected outcome",
    )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list or the comparison. Return the exit code."""
    return run_main(_main, parser, argv)


def _main(args: argparse.Namespace) -> int:
    if not args.check:
        print(listing())
        return 0
    text, is_right = check()
    print(text, end="")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
