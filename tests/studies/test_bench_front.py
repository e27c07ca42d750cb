"""The benchmark of fronts: volumes, volumes over time, resumed benchmarks, and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from res2net.errors import UserError
from search.front import Axis, hypervolume
from studies import bench_front, front_runs
from studies.front_runs import Case, Run, Scored, Span, case_of, entries_of, volume_over_time

LOW, HIGH, CHANCE = 10, 10_000, 10.0
SPAN = Span(LOW, HIGH, CHANCE)
POINTS = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 20_000)), max_size=12)
RECORDS = st.builds(
    Scored,
    seconds=st.floats(0, 90),
    number=st.integers(0, 50),
    macs=st.integers(1, 20_000),
    val_top1=st.floats(0, 100),
    epochs=st.just(1.0),
    network=st.just("net"),
)


def scored(seconds: float, number: int, macs: int, top1: float) -> Scored:
    return Scored(seconds, number, macs, top1, 2.0, f"network {number}")


def run_of(case: Case, found: list[Scored], test_top1: dict[int, float] | None, seconds: float = 91.0) -> Run:
    return Run(case, seconds, 3.0, tuple(found), test_top1, "abc", "a processor", 2)


@given(POINTS, st.floats(0, 99))
def test_the_volume_is_the_mean_accuracy_above_chance(points: list[tuple[float, int]], chance: float) -> None:
    """Beside a sum over many budgets, where a budget without a network counts 0."""
    top1, macs = [a for a, _ in points], [m for _, m in points]
    steps = 4_000
    budgets = LOW * (HIGH / LOW) ** ((np.arange(steps) + 0.5) / steps)
    best = np.full(steps, chance)
    for accuracy, cost in points:
        best = np.where(budgets >= cost, np.maximum(best, accuracy), best)
    expected = np.mean((best - chance) / (100 - chance) * 100)
    # Each of at most 12 networks moves an edge by less than one budget.
    assert hypervolume(top1, Axis(macs, LOW, HIGH), chance=chance) == pytest.approx(expected, abs=12 * 100 / steps)


@given(POINTS)
def test_without_chance_the_volume_is_the_hypervolume(points: list[tuple[float, int]]) -> None:
    top1, macs = [a for a, _ in points], [m for _, m in points]
    assert Span(LOW, HIGH, 0.0).volume(top1, macs) == hypervolume(top1, Axis(macs, LOW, HIGH)) / 100


@pytest.mark.parametrize(
    ("top1", "macs", "volume"),
    [
        ([100.0], [5], 1.0),  # perfect at every cost
        ([10.0], [5], 0.0),  # a guess
        ([4.0], [5], 0.0),  # worse than a guess
        ([55.0], [5], 0.5),
        ([100.0], [1_000], 1 / 3),  # perfect in one decade of three
        ([100.0], [10_000], 0.0),  # a network that costs the whole budget is left out
    ],
)
def test_volumes_that_anyone_can_check(top1: list[float], macs: list[int], volume: float) -> None:
    assert SPAN.volume(top1, macs) == pytest.approx(volume)


def test_the_volume_of_a_published_front() -> None:
    """The second row of the table in the facts of issue 14, whose volume was computed by another program."""
    found = Span(312_500, 20e6, 10.0).volume([61.0, 61.0, 66.7], [762_000, 1_420_000, 6_600_000])
    assert found == pytest.approx(0.462, abs=5e-4)


@given(st.lists(RECORDS, max_size=10))
def test_the_volume_over_time_is_that_of_all_networks_so_far(records: list[Scored]) -> None:
    curve = volume_over_time(records, SPAN)
    assert curve[0] == (0.0, 0.0)
    assert [v for _, v in curve] == sorted({v for _, v in curve})
    for moment in (0.0, 30.0, 60.0, *(r.seconds for r in records)):
        known = [r for r in records if r.seconds <= moment]
        now = [v for at, v in curve if at <= moment][-1]
        assert now == pytest.approx(SPAN.volume([r.val_top1 for r in known], [r.macs for r in known]), abs=1e-9)


def test_the_test_volume_takes_the_validation_front() -> None:
    """A network off the validation front has no test accuracy. On the front, the best test accuracy counts."""
    case = Case("ours", 90.0, 0, ("-m", "search.run"))
    found = [scored(20, 0, 100, 50.0), scored(40, 1, 500, 45.0), scored(60, 2, 1_000, 60.0)]
    run = run_of(case, found, {0: 70.0, 2: 65.0})
    assert [s.number for s in run.front] == [0, 2]
    assert run.volume(SPAN, test=True) == pytest.approx(SPAN.volume([70.0], [100]))
    assert run.volume(SPAN, test=False) == pytest.approx(SPAN.volume([50.0, 60.0], [100, 1_000]))
    assert run.late == pytest.approx(1.0)


@given(st.lists(RECORDS, max_size=4), st.none() | st.dictionaries(st.integers(0, 50), st.floats(0, 100)))
def test_a_record_holds_the_whole_run(records: list[Scored], test_top1: dict[int, float] | None) -> None:
    run = run_of(Case("ours", 90.0, 1, ("-m", "search.run")), records, test_top1)
    assert Run.from_json(run.to_json()) == run


def test_entries_are_known_or_defined() -> None:
    assert entries_of(["ours", "micro"], []) == {"ours": "", "micro": "--base micro"}
    assert entries_of(["ours"], ["two=--workers 2", "peer=--epochs 3"]) == {
        "ours": "",
        "two": "--workers 2",
        "peer": "--epochs 3",
    }
    with pytest.raises(UserError, match=r"`entries`.*our.*did you mean 'ours'"):
        entries_of(["our"], [])
    for wrong in ("two", "=--workers 2", "a/b=", "../x="):
        with pytest.raises(UserError, match=r"`entry`.*accepted"):
            entries_of(["ours"], [wrong])


def test_the_command_is_that_of_a_user() -> None:
    shared = {"space": "scale", "data": "shapes", "data-dir": None, "max-macs": "20M"}
    ours = case_of("two", "--workers 2 --recipe 'my file.yaml'", shared, 90.0, 3)
    start = ["-m", "search.run", "--space", "scale", "--data", "shapes", "--max-macs", "20M", "--time", "90s"]
    assert list(ours.command) == [*start, "--seed", "3", "--workers", "2", "--recipe", "my file.yaml"]
    assert case_of("peer", "--epochs 3", shared, 90.0, 3).command[1] == "studies.front_peer"


class Measured:
    """Stands in for `measure` and `tested`: notes the cases, and fails for seed 9."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[tuple[str, float, int]] = []
        self.tests = 0
        monkeypatch.setattr(bench_front, "measure", self.measure)
        monkeypatch.setattr(bench_front, "tested", self.tested)

    def measure(self, case: Case, out: Path, say: object) -> Run | None:
        self.ran.append((case.entry, case.time, case.seed))
        good = 55.0 if case.entry == "ours" else 40.0
        found = [scored(20, 0, 762_000, good), scored(50 + case.seed, 1, 4_400_000, good + 10)]
        return run_of(case, found, None) if case.seed != 9 else None

    def tested(self, run: Run, data: str, data_dir: str | None, out: Path) -> Run:
        self.tests += 1
        return replace(run, test_top1={s.number: s.val_top1 - run.case.seed for s in run.front})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(monkeypatch)


