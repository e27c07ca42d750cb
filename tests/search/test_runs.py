"""A run's folder: what it holds, whom it lets in, and what it refuses."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from res2net.cost import cost
from res2net.errors import UserError
from res2net.folder import load_arch
from search import load, runs
from search.api import Result, search
from search.driver import Driver
from search.lock import locked
from search.run import show
from search.settings import Settings
from search.study.storage import read
from search.study.trials import INFEASIBLE, SCORED
from studies.synthetic import Synthetic
from trainers.datasets.data import Data
from trainers.recipes import RECIPES

WORK = Synthetic(weights=True)


@pytest.fixture
def run(loaded: Data) -> Callable[..., Result]:
    """Runs a whole search on the random images, by formula."""
    return lambda settings, out: search(settings, out, work=WORK)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestFolder:
    def test_what_a_search_leaves(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        result = run(make_settings(trials=4), tmp_path / "run")
        names = {p.name for p in (tmp_path / "run").iterdir()}
        plots = {"trials.csv", "pareto.csv", "pareto.png", "pareto.html"}
        assert names == {"run.json", "study.db", "weights", "checkpoints", "artifacts", "best", ".lock"} | plots
        assert list((tmp_path / "run/checkpoints").iterdir()) == []
        assert result.folder == tmp_path / "run"
        assert sorted(p.name for p in (tmp_path / "run/weights").iterdir()) == [
            f"{r.number}.safetensors" for r in read(result.folder) if r.outcome == SCORED
        ]
        assert (len(result.trials), result.why_stopped) == (4, "all trials are done")
        assert 0 < result.hypervolume < 100
        assert not result.interrupted
        assert result.front.val_top1.is_monotonic_increasing

    def test_run_json_says_how_and_with_what(
        self, run: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=2, seed=3)
        run(settings, tmp_path / "run")
        content = json.loads((tmp_path / "run/run.json").read_text())
        assert content.keys() == {"version", "settings", "space", "data", "created", "sessions"}
        assert Settings.from_dict(content["settings"]) == settings == runs.settings_of(tmp_path / "run")
        assert runs.space_of(tmp_path / "run") == settings.scope.get_space(10, data.image_size)
        described = {
            "name": "shapes",
            "classes": list(data.classes),
            "train_images": 40,
            "val_images": 20,
            "image_size": 8,
        }
        assert content["data"] == described | {"mean": [0.5] * 3, "std": [0.3] * 3}
        assert content["version"] == version("res2net-search")
        (session,) = content["sessions"]
        assert session.keys() == {"started", "versions", "hardware", "commit", "time", "plan", "spent"}
        assert {"python", "torch", "optuna"} <= session["versions"].keys()
        assert (session["time"], session["plan"]) == (None, None)
        assert session["spent"] >= 0

    @pytest.mark.slow
    def test_each_session_is_added(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        run(make_settings(trials=2), tmp_path)
        first = runs.read(tmp_path)
        run(make_settings(trials=3), tmp_path)
        second = runs.read(tmp_path)
        assert second["created"] == first["created"]
        assert second["sessions"][:-1] == first["sessions"]
        assert second["settings"]["budget"]["trials"] == 3

    def test_the_folder_alone_resumes_and_is_exported(
        self, run: Callable, make_settings: Callable, tiny_space: Path, tmp_path: Path
    ) -> None:
        """Renamed, and the file of the space lost."""
        space = shutil.copy(tiny_space, tmp_path / "mine.yaml")
        settings = make_settings(space=str(space), trials=3)
        run(settings, tmp_path / "before")
        records = list(read(tmp_path / "before"))
        (tmp_path / "before").rename(tmp_path / "after")
        (tmp_path / "mine.yaml").unlink()
        result = run(make_settings(space=str(space), trials=5), tmp_path / "after")
        assert list(read(tmp_path / "after"))[: len(records)] == records
        assert (result.trials.outcome == SCORED).sum() == 5

    def test_a_search_without_weights_ends_well(self, loaded: Data, make_settings: Callable, tmp_path: Path) -> None:
        result = search(make_settings(trials=2), tmp_path, work=Synthetic())
        assert len(result.front)
        assert not (tmp_path / "best").exists()

    def test_a_search_that_scored_nothing_ends_well(
        self, loaded: Data, make_settings: Callable, tmp_path: Path
    ) -> None:
        def fails(job: object, data: object):
            raise RuntimeError("no luck")
            yield

        result = search(make_settings(trials=3), tmp_path, work=fails)
        assert (len(result.front), result.hypervolume) == (0, 0.0)
        assert (result.trials.outcome == "failed").sum() == 3
        assert not (tmp_path / "best").exists()

    def test_an_interrupted_search_says_so_and_resumes(
        self, loaded: Data, make_settings: Callable, tmp_path: Path
    ) -> None:
        calls = []

        def interrupted(job: object, data: object):
            calls.append(job)
            if len(calls) == 3:
                raise KeyboardInterrupt
            yield from WORK(job, data)

        result = search(make_settings(trials=4), tmp_path, work=interrupted)
        assert (result.interrupted, result.unfinished, result.why_stopped) == (True, True, "interrupted")
        assert [r.state for r in read(tmp_path)] == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
        result = search(make_settings(trials=4), tmp_path, work=WORK)
        assert (result.interrupted, result.unfinished) == (False, False)
        assert (result.trials.outcome == SCORED).sum() == 4

    def test_a_search_that_ends_with_an_error_has_its_trials_enqueued(
        self, run: Callable, make_settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(driver: Driver, *_: object) -> None:
            driver.next_job()
            raise UserError("no worker is left")

        monkeypatch.setattr("search.execute.local.execute", fails)
        with pytest.raises(UserError, match=r"^no worker is left$"):
            run(make_settings(), tmp_path / "run")
        assert [r.state for r in read(tmp_path / "run")] == ["FAIL", "WAITING"]


class TestVersions:
    """Folders of earlier versions are read, or refused in one line that says which version wrote them."""

    @staticmethod
    def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads((folder / "run.json").read_text())
        change(content)
        (folder / "run.json").write_text(json.dumps(content))

    def test_a_run_of_version_0_1_resumes(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        """Its settings have no groups, and some settings did not exist."""
        settings = make_settings(trials=2, seed=3, lr=0.05, max_macs=20_000, recipe=RECIPES["fast"])
        run(settings, tmp_path)

        def flatten(content: dict[str, Any]) -> None:
            del content["version"]
            content["settings"] = settings.values()
            for name in ("objective", "max_params", "max_activations", "study", "recipe"):
                del content["settings"][name]

        self.rewrite(tmp_path, flatten)
        assert runs.settings_of(tmp_path) == settings
        assert len(run(settings.replace(trials=3), tmp_path).trials) >= 3
        assert runs.settings_of(tmp_path) == settings.replace(trials=3)

    @pytest.mark.parametrize("group", ["scope", None])
    def test_unknown_settings_of_a_newer_version_are_refused(
        self, group: str | None, run: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        run(make_settings(trials=1), tmp_path)

        def newer(content: dict[str, Any]) -> None:
            content["version"] = "9.0"
            (content["settings"][group] if group else content["settings"])["teacher"] = "resnet"

        self.rewrite(tmp_path, newer)
        before = tree(tmp_path)
        for call in (lambda: run(make_settings(trials=2), tmp_path), lambda: load(tmp_path)):
            with pytest.raises(UserError, match=r"run\.json, written by version 9\.0 .*'teacher'") as error:
                call()
            assert "\n" not in str(error.value)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize(
        ("settings", "named"),
        [({"sed": 1}, "version 0.1 .*'seed'"), ({"scope": 3}, "version 0.1"), ({"lr": "x"}, "version 0.1")],
    )
    def test_settings_that_were_changed_by_hand(self, settings: dict[str, Any], named: str, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text(json.dumps({"settings": settings, "space": {}}))
        with pytest.raises(UserError, match=named):
            runs.settings_of(tmp_path)

    @pytest.mark.parametrize("space", [{}, {"name": "mine", "teacher": 1}])
    def test_a_space_that_is_unknown(self, space: dict[str, Any], tmp_path: Path) -> None:
        content = {"version": "9.0", "settings": {}, "space": space}
        (tmp_path / "run.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"version 9\.0"):
            runs.space_of(tmp_path)


class TestLoad:
    """`search.load(folder)` returns what the search returned."""

    def test_a_finished_search(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        made = run(make_settings(trials=6, max_macs=16_000), tmp_path)
        before = tree(tmp_path)
        self.check(load(str(tmp_path)), made)
        assert tree(tmp_path) == before  # nothing is written

    def test_an_interrupted_search(self, loaded: Data, make_settings: Callable, tmp_path: Path) -> None:
        def work(job: Any, data: Data):
            if job.number == 2:
                raise KeyboardInterrupt
            yield from WORK(job, data)

        made = search(make_settings(trials=6), tmp_path, work=work)
        assert made.unfinished
        self.check(load(tmp_path), made)

    def test_a_search_that_has_tried_every_network(
        self, run: Callable, make_settings: Callable, capsys: pytest.CaptureFixture, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=20)
        made = run(settings, tmp_path)
        assert (made.ledger.spent, made.unfinished) == (12, False)
        self.check(load(tmp_path), made)
        show(Console(), made)
        assert "resume" not in capsys.readouterr().out

    @pytest.mark.parametrize("size", [0, 50_000])
    def test_a_search_that_finds_no_new_network_in_a_large_space(
        self, size: int, run: Callable, make_settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.proposals.ENUMERABLE", size)  # 0: the space counts as large
        made = run(make_settings(trials=20), tmp_path)
        assert not made.unfinished
        assert load(tmp_path).unfinished is (size == 0)

    @staticmethod
    def check(found: Result, made: Result) -> None:
        pd.testing.assert_frame_equal(found.trials, made.trials)
        pd.testing.assert_frame_equal(found.front, made.front)
        for name in ("folder", "settings", "space", "hypervolume", "unfinished"):
            assert getattr(found, name) == getattr(made, name), name
        assert (found.ledger.front, found.ledger.history) == (made.ledger.front, made.ledger.history)
        for result in (found, made):
            figure = result.plot()
            assert isinstance(figure, Figure)
            assert figure.axes[0].get_xlabel() == "multiply-accumulates of one image"

    @pytest.mark.parametrize("call", [load, runs.read, runs.settings_of, runs.space_of])
    def test_a_folder_that_is_no_run(self, call: Callable, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"run\.json is missing; accepted: the folder of a search"):
            call(tmp_path)


@pytest.mark.slow
class TestImageSize:
    """The data's images have 8 pixels a side; the base or the file of a space says 32, or 224."""

    def test_costs_and_limits_are_of_the_data_s_images(
        self, run: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        result = run(make_settings(trials=12, epochs=1, max_macs=16_000), tmp_path / "run")
        records = list(read(tmp_path / "run"))
        assert all(r.attrs["macs"] == cost(r.arch, 8).macs for r in records)
        assert {r.outcome == INFEASIBLE for r in records if r.attrs["macs"] > 16_000} == {True}
        assert (result.trials.outcome == SCORED).sum() == 7
        training = json.loads((tmp_path / "run/best/training.json").read_text())
        assert training["macs"] == cost(load_arch(tmp_path / "run/best"), 8).macs == result.front.macs.iloc[-1]

    def test_macs_are_matched_at_the_data_s_images(
        self, run: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        run(make_settings(trials=3, epochs=1, match_macs=16_000), tmp_path)
        scored = [r for r in read(tmp_path) if r.outcome == SCORED]
        assert all(cost(r.arch, 8).macs == pytest.approx(16_000, rel=0.1) for r in scored)

    def test_a_base_for_larger_images(self, loaded: Data, make_settings: Callable, tmp_path: Path) -> None:
        settings = make_settings(space="scale", base="imagenet", trials=1, epochs=1, max_macs=30_000_000)
        search(settings, tmp_path, work=Synthetic())
        (record,) = [r for r in read(tmp_path) if r.outcome == SCORED]
        assert record.attrs["macs"] == cost(record.arch, 8).macs <= 30_000_000


class TestRefusals:
    def test_another_search_with_what_differs(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        run(make_settings(trials=2), tmp_path)
        before = tree(tmp_path)
        with pytest.raises(UserError) as error:
            run(make_settings(trials=2, seed=1, max_macs=300_000), tmp_path)
        text = str(error.value)
        assert text.startswith("`out`: ")
        assert "holds a search with `max_macs` None, not 300000; `seed` 0, not 1; accepted: the same settings" in text
        assert tree(tmp_path) == before

    def test_the_same_file_of_a_space_with_another_content(
        self, run: Callable, make_settings: Callable, tiny_space: Path, tmp_path: Path
    ) -> None:
        space = Path(shutil.copy(tiny_space, tmp_path / "mine.yaml"))
        settings = make_settings(space=str(space), trials=1)
        run(settings, tmp_path / "run")
        space.write_text(space.read_text().replace("[1, 2, 4]", "[1, 2]"))
        with pytest.raises(UserError, match=r"holds a search with another content of `space` .*mine\.yaml"):
            run(settings, tmp_path / "run")

    def test_a_folder_with_something_else(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match=r"^`out`: .* holds files but no search; accepted: a new folder"):
            run(make_settings(), tmp_path)
        assert tree(tmp_path) == {"notes.txt": b"mine"}

    @pytest.mark.parametrize("name", ["q?x", "c{a}", "c{0}", "p%20x"])
    def test_a_path_that_a_database_s_url_cannot_hold(
        self, name: str, run: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"^`out`: '.*' cannot hold a study; accepted: a path without \? { } %20$"):
            run(make_settings(), tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["with space", "50%", "#1", "a@b:c", "für"])
    def test_other_names_hold_a_search(self, name: str, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        run(make_settings(trials=1), tmp_path / name)
        assert load(tmp_path / name).ledger.spent == 1

    def test_a_file(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match=r"^`out`: .* is a file; accepted: a folder"):
            run(make_settings(), tmp_path / "file")
        assert tree(tmp_path) == {"file": b"mine"}

    @pytest.mark.parametrize("content", ["{", "", "[]", '{"space": {}}', '{"settings": 3}', '{"settings": {"sed": 1}}'])
    def test_a_run_json_that_is_none(
        self, content: str, run: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(UserError) as error:
            run(make_settings(), tmp_path)
        assert "\n" not in str(error.value)
        assert tree(tmp_path) == {"run.json": content.encode()}

    def test_impossible_limits_write_nothing(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="`max_macs`"):
            run(make_settings(max_macs=10), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_second_driver(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        run(make_settings(trials=1), tmp_path)
        before = tree(tmp_path)
        with locked(tmp_path), pytest.raises(UserError, match=r"^`out`: a search is running in"):
            run(make_settings(trials=2), tmp_path)
        assert tree(tmp_path) == before
        run(make_settings(trials=2), tmp_path)  # let go

    @pytest.mark.slow
    def test_a_second_driver_of_another_process(self, run: Callable, make_settings: Callable, tmp_path: Path) -> None:
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, there))
        process.start()
        try:
            assert here.poll(60)
            assert here.recv() == "held"
            with pytest.raises(UserError, match="a search is running"):
                run(make_settings(trials=1), tmp_path)
        finally:
            process.kill()
            process.join(30)
        run(make_settings(trials=1), tmp_path)  # the lock went with the process

    def test_a_folder_killed_before_its_run_json_can_be_used(
        self, run: Callable, make_settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(runs, "write_atomic", killed)
            with pytest.raises(KeyboardInterrupt):
                run(make_settings(), tmp_path / "run")
        assert len(run(make_settings(trials=1), tmp_path / "run").trials) == 1

    def test_what_a_killed_driver_was_writing_is_cleared_away(
        self, run: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        left = [".run.json.7.tmp", ".trials.csv.7.tmp", "weights/.3.safetensors.7.tmp", ".best.abc/arch.json"]
        (tmp_path / left[0]).write_text("{")
        run(make_settings(trials=1), tmp_path)
        for name in left:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("half")
        (tmp_path / "weights/.mine").write_text("not ours")
        run(make_settings(trials=2), tmp_path)
        assert [name for name in left if (tmp_path / name).exists()] == []
        assert (tmp_path / "weights/.mine").exists()


def _hold(folder: Path, pipe: object) -> None:
    with locked(folder):
        pipe.send("held")
        pipe.recv()


class TestWeights:
    def test_dominated_ones_go_the_oldest_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runs, "KEEP_BYTES", 30)
        (tmp_path / "weights").mkdir()
        for number in range(6):
            runs.keep_weights(tmp_path, number, b"x" * 10, front={1, 3})
        assert sorted(int(p.stem) for p in (tmp_path / "weights").iterdir()) == [1, 3, 5]

    def test_those_of_the_front_stay_whatever_they_take(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runs, "KEEP_BYTES", 15)
        (tmp_path / "weights").mkdir()
        for number in range(4):
            runs.keep_weights(tmp_path, number, b"x" * 10, front={0, 1, 2})
        assert len(list((tmp_path / "weights").iterdir())) == 4

    def test_a_search_keeps_those_of_its_front(
        self, run: Callable, make_settings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runs, "KEEP_BYTES", 1)
        result = run(make_settings(trials=8), tmp_path)
        kept = {int(p.stem) for p in (tmp_path / "weights").iterdir()}
        assert kept >= set(result.front.number)
        assert (tmp_path / "best" / "model.safetensors").is_file()


def test_names_of_new_runs(tmp_path: Path) -> None:
    assert runs.new_name(Settings(space="dir/mine.yaml")).startswith("mine-shapes-2")
    assert "/" not in runs.new_name(Settings(space="scale"))
