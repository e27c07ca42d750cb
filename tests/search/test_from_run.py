"""`--from-run DIR`: a search that starts with the front of an earlier run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import trainers.datasets.data
from res2net import contains
from res2net.errors import UserError
from res2net.folder import CARD_FILE, TRAINING_FILE
from search.api import load, plan_of, search
from search.export import export
from search.ledger import Ledger
from search.prepared import prepared
from search.runs import records_of, settings_of
from search.settings import Settings
from search.study.storage import read
from search.study.trials import SCORED, Record
from search.worker import Job, Report, train_trial
from trainers.datasets.data import Data


class Killed(BaseException):
    """Stands for a `kill -9` of the driver."""


@pytest.fixture
def earlier(make_settings: Callable, loaded: Data, tmp_path: Path) -> Path:
    """Search six networks, and return the run's folder."""
    search(make_settings(trials=6, epochs=1, sampler="random"), tmp_path / "earlier", work=train_trial)
    return tmp_path / "earlier"


@pytest.fixture
def settings(make_settings: Callable, earlier: Path) -> Settings:
    return make_settings(from_run=str(earlier), trials=3, epochs=1, sampler="random")


def front(folder: Path) -> list[Record]:
    return Ledger.of(settings_of(folder).rules, records_of(folder)).front


def scored(folder: Path, reused: bool) -> list[Record]:
    return [r for r in read(folder) if r.outcome == SCORED and ("reused" in r.attrs) == reused]


def untouched(job: Job, data: Data) -> Iterator[Report]:
    raise AssertionError("a training was started")
    yield


