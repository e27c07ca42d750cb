"""Searches over shared weights: trained once, exactly resumed, each network scored once, the best of them confirmed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from res2net import load
from res2net.elastic import ElasticRes2Net
from res2net.errors import UserError
from search import shared_weights, supernet
from search.api import search
from search.front import front
from search.ledger import Ledger
from search.settings import Settings
from search.study.storage import read
from search.study.trials import ESTIMATED, REPEATED, SCORED, Record
from search.worker import Job, SharedWork
from trainers.datasets.data import Data
from trainers.recipes import Config
from trainers.supernet import SupernetTrainer


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(evaluator="supernet", supernet_epochs=2, trials=6, epochs=1, confirm=2)


def of(folder: Path, outcome: str) -> list[Record]:
    return [r for r in read(folder) if r.outcome == outcome]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / shared_weights.WEIGHTS_FILE)


def trained(settings: Settings, data: Data, folder: Path, ends: float | None = None) -> ElasticRes2Net:
    space, scoring = settings.scope.get_space(10, data.image_size), replace(settings.scoring, epochs=2)
    return shared_weights.train(settings.scope, scoring, space, data, folder, ends=ends)


def loaded_from(folder: Path, settings: Settings, data: Data) -> ElasticRes2Net:
    space = settings.scope.get_space(10, data.image_size)
    return shared_weights.load(folder, space, data, settings.scope, settings.scoring)


def picked(settings: Settings, estimates: list[Record], count: int) -> list[Record]:
    return Ledger.of(settings.rules, estimates).picks(count)


class TestTraining:
    def test_an_interrupted_training_resumes_to_the_same_weights(
        self, settings: Settings, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained(settings, data, tmp_path / "whole")
        epoch = SupernetTrainer.epoch

        def interrupted(self: SupernetTrainer, stop: None = None) -> object:
            if self.done_epochs == 1:
                raise KeyboardInterrupt
            return epoch(self, stop)

        monkeypatch.setattr(SupernetTrainer, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(settings, data, tmp_path / "parts")
        with pytest.raises(UserError, match="is not trained to its end"):
            loaded_from(tmp_path / "parts", settings, data)
        monkeypatch.setattr(SupernetTrainer, "epoch", epoch)
        trained(settings, data, tmp_path / "parts")
        whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
        assert all(torch.equal(whole[k], parts[k]) for k in whole.keys() | parts.keys())
        assert not (tmp_path / "parts" / shared_weights.CHECKPOINT_FILE).exists()
        assert list(pd.read_csv(tmp_path / "parts" / shared_weights.EPOCHS_FILE).epoch) == [1, 2]

    @pytest.mark.parametrize("every", [1, 3])
    def test_a_training_whose_time_is_over_resumes_in_the_epoch(
        self, settings: Settings, data: Data, tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Early:
            """A clock that stops the training after `every` steps."""

            def __init__(self, *_: object, **__: object) -> None:
                self.calls = itertools.count()

            def stop(self) -> bool:
                return next(self.calls) >= every

        trained(settings, data, tmp_path / "whole")
        monkeypatch.setattr(shared_weights, "Clock", Early)
        stops = 0
        while True:
            try:
                trained(settings, data, tmp_path / "parts", ends=math.inf)
                break
            except shared_weights.TimeUp:
                stops += 1
                assert not (tmp_path / "parts" / shared_weights.WEIGHTS_FILE).exists()
        assert stops > 0
        whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
        assert all(torch.equal(whole[k], parts[k]) for k in whole.keys() | parts.keys())
        assert list(pd.read_csv(tmp_path / "parts" / shared_weights.EPOCHS_FILE).epoch) == [1, 2]

    @pytest.mark.parametrize(
        ("change", "said"),
        [({"seed": 1}, "`seed` 0, not 1"), ({"lr": 0.5}, "`lr` 0.1, not 0.5"), ({"space": "scale"}, "`space`")],
    )
    def test_a_folder_of_other_settings_is_refused(
        self, settings: Settings, data: Data, tmp_path: Path, change: dict, said: str
    ) -> None:
        trained(settings, data, tmp_path / "s")
        with pytest.raises(UserError, match=said):
            trained(settings.replace(**change), data, tmp_path / "s")

    def test_weights_that_another_split_was_held_out_from_do_not_score(
        self, settings: Settings, data: Data, tmp_path: Path
    ) -> None:
        """What is validation with one seed was trained on with another."""
        trained(settings, data, tmp_path / "s")
        with pytest.raises(UserError, match="`seed` 0, not 3"):
            loaded_from(tmp_path / "s", settings.replace(seed=3), data)

    @pytest.mark.parametrize("broken", ["truncated", "foreign"])
    def test_weights_that_cannot_be_read_are_refused(
        self, settings: Settings, data: Data, tmp_path: Path, broken: str
    ) -> None:
        trained(settings, data, tmp_path / "s")
        path = tmp_path / "s" / shared_weights.WEIGHTS_FILE
        whole = path.read_bytes()
        path.write_bytes(whole[:200] if broken == "truncated" else safetensors.torch.save({"a": torch.ones(1)}))
        with pytest.raises(UserError, match="not the weights of this supernet"):
            loaded_from(tmp_path / "s", settings, data)

    def test_a_folder_with_something_else_is_left_alone(self, settings: Settings, data: Data, tmp_path: Path) -> None:
        (tmp_path / "diary.txt").write_text("dear")
        with pytest.raises(UserError, match="holds files but no supernet"):
            trained(settings, data, tmp_path)

    def test_a_folder_whose_first_file_is_being_written_is_taken(
        self, settings: Settings, data: Data, tmp_path: Path
    ) -> None:
        (tmp_path / f".{shared_weights.ABOUT_FILE}.123.tmp").write_text("{")
        trained(settings, data, tmp_path)
        assert (tmp_path / shared_weights.WEIGHTS_FILE).is_file()

    def test_the_command_trains_and_says_what_to_do_with_it(
        self, loaded: Data, tiny_space: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        out = tmp_path / "s"
        assert supernet.main(f"--space {tiny_space} --epochs 1 --batch-size 20 --out {out}".split()) == 0
        assert f"--evaluator supernet --supernet {out}" in capsys.readouterr().out.replace("\n", "")
        assert supernet.main(f"--space {tiny_space} --epochs 2 --batch-size 20 --out {out}".split()) == 2
        assert "--epochs 1, not 2" in capsys.readouterr().err


class TestSearch:
    def test_scores_every_network_once_and_trains_the_picked(
        self, settings: Settings, loaded: Data, tmp_path: Path
    ) -> None:
        result = search(settings.replace(trials=12), tmp_path / "run")
        estimates, confirmed = of(tmp_path / "run", ESTIMATED), of(tmp_path / "run", SCORED)
        assert len({r.key for r in estimates}) == len(estimates) == 12
        picks = {r.number for r in picked(settings, estimates, 2)}
        assert {r.attrs["confirms"] for r in confirmed} == picks
        assert set(result.front.key) <= {r.key for r in confirmed}
        assert {r.attrs["epochs"] for r in estimates} == {0}
        assert load(tmp_path / "run" / "best").arch in [r.arch for r in confirmed]

    @pytest.mark.slow
    def test_the_picked_can_be_tuned_from_their_slices(
        self, settings: Settings, loaded: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jobs: list[Job] = []
        work = SharedWork.__call__
        monkeypatch.setattr(SharedWork, "__call__", lambda self, job, data: jobs.append(job) or work(self, job, data))
        result = search(settings.replace(confirm_by="tune", lr=0.1), tmp_path / "run")
        picks = picked(settings, of(tmp_path / "run", ESTIMATED), 2)  # one, where one network dominates all others
        assert [(j.evaluator, j.config.lr) for j in jobs if j.evaluator != "supernet"] == [("inherit", 0.02)] * len(
            picks
        )
        assert len(of(tmp_path / "run", SCORED)) == len(picks) > 0
        assert set(result.front.key) <= {j.arch.key() for j in jobs if j.evaluator == "inherit"}
        card = (tmp_path / "run" / "best" / "README.md").read_text()
        assert "weights that all networks of the space share" in card
        assert "lr 0.02" in card

    @pytest.mark.slow
    def test_scores_are_those_of_the_supernet_whatever_the_order(
        self, settings: Settings, loaded: Data, tmp_path: Path
    ) -> None:
        search(settings.replace(confirm=0), tmp_path / "run")
        model = loaded_from(tmp_path / "run" / shared_weights.FOLDER, settings, loaded)
        score = shared_weights.scorer(model, loaded, settings.scope, settings.scoring)
        for record in reversed(of(tmp_path / "run", ESTIMATED)):
            assert score(record.arch)[1] == pytest.approx(record.quality)

    @pytest.mark.slow
    def test_without_confirmation_the_front_is_of_estimates(
        self, settings: Settings, loaded: Data, tmp_path: Path
    ) -> None:
        result = search(settings.replace(confirm=0), tmp_path / "run")
        assert set(result.trials.outcome) <= {ESTIMATED, REPEATED}
        assert len(result.front) > 0
        assert not (tmp_path / "run" / "best").exists()

    @pytest.mark.slow
    def test_a_resumed_search_trains_no_weights_and_confirms_what_is_missing(
        self, settings: Settings, loaded: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        search(settings.replace(confirm=0), tmp_path / "run")
        monkeypatch.setattr(SupernetTrainer, "epoch", None)  # it would be called
        search(settings, tmp_path / "run")
        estimates, confirmed = of(tmp_path / "run", ESTIMATED), of(tmp_path / "run", SCORED)
        assert {r.attrs["confirms"] for r in confirmed} == {r.number for r in picked(settings, estimates, 2)}
        search(settings, tmp_path / "run")
        assert of(tmp_path / "run", SCORED) == confirmed

    @pytest.mark.slow
    def test_weights_that_were_brought_along_are_used(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        trained(settings, loaded, tmp_path / "s")
        search(settings.replace(supernet=str(tmp_path / "s"), confirm=0), tmp_path / "run")
        assert not (tmp_path / "run" / shared_weights.FOLDER).exists()
        assert len(of(tmp_path / "run", ESTIMATED)) == 6

    @pytest.mark.slow
    def test_on_ray_it_finds_the_same(
        self, settings: Settings, loaded: Data, tmp_path: Path, ray_cluster: None
    ) -> None:
        trained(settings, loaded, tmp_path / "s")
        for executor in ("local", "tune"):
            how = settings.replace(supernet=str(tmp_path / "s"), executor=executor, trials=12)
            search(how, tmp_path / executor)
        one, other = ({r.key: r.quality for r in of(tmp_path / e, ESTIMATED)} for e in ("local", "tune"))
        assert one == other
        assert {r.key for r in of(tmp_path / "local", SCORED)} == {r.key for r in of(tmp_path / "tune", SCORED)}

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"evaluator": "supernett"}, "did you mean 'supernet'"),
            ({"match_macs": 300_000}, "`match_macs`: its widths"),
            ({"confirm": -1}, "`confirm`: -1"),
            ({"confirm_by": "tuned"}, "did you mean 'tune'"),
            ({"evaluator": "scratch", "supernet": "s"}, "`supernet`: has no effect"),
        ],
    )
    def test_settings_that_do_not_go_together_are_refused(self, settings: Settings, change: dict, said: str) -> None:
        with pytest.raises(UserError, match=said):
            settings.replace(**change)

    def test_a_supernet_that_is_not_there_is_said_before_anything_is_written(
        self, settings: Settings, loaded: Data, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="holds no supernet"):
            search(settings.replace(supernet=str(tmp_path / "s")), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_inherit_starts_from_the_slice(settings: Settings, data: Data) -> None:
    space = settings.scope.get_space(10, data.image_size)
    model, arch = ElasticRes2Net(space), space.largest()
    config = Config(epochs=1, batch_size=20, lr=1e-12, precision="fp32", device="cpu")
    (report,) = SharedWork(model)(Job(0, arch, config, "inherit"), data)
    for name, value in safetensors.torch.load(report.weights).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, model.extract(arch).state_dict()[name])


@pytest.mark.parametrize(("count", "numbers"), [(0, []), (1, [4]), (2, [4, 0]), (3, [4, 2, 0]), (9, [4, 3, 2, 1, 0])])
def test_picks_are_spread_over_the_front_dearest_first(settings: Settings, count: int, numbers: list[int]) -> None:
    points = [(10.0, 1), (20.0, 2), (30.0, 3), (40.0, 4), (50.0, 5), (5.0, 6)]
    estimates = [Record(i, "COMPLETE", ESTIMATED, {}, {"macs": m}, a, {}) for i, (a, m) in enumerate(points)]
    assert len(front([a for a, _ in points], [m for _, m in points])) == 5
    assert [r.number for r in picked(settings, estimates, count)] == numbers