def bench(out: Path, *options: str) -> int:
    return bench_front.main(["--data", "shapes", "--out", str(out), *options])


def test_a_resumed_benchmark_runs_only_what_is_missing(measured: Measured, tmp_path: Path) -> None:
    assert bench(tmp_path, "--seeds", "0") == 0
    assert measured.ran == [("ours", 90.0, 0), ("peer", 90.0, 0)]
    assert bench(tmp_path, "--seeds", "0", "1", "--entries", "ours", "--time", "90s", "15m") == 0
    assert measured.ran[2:] == [("ours", 90.0, 1), ("ours", 900.0, 0), ("ours", 900.0, 1)]
    assert measured.tests == 5  # each run once


def test_an_interrupted_test_is_made_up_for_without_another_run(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Run:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench_front, "tested", interrupted)
        assert bench(tmp_path, "--seeds", "0", "--entries", "ours") == 130
    assert bench(tmp_path, "--seeds", "0", "--entries", "ours") == 0
    assert len(measured.ran) == measured.tests == 1


def test_runs_of_other_commands_are_refused(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, "--seeds", "0", "--entries", "ours") == 0
    assert bench(tmp_path, "--seeds", "0", "--entries", "ours", "--max-macs", "30M") == 2
    assert "--out" in capsys.readouterr().err
    assert len(measured.ran) == 1


