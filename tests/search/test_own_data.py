"""A search over a data set of a user's own module, from the option to the exported network's test accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search import export, run, runs
from search.settings import Settings
from space import Space

OWN = "example_data:Stripes"


def test_is_searched_and_exported(tiny_space: Path, tmp_path: Path) -> None:
    out, to = tmp_path / "run", tmp_path / "exported"
    options = f"--data {OWN} --space {tiny_space} --executor local --workers 1 --trials 2 --epochs 1".split()
    assert run.main([*options, "--batch-size", "16", "--out", str(out)]) == 0
    content = runs.read(out)
    assert content["settings"]["scope"]["data"] == OWN
    assert content["data"]["classes"] == ["across", "along"]
    assert content["space"]["skeleton"]["in_channels"] == 1
    assert export.main([str(out), "--to", str(to), "--test"]) == 0
    assert json.loads((to / "arch.json").read_text())["in_channels"] == 1
    assert 0 <= json.loads((to / "training.json").read_text())["test_top1"] <= 100


def test_has_a_base_and_a_run_name_without_a_colon() -> None:
    settings = Settings(data=OWN)
    assert settings.scope.get_space(2, 16, 1).base == "micro"
    assert runs.new_name(settings).startswith("scale_card_depth-stripes-")


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--data", "example_data:Spots"]) == 2
    error = capsys.readouterr().err
    assert "error: --data: 'example_data:Spots': module 'example_data' has no 'Spots'" in error
    assert error.count("\n") == 1


def test_spaces_written_by_earlier_versions_have_three_channels() -> None:
    new = Settings().scope.get_space(10, 32)
    old = new.to_dict()
    del old["skeleton"]["in_channels"]
    assert Space.from_dict(old) == new
