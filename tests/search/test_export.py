"""Export: which network is picked, and that it is the very one that was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

import res2net
import trainers.datasets.data
from res2net.cost import cost
from res2net.deploy.int8 import Quantized
from res2net.errors import UserError
from search import runs
from search.api import search
from search.export import Extras, choose, export, main
from search.export_front import TABLE
from search.picks import ledger_of
from search.settings import Settings
from search.study.storage import read
from search.study.trials import FAILED, SCORED
from search.worker import Job, Report, train_trial
from studies.synthetic import Synthetic
from trainers.datasets.data import Data, Split
from trainers.images import Images
from trainers.start import initialised


def finished(folder: Path, data: Data, settings: Settings, work: object) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.datasets.data, "load", lambda *args, **kwargs: data)
        search(settings, folder, work=work)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_space: Path, data: Data) -> Path:
    """A search of 8 networks by formula, whose front has several; tests leave it as it is."""
    settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=8, epochs=2)
    return finished(tmp_path_factory.mktemp("run") / "run", data, settings, Synthetic(weights=True))


class TestPicks:
    def test_best_is_the_most_accurate(self, run: Path) -> None:
        scored = [r for r in read(run) if r.outcome == SCORED]
        assert choose(run, "best").quality == max(r.quality for r in scored)

    def test_the_knee_is_on_the_front(self, run: Path) -> None:
        assert choose(run, "knee").number in {r.number for r in ledger_of(run).front}

    def test_under_a_number_of_macs(self, run: Path) -> None:
        front = ledger_of(run).front
        assert len(front) >= 3
        assert choose(run, "best", under=[front[1].attrs["macs"]]) == front[1]
        assert choose(run, "best", under=[front[2].attrs["macs"] - 1]) == front[1]
        assert choose(run, "knee", under=[front[0].attrs["macs"]]) == front[0]
        with pytest.raises(UserError, match=r"^`under`: .*accepted: \S+ or more") as error:
            choose(run, "best", under=[front[0].attrs["macs"] - 1])
        named = str(error.value).split("accepted: ")[1].removesuffix(" or more")
        assert main([str(run), "--under", named, "--to", str(run.parent / "under")]) == 0  # what it names is accepted

    def test_a_trial_by_its_number(self, run: Path) -> None:
        scored = [r for r in read(run) if r.outcome == SCORED]
        assert [choose(run, str(r.number)) for r in scored] == scored

    @pytest.mark.parametrize("pick", ["999", "worst", "-1", "1.0", ""])
    def test_what_is_no_pick(self, run: Path, pick: str) -> None:
        with pytest.raises(UserError, match=r"^`pick`: .* is not a scored trial; accepted: best, knee, or one of 0, "):
            choose(run, pick)

    def test_a_run_that_scored_nothing_yet(self, data: Data, tiny_space: Path, tmp_path: Path) -> None:
        def fails(job: Job, data: Data) -> Iterator[Report]:
            yield Report(0, reason="no luck")

        settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=1)
        finished(tmp_path, data, settings, fails)
        with pytest.raises(UserError, match="no trial has its full budget yet"):
            choose(tmp_path, "best")

    def test_a_folder_that_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="accepted: the folder of a search"):
            choose(tmp_path, "best")


class TestFolder:
    def test_a_model_folder_with_its_history(self, run: Path, tmp_path: Path) -> None:
        record = export(run, "best", tmp_path / "model", extras=Extras(test=12.5))
        assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
            "README.md",
            "arch.json",
            "model.safetensors",
            "training.json",
        ]
        model = res2net.load(tmp_path / "model")
        assert model.arch == record.arch
        assert not model.training
        training = json.loads((tmp_path / "model/training.json").read_text())
        expected = {
            "trial": record.number,
            "val_top1": record.quality,
            "test_top1": 12.5,
            "macs": record.attrs["macs"],
        }
        assert training.items() >= expected.items()
        assert training["settings"] == runs.read(run)["settings"]
        card = (tmp_path / "model/README.md").read_text()
        for text in (
            f"{record.quality:.2f} %",
            "12.50 %",
            f"{record.attrs['macs']:,}",
            str(model.arch),
            "res2net.load",
        ):
            assert text in card
        assert str(tmp_path) not in card

    @pytest.mark.slow
    def test_hardware_and_code_are_those_of_the_trial_s_session(
        self, data: Data, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for trials, commit in ((2, "first"), (3, "second")):
            settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=trials, epochs=1)
            here = {"versions": {}, "hardware": {"cpu": f"{commit} CPU", "cores": 1, "gpus": []}, "commit": commit}
            monkeypatch.setattr("search.runs.environment", lambda here=here: here)
            finished(tmp_path / "run", data, settings, Synthetic(weights=True))
        for record in (r for r in read(tmp_path / "run") if r.outcome == SCORED):
            export(tmp_path / "run", str(record.number), tmp_path / "model")
            commit = "second" if record.number == 2 else "first"
            assert json.loads((tmp_path / "model/training.json").read_text())["commit"] == commit
            card = (tmp_path / "model/README.md").read_text()
            assert f"{commit} CPU" in card
            assert f"commit {commit}" in card

    def test_the_best_is_exported_by_the_search_itself(self, run: Path) -> None:
        assert json.loads((run / "best/training.json").read_text())["trial"] == choose(run, "best").number

    def test_a_model_folder_is_replaced(self, run: Path, tmp_path: Path) -> None:
        front = ledger_of(run).front
        for record in (front[0], front[-1]):
            export(run, str(record.number), tmp_path / "model")
            assert res2net.load(tmp_path / "model").arch == record.arch
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    def test_a_network_that_fit_trained_is_not_replaced(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        export(run, "best", tmp_path / "model")
        (tmp_path / "model/training.json").write_text('{"source": "res2net50"}')
        assert main([str(run), "--to", str(tmp_path / "model")]) == 2
        assert "holds a network that trainers.fit trained; accepted: another folder" in capsys.readouterr().err
        assert (tmp_path / "model/training.json").read_text() == '{"source": "res2net50"}'

    def test_an_empty_folder_is_filled(self, run: Path, tmp_path: Path) -> None:
        export(run, "best", tmp_path)
        assert (tmp_path / "arch.json").is_file()

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_what_is_no_model_folder_is_left_alone(self, run: Path, tmp_path: Path, kind: str) -> None:
        mine = tmp_path / "mine" if kind == "file" else tmp_path / "notes.txt"
        mine.write_text("mine")
        with pytest.raises(UserError, match=r"^`to`: .*accepted: a (new )?folder"):
            export(run, "best", mine if kind == "file" else tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [mine.name]
        assert mine.read_text() == "mine"

    @pytest.mark.slow
    def test_weights_that_were_dropped(self, data: Data, tiny_space: Path, tmp_path: Path) -> None:
        settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=2, epochs=1)
        finished(tmp_path / "run", data, settings, Synthetic(weights=True))
        runs.weights_path(tmp_path / "run", 0).unlink()
        with pytest.raises(UserError, match=r"^`pick`: the weights of trial 0 are not in"):
            export(tmp_path / "run", "0", tmp_path / "model")
        assert not (tmp_path / "model").exists()
        assert main([str(tmp_path / "run"), "--pick", "0", "--to", str(tmp_path / "model"), "--test"]) == 2

    def test_nothing_is_left_half_written(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        export(run, "best", tmp_path / "model")
        before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("search.model_folder.card", killed)
        with pytest.raises(KeyboardInterrupt):
            export(run, str(ledger_of(run).front[0].number), tmp_path / "model")
        assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    def test_weights_that_do_not_fit_take_no_name(self, data: Data, tiny_space: Path, tmp_path: Path) -> None:
        settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=1, epochs=1)
        finished(tmp_path / "run", data, settings, Synthetic(weights=True))
        state = {"stem.weight": torch.zeros(3)}
        runs.weights_path(tmp_path / "run", 0).write_bytes(safetensors.torch.save(state))
        with pytest.raises(UserError):
            export(tmp_path / "run", "best", tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_a_trial_whose_weights_are_no_numbers_fails_and_the_search_hands_back_its_result(
    loaded: Data, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its losses are numbers, and no folder takes such weights: on the front, it would end the search's last export."""
    made = []

    def initialised(arch: res2net.Arch, zero_last: bool) -> torch.nn.Module:
        made.append(res2net.create(arch))
        if len(made) == 2:
            next(b for n, b in made[1].named_buffers() if n.endswith("running_var")).fill_(torch.inf)
        return made[-1]

    monkeypatch.setattr("search.worker.initialised", initialised)
    settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=2, epochs=1, batch_size=20)
    result = search(settings, tmp_path)
    assert list(result.trials.outcome) == [SCORED, FAILED]
    assert result.trials.reason[1].endswith("running_var' is not finite after epoch 1")
    assert list(result.front.number) == [0]
    assert (tmp_path / "best/model.safetensors").is_file()


