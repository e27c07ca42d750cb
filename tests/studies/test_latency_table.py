"""`studies.latency_table`: which members are measured, and what is computed from the measurements."""

from pathlib import Path

import pandas as pd
import pytest

import space as spaces
from search.carriers import plan
from studies.latency_table import drawn, main, plot, summary


def test_no_member_takes_part_in_the_fit() -> None:
    space = spaces.get("scale_card_depth_width", "micro")
    found = {arch.key() for arch in drawn(space, 40, 0)}
    assert len(found) == 40
    assert found.isdisjoint({arch.key() for arch in plan(space).whole})
    assert found == {arch.key() for arch in drawn(space, 40, 0)}


def test_exact_predictions_have_no_error() -> None:
    found = summary(pd.DataFrame({"predicted": [1.0, 2.0, 4.0], "first": [1.0, 2.0, 4.0], "second": [1.0, 2.0, 4.0]}))
    assert (found["median_error_%"], found["bias_%"], found["repeat_error_%"]) == (0, 0, 0)
    assert found["tau"] == found["tau_repeat"] == pytest.approx(1)


def test_errors_are_relative_to_the_mean_of_both_measurements() -> None:
    found = summary(pd.DataFrame({"predicted": [1.1, 2.2, 2.7], "first": [0.9, 2, 3], "second": [1.1, 2, 3]}))
    assert found["median_error_%"] == pytest.approx(10)
    assert found["bias_%"] == pytest.approx(10)


def test_a_plot_is_written(tmp_path: Path) -> None:
    rows = {"predicted": [1.0, 2.0], "first": [1.0, 2.0], "second": [1.0, 2.0], "batch": [1, 8]}
    plot(pd.DataFrame(rows), "micro", tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("options", "error"), [(["--members", "0"], "--members"), (["--form", "fast"], "--form")])
def test_mistakes_are_one_line(options: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--out", str(tmp_path), *options]) == 2
    assert error in capsys.readouterr().err
