"""The command line: one line a mistake, settings that come back, one line a trial in a pipe, a kind Ctrl-C."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import space
from res2net.commands import typed_as
from search import calibration, export, plan, run, runs, supernet
from search.calibration import OVERHEAD
from search.evaluators import EVALUATORS
from search.objectives import MACS
from search.plan import Pace
from search.report import progress
from search.resources import EXECUTORS
from search.settings import GROUP_OF, GROUPS, Settings
from search.study.sampler import SAMPLERS
from search.study.storage import read
from search.study.trials import ORPHAN, SCORED
from search.timetable import Member
from search.units import parse_count
from search.worker import Job, Report
from studies.synthetic import Synthetic
from trainers import fit
from trainers.datasets.data import Data


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The command takes SIGTERM as Ctrl-C; the tests' process gets its own way back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def by_formula(loaded: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches on formulas, in this process."""
    whole = run.search
    work = Synthetic(weights=True)
    monkeypatch.setattr(
        run, "search", lambda settings, out, progress, begun: whole(settings, out, progress, work, begun=begun)
    )


@pytest.fixture
def options(tiny_space: Path, tmp_path: Path) -> list[str]:
    return f"--space {tiny_space} --executor local --trials 3 --epochs 2 --out {tmp_path / 'run'}".split()


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ("--space scale_crad", "--space: unknown value 'scale_crad'; did you mean 'scale_card'?"),
            ("--space no/such.yaml", "--space no/such.yaml: cannot be read"),
            ("--data cifar11", "--data: unknown value 'cifar11'; did you mean"),
            ("--sampler tpee", "--sampler: unknown value 'tpee'; did you mean 'tpe'?"),
            ("--executor slurm", "--executor: unknown value 'slurm'; accepted: tune, local"),
            ("--base mirco", "--base: unknown value 'mirco'; did you mean 'micro'?"),
            ("--max-macs lots", "--max-macs: 'lots' is not a count"),
            ("--time soon", "--time: 'soon' is not a time"),
            ("--max-macs 10", "--max-macs: no base has a network within 10; accepted: at least "),
            ("--max-macs 10 --base thin", "--max-macs: nothing in space"),
            ("--min-macs 10T", "--min-macs: nothing in space"),
            ("--max-params 10", "--max-params: no base has a network within 10; accepted: at least "),
            ("--max-macs 1M --min-macs 2M", "--min-macs: 2.00M is more than --max-macs 1.00M"),
            ("--match-macs 100", "--match-macs: nothing in space"),
            ("--match-macs 1000T", "--match-macs: nothing in space"),
            ("--trials 0", "--trials: 0 is too small"),
            ("--seed -1", "--seed: -1"),
            ("--base ''", "--base: unknown value ''"),
            ("--lr inf", "--lr: inf is out of range"),
            ("--lr nan", "--lr: nan is out of range"),
            ("--time inf", "--time: 'inf' is not a time"),
            ("--max-macs " + 400 * "9", "--max-macs: '999"),
            ("--download", "--download: needs --data-dir"),
        ],
    )
    def test_one_line_code_2_and_nothing_written(
        self,
        arguments: str,
        named: str,
        data: Data,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if "--seed" not in arguments:  # which is the data's to refuse
            monkeypatch.setattr("trainers.datasets.data.load", lambda *args, **kwargs: data)
        assert run.main(shlex.split(arguments)) == 2
        out, error = capsys.readouterr()
        assert error.startswith(f"python -m search.run: error: {named}")
        assert "accepted:" in error or "needs --data-dir" in error
        assert (error.count("\n"), out) == (1, "")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "arguments", ["--epoch 3", "--trials many", "extra", "--trial 3", "--lr", "--lr x", "--seed x", "--seed 1.5"]
    )
    def test_options_that_cannot_be_parsed(
        self, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            run.main(arguments.split())
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("python -m search.run: error: ")
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            ("choises: {scale: [1]}", "'choises'"),
            ("choices: {scael: [1]}", "'scael'"),
            ("choices: {scale: [0]}", "scale"),
            ("choices: {scale: [1]", "not YAML"),
            ("3", "not a table"),
        ],
    )
    def test_a_yaml_file_with_a_mistake(
        self, content: str, named: str, loaded: Data, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(content)
        assert run.main(["--space", str(path), "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"python -m search.run: error: --space {path}: ")
        assert named in error
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("option", "value", "named"),
        [
            ("--gpus-per-trial", "16", "accepted: at most that"),
            ("--cpus-per-trial", "3", "accepted: at most that"),
            ("--workers", "3", "accepted: at most 2"),
        ],
    )
    def test_resources_that_are_not_there_are_found_out_before_anything_is_written(
        self,
        option: str,
        value: str,
        named: str,
        ray_cluster: None,
        loaded: Data,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
    ) -> None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        out = tmp_path / "run"
        assert run.main(["--space", "scale", "--out", str(out), option, value]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"python -m search.run: error: {option}: {value}")
        assert error.endswith(f"{named}\n")
        assert error.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_the_data_loads_is_one_line(
    by: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("trainers.datasets.data.load", lambda *args, **kwargs: os.kill(os.getpid(), by))
    assert run.main(["--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr() == ("", "python -m search.run: interrupted\n")
    assert not (tmp_path / "run").exists()


class TestHelp:
    @staticmethod
    def text(main: Callable[[list[str]], int], option: str, capsys: pytest.CaptureFixture) -> dict[str, str]:
        """Return the help text of each option."""
        with pytest.raises(SystemExit) as stop:
            main([option])
        assert stop.value.code == 0
        lines = re.split(r"\n  (?=-)", capsys.readouterr().out.split("\n\n", 2)[2])
        found = {re.search(r"--[\w-]+", line)[0]: " ".join(line.split("\n\n")[0].split()) for line in lines[1:]}
        assert len(found) == len(lines) - 1
        return found

    def test_shows_a_dozen_options(self, capsys: pytest.CaptureFixture) -> None:
        shown = self.text(run.main, "--help", capsys)
        assert len(shown) <= 15
        assert {"--help-all", "--space", "--data", "--max-macs", "--time", "--trials", "--out"} <= shown.keys()
        assert (
            shown.items() - {("--help-all", shown["--help-all"])} <= self.text(run.main, "--help-all", capsys).items()
        )

    def test_all_shows_an_option_for_each_setting_and_no_other(self, capsys: pytest.CaptureFixture) -> None:
        shown = self.text(run.main, "--help-all", capsys)
        commands_own = {"--help", "--download", "--dry-run", "--out"}
        assert shown.keys() - commands_own == {f"--{name.replace('_', '-')}" for name in GROUP_OF}
        dests = [a.dest for a in run.build_parser(everything=True)._actions]
        assert sorted(dests) == sorted([*GROUP_OF, "help", "download", "dry_run", "out"])

    @pytest.mark.parametrize("name", GROUP_OF)
    def test_all_shows_each_default(self, name: str, capsys: pytest.CaptureFixture) -> None:
        text = self.text(run.main, "--help-all", capsys)[f"--{name.replace('_', '-')}"]
        field = GROUPS[GROUP_OF[name]].__dataclass_fields__[name]
        default = field.metadata.get("shown", field.default)
        shown = r"\S.*" if default is None else "off" if default is False else re.escape(str(default))
        assert re.search(rf"default: {shown}[;)]", text), text

    @pytest.mark.parametrize(
        ("option", "unit"),
        [
            ("--max-macs", "MACs (20M, 4.2G"),
            ("--min-macs", "MACs"),
            ("--max-params", "parameters"),
            ("--max-activations", "activations"),
            ("--match-macs", "MACs"),
            ("--train-images", "images"),
            ("--image-size", "pixels"),
            ("--batch-size", "images"),
            ("--epochs", "in epochs"),
            ("--min-epochs", "epochs"),
            ("--supernet-epochs", "epochs"),
            ("--time", "(90s, 30m, 6h"),
            ("--trials", "networks"),
            ("--confirm", "networks"),
            ("--workers", "trials"),
            ("--cpus-per-trial", "cores"),
            ("--gpus-per-trial", "GPUs"),
        ],
    )
    def test_all_shows_units(self, option: str, unit: str, capsys: pytest.CaptureFixture) -> None:
        assert unit in self.text(run.main, "--help-all", capsys)[option]

    @pytest.mark.parametrize(
        ("option", "names"),
        [("--evaluator", EVALUATORS), ("--sampler", SAMPLERS), ("--executor", EXECUTORS)],
    )
    def test_shows_choices(self, option: str, names: Iterable[str], capsys: pytest.CaptureFixture) -> None:
        assert f": {', '.join(names)}" in self.text(run.main, "--help-all", capsys)[option]

    def test_shows_the_defaults_that_suit_an_evaluator(self, capsys: pytest.CaptureFixture) -> None:
        shown = self.text(run.main, "--help-all", capsys)
        assert "(default: planned from --time, else 12; 200 with --evaluator supernet)" in shown["--trials"]
        assert "(default: the recipe's; 0.02 with --evaluator inherit)" in shown["--lr"]
        assert "(default: short; fast with --evaluator supernet; fast with --evaluator inherit)" in shown["--recipe"]

    def test_of_the_supernet_shows_and_uses_its_own_epochs(self, capsys: pytest.CaptureFixture) -> None:
        shown = self.text(supernet.main, "--help", capsys)
        assert shown["--epochs"] == "--epochs N epochs to train in all (default: 8)"
        assert supernet.build_parser().parse_args(["--out", "x"]).epochs == Settings().scoring.supernet_epochs == 8
        assert not [text for text in shown.values() if "None" in text]


class TestResume:
    @pytest.fixture
    def done(self, by_formula: None, options: list[str], tmp_path: Path) -> Path:
        assert run.main([*options, "--seed", "5", "--max-macs", "20K", "--time", "1h"]) == 0
        return tmp_path / "run"

    def test_settings_come_from_the_folder(self, done: Path) -> None:
        before = runs.settings_of(done)
        assert run.main(["--out", str(done), "--trials", "4"]) == 0
        after = runs.settings_of(done)
        assert after.differences(before) == []
        assert (after.budget.trials, after.scope.seed, after.scope.max_macs) == (4, 5, 20_000)
        assert after.resources.executor == "local"
        assert after.budget.time is None  # an hour more was not asked for
        assert sum(r.outcome == SCORED for r in read(done)) == 4

    def test_what_is_given_must_be_what_it_was(self, done: Path, capsys: pytest.CaptureFixture) -> None:
        assert run.main(["--out", str(done), "--seed", "6"]) == 2
        assert "holds a search with --seed 5, not 6; accepted: the same settings" in capsys.readouterr().err

    def test_a_limit_may_be_written_another_way(self, done: Path) -> None:
        assert run.main(["--out", str(done), "--max-macs", "0.02M"]) == 0


class TestPlan:
    """A search that is given a time, and neither trials nor epochs."""

    @pytest.fixture
    def options(self, tiny_space: Path, tmp_path: Path) -> list[str]:
        return f"--space {tiny_space} --executor local --workers 1 --batch-size 20 --out {tmp_path / 'run'}".split()

    @pytest.fixture(autouse=True)
    def short(self, loaded: Data, monkeypatch: pytest.MonkeyPatch) -> None:
        """Trainings of at most three epochs of 40 images on a machine of known pace. `--time` counts from now."""

        def measure(chosen: Sequence[Member], *_: object) -> Pace:
            return Pace(tuple(m.cost for m in chosen), tuple(0.5 + i / 10 for i in range(len(chosen))), OVERHEAD)

        curve = plan.CLASSES
        monkeypatch.setitem(plan.CURVES, "classification", replace(curve, most=3 * 40 / curve.images))
        monkeypatch.setattr(run, "_age", lambda: 0.0)
        monkeypatch.setattr(calibration, "measure", measure)

    def test_dry_run_prints_it_and_writes_nothing(
        self, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run.main([*options, "--time", "10m", "--dry-run"]) == 0
        out, error = capsys.readouterr()
        first, *levels = out.splitlines()
        assert re.match(r"plan: .+ of training by 1 worker; the first score after .+; expected volume \d+ %", first)
        assert levels
        assert all(re.match(r"  at .+ MACs, +[\d.]+ epochs in |  then about \d+ networks", line) for line in levels)
        assert (error, list(tmp_path.iterdir())) == ("", [])

    def test_dry_run_needs_a_plan(self, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert run.main([*options, "--trials", "3", "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            "python -m search.run: error: --dry-run: this search has no plan; accepted: with --time"
        )
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()

    def test_too_short_a_time_is_one_line_with_the_least_that_would_do(
        self, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        assert run.main([*options, "--time", "1s"]) == 2
        error = capsys.readouterr().err
        named = re.match(
            r"python -m search\.run: error: --time: 1 s is too short .+; accepted: at least (\d+) s\n$", error
        )
        assert named, error
        assert not (tmp_path / "run").exists()
        assert run.main([*options, "--time", f"{int(named[1]) + 1}s", "--dry-run"]) == 0

    def test_it_is_shown_before_the_search_starts(
        self, by_formula: None, options: list[str], capsys: pytest.CaptureFixture
    ) -> None:
        assert run.main([*options, "--time", "20s"]) == 0
        lines = capsys.readouterr().out.splitlines()
        trial = next(i for i, line in enumerate(lines) if line.startswith("["))
        plan = next(i for i, line in enumerate(lines) if line.startswith("plan: "))
        assert plan < trial
        assert all(line.startswith("  ") for line in lines[plan + 1 : trial])

    def test_a_time_in_which_nothing_was_trained_is_said(
        self, by_formula: None, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.setattr("search.execute.local.execute", lambda *_: None)
        assert run.main([*options, "--time", "20s"]) == 0
        out = capsys.readouterr().out
        assert "the time is up after " in out
        assert "no network has a score: the time was too short to train one" in out
        assert out.endswith("--time 20s\n")

    def test_trials_are_kept_to(self, by_formula: None, options: list[str], tmp_path: Path) -> None:
        assert run.main([*options, "--time", "1h", "--trials", "3"]) == 0
        settings = runs.settings_of(tmp_path / "run")
        assert (settings.planned, settings.budget.trials, settings.scoring.epochs) == (False, 3, 2)
        assert sum(r.outcome == SCORED for r in read(tmp_path / "run")) == 3
        assert runs.read(tmp_path / "run")["sessions"][0]["plan"] is None

    @pytest.fixture
    def used(self, by_formula: None, options: list[str], tmp_path: Path) -> Path:
        """A planned run whose time is used."""
        assert run.main([*options, "--time", "20s"]) == 0
        return tmp_path / "run"

    def test_a_used_time_is_one_line(self, used: Path, capsys: pytest.CaptureFixture) -> None:
        before, _ = (used / "run.json").read_text(), capsys.readouterr()
        assert run.main(["--out", str(used)]) == 2
        out, error = capsys.readouterr()
        assert error.startswith("python -m search.run: error: --time: the search in ")
        assert "has used its time; accepted: how much longer to search" in error
        assert (out, error.count("\n"), (used / "run.json").read_text()) == ("", 1, before)

    @pytest.mark.parametrize("option", ["--trials", "--epochs"])
    def test_a_planned_run_takes_no_trials_and_no_epochs(
        self, option: str, used: Path, capsys: pytest.CaptureFixture
    ) -> None:
        capsys.readouterr()
        assert run.main(["--out", str(used), option, "3"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"python -m search.run: error: {option}: the search in ")
        assert error.endswith("follows a plan; accepted: --time, or a new folder\n")

    def test_the_time_that_is_left_resumes_the_plan(self, used: Path, capsys: pytest.CaptureFixture) -> None:
        runs.note_spent(used, 0, 5.0)
        capsys.readouterr()
        assert run.main(["--out", str(used)]) == 0
        assert re.search(r"resumes this plan with 1\d s left; \d+ of \d+ trainings have begun", capsys.readouterr().out)
        first, second = runs.read(used)["sessions"]
        assert second["time"] == pytest.approx(15.0)
        assert second["plan"] == first["plan"]

    def test_more_time_is_planned_anew(self, used: Path, capsys: pytest.CaptureFixture) -> None:
        assert run.main(["--out", str(used), "--time", "25s"]) == 0
        first, second = runs.read(used)["sessions"]
        assert (first["plan"]["session"], second["plan"]["session"], second["time"]) == (0, 1, 25.0)
        assert f"resume: python -m search.run --out {used} --time 25s" in capsys.readouterr().out


def test_the_next_commands_have_the_form_that_the_user_typed() -> None:
    assert run._python("search.export", "my runs", "--front") == "python -m search.export 'my runs' --front"
    with typed_as("res2net-search search"):
        assert run._python("search.export", "my runs", "--front") == "res2net-search export 'my runs' --front"


class TestBase:
    """Without `--base`, a limit chooses the base whose members within the limit span the most octaves."""

    @staticmethod
    def base(*options: str) -> str:
        out = run.build_parser(everything=True).parse_args(list(options))
        return run.settings_of(vars(out), None).scope.get_space(10, 32).base

    @pytest.mark.parametrize(
        ("options", "base"),
        [
            ("", "micro"),
            ("--data cifar10", "cifar"),
            ("--max-params 1M", "micro"),
            ("--data cifar10 --base micro --max-macs 20M", "micro"),
        ],
    )
    def test_is_the_usual_one_unless_a_limit_excludes_it(self, options: str, base: str) -> None:
        assert self.base(*options.split()) == base

    @pytest.mark.parametrize("limit", ["1M", "5M", "20M", "10G"])
    def test_has_the_most_octaves_within_the_limit(self, limit: str) -> None:
        most = parse_count(limit, "max_macs")
        octaves = {}
        for base in ("micro", "thin", "cifar"):
            low, high = MACS.range(space.get("scale_card_depth", base, image_size=32))
            octaves[base] = math.log2(min(high, most) / low)
        chosen = self.base("--data", "cifar10", "--max-macs", limit)
        assert octaves[chosen] == max(octaves.values())

    def test_where_no_base_has_a_network_one_line_names_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Data, capsys: pytest.CaptureFixture
    ) -> None:
        assert run.main(["--data", "cifar10", "--max-macs", "10", "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("python -m search.run: error: --max-macs: no base has a network within 10; accepted: ")
        accepted = dict(reversed(found) for found in re.findall(r"at least (\S+) \((\w+)\)", error))
        assert accepted.keys() == {"micro", "thin", "cifar"}
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()


class TestOutput:
    def test_a_pipe_gets_the_state_when_no_trial_ends_for_long(
        self,
        make_settings: Callable,
        open_driver: Callable,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
    ) -> None:
        monkeypatch.setattr(progress, "QUIET", 0.05)
        lines = progress.Lines(Console())
        with open_driver(make_settings()) as driver:
            lines.start(driver, "title")
            job = driver.next_job()
            driver.on_report(job.number, Report(1, 51.0, 1.0, 1.0))
            time.sleep(0.3)
            lines.stop()
        title, *states = capsys.readouterr().out.splitlines()
        assert title == "title"
        assert states[-1] == f"[  0/5] running: trial {job.number} after epoch 1 of 2: 51.00 %"
        count = len(states)
        time.sleep(0.2)
        assert len(states) == count

    def test_a_pipe_gets_one_line_a_trial(
        self, by_formula: None, options: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
    ) -> None:
        assert run.main(options) == 0
        lines = capsys.readouterr().out.splitlines()
        trials = [line for line in lines if line.startswith("[")]
        assert len(trials) == 3
        scored = {r.number: r for r in read(tmp_path / "run")}
        for i, line in enumerate(trials, 1):
            match = re.match(
                r"\[ *(\d+)/3\] trial (\d+) +([\d.]+) % +(\S+) MACs +([\d.]+) s +(.+?)(  \(front\))?$", line
            )
            assert match, line
            record = scored[int(match[2])]
            assert int(match[1]) == i
            assert float(match[3]) == pytest.approx(record.quality, abs=0.01)
            assert match[6] == record.attrs["arch"]
        assert "\x1b" not in "".join(lines)

    def test_a_long_reason_stays_on_its_line(
        self, loaded: Data, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        def fails(job: Job, data: Data) -> Iterator[Report]:
            raise RuntimeError("words " * 40)
            yield

        whole = run.search
        monkeypatch.setattr(
            run, "search", lambda settings, out, progress, begun: whole(settings, out, progress, fails, begun=begun)
        )
        assert run.main([*options, "--workers", "1"]) == 0
        out = capsys.readouterr().out
        failed = [line for line in out.splitlines() if "failed: trial" in line]
        assert len(failed) == 3
        assert all(line.count("words") == 40 and "test_run_cli.py" in line for line in failed)

    def test_what_to_do_next(
        self, by_formula: None, options: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
    ) -> None:
        run.main(options)
        out = capsys.readouterr().out
        folder = tmp_path / "run"
        assert "all trials are done after" in out
        assert re.search(r"hypervolume \d+\.\d\d %", out)
        assert f"resume: python -m search.run --out {folder} --trials 6" in out
        assert f"optuna-dashboard sqlite:///{folder}/study.db --artifact-dir {folder}/artifacts" in out
        assert f"python -m search.export {folder} --pick knee" in out
        assert f"python -m trainers.fit {folder}/best --data shapes" in out

    @pytest.fixture
    def commands(self, by_formula: None, options: list[str], capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable:
        """Runs a search in a folder whose name a shell would take apart; returns the printed commands by their word."""

        def commands(*more: str) -> dict[str, str]:
            assert run.main([*options, "--out", str(tmp_path / "my [run]'s"), *more]) == 0
            lines = [line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines()]
            return {line[0]: line[1] for line in lines if line[0] in ("resume", "look", "export", "train on")}

        return commands

    def test_commands_can_be_pasted_into_a_shell(
        self, commands: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, printed = f"{tmp_path}/my [run]'s", commands()
        words = {name: shlex.split(text) for name, text in printed.items()}
        assert words["resume"] == ["python", "-m", "search.run", "--out", folder, "--trials", "6"]
        args = run.build_parser().parse_args(words["resume"][3:])
        assert (args.out, args.trials) == (Path(folder), 6)
        page, program = printed["look"].split(", or ")
        assert shlex.split(page) == [f"{folder}/pareto.html"]
        assert shlex.split(program) == [
            "optuna-dashboard",
            f"sqlite:///{folder}/study.db",
            "--artifact-dir",
            f"{folder}/artifacts",
        ]
        monkeypatch.chdir(tmp_path)
        assert words["export"][:3] == ["python", "-m", "search.export"]
        assert export.main(words["export"][3:]) == 0
        assert (tmp_path / "exported/model.safetensors").is_file()
        assert words["train on"][:3] == ["python", "-m", "trainers.fit"]
        args = vars(fit.build_parser().parse_args(words["train on"][3:]))
        assert args == {"arch": f"{folder}/best", "data": "shapes", "out": Path("trained")}

    def test_the_training_finds_the_data(self, commands: Callable) -> None:
        where = ["--data", "folder", "--data-dir", "my photos", "--image-size", "16"]
        args = fit.build_parser().parse_args(shlex.split(commands(*where)["train on"])[3:])
        assert (args.data, args.data_dir, args.image_size) == ("folder", "my photos", 16)

    def test_a_search_by_shared_weights_finds_them(
        self, loaded: Data, tiny_space: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        """The command that search.supernet prints has the settings that the weights were trained with."""
        out = str(tmp_path / "my [weights]")
        options = ["--space", str(tiny_space), "--seed", "3", "--epochs", "1", "--batch-size", "20", "--out", out]
        assert supernet.main(options) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("search with it: ")]
        words = shlex.split(line.removeprefix("search with it: "))
        assert words[:3] == ["python", "-m", "search.run"]
        more = [
            "--executor",
            "local",
            "--workers",
            "1",
            "--trials",
            "1",
            "--confirm",
            "0",
            "--out",
            str(tmp_path / "run"),
        ]
        assert run.main([*words[3:], *more]) == 0
        settings = runs.settings_of(tmp_path / "run")
        assert (settings.scoring.supernet, settings.scope.seed, settings.budget.trials) == (out, 3, 1)

    @pytest.mark.parametrize("trials", [3, pytest.param(30, marks=pytest.mark.slow)])
    def test_a_terminal_gets_a_picture(
        self, trials: int, by_formula: None, options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "120")
        assert run.main([*options, "--trials", str(trials)]) == 0
        assert sum(r.outcome == SCORED for r in read(tmp_path / "run")) == min(trials, 12)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "tune"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_leaves_a_search_that_resumes(
    number: signal.Signals, executor: str, options: list[str], tmp_path: Path
) -> None:
    """A real search: real images, real training, a real signal."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "search.run", *options, "--train-images", "100", "--trials", "12", "--seed", "1"]
    command += ["--executor", executor]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("weights/*.safetensors"))) < 2:  # so one is scored, and maybe the other
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, error) == (130, "")
    assert "interrupted after" in out
    assert f"resume: python -m search.run --out {folder}\n" in out
    records = list(read(folder))
    assert not [r for r in records if r.state == "RUNNING"]
    orphans = [r for r in records if r.outcome == ORPHAN]
    assert [r.attrs["retry_of"] for r in records if r.state == "WAITING"] == [r.number for r in orphans]
    scored = sum(r.outcome == SCORED for r in records)
    assert 1 <= scored < 12
    again = [sys.executable, "-m", "search.run", "--out", str(folder), "--trials", str(scored + 2)]
    done = subprocess.run(again, capture_output=True, text=True, timeout=200, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "all trials are done" in done.stdout
    after = list(read(folder))
    assert sum(r.outcome == SCORED for r in after) == scored + 2
    assert not [r for r in after if r.state in ("RUNNING", "WAITING")]