class TestTrained:
    """Two real trainings, of seconds."""

    @pytest.fixture(scope="class")
    @classmethod
    def images(cls, data: Data) -> torch.Tensor:
        """The validation images as a network sees them."""
        return next(Images(data.val, data, torch.device("cpu")).batches(100))[0]

    @pytest.fixture(scope="class")
    @classmethod
    def logits(cls) -> dict[int, torch.Tensor]:
        """What each trial's model gave on the validation images, at its end."""
        return {}

    @pytest.fixture(scope="class")
    @classmethod
    def run(
        cls,
        tmp_path_factory: pytest.TempPathFactory,
        tiny_space: Path,
        data: Data,
        logits: dict[int, torch.Tensor],
        images: torch.Tensor,
    ) -> Path:
        def watched(job: Job, data: Data) -> Iterator[Report]:
            models = []
            for report in train_trial(
                job, data, lambda arch: models.append(initialised(arch, zero_last=True)) or models[0]
            ):
                if report.epoch == job.config.epochs:
                    logits[job.number] = models[0].eval()(images).detach()
                yield report

        settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=2, epochs=2, batch_size=10)
        return finished(tmp_path_factory.mktemp("trained") / "run", data, settings, watched)

    def test_the_exported_model_gives_the_trials_logits(
        self, run: Path, logits: dict[int, torch.Tensor], images: torch.Tensor, data: Data, tmp_path: Path
    ) -> None:
        assert logits.keys() == {0, 1}
        labels = torch.as_tensor(data.val.labels)
        for number, expected in logits.items():
            record = export(run, str(number), tmp_path / str(number))
            model = res2net.load(tmp_path / str(number))
            assert not model.training
            torch.testing.assert_close(model(images).detach(), expected, rtol=1e-5, atol=1e-5)
            assert record.attrs["macs"] == cost(model.arch, data.image_size).macs
            right = (expected.argmax(1) == labels).float().mean().item()
            assert record.quality == pytest.approx(100 * right)

    def test_the_test_split_is_read_only_when_asked(
        self, run: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        calls = []

        def load_test(*args: object, **_: object) -> Split:
            calls.append(args)
            return data.val

        monkeypatch.setattr(trainers.datasets.data, "load_test", load_test)
        assert main([str(run), "--pick", "0", "--to", str(tmp_path / "model")]) == 0
        assert calls == []
        assert "test split" not in capsys.readouterr().out
        assert main([str(run), "--pick", "0", "--to", str(tmp_path / "model"), "--test", "--data-dir", "there"]) == 0
        assert calls == [("shapes", "there")]
        training = json.loads((tmp_path / "model/training.json").read_text())
        assert training["test_top1"] == pytest.approx(training["val_top1"])
        assert f"{training['test_top1']:.2f} % on the test split" in capsys.readouterr().out

    def test_the_same_trial_again_has_the_same_weights(
        self, run: Path, data: Data, tiny_space: Path, tmp_path: Path
    ) -> None:
        settings = Settings(space=str(tiny_space), executor="local", workers=1, trials=1, epochs=2, batch_size=10)
        again = finished(tmp_path, data, settings, train_trial)
        assert runs.weights_path(again, 0).read_bytes() == runs.weights_path(run, 0).read_bytes()


class TestCommand:
    def test_one_line_of_what_was_written(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert main([str(run), "--pick", "knee", "--to", str(tmp_path / "model")]) == 0
        record = choose(run, "knee")
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        assert out.startswith(f"{tmp_path / 'model'}: trial {record.number}, {record.attrs['arch']}")

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["--pick", "worst"], "--pick"),
            (["--under", "lots"], "--under"),
            (["--under", "1"], "--under"),
        ],
    )
    def test_a_mistake_is_one_line_and_writes_nothing(
        self, options: list[str], named: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        assert main([str(run), "--to", str(tmp_path / "model"), *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith(f"python -m search.export: error: {named}: ")
        assert list(tmp_path.iterdir()) == []

    def test_a_number_and_a_limit_at_once(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        dearest = ledger_of(run).front[-1]
        options = [
            "--pick",
            str(dearest.number),
            "--under",
            str(dearest.attrs["macs"] - 1),
            "--to",
            str(tmp_path / "model"),
        ]
        assert main([str(run), *options]) == 2
        assert "--under" in capsys.readouterr().err

    @pytest.mark.slow
    def test_int8_with_what_it_loses(
        self, run: Path, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainers.datasets.data, "load", lambda *args, **kwargs: data)
        assert main([str(run), "--int8", "--to", str(tmp_path / "model")]) == 0
        training = json.loads((tmp_path / "model/training.json").read_text())["int8"]
        text = (
            f"{training['val_top1']:.2f} % in int8, {training['fp32_val_top1']:.2f} % in fp32, on 20 validation images"
        )
        assert text in capsys.readouterr().out
        assert text in (tmp_path / "model/README.md").read_text()
        small = Quantized((tmp_path / "model/model.int8.onnx").read_bytes())
        images = Images(data.val, data, torch.device("cpu"))
        (x, y), *_ = images.batches(20)
        assert 100 * (small(x).argmax(1) == y).float().mean().item() == pytest.approx(training["val_top1"])
        res2net.load(tmp_path / "model")  # the folder stays a model folder
        assert main([str(run), "--to", str(tmp_path / "model")]) == 0


class TestFront:
    def test_every_network_and_one_table(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert main([str(run), "--front", "--to", str(tmp_path / "front")]) == 0
        front = ledger_of(run).front
        table = pd.read_csv(tmp_path / "front" / TABLE)
        assert list(table.folder) == [f"trial-{r.number}" for r in front]
        assert list(table.macs) == [r.attrs["macs"] for r in front]
        assert list(table.val_top1) == pytest.approx([r.quality for r in front])
        assert (table.difference <= 1e-5).all()
        for record in front:
            state = res2net.load(tmp_path / "front" / f"trial-{record.number}").state_dict()
            trained = safetensors.torch.load_file(runs.weights_path(run, record.number))
            assert all(torch.equal(state[name], value) for name, value in trained.items())
        out = capsys.readouterr().out
        assert f"{len(front)} networks, {TABLE}; they differ from the trained networks" in out
        assert main([str(run), "--front", "--to", str(tmp_path / "front")]) == 0  # replaces its own

    def test_a_part_of_it(self, run: Path, tmp_path: Path) -> None:
        front = ledger_of(run).front
        under = str(front[1].attrs["macs"])
        assert main([str(run), "--front", "--under", under, "--to", str(tmp_path / "front")]) == 0
        assert len(pd.read_csv(tmp_path / "front" / TABLE)) == 2

    def test_a_folder_with_other_files_is_left_alone(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        assert main([str(run), "--front", "--to", str(tmp_path)]) == 2
        assert "holds 'notes.txt', which does not belong to an exported front" in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]

    def test_models_that_it_did_not_write_are_left_alone(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        assert main([str(run), "--to", str(tmp_path / "models" / "mine")]) == 0
        assert main([str(run), "--front", "--to", str(tmp_path / "models")]) == 2
        assert "holds 'mine', which does not belong to an exported front" in capsys.readouterr().err
        (tmp_path / "models" / TABLE).write_text("folder\nmine\n")  # a table of another origin
        assert main([str(run), "--front", "--to", str(tmp_path / "models")]) == 2
        res2net.load(tmp_path / "models" / "mine")

    @pytest.mark.parametrize("where", ["mine", "trial-{}/mine"])
    def test_what_was_added_to_it_is_left_alone(
        self, run: Path, tmp_path: Path, where: str, capsys: pytest.CaptureFixture
    ) -> None:
        assert main([str(run), "--front", "--to", str(tmp_path / "front")]) == 0
        added = tmp_path / "front" / where.format(ledger_of(run).front[0].number)
        assert main([str(run), "--to", str(added)]) == 0
        assert main([str(run), "--front", "--to", str(tmp_path / "front")]) == 2
        assert "holds 'mine', which does not belong to" in capsys.readouterr().err
        res2net.load(added)

    def test_a_pick_contradicts_it(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert main([str(run), "--front", "--pick", "knee", "--to", str(tmp_path / "front")]) == 2
        assert "--pick: knee contradicts --front" in capsys.readouterr().err

    def test_another_network_in_the_folder_is_noticed(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = res2net.load

        def other(folder: Path) -> object:
            model = load(folder)
            with torch.no_grad():
                model.fc.weight.add_(1)
            return model

        monkeypatch.setattr("search.export_front.load", other)
        with pytest.raises(RuntimeError, match="differs from the trained network"):
            main([str(run), "--front", "--to", str(tmp_path / "front")])
        assert not (tmp_path / "front").exists()
