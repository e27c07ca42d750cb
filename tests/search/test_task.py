"""A search by mIoU: from the option to the exported network with its head, resumed, with shared weights and growth."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import res2net
from res2net import cost
from search import export, measure, run, runs
from search.api import search
from search.settings import Settings
from space import Space
from trainers import evaluate, fit
from trainers.recipes import RECIPES

BLOCKS = "example_data:Blocks"


@pytest.fixture
def options(tiny_space: Path) -> list[str]:
    words = f"--data {BLOCKS} --task segment --space {tiny_space} --executor local --workers 1 --batch-size 16"
    return words.split()


def test_gives_a_front_of_networks_with_heads(options: list[str], tmp_path: Path) -> None:
    out, to = tmp_path / "run", tmp_path / "exported"
    assert run.main([*options, "--trials", "3", "--epochs", "1", "--out", str(out)]) == 0
    settings = runs.settings_of(out)
    assert (settings.scope.task, settings.scoring.metric) == ("segment", "miou")
    assert settings.scoring.recipe == RECIPES["dense"]
    front = pd.read_csv(out / "pareto.csv")
    assert front.val_miou.between(0, 100).all()
    assert export.main([str(out), "--to", str(to), "--test", "--onnx"]) == 0
    training, model = json.loads((to / "training.json").read_text()), res2net.load(to)
    assert model.arch.head is not None
    assert training["macs"] == cost(model.arch, 16).macs
    assert 0 <= training["test_miou"] <= 100
    # The exported folder is scored and trained on by the commands that `search.run` prints.
    assert evaluate.main([str(to), "--data", BLOCKS]) == 0
    command = [str(out / "best"), "--data", BLOCKS, "--task", "segment", "--epochs", "1", "--out"]
    assert fit.main([*command, str(tmp_path / "trained")]) == 0
    assert json.loads((tmp_path / "trained" / "arch.json").read_text())["head"]["kind"] == "deeplab"


@pytest.mark.parametrize(("task", "metric", "head"), [("saliency", "maxf", "dss"), ("keypoints", "ap", "deconv")])
def test_searches_by_other_tasks(options: list[str], tmp_path: Path, task: str, metric: str, head: str) -> None:
    words = [task if word == "segment" else word for word in options]
    result = search(_settings(words).replace(trials=1, epochs=1), tmp_path / "run")
    assert pd.read_csv(result.folder / "pareto.csv")[f"val_{metric}"].between(0, 100).all()
    assert res2net.load(result.folder / "best").arch.head.kind == head


@pytest.fixture
def detectors(options: list[str], tmp_path: Path) -> Path:
    """Search two detectors, and return the run's folder."""
    words = ["detect" if word == "segment" else word for word in options]
    return search(_settings(words).replace(trials=2, epochs=1), tmp_path / "run").folder


@pytest.mark.slow
def test_a_front_of_detectors_is_exported_and_measured(detectors: Path, tmp_path: Path) -> None:
    assert export.main([str(detectors), "--front", "--to", str(tmp_path / "front")]) == 0
    table = pd.read_csv(tmp_path / "front" / "front.csv")
    assert (table.difference == 0).all()
    assert all(res2net.load(tmp_path / "front" / name).arch.head.detects for name in table.folder)
    assert measure.main([str(detectors), "--batch-sizes", "1", "--device", "cpu"]) == 0
    measured = pd.read_csv(detectors / "pareto.csv")
    assert (measured.ms_optimized_1 > 0).all()
    assert not any("onnx" in name for name in measured)


def test_limits_count_the_head(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*options, "--base", "micro"]
    settings = _settings(options)
    whole = runs.space_for(tmp_path / "none", settings, settings.scope.load_data())
    head = cost(whole.arch(whole.cheapest()[0]), 16).macs
    assert run.main([*options, "--trials", "1", "--max-macs", str(head - 1), "--out", str(tmp_path / "run")]) == 2
    assert f"accepted: at least {head}" in capsys.readouterr().err


def _settings(options: list[str]) -> Settings:
    values = {n.removeprefix("--").replace("-", "_"): v for n, v in zip(options[::2], options[1::2], strict=True)}
    return Settings(**{k: int(v) if v.isdigit() else v for k, v in values.items()})


def test_resumes(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run.main([*options, "--trials", "2", "--epochs", "1", "--out", str(out)]) == 0
    assert run.main(["--trials", "3", "--out", str(out)]) == 0
    assert len(pd.read_csv(out / "trials.csv")) == 3
    assert runs.space_of(out) == Space.from_dict(json.loads((out / "run.json").read_text())["space"])


def test_shared_weights_share_the_head(options: list[str], tmp_path: Path) -> None:
    settings = _settings(options).replace(evaluator="supernet", trials=3, supernet_epochs=1, epochs=1, confirm=1)
    result = search(settings, tmp_path / "run")
    assert result.ledger.trained
    assert set(result.trials.state) == {"COMPLETE"}


def test_networks_grow_with_their_head(options: list[str], tmp_path: Path) -> None:
    first = search(_settings(options).replace(trials=1, epochs=1), tmp_path / "first")
    settings = _settings(options).replace(include=str(first.folder / "best"), evaluator="grow", trials=4, epochs=2)
    result = search(settings, tmp_path / "grown")
    assert result.ledger.front
    assert result.trials.origin.notna().any()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--metric", "top1"], "--metric: top1 is not for --task segment; accepted: miou, pixels"),
        (
            ["--objective", "latency"],
            "--objective: latency is not for --task segment; accepted: macs, params, activations",
        ),
        (["--data", "shapes"], "shapes has no targets of the kind mask"),
        (["--task", "segmentation"], "--task: unknown value 'segmentation'"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], tmp_path: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([*options, "--trials", "1", *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_int8_is_refused(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run.main([*options, "--trials", "1", "--epochs", "1", "--out", str(out)]) == 0
    assert export.main([str(out), "--to", str(tmp_path / "to"), "--int8"]) == 2
    assert "--int8: not for `task` segment" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
