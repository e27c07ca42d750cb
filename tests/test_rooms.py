"""The rooms import each other as the design's table allows, without circles, and importing a package does nothing."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each room, and what it may import of ours: these modules and what is inside them.
ROOMS = {
    "res2net": (),
    "space": tuple(f"res2net.{name}" for name in ("arch", "cost", "errors", "heads.value", "layer_cost", "named")),
    "trainers": ("res2net",),
    "search": ("res2net", "space", "trainers"),
    "studies": ("res2net", "space", "trainers", "search"),
}
# Packages of others that only these rooms may import.
KNOWN_TO = {"optuna": ("search", "studies"), "ray": ("search", "studies")}
TORCH_FREE = (
    "__init__",
    "__main__",
    "arch",
    "clash",
    "commands",
    "console",
    "containment",
    "cost",
    "errors",
    "heads/__init__",
    "heads/cost",
    "heads/kinds",
    "heads/value",
    "hosts/biglittle/value",
    "hosts/dla/value",
    "kinds",
    "latency",
    "layer_cost",
    "levels",
    "named",
    "options",
    "pieces",
    "published",
    "residual_cost",
)
WITHOUT_TORCH = tuple(f"res2net/{name}.py" for name in TORCH_FREE)


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports anywhere in it, inside functions and for type checkers too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from (home(module, alias.name) for alias in node.names)


def modules(room: str) -> dict[str, Path]:
    """Map the modules of a room to their files."""
    found = {}
    for path in sources(room):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def links(room: str) -> dict[str, set[str]]:
    """Map each module of a room to the modules of the room that it imports.

    Imports in functions and for type checkers count, and so do the modules that the registry of kinds names in text
    ("res2net.model:Res2Net"). The import of a package before its modules, which Python adds, does not count.
    """
    known = modules(room)
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        found[module] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = path.relative_to(ROOT).parent.parts
                base = package[: len(package) - node.level + 1] if node.level else ()
                source = ".".join((*base, *filter(None, [node.module])))
                found[module] |= {n if (n := f"{source}.{alias.name}") in known else source for alias in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found[module] |= {named[1]} if (named := re.fullmatch(r"([\w.]+):\w+", node.value)) else set()
        found[module] &= known.keys()
    return found


def circles(room: str) -> list[str]:
    """Return the modules of a room that import themselves, directly or through others, each with what it imports."""
    direct = links(room)
    found = []
    for module in direct:
        back = sorted(name for name in direct[module] if module in reachable(direct, name))
        if back:
            found.append(f"{module} -> {', '.join(back)}")
    return found


def reachable(direct: dict[str, set[str]], start: str) -> set[str]:
    """Return a module and all modules that it imports, directly or through others."""
    reached, todo = set(), [start]
    while todo:
        if (name := todo.pop()) not in reached:
            reached.add(name)
            todo += direct[name]
    return reached


def home(module: str, name: str) -> str:
    """The module that `from module import name` gets at: `res2net.arch` for `from res2net import Arch`."""
    if module == "res2net":
        value = getattr(import_module(module), name, None)
        return getattr(value, "__module__", f"{module}.{name}")
    return f"{module}.{name}"


def is_in(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def breaches(room: str) -> list[str]:
    """Imports that the table does not allow, each with its file."""
    found = []
    for path in sources(room):
        for name in imports(path):
            top = name.partition(".")[0]
            ours = top in (*ROOMS, "tests") and not is_in(name, (room, *ROOMS[room]))
            others = top in KNOWN_TO and room not in KNOWN_TO[top]
            if ours or others:
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


def run(code: str, folder: Path) -> str:
    """What a fresh interpreter prints that runs `code` in `folder`."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def packages(*rooms: str) -> list[str]:
    """Those of the rooms that can be imported."""
    return [room for room in rooms if (ROOT / room / "__init__.py").exists()]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_the_table_allows(room: str) -> None:
    assert breaches(room) == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_has_an_import_circle(room: str) -> None:
    assert circles(room) == []


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        ("from space.b import f", "from space import a", True),
        ("import space.b", "def f():\n    import space.a", True),
        ("from . import b", "if TYPE_CHECKING:\n    from .a import f", True),
        ("KIND = 'space.b:Class'", "from space.a import f", True),
        ("from space.b import f", "import space.c", False),
    ],
)
def test_circles_are_found(a: str, b: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "space").mkdir()
    for name, text in (("a", a), ("b", b), ("c", "import space.d"), ("d", ""), ("__init__", "from space import a")):
        (tmp_path / "space" / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert circles("space") == (["space.a -> space.b", "space.b -> space.a"] if found else [])


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_architectures_and_costs_name_no_torch(file: str) -> None:
    assert not [name for name in imports(ROOT / file) if is_in(name, ("torch", "safetensors"))]


@pytest.mark.parametrize(
    ("room", "line", "allowed"),
    [
        ("res2net", "from space import get", False),
        ("res2net", "from res2net.arch import Arch", True),
        ("space", "from res2net.arch import Arch", True),
        ("space", "from res2net import Arch, UserError, cost, named", True),
        ("space", "from res2net import create", False),
        ("space", "import res2net", False),
        ("space", "import res2net.model", False),
        ("trainers", "def f():\n    import ray.tune", False),
        ("trainers", "if TYPE_CHECKING:\n    from search import search", False),
        ("trainers", "from . import data", True),
        ("trainers", "from ..search import run", False),
        ("search", "import optuna", True),
        ("search", "from studies.paper import main", False),
        ("search", "from tests import conftest", False),
        ("studies", "import search.run", True),
    ],
)
def test_the_check_itself(room: str, line: str, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "file.py").write_text(line)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert (breaches(room) == []) is allowed


def test_a_space_and_a_cost_need_no_torch(tmp_path: Path) -> None:
    names = ", ".join(["res2net", "res2net.arch", "res2net.cost", "res2net.named", *packages("space")])
    code = f"import sys, {names}; print([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    assert run(code, tmp_path) == "[]\n"


@pytest.mark.parametrize(
    "name",
    [
        "create",
        "Res2Net",
        "load",
        "save",
        "load_checkpoint",
        "export_onnx",
        "export_program",
        "Dla",
        "BigLittle",
        "ElasticRes2Net",
        "optimize",
        "grad_cam",
    ],
)
def test_the_public_face_is_whole(name: str) -> None:
    res2net = import_module("res2net")
    assert name in res2net.__all__
    assert callable(getattr(res2net, name))


@pytest.mark.slow
def test_importing_any_module_leaves_the_environment_alone(tmp_path: Path) -> None:
    names = [n for room in ROOMS for n in modules(room) if not n.endswith("__main__")]
    code = f"""
import importlib, logging, os, signal
import optuna_dashboard, ray.tune  # which themselves set variables and handlers
before = dict(os.environ), logging.getLogger().handlers[:], signal.getsignal(signal.SIGTERM)
for name in {names}:
    importlib.import_module(name)
    assert (dict(os.environ), logging.getLogger().handlers[:], signal.getsignal(signal.SIGTERM)) == before, name
"""
    run(code, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_does_nothing(tmp_path: Path) -> None:
    names = ", ".join(packages("search", "trainers", "space", "res2net"))
    code = f"import logging, sys, {names}\nprint('ray' in sys.modules, logging.getLogger().handlers, end=' ')\n"
    code += "print('torch' in sys.modules and sys.modules['torch'].cuda.is_initialized())"
    assert run(code, tmp_path) == "False [] False\n"
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_the_installed_package_s() -> None:
    res2net = import_module("res2net")
    assert res2net.__version__ == version("res2net-search")


@pytest.mark.parametrize("room", ["res2net", "space", "trainers", "search"])
def test_type_checkers_of_users_read_our_annotations(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()
    with open(ROOT / "pyproject.toml", "rb") as file:
        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data[room]


@pytest.mark.parametrize("room", ROOMS)
def test_files_are_at_most_350_lines_long(room: str) -> None:
    longer = {p.name: n for p in sources(room) if (n := len(p.read_text(encoding="utf-8").splitlines())) > 350}
    assert longer == {}


def test_the_search_names_its_objectives_in_one_place() -> None:
    files = [p for p in sources("search") if p.name != "objectives.py"]
    lines = [line for p in files for line in p.read_text(encoding="utf-8").splitlines() if "macs" in line]
    assert len(lines) <= 10, lines


def test_private_parts_of_libraries_are_used_in_one_file_each() -> None:
    """Each of these files has a test beside it that says what breaks without a private part."""
    allowed = {"_torch_private.py", "optuna_private.py", "ray_private.py", "vision_private.py"}
    foreign = ("torch", "optuna", "ray", "pickle", "numpy", "pandas", "rich", "sqlalchemy")
    found = []
    for room in ROOMS:
        for path in sources(room):
            if path.name in allowed:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                private = (
                    isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
                )
                if private and (name := ast.unparse(node)).partition(".")[0] in foreign:
                    found.append(f"{path.relative_to(ROOT)}: {name}")
            found += [
                f"{path.relative_to(ROOT)}: {n}" for n in imports(path) if n.partition(".")[0] in foreign and "._" in n
            ]
    assert found == []
