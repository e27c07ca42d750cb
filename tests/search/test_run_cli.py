"""The command line: one line a mistake, settings that come back, one line a trial in a pipe, a kind Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from search import run, runs
from search.settings import EXECUTORS, SAMPLERS, Settings
from search.study.study import ORPHAN, SCORED, read
from search.worker import Job, Report
from studies.synthetic import Synthetic
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
    monkeypatch.setattr(
        run, "search", lambda settings, out, progress: whole(settings, out, progress, Synthetic(weights=True))
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
            ("--max-macs 10", "--max-macs: nothing in space"),
            ("--min-macs 10T", "--min-macs: nothing in space"),
            ("--max-params 10", "--max-params: nothing in space"),
            ("--max-macs 1M --min-macs 2M", "--min-macs: 2.00M is more than --max-macs 1.00M"),
            ("--match-macs 100", "--match-macs: nothing in space"),
            ("--match-macs 1000T", "--match-macs: nothing in space"),
            ("--trials 0", "--trials: 0 is too small"),
            ("--seed -1", "--seed: -1"),
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
        assert run.main(arguments.split()) == 2
        out, error = capsys.readouterr()
        assert error.startswith(f"python -m search.run: error: {named}")
        assert "accepted:" in error or "needs --data-dir" in error
        assert (error.count("\n"), out) == (1, "")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("arguments", ["--epoch 3", "--trials many", "extra", "--trial 3", "--lr"])
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


def test_help_shows_defaults_units_and_choices(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    defaults = Settings()
    for name in ("space", "data", "sampler", "trials", "epochs", "batch_size", "lr", "seed", "executor"):
        option = f"--{name.replace('_', '-')}"
        assert re.search(rf"{option} .*?\(default: {re.escape(str(getattr(defaults, name)))}[,;)]", text), option
    for shown in (*SAMPLERS, *EXECUTORS, "20M, 4.2G", "90s, 30m, 6h", "in epochs"):
        assert shown in text


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
        assert (after.trials, after.seed, after.max_macs, after.executor) == (4, 5, 20_000, "local")
        assert after.time is None  # an hour more was not asked for
        assert sum(r.outcome == SCORED for r in read(done)) == 4

    def test_what_is_given_must_be_what_it_was(self, done: Path, capsys: pytest.CaptureFixture) -> None:
        assert run.main(["--out", str(done), "--seed", "6"]) == 2
        assert "holds a search with --seed 5, not 6; accepted: the same settings" in capsys.readouterr().err

    def test_a_limit_may_be_written_another_way(self, done: Path) -> None:
        assert run.main(["--out", str(done), "--max-macs", "0.02M"]) == 0


class TestOutput:
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
            assert float(match[3]) == pytest.approx(record.val_top1, abs=0.01)
            assert match[6] == record.attrs["arch"]
        assert "\x1b" not in "".join(lines)

    def test_a_long_reason_stays_on_its_line(
        self, loaded: Data, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        def fails(job: Job, data: Data) -> Iterator[Report]:
            raise RuntimeError("words " * 40)
            yield

        whole = run.search
        monkeypatch.setattr(run, "search", lambda settings, out, progress: whole(settings, out, progress, fails))
        assert run.main(options) == 0
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
        assert f"go on: python -m search.run --out {folder} --trials 6" in out
        assert f"optuna-dashboard sqlite:///{folder}/study.db --artifact-dir {folder}/artifacts" in out
        assert f"python -m search.export {folder} --pick knee" in out
        assert f"python -m trainers.fit {folder}/best --data shapes" in out

    def test_commands_can_be_pasted_into_a_shell(
        self, by_formula: None, options: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
    ) -> None:
        folder = str(tmp_path / "my run")
        run.main([*options, "--out", folder])
        lines = capsys.readouterr().out.splitlines()
        shown = [shlex.split(line.split(": ", 1)[1]) for line in lines if line.lstrip().startswith(("go on", "export"))]
        assert shown == [
            ["python", "-m", "search.run", "--out", folder, "--trials", "6"],
            ["python", "-m", "search.export", folder, "--pick", "knee", "--to", "exported"],
        ]
        (look,) = [line for line in lines if "optuna-dashboard" in line]
        program = shlex.split(look.split(", or ")[1])
        assert program == ["optuna-dashboard", f"sqlite:///{folder}/study.db", "--artifact-dir", f"{folder}/artifacts"]
        (fit,) = [line for line in lines if "trainers.fit" in line]
        assert shlex.split(fit)[-5] == f"{folder}/best"

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
def test_an_interrupted_process_leaves_a_search_that_goes_on(
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
    assert f"go on: python -m search.run --out {folder}\n" in out
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