class TestScores:
    def test_are_reused_and_do_not_count_as_trials(
        self, settings: Settings, earlier: Path, loaded: Data, tmp_path: Path
    ) -> None:
        search(settings, tmp_path / "run", work=train_trial)
        reused = {r.key: r for r in scored(tmp_path / "run", reused=True)}
        before = {r.key: r for r in front(earlier)}
        assert {k: r.quality for k, r in reused.items()} == {k: r.quality for k, r in before.items()}
        trained = scored(tmp_path / "run", reused=False)
        assert len(trained) == 3
        assert not {r.key for r in trained} & reused.keys()

    def test_are_there_before_any_training(
        self, settings: Settings, earlier: Path, loaded: Data, tmp_path: Path
    ) -> None:
        search(settings, tmp_path / "run", work=untouched)
        assert len(scored(tmp_path / "run", reused=True)) == len(front(earlier))

    def test_stay_after_the_earlier_run_is_gone(
        self, settings: Settings, earlier: Path, loaded: Data, tmp_path: Path
    ) -> None:
        search(settings, tmp_path / "run", work=train_trial)
        count = len(scored(tmp_path / "run", reused=True))
        shutil.rmtree(earlier)
        search(settings.replace(trials=4), tmp_path / "run", work=train_trial)
        assert len(scored(tmp_path / "run", reused=True)) == count
        assert len(scored(tmp_path / "run", reused=False)) == 4
        assert len(load(tmp_path / "run").front)

    def test_of_another_budget_are_earned_anew(
        self, settings: Settings, earlier: Path, loaded: Data, tmp_path: Path
    ) -> None:
        search(settings.replace(epochs=2, trials=8), tmp_path / "run", work=train_trial)
        assert not scored(tmp_path / "run", reused=True)
        trained = scored(tmp_path / "run", reused=False)
        assert {r.key for r in front(earlier)} <= {r.key for r in trained}
        assert {r.attrs["epochs"] for r in trained} == {2}

    @pytest.mark.parametrize("change", [{"lr": 0.01}, {"seed": 1}])
    def test_of_another_recipe_or_split_are_earned_anew(
        self, settings: Settings, loaded: Data, tmp_path: Path, change: dict
    ) -> None:
        search(settings.replace(**change), tmp_path / "run", work=train_trial)
        assert not scored(tmp_path / "run", reused=True)

    @pytest.mark.parametrize("changed", ["size", "pixels", "number"])
    def test_of_other_images_are_earned_anew(
        self, settings: Settings, loaded: Data, tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = loaded.train.images
        others = {
            "size": replace(loaded, train=replace(loaded.train, images=images.repeat(2, 2).repeat(2, 3))),
            "pixels": replace(loaded, mean=(0.4, 0.5, 0.5)),
            "number": replace(loaded, train=loaded.train.take(np.arange(39))),
        }
        monkeypatch.setattr(trainers.datasets.data, "load", lambda *args, **kwargs: others[changed])
        plan = prepared(settings, tmp_path / "run", None)
        assert plan.networks
        assert not any(network.reused for network in plan.networks)

    def test_of_shared_weights_are_earned_anew(self, settings: Settings, earlier: Path, loaded: Data) -> None:
        content = json.loads((earlier / "run.json").read_text())
        content["settings"]["scoring"]["evaluator"] = "inherit"
        (earlier / "run.json").write_text(json.dumps(content))
        assert not any(network.reused for network in prepared(settings, earlier.parent / "run", None).networks)

    def test_of_networks_that_have_seen_the_images_are_earned_anew(
        self, make_settings: Callable, earlier: Path, loaded: Data, tmp_path: Path
    ) -> None:
        """A network trained on all images, a search that grows from it, and a search from that one's front."""
        export(earlier, "best", tmp_path / "spoilt")
        (tmp_path / "spoilt" / TRAINING_FILE).write_text(json.dumps({"data": {"name": "shapes"}}))
        between = make_settings(include=str(tmp_path / "spoilt"), evaluator="grow", trials=2, epochs=2)
        search(between, tmp_path / "between", work=train_trial)
        last = make_settings(from_run=str(tmp_path / "between"), evaluator="grow", trials=2, epochs=2)
        assert last.scoring.train_config(0) == between.scoring.train_config(0)
        grown = {f"{tmp_path / 'between'} trial {r.number}": "origin" in r.attrs for r in front(tmp_path / "between")}
        assert any(grown.values())
        for network in prepared(last, tmp_path / "run", None).networks:
            assert (network.seen, network.reused) == (grown[network.name], not grown[network.name])

    def test_of_an_early_run_without_the_image_size_are_reused(
        self, settings: Settings, earlier: Path, loaded: Data
    ) -> None:
        content = json.loads((earlier / "run.json").read_text())
        del content["data"]["image_size"]
        (earlier / "run.json").write_text(json.dumps(content))
        assert all(network.reused for network in prepared(settings, earlier.parent / "run", None).networks)

    def test_are_exported_with_their_origin(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        search(settings, tmp_path / "run", work=train_trial)
        first = scored(tmp_path / "run", reused=True)[0]
        export(tmp_path / "run", str(first.number), tmp_path / "model")
        assert settings.scoring.from_run in (tmp_path / "model" / CARD_FILE).read_text()
        training = json.loads((tmp_path / "model" / TRAINING_FILE).read_text())
        assert (training["val_top1"], training["epochs"]) == (first.quality, 1)
        assert training["hardware"]["cpu"]

    def test_a_kill_does_not_lose_them(
        self, settings: Settings, earlier: Path, loaded: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def dies(job: Job, data: Data) -> Iterator[Report]:
            raise Killed
            yield

        with pytest.raises(Killed):
            search(settings, tmp_path / "run", work=dies)
        search(settings, tmp_path / "run", work=train_trial)
        assert {r.key for r in scored(tmp_path / "run", reused=True)} == {r.key for r in front(earlier)}
        assert len(scored(tmp_path / "run", reused=True)) == len(front(earlier))


class TestGrowth:
    def test_networks_grow_from_the_front(
        self, settings: Settings, earlier: Path, loaded: Data, tmp_path: Path
    ) -> None:
        grows = settings.replace(evaluator="grow", epochs=2, trials=12)
        search(grows, tmp_path / "run", work=train_trial)
        archs = {f"{earlier} trial {r.number}": r.arch for r in front(earlier)}
        grown = [r for r in scored(tmp_path / "run", reused=False) if "origin" in r.attrs]
        assert grown
        for record in grown:
            assert contains(record.arch, archs[record.attrs["origin"]])
            assert record.attrs["inherited"] == 1

    def test_a_plan_grows_from_it(self, settings: Settings, earlier: Path, loaded: Data, tmp_path: Path) -> None:
        planned = Settings(**{**settings.values(), "evaluator": None, "epochs": None, "trials": None, "time": 20.0})
        table = plan_of(planned, tmp_path / "run")
        space = planned.scope.get_space(10)
        assert table.plan.grown
        for level in table.plan.levels:
            assert any(contains(space.arch(level.params), r.arch) for r in front(earlier))
        assert table.terms.known


class TestRefusals:
    def test_no_run(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"`from_run`: run folder .* is missing; accepted"):
            search(make_settings(from_run=str(tmp_path / "none")), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_other_data(self, settings: Settings, earlier: Path, loaded: Data, tmp_path: Path) -> None:
        content = json.loads((earlier / "run.json").read_text())
        content["data"]["name"] = "cifar10"
        (earlier / "run.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"`from_run`: .* searched on cifar10; accepted: a run on shapes"):
            search(settings, tmp_path / "run")

    def test_a_run_without_a_front(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        def dies(job: Job, data: Data) -> Iterator[Report]:
            raise Killed
            yield

        with pytest.raises(Killed):
            search(make_settings(trials=1), tmp_path / "earlier", work=dies)
        with pytest.raises(UserError, match=r"`from_run`: .* has no trained network yet"):
            search(make_settings(from_run=str(tmp_path / "earlier")), tmp_path / "run")
