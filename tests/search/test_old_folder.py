"""A run folder of an earlier version: today's code resumes it, plots it and exports from it.

`tests/fixtures/run-1c1f22c` is a search of commit 1c1f22c with pareto-asha: 4, then 12 trials, then 16 asked for. The
third session was killed (SIGKILL) right after the checkpoint of trial 18, which the rung had just stopped. Only the
front's weights were kept, the plots were removed, and the host's name was replaced by "host".
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import res2net
from res2net.cost import cost
from search import run, runs
from search.export import export
from search.export import main as export_main
from search.picks import ledger_of
from search.study.storage import read
from search.study.trials import SCORED, STOPPED

OLD = Path(__file__).parents[1] / "fixtures" / "run-1c1f22c"
FRONT = [9, 17, 14, 4]  # trials, from the cheapest to the most accurate


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder, resumed by the command with one trial more than it asked for."""
    folder = tmp_path_factory.mktemp("old") / OLD.name
    shutil.copytree(OLD, folder)
    assert run.main(["--out", str(folder), "--trials", "17"]) == 0
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / OLD.name)


def test_settings_are_those_of_the_search(copy: Path) -> None:
    settings, space = runs.settings_of(copy), runs.space_of(copy)
    scope, scoring, budget = settings.scope, settings.scoring, settings.budget
    assert (scope.space, scope.max_macs, scope.train_images, scope.seed) == ("space.yaml", 400_000, 200, 3)
    assert (scoring.evaluator, scoring.epochs, scoring.batch_size, scoring.lr) == ("scratch", 4, 20, 0.1)
    assert (budget.sampler, budget.trials, budget.scheduler) == ("tpe", 16, "pareto-asha")
    assert (budget.eta, budget.min_epochs, settings.resources.executor) == (2, 1, "local")
    assert (space.size, space.image_size) == (24, 32)


def test_trials_and_the_front_are_those_of_the_search(copy: Path) -> None:
    before = pd.read_csv(copy / "trials.csv")
    records = {r.number: r for r in read(copy)}
    for row in before[before.outcome == SCORED].itertuples():
        record = records[row.number]
        assert (record.key, record.attrs["macs"], record.quality) == (row.key, row.macs, pytest.approx(row.val_top1))
        assert cost(record.arch, 32).macs == row.macs
    assert [r.number for r in ledger_of(copy).front] == FRONT


def test_a_network_of_the_front_is_exported(copy: Path, tmp_path: Path) -> None:
    assert export_main([str(copy), "--pick", "best", "--to", str(tmp_path / "exported")]) == 0
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert res2net.load(tmp_path / "exported")(x).equal(res2net.load(copy / "best")(x))


@pytest.mark.slow
def test_the_search_resumes(resumed: Path) -> None:
    before = {r.number: r for r in read(OLD)}
    after = {r.number: r for r in read(resumed)}
    for number, record in before.items():
        if record.state != "RUNNING":
            assert after[number] == record
    assert sum(r.outcome in (SCORED, STOPPED) for r in after.values()) == 17
    assert not any(r.state in ("RUNNING", "WAITING") for r in after.values())
    assert len(runs.read(resumed)["sessions"]) == 4
    assert runs.settings_of(resumed).budget.trials == 17


@pytest.mark.slow
def test_the_killed_trial_resumes_from_its_checkpoint(resumed: Path) -> None:
    (again,) = [r for r in read(resumed) if r.attrs.get("retry_of") == 18]
    assert again.attrs["note"] == "resumed after epoch 1"
    assert again.key == next(r.key for r in read(OLD) if r.number == 18)
    assert list((resumed / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_plots_and_tables_are_drawn_again(resumed: Path) -> None:
    for name in ("pareto.png", "pareto.html", "curves.png"):
        assert (resumed / name).stat().st_size > 0
    assert len(pd.read_csv(resumed / "trials.csv")) == len(list(read(resumed)))
    assert pd.read_csv(resumed / "pareto.csv").number.tolist() == [r.number for r in ledger_of(resumed).front]


@pytest.mark.slow
def test_a_trial_of_either_version_is_exported(resumed: Path, tmp_path: Path) -> None:
    for number in (FRONT[0], max(r.number for r in read(resumed) if r.outcome == SCORED)):
        export(resumed, str(number), tmp_path / str(number))
        assert res2net.load(tmp_path / str(number))(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
