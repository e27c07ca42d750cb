"""The documentation: the examples of its pages run, its commands and links exist, its Python compiles."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from res2net.console import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXTEND = sorted((DOCS / "extend").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts),
]
NOTEBOOK = DOCS / "first_search.ipynb"
FILE = re.compile(r"# (\w+)\.py\n")  # the first line of a block that a page asks the user to save


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language; "" for those without one, which are commands."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str, list[str]]]:
    """Return the page, the module and the options of every command of the pages."""
    found = set()
    for page in PAGES:
        for line in re.findall(r"python -m ([^`#\n]+)|torchrun .*?-m ([^`#\n]+)", page.read_text(encoding="utf-8")):
            module, *words = "".join(line).split()
            if module.split(".")[0] in ("res2net", "search", "trainers", "studies", "tests"):
                options = tuple(word for word in words if word.startswith("--"))
                found.add((name_of(page), module, options))
        for name, words in re.findall(
            r"(?:^|`)res2net-search (\w+)([^`#\n]*)", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            options = tuple(word for word in words.split() if word.startswith("--"))
            found.add((name_of(page), COMMANDS[name][0], options))
    return [(page, module, list(options)) for page, module, options in sorted(found)]


@pytest.mark.parametrize("page", EXTEND, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that begins with `# NAME.py` is a file. The others run in turn, as one program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    program, names = [], []
    for block in blocks(page, "python"):
        if (named := FILE.match(block)) is not None:
            names.append(named[1])
            (tmp_path / f"{named[1]}.py").write_text(block, encoding="utf-8")
        else:
            program.append(block)
    assert program, "a page without examples"
    (tmp_path / "page.py").write_text("\n".join(program), encoding="utf-8")
    for name in names:  # another page may have a module of this name
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        runpy.run_path(str(tmp_path / "page.py"))
    finally:
        for name in names:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_a_page_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")


@pytest.mark.parametrize(("page", "module", "options"), commands())
def test_commands_and_their_options_exist(page: str, module: str, options: list[str]) -> None:
    if importlib.util.find_spec(module).submodule_search_locations:
        module = f"{module}.__main__"
    known = options_of(module)
    assert [option for option in options if option not in known] == [], f"{page}: python -m {module}"


def options_of(module: str) -> set[str]:
    """Return the options of a command. Those of a command without a function for its parser are found in its text."""
    found = importlib.import_module(module)
    build = getattr(found, "build_parser", None) or getattr(found, "parser", None)
    if build is None:
        text = Path(found.__file__).read_text(encoding="utf-8")
    else:  # a parser with a long and a short help takes which one
        text = build(*([True] if inspect.signature(build).parameters else [])).format_help()
    return set(re.findall(r"--[a-z][a-z0-9-]*", text)) | {"--help", "--help-all"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_pages_name_no_path_of_one_machine() -> None:
    for page in (*PAGES, NOTEBOOK):
        assert re.findall(r"/(?:work|root|home)/\w+", page.read_text(encoding="utf-8")) == [], name_of(page)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
    program = tmp_path / "notebook.py"
    program.write_text("\n\n".join(code), encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def converted(docstring: str) -> list[str]:
    lines = docstring.splitlines()
    runpy.run_path(str(DOCS / "sphinx" / "plain_docstrings.py"))["replace"](lines)
    return [line for line in lines if line]


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        ("Return a\nvalue.\n\nMore.", ["Return a value.", "More."]),
        (
            "Do it.\n\nsize: pixels\n    of a side.\nRaise `E`.",
            ["Do it.", "- **size**: pixels of a side.", "Raise ``E``."],
        ),
        ("One of `a` or `b`s: 2 * x_ | y_z.", [r"One of ``a`` or ``b``\ s: 2 \* x\_ \| y_z."]),
        (
            "stem: layers.\n    `deep`: three.\nse: none.",
            ["- **stem**: layers.", "  - ``deep``: three.", "- **se**: none."],
        ),
        ("Fast for two reasons:\n\n- One\n  line.\n- Two.", ["Fast for two reasons:", "- One line.", "- Two."]),
    ],
)
def test_plain_docstrings_become_paragraphs_and_lists(docstring: str, wanted: list[str]) -> None:
    assert converted(docstring) == wanted
