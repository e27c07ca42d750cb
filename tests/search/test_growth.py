"""`--evaluator grow`: networks start from the trunks of smaller ones, with a lineage on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from res2net import contains, create
from res2net.arch import Arch
from res2net.errors import UserError
from res2net.folder import CARD_FILE
from search import worker
from search.api import search
from search.export import export
from search.settings import Settings
from search.study.storage import read
from search.study.trials import FAILED, ORPHAN, SCORED, Record
from search.worker import Job, Report, guarded, train_trial
from trainers.datasets.data import Data
from trainers.recipes import Config

UNNESTED = {"min_macs": 13_200, "max_macs": 13_400}  # two networks of the tiny space


class Killed(BaseException):
    """Stands for a `kill -9` of the driver."""


@pytest.fixture
def settings(make_settings: Callable) -> Settings:
    return make_settings(evaluator="grow", trials=6, epochs=3, sampler="random")


@pytest.fixture
def archs(settings: Settings) -> tuple[Arch, Arch]:
    space = settings.scope.get_space(10)
    choices = space.parameters
    cheap = {k: (max if k == "cardinality" else min)(v) for k, v in choices.items()}
    dear = {k: (min if k == "cardinality" else max)(v) for k, v in choices.items()}
    return space.arch(cheap), space.arch(dear)


@pytest.fixture
def trunk_job(archs: tuple[Arch, Arch]) -> Job:
    return Job(0, archs[0], Config(epochs=3, batch_size=20, hold=1), "grow", trunk=1)


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in read(folder) if r.outcome in outcomes]


class TestWorker:
    def test_the_trunk_is_reported_after_its_epoch_and_only_then(self, trunk_job: Job, data: Data) -> None:
        first, *others = train_trial(trunk_job, data)
        assert first.trunk is not None
        assert first.checkpoint is not None  # a retry need not train it again
        assert [r.trunk for r in others] == [None, None]
        assert others[-1].weights != first.trunk

    def test_a_grown_network_starts_with_the_function_of_its_origin(
        self, trunk_job: Job, archs: tuple[Arch, Arch], data: Data
    ) -> None:
        weights = next(iter(train_trial(trunk_job, data))).trunk
        assert weights is not None
        small, large = create(archs[0]), archs[1]
        small.load_state_dict(safetensors.torch.load(weights))
        grown = worker._first_network(replace(trunk_job, arch=large, origin=(archs[0], weights)), large)
        x = torch.randn(4, 3, 8, 8)
        with torch.no_grad():
            assert torch.allclose(grown.eval()(x), small.eval()(x), atol=1e-5)
        reports = list(train_trial(replace(trunk_job, arch=large, origin=(archs[0], weights)), data))
        assert [r.epoch for r in reports] == [1, 2, 3]

    def test_weights_that_are_gone_fail_the_trial_with_the_reason(
        self, trunk_job: Job, archs: tuple[Arch, Arch], data: Data
    ) -> None:
        (report,) = guarded(train_trial, replace(trunk_job, arch=archs[1], origin=(archs[0], b"")), data)
        assert report.reason == "the weights from which the network grows are gone"
        assert not report.lost

    def test_a_job_travels_as_json_beside_its_bytes(self, trunk_job: Job, archs: tuple[Arch, Arch]) -> None:
        job = replace(trunk_job, arch=archs[1], origin=(archs[0], b"weights"), rungs=(1, 3), checkpoint=b"checkpoint")
        assert Job.from_json(job.to_json(), b"checkpoint", b"weights") == job
        assert Job.from_json(trunk_job.to_json()) == trunk_job


class TestSearch:
    def test_networks_grow_from_smaller_ones_and_inherit_their_epochs(
        self, settings: Settings, loaded: Data, tmp_path: Path
    ) -> None:
        result = search(settings, tmp_path / "run", work=train_trial)
        records = {r.number: r for r in of(tmp_path / "run", SCORED)}
        grown = [r for r in records.values() if "parent" in r.attrs]
        assert grown
        for record in grown:
            parent = records[record.attrs["parent"]]
            assert contains(record.arch, parent.arch)
            assert record.attrs["inherited"] == parent.attrs["inherited"] + parent.attrs["trunk"] > 0
        first = next(r for r in records.values() if "parent" not in r.attrs)
        assert first.attrs["inherited"] == 0
        assert {int(p.stem) for p in (tmp_path / "run/trunks").glob("*.pt")} == set(records)
        table = result.trials.set_index("number")
        assert table.parent.dropna().to_dict() == {r.number: r.attrs["parent"] for r in grown}
        assert "trunk" not in table.columns

    def test_the_model_card_names_the_origin(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        search(settings, tmp_path / "run", work=train_trial)
        record = next(r for r in of(tmp_path / "run", SCORED) if "parent" in r.attrs)
        export(tmp_path / "run", str(record.number), tmp_path / "model")
        text = (tmp_path / "model" / CARD_FILE).read_text()
        assert f"the weights of trial {record.attrs['parent']} of the same search, after " in text
        assert f"lr {settings.scoring.lr / 2:g}" in text

    def test_a_retry_grows_from_the_same_trunk_and_ends_the_same(
        self, settings: Settings, loaded: Data, tmp_path: Path
    ) -> None:
        whole = search(settings, tmp_path / "whole", work=train_trial).trials
        folder, number = tmp_path / "cut", int(whole.parent.last_valid_index())

        def dies(job: Job, data: Data) -> Iterator[Report]:
            for report in train_trial(job, data):
                if job.number == number and report.epoch == 2:
                    raise Killed
                yield report

        with pytest.raises(Killed):
            search(settings, folder, work=dies)
        search(settings, folder, work=train_trial)
        assert [r.number for r in of(folder, ORPHAN)] == [number]
        again = next(r for r in of(folder, SCORED) if r.attrs.get("retry_of") == number)
        before = whole.loc[number]
        assert (again.attrs["parent"], again.attrs["inherited"]) == (before.parent, before.inherited)
        assert again.quality == before.val_top1

    def test_a_trunk_that_vanishes_fails_only_the_networks_that_need_it(
        self, settings: Settings, loaded: Data, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"

        def vanishes(job: Job, data: Data) -> Iterator[Report]:
            if job.origin is not None:
                job = replace(job, origin=(job.origin[0], b""))
            yield from train_trial(job, data)

        search(settings, folder, work=vanishes)
        assert {r.attrs["reason"] for r in of(folder, FAILED)} == {"the weights from which the network grows are gone"}
        assert of(folder, SCORED)


class TestRefusals:
    def test_too_few_epochs(self, make_settings: Callable) -> None:
        with pytest.raises(UserError, match=r"`epochs`: 1 is too few to train a trunk"):
            make_settings(evaluator="grow", epochs=1)

    def test_equal_macs(self, make_settings: Callable) -> None:
        with pytest.raises(UserError, match="`match_macs`: no network contains another of equal MACs"):
            make_settings(evaluator="grow", match_macs=50_000)

    def test_a_space_in_which_nothing_contains_anything(self, make_settings: Callable, loaded: Data) -> None:
        settings = make_settings(evaluator="grow")
        space = settings.scope.get_space(10)
        single = replace(space, choices={name: values[-1:] for name, values in space.choices.items()})
        with pytest.raises(UserError, match=r"`evaluator`: no network of space '.+' contains its cheapest one"):
            settings.evaluator.check_weights(single, loaded)

    def test_a_plan_whose_networks_do_not_contain_each_other(
        self, make_settings: Callable, loaded: Data, tmp_path: Path
    ) -> None:
        settings = make_settings(evaluator="grow", trials=None, epochs=None, time=60, **UNNESTED)
        with pytest.raises(UserError, match=r"`evaluator`: no network of space .* contains another one"):
            search(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_without_the_setting_the_plan_decides(self, make_settings: Callable) -> None:
        planned = {"trials": None, "epochs": None, "time": 60}
        assert make_settings().scoring.evaluator == "scratch"
        assert make_settings(**planned).scoring.evaluator is None
        assert make_settings(**planned).evaluator.grows
        assert not make_settings(evaluator="scratch", **planned).evaluator.grows
