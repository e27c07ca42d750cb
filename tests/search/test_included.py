"""`--include FOLDER`: a search that grows from a trained network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import res2net
from res2net import contains, create
from res2net.errors import UserError
from res2net.folder import CARD_FILE, TRAINING_FILE, WEIGHTS_FILE, save
from search import included
from search.api import plan_of, search
from search.export import export
from search.settings import Settings
from search.study.storage import read
from search.study.trials import SCORED
from search.worker import train_trial
from trainers.datasets.data import Data


@pytest.fixture
def folder(make_settings: Callable, tmp_path: Path) -> Path:
    """Write the model folder of a small member of the space."""
    torch.manual_seed(0)
    space = make_settings().scope.get_space(10)
    save(create(space.arch({"scale": 2, "cardinality": 2, "depth": 1})), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def settings(make_settings: Callable, folder: Path) -> Settings:
    return make_settings(include=str(folder), trials=6, epochs=2, sampler="random")


def planned(settings: Settings) -> Settings:
    return Settings(**{**settings.values(), "epochs": None, "trials": None, "time": 20.0})


def origin_of(settings: Settings, run: Path, data: Data) -> included.Included:
    found = included.included(settings, run, settings.scope.get_space(10), data)
    assert found is not None
    return found


def note(folder: Path, **training: object) -> None:
    (folder / TRAINING_FILE).write_text(json.dumps(training))


class TestSearch:
    def test_networks_that_contain_it_grow_from_it(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        note(Path(settings.scoring.include or ""), epochs=7, data={"name": "other"})
        result = search(settings, tmp_path / "run", work=train_trial)
        small = res2net.load(settings.scoring.include or "").arch
        records = [r for r in read(tmp_path / "run") if r.outcome == SCORED]
        grown = [r for r in records if r.attrs.get("included")]
        assert grown
        for record in grown:
            assert contains(record.arch, small)
            assert "parent" not in record.attrs
            assert record.attrs["inherited"] == 7
        for record in records:
            if "parent" not in record.attrs and not record.attrs.get("included"):
                assert not contains(record.arch, small)
        assert result.trials.set_index("number").included.dropna().index.tolist() == [r.number for r in grown]

    def test_a_resumed_search_needs_only_its_own_copy(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        search(settings, tmp_path / "run", work=train_trial)
        shutil.rmtree(settings.scoring.include or "")
        search(settings.replace(trials=8), tmp_path / "run", work=train_trial)
        assert len([r for r in read(tmp_path / "run") if r.outcome == SCORED]) == 8

    def test_the_model_card_names_it(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        search(settings, tmp_path / "run", work=train_trial)
        grown = next(r for r in read(tmp_path / "run") if r.outcome == SCORED and r.attrs.get("included"))
        export(tmp_path / "run", str(grown.number), tmp_path / "exported")
        text = (tmp_path / "exported" / CARD_FILE).read_text()
        assert f"the network of {settings.scoring.include}, after 0 epochs" in text
        assert included.SEEN in text

    def test_growth_is_the_default_with_it(self, settings: Settings) -> None:
        assert settings.scoring.evaluator == "grow"


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
        found = origin_of(make_settings(include=str(tmp_path / "big")), tmp_path / "run", data)
        assert found.arch.num_classes == 10

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
        found = included.read(tmp_path / "exported", first, loaded)
        assert found.epochs == 3 + grown.attrs["inherited"]
        assert not found.seen


class TestRefusals:
    def test_missing_weights(self, settings: Settings, folder: Path, loaded: Data, tmp_path: Path) -> None:
        (folder / WEIGHTS_FILE).unlink()
        with pytest.raises(UserError, match=r"`include`: model folder .* is missing; accepted"):
            search(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_no_folder(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"`include`: model folder .* is missing; accepted"):
            search(make_settings(include=str(tmp_path / "none")), tmp_path / "run")

    def test_a_network_that_the_space_does_not_contain(
        self, make_settings: Callable, loaded: Data, tmp_path: Path
    ) -> None:
        save(create("res2next29_6c24w_4s", num_classes=10), tmp_path / "other")
        with pytest.raises(UserError, match=r"`include`: no network of space .* contains"):
            search(make_settings(include=str(tmp_path / "other")), tmp_path / "run")

    def test_limits_that_leave_no_larger_network(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        limited = Settings(**{**planned(settings).values(), "max_macs": 11_500})
        with pytest.raises(UserError, match=r"`include`: no network that meets the limits contains"):
            search(limited, tmp_path / "run")

    @pytest.mark.parametrize("evaluator", ["scratch", "supernet", "inherit"])
    def test_other_evaluators(self, make_settings: Callable, folder: Path, evaluator: str) -> None:
        with pytest.raises(UserError, match=r"`include`: has no effect with `evaluator`"):
            make_settings(include=str(folder), evaluator=evaluator)

    def test_another_kind_of_network(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        save(create("dla60", num_classes=10), tmp_path / "other")
        with pytest.raises(UserError, match=r"`include`: .* accepted: a Res2Net"):
            search(make_settings(include=str(tmp_path / "other")), tmp_path / "run")
