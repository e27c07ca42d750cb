"""`python -m res2net`: every network of the paper in one table, and its figures beside the published ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from res2net import __main__ as command
from res2net import cost, named, names
from res2net.published import PRINTED, PUBLISHED, RELEASED, Figure


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each line by its first."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}


def test_every_name_is_listed_with_its_size_complexity_error_and_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    found = rows(capsys.readouterr().out)
    assert set(found) == {"name", *names(), "res2net50_299"}
    assert found["res2net_dla60"] == ["20,848,072", "4.1227", "21.53", "5.80", "224", "x", "224", "ImageNet"]
    assert found["res2net50_299"] == ["25,699,120", "7.9277", "21.41", "5.88", "299", "x", "299", "ImageNet"]
    assert found["se_res2next29_6c24w_6s"][2:] == ["16.56", "-", "32", "x", "32", "CIFAR-100"]
    assert found["blresnet50"] == ["26,694,568", "2.8561", "22.41", "-", "224", "x", "224", "ImageNet"]


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    command.main([])
    lines = capsys.readouterr().out.splitlines()
    for column in ("params", "GMACs", "input"):
        end = lines[0].index(column) + len(column)
        assert all(line[end - 1] != " " and line[end] == " " for line in lines)


def test_every_name_is_published_or_known_to_be_not() -> None:
    assert set(names()) <= set(PUBLISHED)
    assert {figure.name for figure in (*RELEASED, *PRINTED)} <= set(PUBLISHED)


def test_all_figures_are_equal_but_those_that_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--check"]) == 0
    text = capsys.readouterr().out
    assert f"Definitions: {len(RELEASED)} of {len(RELEASED)} equal, 0 differ for the reason given, 0 wrong" in text
    assert "NOT EQUAL" not in text
    known = sum(bool(figure.differs) for figure in PRINTED)
    assert f"{len(PRINTED) - known} of {len(PRINTED)} equal, {known} differ for the reason given, 0 wrong" in text


def test_released_definitions_have_no_excuse() -> None:
    assert not [figure for figure in RELEASED if figure.differs]


@pytest.mark.parametrize(
    ("figure", "word"),
    [
        (Figure("resnet50", "25,557,031", "4.0892"), "NOT EQUAL"),
        (Figure("resnet50", "25,557,032", "4.0893"), "NOT EQUAL"),
        (Figure("res2next29_6c24w_4s", "24.27", classes=100), "NOT EQUAL"),
        (Figure("dla60", "22,036,632", as_released=True), "NOT EQUAL"),
        (Figure("resnet50", "25,557,032", "4.0892", differs="no longer so"), "SAID TO DIFFER"),
    ],
)
def test_a_mismatch_is_shown_and_ends_in_code_1(
    figure: Figure, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "PRINTED", (figure,))
    assert command.main(["--check"]) == 1
    text = capsys.readouterr().out
    assert word in text
    assert "0 of 1 equal, 0 differ for the reason given, 1 wrong" in text


@pytest.mark.parametrize(
    ("value", "figure", "shown"),
    [(25_557_032, "25,557,032", "25,557,032"), (24_268_682, "24.3", "24.3"), (24_268_682, "", "")],
)
def test_values_are_shown_with_the_published_digits(value: int, figure: str, shown: str) -> None:
    assert command.as_printed(value, figure, 1e6) == shown


def test_cost_at_the_listed_input_size() -> None:
    assert f"{cost(named('res2net50_299'), 299).macs / 1e9:.4f}" == "7.9277"


def test_as_a_program_it_needs_no_torch_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    code = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('res2net', run_name='__main__')"
    end = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, str(root)], cwd=tmp_path, capture_output=True, text=True
    )
    assert end.returncode == 0
    assert "res2net_dla60" in end.stdout
    assert not [line for line in end.stderr.splitlines() if line.split("|")[-1].strip() == "torch"]
    with pytest.raises(SystemExit) as caught:
        command.main(["--chek"])
    assert caught.value.code == 2
