"""`--include A,B`: a search that starts from named, given and trained networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import res2net
import trainers.datasets.data
from res2net import contains, create
from res2net.errors import UserError
from res2net.folder import CARD_FILE, TRAINING_FILE, WEIGHTS_FILE, save
from search import included
from search.api import plan_of, search
from search.export import export
from search.settings import Settings
from search.study.sampler import SAMPLERS
from search.study.storage import read
from search.study.trials import INFEASIBLE, SCORED
from search.worker import Job, Report, train_trial
from studies.synthetic import Synthetic
from trainers.datasets.data import Data


class Killed(BaseException):
    """Stands for a `kill -9` of the driver."""


@pytest.fixture
def folder(make_settings: Callable, tmp_path: Path) -> Path:
    """Write the model folder of a small member of the space."""
    torch.manual_seed(0)
    space = make_settings().scope.get_space(10)
    save(create(space.arch({"scale": 2, "cardinality": 2, "depth": 1})), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def settings(make_settings: Callable, folder: Path) -> Settings:
    return make_settings(include=str(folder), evaluator="grow", trials=6, epochs=2, sampler="random")


def planned(settings: Settings) -> Settings:
    return Settings(**{**settings.values(), "evaluator": None, "epochs": None, "trials": None, "time": 20.0})


def origin_of(settings: Settings, run: Path, data: Data) -> included.Included:
    (found,) = included.included(settings, run, settings.scope.get_space(10), data)
    return found


def note(folder: Path, **training: object) -> None:
    (folder / TRAINING_FILE).write_text(json.dumps(training))


class TestSearch:
    def test_networks_that_contain_it_grow_from_it(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        note(Path(settings.scoring.include or ""), epochs=7, data={"name": "other"})
        result = search(settings, tmp_path / "run", work=train_trial)
        small = res2net.load(settings.scoring.include or "").arch
        records = [r for r in read(tmp_path / "run") if r.outcome == SCORED]
        grown = [r for r in records if "origin" in r.attrs]
        assert grown
        for record in grown:
            assert contains(record.arch, small)
            assert "parent" not in record.attrs
            assert record.attrs["inherited"] == 7
        for record in records:
            if "parent" not in record.attrs and "origin" not in record.attrs:
                assert not contains(record.arch, small)
        table = result.trials.set_index("number")
        assert table.origin.dropna().to_dict() == {r.number: settings.scoring.include for r in grown}
        (itself,) = table.included.dropna().index  # the network itself is trained on
        assert table.arch[itself] == str(small)
        assert table.origin[itself] == settings.scoring.include

    def test_a_resumed_search_needs_only_its_own_copy(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        search(settings, tmp_path / "run", work=train_trial)
        shutil.rmtree(settings.scoring.include or "")
        search(settings.replace(trials=8), tmp_path / "run", work=train_trial)
        assert len([r for r in read(tmp_path / "run") if r.outcome == SCORED]) == 8

    def test_the_model_card_names_it(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        search(settings, tmp_path / "run", work=train_trial)
        grown = next(r for r in read(tmp_path / "run") if r.outcome == SCORED and "origin" in r.attrs)
        export(tmp_path / "run", str(grown.number), tmp_path / "exported")
        text = (tmp_path / "exported" / CARD_FILE).read_text()
        assert f"the network of {settings.scoring.include}, after 0 epochs" in text
        assert included.SEEN in text


class TestGiven:
    """Networks by name or `arch.json`, members of the space or not."""

    @pytest.fixture
    def arch_file(self, make_settings: Callable, tmp_path: Path) -> Path:
        space = make_settings().scope.get_space(1000)
        stages = [replace(s, width=s.width + 2) for s in space.arch(space.cheapest()[0]).stages]
        arch = replace(space.arch(space.cheapest()[0]), stages=tuple(stages))
        (tmp_path / "own.json").write_text(arch.to_json())
        return tmp_path / "own.json"

    def test_they_are_trained_with_the_rest_and_marked(
        self, make_settings: Callable, arch_file: Path, loaded: Data, tmp_path: Path
    ) -> None:
        settings = make_settings(include=f"{arch_file},res2next29_6c24w_4s", trials=6, epochs=1)
        result = search(settings, tmp_path / "run", work=train_trial)
        table = result.trials.set_index("included")
        assert table.outcome[str(arch_file)] == table.outcome["res2next29_6c24w_4s"] == SCORED
        assert table.scale[[str(arch_file), "res2next29_6c24w_4s"]].isna().all()
        assert len(result.trials.loc[result.trials.outcome == SCORED]) == 6
        assert result.plot() is not None
        assert "included: res2next29_6c24w_4s" in (tmp_path / "run/pareto.html").read_text()
        records = {r.attrs.get("included"): r for r in read(tmp_path / "run")}
        assert records["res2next29_6c24w_4s"].arch.num_classes == loaded.num_classes
        assert export(tmp_path / "run", str(records[str(arch_file)].number), tmp_path / "own").arch.num_classes == 10

    def test_a_resume_neither_repeats_them_nor_needs_the_file(
        self, make_settings: Callable, arch_file: Path, loaded: Data, tmp_path: Path
    ) -> None:
        settings = make_settings(include=str(arch_file), trials=2, epochs=1)
        search(settings, tmp_path / "run", work=train_trial)
        arch_file.unlink()
        search(settings.replace(trials=4), tmp_path / "run", work=train_trial)
        records = list(read(tmp_path / "run"))
        assert sum("included" in r.attrs for r in records) == 1
        assert sum(r.outcome == SCORED for r in records) == 4

    def test_a_kill_does_not_lose_them(
        self, make_settings: Callable, arch_file: Path, loaded: Data, tmp_path: Path
    ) -> None:
        def dies(job: Job, data: Data) -> Iterator[Report]:
            raise Killed
            yield

        settings = make_settings(include=str(arch_file), trials=2, epochs=1)
        with pytest.raises(Killed):
            search(settings, tmp_path / "run", work=dies)
        search(settings, tmp_path / "run", work=train_trial)
        scored = [r for r in read(tmp_path / "run") if r.outcome == SCORED]
        assert [r.attrs.get("included") for r in scored].count(str(arch_file)) == 1

    @pytest.mark.parametrize("sampler", list(SAMPLERS))
    def test_samplers_go_on_beside_them(
        self, sampler: str, make_settings: Callable, arch_file: Path, loaded: Data, tmp_path: Path
    ) -> None:
        settings = make_settings(include=str(arch_file), sampler=sampler, trials=11, epochs=1)
        search(settings, tmp_path / "run", work=Synthetic())
        assert sum(r.outcome == SCORED for r in read(tmp_path / "run")) == 11

    def test_a_limit_excludes_them_too(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        settings = make_settings(include="res2next29_6c24w_4s", trials=2, epochs=1, max_macs=20_000)
        search(settings, tmp_path / "run", work=Synthetic())
        (record,) = (r for r in read(tmp_path / "run") if "included" in r.attrs)
        assert (record.outcome, record.attrs["reason"]) == (INFEASIBLE, "it breaks a limit")


class TestPlan:
    def test_all_levels_contain_it(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        small = res2net.load(settings.scoring.include or "").arch
        wanted = planned(settings)
        table = plan_of(wanted, tmp_path / "run")
        space = wanted.scope.get_space(10)
        assert table.plan.grown
        assert table.plan.levels
        assert all(contains(space.arch(level.params), small) for level in table.plan.levels)

    def test_its_epochs_shorten_the_training_of_the_first_level(
        self, settings: Settings, loaded: Data, tmp_path: Path
    ) -> None:
        note(Path(settings.scoring.include or ""), epochs=7)
        table = plan_of(planned(settings), tmp_path / "run")
        assert table.inherits == 7 * table.plan.levels[0].cost  # the network itself, trained on


class TestRead:
    def test_other_classes_get_a_new_classifier(self, make_settings: Callable, data: Data, tmp_path: Path) -> None:
        space = make_settings().scope.get_space(1000)
        save(create(space.arch(space.cheapest()[0])), tmp_path / "big")
        found = origin_of(make_settings(include=str(tmp_path / "big"), evaluator="grow"), tmp_path / "run", data)
        assert found.arch.num_classes == 10

    def test_a_new_head_is_untrained_after_a_resume_too(self, make_settings: Callable, tmp_path: Path) -> None:
        settings = make_settings(
            data="example_data:Blocks",
            task="segment",
            metric="miou",
            include=str(tmp_path / "model"),
            evaluator="grow",
        )
        data = settings.scope.load_data()
        space = settings.scope.get_space(data.num_classes, data.image_size, data.in_channels)
        save(create(replace(space.arch(space.cheapest()[0]), head=None)), tmp_path / "model")
        note(tmp_path / "model", epochs=7, inherited=2, data={"name": "other"})
        first = included.included(settings, tmp_path / "run", space, data)
        included.keep(first, tmp_path / "run")
        resumed = included.included(settings, tmp_path / "run", space, data)
        assert [network.epochs for network in (*first, *resumed)] == [0, 0]

    @pytest.mark.parametrize(
        ("training", "seen"),
        [
            ({}, True),
            ({"data": {"name": "shapes"}}, True),
            ({"data": {"name": "cifar10"}}, False),
            ({"data": {"name": "shapes"}, "settings": {"scope": {"data": "shapes", "seed": 0}}}, False),
            ({"data": {"name": "shapes"}, "settings": {"scope": {"data": "shapes", "seed": 1}}}, True),
        ],
    )
    def test_a_training_on_other_images_cannot_have_seen_the_validation_split(
        self, settings: Settings, folder: Path, data: Data, tmp_path: Path, training: dict, seen: bool
    ) -> None:
        note(folder, **training)
        assert origin_of(settings, tmp_path / "run", data).seen == seen

    def test_an_exported_network_records_its_epochs(
        self, make_settings: Callable, loaded: Data, tmp_path: Path
    ) -> None:
        first = make_settings(evaluator="grow", trials=6, epochs=3, sampler="random")
        search(first, tmp_path / "run", work=train_trial)
        grown = next(r for r in read(tmp_path / "run") if r.outcome == SCORED and "parent" in r.attrs)
        export(tmp_path / "run", str(grown.number), tmp_path / "exported")
        found = origin_of(first.replace(include=str(tmp_path / "exported")), tmp_path / "new", loaded)
        assert found.epochs == 3 + grown.attrs["inherited"]
        assert not found.seen

    @pytest.mark.parametrize("data_name", ["shapes", "other"])  # of the search between
    def test_networks_that_grew_from_a_spoilt_one_are_spoilt(
        self,
        data_name: str,
        settings: Settings,
        folder: Path,
        data: Data,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        note(folder, data={"name": "shapes"})
        between = replace(data, name=data_name)
        monkeypatch.setattr(trainers.datasets.data, "load", lambda *args, **kwargs: between)
        search(settings, tmp_path / "run", work=train_trial)
        for record in (r for r in read(tmp_path / "run") if r.outcome == SCORED):
            export(tmp_path / "run", str(record.number), tmp_path / "exported")
            second = settings.replace(include=str(tmp_path / "exported"))
            grew = {"origin", "parent"} & record.attrs.keys()
            assert origin_of(second, tmp_path / "new", data).seen == bool(grew)


class TestRefusals:
    def test_missing_weights(self, settings: Settings, folder: Path, loaded: Data, tmp_path: Path) -> None:
        (folder / WEIGHTS_FILE).unlink()
        with pytest.raises(UserError, match=r"`include`: model folder .* is missing; accepted"):
            search(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_no_folder(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"`include`: '.*none' is neither a network nor a file; accepted"):
            search(make_settings(include=str(tmp_path / "none")), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_network_that_the_space_does_not_contain(
        self, make_settings: Callable, loaded: Data, tmp_path: Path
    ) -> None:
        save(create("res2next29_6c24w_4s", num_classes=10), tmp_path / "other")
        with pytest.raises(UserError, match=r"`include`: no network of space .* contains"):
            search(make_settings(include=str(tmp_path / "other"), evaluator="grow"), tmp_path / "run")

    def test_limits_that_leave_no_larger_network(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        limited = Settings(**{**planned(settings).values(), "max_macs": 11_500})
        with pytest.raises(UserError, match=r"`include`: no network that meets the limits contains"):
            search(limited, tmp_path / "run")

    @pytest.mark.parametrize("evaluator", ["supernet", "inherit"])
    def test_shared_weights(self, make_settings: Callable, evaluator: str) -> None:
        with pytest.raises(UserError, match=r"`include`: its networks have no part in the shared weights"):
            make_settings(include="resnet50", evaluator=evaluator)

    def test_a_trained_network_from_which_nothing_grows(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"`include`: .* is trained, but `evaluator` scratch does not grow"):
            search(settings.replace(evaluator="scratch"), tmp_path / "run")

    def test_the_same_network_twice(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="`include`: resnet50 is given twice"):
            search(make_settings(include="resnet50, resnet50"), tmp_path / "run")

    def test_another_kind_of_network(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        save(create("dla60", num_classes=10), tmp_path / "other")
        with pytest.raises(UserError, match=r"`include`: .* accepted: a Res2Net"):
            search(make_settings(include=str(tmp_path / "other")), tmp_path / "run")

    def test_a_named_network_that_is_no_res2net(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"`include`: .* accepted: a Res2Net"):
            search(make_settings(include="dla60"), tmp_path / "run")
