"""The parts of `studies.gpu_check`: each measures one thing, and writes its rows to DIR/NAME.csv one by one.

    python -m studies.gpu_parts networks --out DIR

Each part is a process of its own: an error of CUDA spoils the rest of its process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd

import search.api
import space as spaces
from res2net.commands import Parser, run_main
from res2net.errors import UserError, unknown
from res2net.files import write_atomic
from studies import latency_table
from studies.bench import first_line
from studies.bench_data import KINDS, photograph
from studies.bench_supernet import scored_a_second, supernet, time_steps
from studies.bench_trainer import CLASSES, random_data
from studies.gpu_networks import NETWORKS, Row, Setting, time_networks, time_small_networks
from trainers.device import device_of, uses_bf16
from trainers.meta import cores
from trainers.recipes import Config

PROG = "python -m studies.gpu_parts"
ROOT = Path(__file__).parents[1]
SPACE, SEARCH = "scale_card_depth", "3m"  # space of the latency table and the supernet, time of the search
SOURCES, LINKS = 64, 200  # generated photographs, and the names of each: an epoch reads all names


def run_tests(s: Setting) -> Iterator[Row]:
    """Run the tests marked `gpu`. A row for each file."""
    report = s.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", f"--junitxml={report}"]
    code = subprocess.run([*command, str(ROOT / s.of("tests", "tests/gpu"))], cwd=ROOT).returncode
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        ends = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        counts[".".join(case.get("classname", "").split(".")[:3])][ends[0] if ends else "passed"] += 1
    for file, found in counts.items():
        failed = found["failure"] + found["error"]
        yield {"tests": file, "passed": found["passed"], "failed": failed, "skipped": found["skipped"]}
    if code:
        raise RuntimeError(f"pytest ended with exit code {code}")


def time_supernet(s: Setting) -> Iterator[Row]:
    """Time the supernet's step against stand-alone steps of its four members, and the scoring of members."""
    batch, steps = s.of(64, 4), s.of(20, 1)
    allowed = spaces.get(SPACE, "micro", num_classes=CLASSES)
    config = Config(batch_size=batch, lr=0.01, device=str(s.device))
    data = random_data(s.of(2000, 8), val=s.of(2000, 8))
    trainer = supernet(allowed, data, config)
    shared, alone = time_steps(trainer, data, config, steps)
    ms = {"supernet_ms": 1e3 * float(np.median(shared)), "members_ms": 1e3 * float(np.median(alone))}
    rate = scored_a_second(trainer.scorer, allowed, s.of(20, 1))
    ratio = float(np.median(np.divide(shared, alone)))
    yield {
        "batch": batch,
        **{k: round(v, 2) for k, v in ms.items()},
        "ratio": round(ratio, 3),
        "scored_per_s": round(rate, 2),
    }


def run_search(s: Setting) -> Iterator[Row]:
    """Search on `shapes` for three minutes, four trials at a time on one GPU if there are four cores."""
    workers = min(4, cores())
    share = f"{1 / workers:.2f}" if s.device.type == "cuda" else "0"
    options = s.of(["--time", SEARCH, "--workers", str(workers), "--gpus-per-trial", share], _FEW)
    yield _searched(s, "search", options)


_FEW = ["--trials", "2", "--epochs", "1", "--workers", "1", "--train-images", "100", "--space", "scale"]


def _searched(s: Setting, name: str, options: Sequence[str]) -> Row:
    _module("search.run", "--executor", "local", "--out", str(s.out / name), *options)
    result = search.api.load(s.out / name)
    best, scored = result.front[result.ledger.rules.quality.name].max(), len(result.ledger.best)
    return {"trials": len(result.trials), "candidates": scored, "front": len(result.front), "best": round(best, 2)}


def _module(name: str, *options: str) -> None:
    """Run a command. Its output is part of the part's output."""
    subprocess.run([sys.executable, "-m", name, *options], cwd=ROOT, check=True)


def make_latency_table(s: Setting) -> Iterator[Row]:
    """Measure a latency table, and compare it with whole networks."""
    for form, batch in (("optimized-bf16", s.of(64, 1)), ("optimized-bf16", 1), ("eager", 1))[: s.of(None, 1)]:
        folder = s.out / f"latency-{form}-{batch}"
        options = ["--space", SPACE, "--form", form, "--device", str(s.device), "--batch-sizes", str(batch)]
        if latency_table.main([*options, "--members", s.of("20", "2"), "--out", str(folder)]):
            raise RuntimeError("studies.latency_table failed")
        yield pd.read_csv(folder / "latency.csv").round(3).iloc[0].to_dict()


def train_from_files(s: Setting) -> Iterator[Row]:
    """Stream photographs of ImageNet's size through a training, then search on them.

    A search decodes all files first, and keeps its images in memory.
    """
    root, size = s.out / "photographs", s.of(224, 32)
    _write_photographs(root, s.of(SOURCES, 8), s.of(LINKS, 2))
    arch, folder = s.out / "arch.json", s.out / "trained"
    arch.write_text(s.arch(NETWORKS[0]).to_json())
    data = ["--data", "folder", "--data-dir", str(root), "--image-size", str(size)]
    how = ["--recipe", "paper-imagenet", "--epochs", s.of("2", "1"), "--batch-size", s.of("128", "4"), "--lr", "0.01"]
    _module("trainers.fit", str(arch), *data, *how, "--device", str(s.device), "--out", str(folder))
    log = pd.read_csv(folder / "log.csv").iloc[-1]
    yield {"what": "trainers.fit, streamed", "size": size, "images_per_s": round(log.images_per_second)}
    more = ["--trials", "2", "--epochs", "1", "--workers", "1", "--space", "scale", "--image-size", s.of("128", "16")]
    yield {"what": "search.run, in memory", **_searched(s, "search-folder", [*data[:4], *more])}


def _write_photographs(root: Path, sources: int, links: int) -> None:
    """Write a folder in ImageNet's layout, of ten classes. Each photograph has several names."""
    rng = np.random.default_rng(0)
    for i in range(sources):
        content = photograph(*KINDS["small"], rng)
        for part, names in (("train", links), ("val", 1)):
            folder = root / part / f"class{i % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}-0.jpg").write_bytes(content)
            for name in range(1, names):
                os.link(folder / f"{i}-0.jpg", folder / f"{i}-{name}.jpg")


Part = Callable[[Setting], Iterator[Row]]
PARTS: Mapping[str, Part] = {  # in order of worth
    "tests": run_tests,
    "networks": time_networks,
    "small": time_small_networks,
    "supernet": time_supernet,
    "search": run_search,
    "latency": make_latency_table,
    "files": train_from_files,
}


def build_parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("part", help=", ".join(PARTS))
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    out.add_argument("--dry-run", action="store_true", help="tiny sizes")
    out.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    return out


def _main(args: argparse.Namespace) -> None:
    if args.part not in PARTS:
        raise unknown("part", args.part, PARTS)
    device = device_of(args.device)
    if not uses_bf16("bf16", device):
        raise UserError(f"`device`: {args.device!r}; accepted: cpu, cuda, cuda:N")
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for row in PARTS[args.part](Setting(device, args.out.absolute(), args.dry_run)):
        rows.append(row)
        print(row, flush=True)
        write_atomic(args.out / f"{args.part}.csv", pd.DataFrame(rows).to_csv(index=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a part; return the exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