def test_a_failed_run_is_left_out_and_tried_again(measured: Measured, tmp_path: Path) -> None:
    for _ in range(2):
        assert bench(tmp_path, "--seeds", "0", "9", "--entries", "ours") == 1
    assert [seed for *_, seed in measured.ran] == [0, 9, 9]
    assert list(pd.read_csv(tmp_path / "runs.csv").seed) == [0]


def test_the_table_and_the_files(measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "--seeds", "0", "1") == 0
    printed = capsys.readouterr().out
    ours = [Span(312_500, 20e6, 10.0).volume([55.0 - s, 65.0 - s], [762_000, 4_400_000]) for s in (0, 1)]
    assert f"{np.mean(ours):.3f} +- {np.std(ours, ddof=1):.3f}" in printed
    assert "762K: 55.0, 4.40M: 65.0" in printed
    assert "a processor, 2 cores, commit abc" in printed
    rows = pd.read_csv(tmp_path / "runs.csv")
    assert list(zip(rows.entry, rows.seed, strict=True)) == [("ours", 0), ("peer", 0), ("ours", 1), ("peer", 1)]
    assert list(rows.volume_test[rows.entry == "ours"]) == pytest.approx(ours, abs=1e-4)
    assert len(pd.read_csv(tmp_path / "fronts.csv")) == 8
    assert len(pd.read_csv(tmp_path / "curves.csv")) == 4 * 3
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_network_has_no_volume(tmp_path: Path) -> None:
    run = run_of(Case("ours", 90.0, 0, ()), [], {})
    assert run.volume(SPAN, test=True) == run.volume(SPAN, test=False) == 0
    assert bench_front.plot([run], SPAN, "nothing").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--low", "30M"], "--low: 30.0M is not below --high 20.0M"),
        (["--time", "soon"], "--time"),
        (["--max-macs", "few"], "--max-macs"),
        (["--entries", "theirs"], "--entries"),
        (["--entry", "two"], "--entry"),
        (["--data", "folder"], "--data-dir"),
    ],
)
def test_mistakes(options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path / "new", *options) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_command_that_fails_is_reported_by_its_last_line(tmp_path: Path) -> None:
    said: list[str] = []
    case = Case("ours", 5.0, 0, ("-c", "import sys; print('too short', file=sys.stderr); sys.exit(2)"))
    assert front_runs.measure(case, tmp_path, said.append) is None
    assert said[-1].startswith("ours-5s-0: exit code 2")
    assert said[-1].endswith("too short")


@pytest.mark.slow
def test_a_search_and_the_peer_end_to_end(tmp_path: Path) -> None:
    words = "--trials 2 --epochs 1 --executor local --base micro"
    options = ["--time", "45s", "--seeds", "0", "--space", "scale_card_depth", "--max-macs", "3M"]
    entries = ["--entries", "small", "peer", "--entry", f"small={words}", "--entry", "peer=--epochs 1"]
    assert bench(tmp_path, *options, *entries) == 0
    rows = pd.read_csv(tmp_path / "runs.csv")
    assert list(rows.entry) == ["small", "peer"]
    assert (rows.trained >= 1).all()
    fronts = pd.read_csv(tmp_path / "fronts.csv")
    assert fronts.macs.max() <= 3_000_000
    assert fronts.test_top1.between(0, 100).all()
    assert (fronts.seconds > 0).all()
