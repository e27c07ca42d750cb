"""What all commands share: one-line errors, exit codes, and fields spelled as options."""

import argparse

import pytest

from res2net.commands import Parser, run_main
from res2net.errors import UserError


def parser() -> Parser:
    out = Parser(prog="tool")
    out.add_argument("-m", "--max-macs", type=int, default=3, help="a limit")
    return out


def test_fields_in_backticks_become_options() -> None:
    assert parser().spelled("`max_macs`: 3; not with `other`") == "--max-macs: 3; not with `other`"


def test_a_users_mistake_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def body(args: argparse.Namespace) -> None:
        raise UserError(f"`max_macs`: {args.max_macs};\n accepted: more")

    assert run_main(body, parser, ["--max-macs", "5"]) == 2
    assert capsys.readouterr().err == "tool: error: --max-macs: 5; accepted: more\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_body_s_exit_code_is_returned(returned: int | None, code: int) -> None:
    assert run_main(lambda args: returned, parser, []) == code


def test_ctrl_c_is_one_line_and_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def body(args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert run_main(body, parser, []) == 130
    assert capsys.readouterr().err == "tool: interrupted\n"


@pytest.mark.parametrize("argv", [["--max", "5"], ["--max-macs", "many"], ["file"]])
def test_wrong_options_are_one_line_and_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_main(lambda args: 0, parser, argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("tool: error: ")
    assert error.count("\n") == 1


def test_help_shows_defaults() -> None:
    assert "a limit (default: 3)" in parser().format_help()
