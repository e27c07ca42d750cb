"""Tables and plots, made from records alone; the command that writes them again."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import search.front
from res2net.cost import cost
from search.api import search as search_
from search.ledger import Ledger
from search.objectives import MACS
from search.report import __main__, figures, files, page, tables
from search.settings import Settings
from search.study.trials import FAILED, INFEASIBLE, ORPHAN, REPEATED, SCORED, Record
from search.worker import Job, Report
from space import Space
from studies.synthetic import Synthetic, latency_table
from trainers.datasets.data import Data

EPOCHS = 4


def record(
    number: int, outcome: str = SCORED, top1: float | None = 50.0, macs: int = 1_000_000, epochs: int = EPOCHS, **attrs
) -> Record:
    """A record as the study gives it; what a trial of its outcome does not know is left out."""
    state = {SCORED: "COMPLETE", REPEATED: "COMPLETE", INFEASIBLE: "PRUNED", FAILED: "FAIL", ORPHAN: "FAIL"}
    if outcome in (SCORED, REPEATED):
        attrs = {"epochs": epochs, "seconds": 1.5, "host": "here", **attrs}
    else:
        top1 = None
    known = {"arch": "1x[4w 2s 1c]", "key": f"key{number}", "macs": macs, "params": 9, "activations": 7}
    params = {"scale": 1 + number % 3, "depth": 2}
    return Record(number, state.get(outcome, "RUNNING"), outcome, params, known | attrs, top1, {})


MANY = (
    record(0, top1=40.0, macs=1_000_000),
    record(1, INFEASIBLE, macs=9_000_000, reason="it breaks a limit"),
    record(2, top1=60.0, macs=2_000_000),
    record(3, top1=30.0, macs=3_000_000),
    record(4, REPEATED, top1=60.0, macs=2_000_000, repeat_of=2),
    record(5, FAILED, macs=1_500_000, reason="training loss is nan, in epoch 1 of 4", note="resumed after epoch 1"),
    record(6, ORPHAN, macs=1_500_000, reason="the search was interrupted"),
    record(7, top1=90.0, macs=500_000, epochs=1),  # a score of another budget
    record(8, top1=70.0, macs=4_000_000, retry_of=5),
    record(9, "running", macs=4_000_000),
)


RULES = Settings(epochs=EPOCHS).rules


def books(records: Sequence[Record]) -> Ledger:
    return Ledger.of(RULES, records)


def frame(records: Sequence[Record]) -> pd.DataFrame:
    return tables.trials_frame(records, books(records))


def write(folder: Path, records: Sequence[Record], settings: Settings) -> pd.DataFrame:
    return files.write(folder, records, Ledger.of(settings.rules, records), settings.scope.get_space(10), settings)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(epochs=EPOCHS)


def test_a_row_a_trial_with_named_columns() -> None:
    trials = frame(MANY)
    assert list(trials.columns) == [*tables.COLUMNS, "scale", "depth", *tables.LAST]
    assert list(trials.number) == list(range(10))
    assert list(trials.outcome) == [r.outcome for r in MANY]
    assert trials.macs.tolist() == [r.attrs["macs"] for r in MANY]
    assert trials.repeat_of.dropna().tolist() == [2]
    assert trials.retry_of.dropna().tolist() == [5]


def test_only_scores_of_the_full_budget_are_on_the_front() -> None:
    trials = frame(MANY)
    assert trials.number[trials.front].tolist() == [0, 2, 8]
    assert trials.front.dtype == bool


def test_the_front_is_cheapest_first_without_idle_columns() -> None:
    found = tables.front_frame(frame([MANY[8], MANY[2], MANY[0]]), MACS)
    assert found.number.tolist() == [0, 2, 8]
    assert found.val_top1.is_monotonic_increasing
    assert not {"state", "outcome", "front", "reason", "note"} & set(found.columns)
    assert found.index.tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 10**10)), max_size=8))
def test_the_front_of_the_frame_is_the_front(points: list[tuple[float, int]]) -> None:
    trials = frame([record(i, top1=a, macs=m) for i, (a, m) in enumerate(points)])
    expected = search.front.front([a for a, _ in points], [m for _, m in points])
    assert sorted(trials.number[trials.front]) == sorted(expected)


def test_csv_round_trip(settings: Settings, tmp_path: Path) -> None:
    trials = write(tmp_path, MANY, settings)
    again = pd.read_csv(tmp_path / "trials.csv", dtype=dict.fromkeys(("repeat_of", "retry_of", "epochs"), "Int64"))
    pd.testing.assert_frame_equal(again, trials, check_dtype=False)
    assert again.reason[5] == "training loss is nan, in epoch 1 of 4"
    front = pd.read_csv(tmp_path / "pareto.csv")
    assert front.number.tolist() == [0, 2, 8]
    assert front.macs.tolist() == [1_000_000, 2_000_000, 4_000_000]


@pytest.mark.parametrize(
    "records",
    [
        (),
        MANY[:1],
        MANY[1:2],
        (MANY[9],),
        MANY[5:7],
        MANY[7:8],
        MANY,
        (Record(0, "WAITING", "waiting", {}, {}, None, {}),),
        (Record(0, "PRUNED", INFEASIBLE, {"scale": 1}, {"reason": "cannot be met"}, None, {}), MANY[2]),
    ],
    ids=["none", "one", "infeasible", "running", "failed", "half", "many", "waiting", "without a cost"],
)
def test_reports_of_any_state_of_a_search(records: tuple[Record, ...], settings: Settings, tmp_path: Path) -> None:
    trials = write(tmp_path, records, settings)
    assert len(trials) == len(records)
    names = ["pareto.csv", "pareto.html", "pareto.png", "trials.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    with Image.open(tmp_path / "pareto.png") as image:
        image.load()
        assert image.size == (1200, 750)
    assert "numbers" not in (tmp_path / "trials.csv").read_text()
    assert len(pd.read_csv(tmp_path / "trials.csv")) == len(records)
    assert len(pd.read_csv(tmp_path / "pareto.csv")) == trials.front.sum()


def test_the_interactive_plot_has_hover_texts_and_needs_no_network(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path, MANY, settings)
    page = (tmp_path / "pareto.html").read_text()
    assert "trial 8: 70.00 %" in page
    assert "1x[4w 2s 1c]" in page
    assert "4.00M MACs" in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=", page)
    assert len(page) > 1_000_000  # plotly itself is inside


def test_limits_are_drawn(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(epochs=EPOCHS, max_macs=5_000_000, min_macs=200_000)
    trials = frame(MANY)
    figure = page.interactive_front(trials, books(MANY), "title", settings)
    assert [s.x0 for s in figure.layout.shapes] == [5_000_000, 200_000]
    assert [a.text for a in figure.layout.annotations] == ["--max-macs 5.00M", "--min-macs 200K"]
    with_limits = figures.png(figures.pareto_figure(trials, books(MANY), "title", settings))
    without = figures.png(figures.pareto_figure(trials, books(MANY), "title", make_settings(epochs=EPOCHS)))
    assert Image.open(io.BytesIO(with_limits)).tobytes() != Image.open(io.BytesIO(without)).tobytes()


def test_a_limit_is_labelled_where_it_is_drawn(make_settings: Callable[..., Settings]) -> None:
    """On a log axis plotly wants a shape's place as the number, and an annotation's as its logarithm."""
    settings = make_settings(epochs=EPOCHS, max_macs=5_000_000)
    figure = page.interactive_front(frame(MANY), books(MANY), "title", settings)
    assert figure.layout.annotations[0].x == pytest.approx(6.699, abs=1e-3)


@pytest.mark.parametrize(
    ("costs", "ends", "label"), [((0.2, 0.35, 0.6), (0.2, 0.6), "0.5"), ((0.3, 0.3), (0.27, 0.33), "0.3")]
)
def test_the_colour_bar_of_the_curves_spans_the_costs_and_writes_them(
    costs: tuple[float, ...], ends: tuple[float, float], label: str, make_settings: Callable[..., Settings]
) -> None:
    table = latency_table(make_settings().scope.get_space(10))
    settings = make_settings(epochs=EPOCHS, objective="latency", latency=table)
    trials = [replace(record(i, latency=cost), epochs={1: 20.0, EPOCHS: 50.0}) for i, cost in enumerate(costs)]
    bar = figures.curves_figure(trials, Ledger.of(settings.rules, trials), "title", settings).axes[1]
    assert bar.get_ylim() == pytest.approx(ends)
    shown = {t.get_text() for t, at in zip(bar.get_yticklabels(), bar.get_yticks(), strict=True) if at <= ends[1]}
    assert label in shown


def test_the_plotted_front_is_the_front(settings: Settings) -> None:
    figure = page.interactive_front(frame(MANY), books(MANY), "title", settings)
    dominated, front = figure.data
    assert list(front.x) == [1e6, 2e6, 4e6]
    assert list(front.y) == [40, 60, 70]
    assert len(dominated.x) == len(dominated.text) == 2


def test_a_space_with_values_per_stage(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings(space="scale_card", per_stage=True, epochs=EPOCHS)
    space = settings.scope.get_space(10)
    records = []
    for i, scales in enumerate(((1, 2, 3), (4, 4, 4), (8, 1, 1))):
        params = {name: scales[int(name[-1]) - 1] if "scale" in name else 1 for name in space.parameters}
        arch = space.arch(params)
        attrs = {"arch": str(arch), "key": arch.key(), **cost(arch)._asdict(), "epochs": EPOCHS, "seconds": 1.0}
        records.append(Record(i, "COMPLETE", SCORED, params, attrs, 20.0 + i, {}))
    trials = write(tmp_path, records, settings)
    assert tables.mean_scale(trials).tolist() == pytest.approx([2, 4, 10 / 3])
    assert [c for c in trials.columns if c.startswith("scale")] == ["scale_1", "scale_2", "scale_3"]


def test_mean_scale_of_a_space_that_does_not_search_it() -> None:
    trials = frame(MANY).drop(columns="scale")
    assert tables.mean_scale(trials).isna().all()


class TestHypervolume:
    @pytest.fixture
    def space(self, settings: Settings) -> Space:
        return settings.scope.get_space(10)

    def test_budgets_range_over_the_space_within_the_limits(
        self, space: Space, make_settings: Callable[..., Settings]
    ) -> None:
        low, high = space.cheapest()[1].macs, space.dearest()[1].macs
        assert tables.cost_range(MACS, space, make_settings()) == (low, high + 1)
        assert tables.cost_range(MACS, space, make_settings(max_macs=300_000)) == (low, 300_001)
        assert tables.cost_range(MACS, space, make_settings(min_macs=200_000)) == (200_000, high + 1)
        assert tables.cost_range(MACS, space, make_settings(max_macs=10**9)) == (low, high + 1)
        assert tables.cost_range(MACS, space, make_settings(match_macs=10**6)) == (900_000, 1_100_000)

    def test_of_the_cheapest_network_alone_is_its_accuracy(self, space: Space, settings: Settings) -> None:
        trials = books([record(0, top1=40.0, macs=space.cheapest()[1].macs)])
        assert tables.hypervolume_of(trials, space, settings) == pytest.approx(40.0)

    def test_of_nothing_is_zero(self, space: Space, settings: Settings) -> None:
        assert tables.hypervolume_of(books([]), space, settings) == 0

    def test_counts_the_dearest_network_and_no_score_of_another_budget(self, space: Space, settings: Settings) -> None:
        dearest = space.dearest()[1].macs
        full = books([record(0, top1=40.0, macs=dearest)])
        assert tables.hypervolume_of(full, space, settings) > 0
        half = books([record(0, top1=40.0, macs=dearest, epochs=1)])
        assert tables.hypervolume_of(half, space, settings) == 0


class TestCommand:
    """`python -m search.report RUN`."""

    TABLES, PLOTS = ("trials.csv", "pareto.csv"), ("pareto.png", "pareto.html", "curves.png")

    @pytest.fixture(params=["finished", "unfinished"])
    def run(self, request: pytest.FixtureRequest, loaded: Data, make_settings: Callable, tmp_path: Path) -> Path:
        """A run of five trials, or a run that was interrupted in its last one."""
        jobs: list[int] = []

        def work(job: Job, data: Data) -> Iterator[Report]:
            jobs.append(job.number)
            if request.param == "unfinished" and len(jobs) == 5:
                raise KeyboardInterrupt
            yield from Synthetic()(job, data)

        settings = make_settings(trials=5, epochs=EPOCHS, scheduler="pareto-asha", eta=2, max_macs=16_000)
        result = search_(settings, tmp_path / "run", work=work)
        assert result.unfinished is (request.param == "unfinished")
        assert len(result.front) > 1
        return tmp_path / "run"

    def test_writes_the_search_s_own_tables(self, run: Path, capsys: pytest.CaptureFixture) -> None:
        before = {name: (run / name).read_bytes() for name in self.TABLES}
        for name in (*self.TABLES, *self.PLOTS):
            (run / name).unlink()
        assert __main__.main([str(run)]) == 0
        assert {name: (run / name).read_bytes() for name in self.TABLES} == before
        assert all((run / name).stat().st_size for name in self.PLOTS)
        out, trials = capsys.readouterr().out, pd.read_csv(run / "trials.csv")
        assert out.endswith(f"{run}: {len(trials)} trials, {trials.front.sum()} on the front\n")
        assert all(arch in out for arch in trials.arch[trials.front])

    @pytest.mark.parametrize("content", [None, "", "{", "[]", '{"settings": {}}'])
    def test_a_folder_that_is_no_run_is_one_line(
        self, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        if content is not None:
            (tmp_path / "run.json").write_text(content)
        before = [p.name for p in tmp_path.iterdir()]
        assert __main__.main([str(tmp_path)]) == 2
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert error.startswith("python -m search.report: error: ")
        assert "run.json" in error
        assert [p.name for p in tmp_path.iterdir()] == before

    def test_a_run_without_its_study_is_one_line(self, run: Path, capsys: pytest.CaptureFixture) -> None:
        (run / "study.db").unlink()
        assert __main__.main([str(run)]) == 2
        assert "study.db is missing" in capsys.readouterr().err
