"""Options from the fields of a dataclass: each type, defaults, groups, and what is refused."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from res2net.commands import Parser
from res2net.options import add_options, fields_of, from_options


@dataclass(frozen=True, slots=True)
class Settings:
    source: str | Path = field(metadata={"help": "where from", "metavar": "SOURCE", "positional": True})
    out: Path = field(metadata={"help": "where to", "group": "where"})
    epochs: int = field(default=3, metadata={"help": "epochs to train", "metavar": "N"})
    peak_lr: float | None = field(default=None, metadata={"help": "peak rate"})
    resume: bool = field(default=False, metadata={"help": "continue", "group": "where"})
    name: str = field(default="x", metadata={"help": "a name"})
    hidden: int = 7


def parsed(*argv: str) -> Settings:
    parser = Parser(prog="prog")
    add_options(parser, fields_of(Settings))
    return from_options(Settings, parser.parse_args(argv))


def test_defaults_are_those_of_the_fields() -> None:
    assert parsed("here", "--out", "there") == Settings("here", Path("there"))


def test_each_type_is_read() -> None:
    argv = ("here", "--out", "a/b", "--epochs", "5", "--peak-lr", "1e-3", "--resume", "--name", "y")
    assert parsed(*argv) == Settings("here", Path("a/b"), 5, 1e-3, True, "y")


def test_a_field_without_help_has_no_option() -> None:
    with pytest.raises(SystemExit):
        parsed("here", "--out", "there", "--hidden", "1")


@pytest.mark.parametrize(
    ("argv", "part"),
    [(["--out", "a"], "SOURCE"), (["a"], "--out"), (["a", "--out", "b", "--epochs", "many"], "--epochs")],
)
def test_a_mistake_names_the_option(argv: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*argv)
    assert part in capsys.readouterr().err


def test_help_shows_groups_metavars_and_defaults() -> None:
    parser = Parser(prog="prog")
    add_options(parser, fields_of(Settings))
    text = " ".join(parser.format_help().split())
    for part in ("where: --out OUT where to", "--epochs N epochs to train (default: 3)", "--peak-lr PEAK_LR"):
        assert part in text


def test_a_type_that_no_option_can_have_is_our_own_mistake() -> None:
    @dataclass
    class Wrong:
        values: tuple[int, ...] = field(default=(), metadata={"help": "several"})

    with pytest.raises(AssertionError, match="values"):
        add_options(argparse.ArgumentParser(), fields_of(Wrong))
