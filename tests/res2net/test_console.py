"""`res2net-search`: its table of commands, its errors, and how it notices another package of the same name."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from res2net import console
from res2net.clash import check_ours
from res2net.errors import UserError

ROOT = Path(__file__).parents[2]


def test_every_command_is_listed_and_the_table_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main([]) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^  (\w+) +(?=\w)", shown.partition("commands:\n")[2], re.MULTILINE)
    assert rows == list(console.COMMANDS)
    starts = {
        line.index(text) for name, (_, text) in console.COMMANDS.items() for line in shown.splitlines() if text in line
    }
    assert len(starts) == 1
    with pytest.raises(SystemExit) as caught:
        console.main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == shown


def test_every_module_that_runs_as_a_command_has_one() -> None:
    """`studies` are programs of this project's own measurements: they stay `python -m` commands."""
    found = set()
    for room in ("res2net", "space", "trainers", "search"):
        for path in (ROOT / room).rglob("*.py"):
            if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8"):
                found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert found == {module for module, _ in console.COMMANDS.values()}


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--version"]) == 0
    assert capsys.readouterr().out == f"res2net-search {version('res2net-search')}\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["serch"], "command: unknown value 'serch'; did you mean 'search'? accepted: describe, search, "),
        (["--space", "scale"], "unrecognized arguments: --space"),
    ],
)
def test_a_wrong_command_is_one_line_and_code_2(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        console.main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"res2net-search: error: {named}")
    assert error.count("\n") == 1


def test_a_command_is_named_as_the_user_typed_it(capsys: pytest.CaptureFixture[str]) -> None:
    for word, start in (("--help", "usage: res2net-search models "), ("--chek", "res2net-search models: error: ")):
        with pytest.raises(SystemExit):
            console.main(["models", word])
        assert "".join(capsys.readouterr()).startswith(start)
    assert console.main(["models"]) == 0
    assert "res2net50_26w_4s" in capsys.readouterr().out


def test_the_help_needs_neither_torch_nor_optuna_nor_ray(tmp_path: Path) -> None:
    code = "from res2net.console import main; main([]); print({'torch', 'optuna', 'ray'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "set()"


class TestClash:
    """Another package or module of the same name is found before ours."""

    @pytest.fixture
    def hidden(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.syspath_prepend(tmp_path)
        for package in ("search", "space", "trainers"):
            monkeypatch.delitem(sys.modules, package, raising=False)
        return tmp_path

    @pytest.mark.parametrize(
        ("file", "command"),
        [("search/__init__.py", "search"), ("space.py", "describe"), ("trainers.py", "fit"), ("trainers.py", "export")],
    )
    def test_it_is_named_in_one_line(
        self, file: str, command: str, hidden: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (hidden / file).parent.mkdir(exist_ok=True)
        (hidden / file).write_text("raise AssertionError('this file is not imported')\n")
        with pytest.raises(SystemExit) as caught:
            console.main([command, "--help"])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        package = file.partition("/")[0].removesuffix(".py")
        assert error.startswith(
            f"res2net-search: error: {(hidden / file).resolve()} hides the package {package!r} in {ROOT / package}; "
        )
        assert error.count("\n") == 1

    def test_a_folder_without_a_package_hides_nothing(self, hidden: Path) -> None:
        for name in ("search", "space", "trainers"):
            (hidden / name).mkdir()
        check_ours(("search", "space", "trainers"), [str(hidden), str(ROOT)])

    def test_a_folder_hides_an_editable_install(self, hidden: Path) -> None:
        (hidden / "space").mkdir()
        with pytest.raises(UserError, match=f"^{hidden.resolve() / 'space'} hides the package 'space' in "):
            check_ours(("space",), [str(hidden)])

    def test_a_package_that_a_command_does_not_import_does_not_matter(
        self, hidden: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (hidden / "search.py").touch()
        assert console.main(["models"]) == 0
        assert "res2net50_26w_4s" in capsys.readouterr().out
