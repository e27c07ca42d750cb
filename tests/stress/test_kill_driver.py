"""The tool `kill_driver` in miniature, and each harm that it must count."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from searches import DIRECTIONS

from search.api import search
from search.settings import Settings
from search.study.sampler import SAMPLERS
from search.study.storage import read, sqlite_url
from search.study.study import Study
from search.study.trials import SCORED, Record
from studies.synthetic import Synthetic

from . import kill_driver
from .kill_driver import Seen, count, records_of


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished search with three networks."""
    folder = tmp_path_factory.mktemp("study") / "run"
    settings = Settings(space="scale", executor="local", workers=1, trials=3, epochs=2, train_images=10)
    search(settings, folder, work=Synthetic(weights=True))
    return folder


def lost(folder: Path, seen: Seen) -> None:
    seen.ended["a network"] = ("scored", 50.0)
    seen.asked.add("a network")


def another_score(folder: Path, seen: Seen) -> None:
    key = next(iter(seen.ended))
    seen.ended[key] = (SCORED, -1.0)


def asked(folder: Path, seen: Seen) -> None:
    seen.asked.add("a network")


def doubled(folder: Path, seen: Seen) -> None:
    first = next(r for r in read(folder) if r.outcome == SCORED)
    with_study(folder, lambda study: again(study, first))


def again(study: Study, first: Record) -> None:
    number = study.ask().number
    study.annotate(number, {"network": {"key": first.key}, "macs": first.attrs["macs"]})
    study.complete(number, (1.0, first.attrs["macs"]), SCORED, epochs=2)


def running(folder: Path, seen: Seen) -> None:
    with_study(folder, lambda study: study.ask())


def waiting(folder: Path, seen: Seen) -> None:
    with_study(folder, lambda study: study.enqueue({"scale": 1}))


def no_weights(folder: Path, seen: Seen) -> None:
    next((folder / "weights").iterdir()).write_bytes(b"half")


def half_a_picture(folder: Path, seen: Seen) -> None:
    content = (folder / "pareto.png").read_bytes()
    (folder / "pareto.png").write_bytes(content[:100])


def temporary(folder: Path, seen: Seen) -> None:
    (folder / ".trials.csv.1.tmp").write_text("half")


def torn(folder: Path, seen: Seen) -> None:
    content = bytearray((folder / "study.db").read_bytes())
    content[4096 * 3 : 4096 * 4] = b"x" * 4096  # a page
    (folder / "study.db").write_bytes(content)


def with_study(folder: Path, change: Callable[[Study], None]) -> None:
    study = Study(sqlite_url(folder), "run", DIRECTIONS, SAMPLERS["random"], 0, {"scale": (1, 2, 3, 4, 6, 8)})
    change(study)
    study.close()


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (lambda folder, seen: None, set()),
        (lost, {"finished trials lost", "asked and never ended"}),
        (another_score, {"finished trials lost"}),
        (asked, {"asked and never ended"}),
        (doubled, {"finished trials lost", "trials doubled", "trials too few or many", "files damaged"}),
        (running, {"trials left RUNNING"}),
        (waiting, {"trials left WAITING"}),
        (no_weights, {"files damaged"}),
        (half_a_picture, {"files damaged"}),
        (temporary, {"files left behind"}),
    ],
)
def test_each_harm_is_counted(harm: Callable, names: set[str], done: Path, tmp_path: Path) -> None:
    folder, seen = tmp_path / "run", Seen()
    shutil.copytree(done, folder)
    seen.add(records_of(folder))
    assert len(seen.ended) == len(seen.asked) == 3
    harm(folder, seen)
    counts = count(folder, seen, 3)
    assert {name for name, value in counts.items() if value} == names


def test_a_damaged_database_is_counted(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "run")
    assert kill_driver.integrity(tmp_path / "run") == 0
    torn(tmp_path / "run", Seen())
    assert kill_driver.integrity(tmp_path / "run") > 0


@pytest.mark.parametrize(
    "options", ["--what power", "--executor slurm", "--what worker --executor local", "--trials 0"]
)
def test_mistakes_are_one_line(options: str, capsys: pytest.CaptureFixture) -> None:
    assert kill_driver.main(options.split()) == 2
    error = capsys.readouterr().err
    assert "accepted: " in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "how", ["--kills 2 --within 8", "--kills 1 --within 3 --what worker --executor tune --workers 1"]
)
def test_nothing_is_lost(how: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Kill real searches."""
    small = ["--trials", "4", "--epochs", "3", "--train-images", "50", "--max-macs", "1M"]
    code = kill_driver.main([*how.split(), *small, "--out", str(tmp_path / "run")])
    shown = capsys.readouterr()
    assert code == 0, shown
    assert "finished trials lost        0" in shown.out
