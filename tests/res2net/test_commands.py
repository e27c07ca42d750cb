"""What all commands share: one-line errors, exit codes, and fields spelled as options."""

import argparse
import subprocess
import sys

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


@pytest.mark.parametrize(("option", "kind"), [("--max-macs", "a whole number"), ("--share", "a number")])
def test_a_word_for_a_number_is_one_line(option: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    def build() -> Parser:
        out = parser()
        out.add_argument("--share", type=float, default=0.5, help="a share")
        return out

    with pytest.raises(SystemExit) as left:
        run_main(lambda args: 0, build, [option, "64px"])
    assert left.value.code == 2
    assert option in (error := capsys.readouterr().err)
    assert error.endswith(f": '64px'; accepted: {kind}\n")


def test_a_reader_that_has_gone_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "res2net"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (141, "")
