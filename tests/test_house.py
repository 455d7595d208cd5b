"""The rules of the house: who may import whom, what lies where, what is not used at all."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "app" / "equipoise"
ENGINE = ROOT / "engine" / "equipoise_engine"
RESOURCES = ROOT / "resources" / "equipoise_resources"

# The engine from the ground up: a module may import from its own layer and from those above it in this table.
# A package (formats, preprocess) counts as one module. A new module gets its name in the lowest layer that
# suits it.
ENGINE_LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "progress", "geometry", "acquisition", "volume", "device"}),
    frozenset({"operators", "krylov", "solve", "thinning"}),
    frozenset({"formats", "preprocess", "projection", "fbp", "ct", "cone", "mri", "noncartesian"})
    | frozenset({"grappa", "partial_fourier", "groups", "phantoms", "metrics"}),
    frozenset({"networks", "fixed_point", "equilibrium", "losses", "identifiability", "measured"})
    | frozenset({"classical", "algebraic", "primal_dual"}),
    frozenset({"objective", "model", "finetune", "diagnostics", "pretrain", "weights", "methods"}),
    frozenset({"opening", "looking", "facts", "planning"}),
    frozenset({"jobs", "reproduce", "bench"}),
    frozenset({"server", "arguments"}),
    frozenset({"__main__"}),
)
# The wire: recipe imports nothing of the engine, protocol only recipe, client only protocol.
WIRE = frozenset({"recipe", "protocol", "client"})
ON_THE_WIRE = {"recipe": frozenset(), "protocol": frozenset({"recipe"}), "client": frozenset({"protocol"})}
# Who may know the messages; methods takes its settings as the record that the window sends. The recipe is for all.
SPEAKS_THE_PROTOCOL = frozenset({"client", "methods", "facts", "looking", "jobs", "server", "__main__"})

APP_MAY_IMPORT = frozenset(
    {"PySide6", "pyqtgraph", "qtawesome", "numpy", "msgspec", "platformdirs", "psutil"}
    | {"equipoise", "equipoise_resources"}
)
QT = frozenset({"PySide6", "PyQt5", "PyQt6", "PySide2", "shiboken6", "qtpy", "pyqtgraph", "qtawesome"})
# Unpickling runs code, and a socket is a door: measured data goes through the pipe and the files only.
BANNED = frozenset(
    {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    | {
        "socket",
        "socketserver",
        "http",
        "urllib",
        "urllib3",
        "requests",
        "httpx",
        "aiohttp",
        "ftplib",
        "xmlrpc",
    }
)
MAY_PRINT = frozenset({"__main__.py", "demo.py"})
VAGUE_NAMES = frozenset({"utils", "util", "base", "helpers", "helper", "misc", "managers", "manager"})

TOP_LEVEL = frozenset(
    {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "app",
        "engine",
        "tests",
        "resources",
        "packaging",
    }
)


# --- reading the sources ---------------------------------------------------------------------------


def module_name(path: Path) -> str:
    """Return the import name of a source file of one of the three packages."""
    package = next(folder for folder in (APP, ENGINE, RESOURCES) if path.is_relative_to(folder))
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: Path) -> dict[str, Path]:
    """Return path by import name of every source file of a package."""
    return {module_name(path): path for path in sorted(package.rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.Module, module: str, is_package: bool, known: frozenset[str]) -> Iterator[str]:
    """Yield the name of each module that is imported anywhere: in functions and under TYPE_CHECKING, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + (1 if is_package else 0)]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in known else base


def imports_of(path: Path) -> set[str]:
    known = frozenset({*sources(APP), *sources(ENGINE), *sources(RESOURCES)})
    return set(imports(tree_of(path), module_name(path), path.name == "__init__.py", known))


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the names along a circle in a graph, the first one again at the end; empty without a circle."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for follower in sorted(graph.get(name, ())):
            if cycle := visit(follower, [*trail, name]):
                return cycle
        done.add(name)
        return []

    for name in sorted(graph):
        if cycle := visit(name, []):
            return cycle
    return []


def engine_part(name: str) -> str:
    """Return the part of the engine that a module belongs to: "ct" of "equipoise_engine.ct"."""
    return name.partition(".")[2].partition(".")[0]


def layer_of(part: str) -> int:
    for number, layer in enumerate(ENGINE_LAYERS):
        if part in layer:
            return number
    pytest.fail(
        f"engine/equipoise_engine/{part} is in no layer: add its name to the lowest layer that suits it in "
        "ENGINE_LAYERS at the top of tests/test_house.py",
        pytrace=False,
    )


# --- the tools of this test ------------------------------------------------------------------------


def test_imports_are_found_wherever_they_stand() -> None:
    text = """
import numpy as np, os.path
from . import sibling
from ..volume import Volume
def f():
    from a.b import c, module
if TYPE_CHECKING:
    import hidden
"""
    known = frozenset({"p.q.sibling", "p.volume", "a.b.module"})
    found = set(imports(ast.parse(text), "p.q.m", False, known))
    assert found == {"numpy", "os.path", "p.q.sibling", "p.volume", "a.b", "a.b.module", "hidden"}
    inside = set(imports(ast.parse("from .x import y\nfrom ..z import w"), "p.q", True, frozenset()))
    assert inside == {"p.q.x", "p.z"}


def test_circles_are_found() -> None:
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"a"}}) == ["a", "a"]


# --- who may import whom ---------------------------------------------------------------------------


def test_the_window_imports_only_the_wire_of_the_engine() -> None:
    wrong = []
    for path in sources(APP).values():
        for name in imports_of(path):
            top = name.split(".")[0]
            allowed = top in APP_MAY_IMPORT or top in sys.stdlib_module_names
            if top == "equipoise_engine":
                # the package itself holds nothing but the version
                allowed = name == "equipoise_engine" or engine_part(name) in WIRE
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_engine_knows_neither_qt_nor_the_window() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(ENGINE).values()
        for name in imports_of(path)
        if name.split(".")[0] in QT | {"equipoise"}
    ]
    assert wrong == []


def test_the_engine_is_built_from_the_ground_up() -> None:
    wrong = []
    for module, path in sources(ENGINE).items():
        part = engine_part(module)
        used = {name for name in imports_of(path) if name.startswith("equipoise_engine.")}
        if part in ("", *WIRE):
            allowed = {f"equipoise_engine.{other}" for other in ON_THE_WIRE.get(part, ())}
            wrong += [f"{module} imports {name}, it may import nothing of the engine" for name in used - allowed]
            continue
        for name in used:
            other = engine_part(name)
            if other == "recipe" or (other == "protocol" and part in SPEAKS_THE_PROTOCOL):
                continue
            if other in WIRE:
                wrong.append(f"{module} imports {name}, which only {sorted(SPEAKS_THE_PROTOCOL)} may")
            elif layer_of(other) > layer_of(part):
                wrong.append(f"{module} imports {name} from a higher layer")
        layer_of(part)
    assert wrong == []


def test_the_wire_needs_little() -> None:
    needs = {
        "recipe": {"msgspec"},
        "protocol": {"msgspec", "numpy", "equipoise_engine"},
        "client": {"equipoise_engine"},
    }
    for name, allowed in needs.items():
        tops = {imported.split(".")[0] for imported in imports_of(ENGINE / f"{name}.py")}
        assert tops - set(sys.stdlib_module_names) <= allowed


def test_the_resources_need_nothing() -> None:
    # the scripts that made the sample scans and the weights are kept beside them, and may use the engine
    tops = {imported.split(".")[0] for imported in imports_of(RESOURCES / "__init__.py")}
    assert tops <= {"equipoise_resources", *sys.stdlib_module_names}


@pytest.mark.parametrize("package", [APP, ENGINE, RESOURCES], ids=lambda path: path.name)
def test_no_circle(package: Path) -> None:
    modules = sources(package)
    graph = {name: imports_of(path) & set(modules) for name, path in modules.items()}
    assert " -> ".join(find_cycle(graph)) == ""


def test_importing_the_window_leaves_torch_alone() -> None:
    modules = sorted(name for name in sources(APP) if not name.endswith("__main__"))
    for names in (["equipoise_engine.client"], modules):
        code = (
            "import importlib, sys\n"
            f"for name in {names!r}: importlib.import_module(name)\n"
            "heavy = {'torch', 'numba', 'sigpy', 'pydicom', 'tifffile'} & set(sys.modules)\n"
            "engine = {name for name in sys.modules if name.startswith('equipoise_engine.')}\n"
            "allowed = {'equipoise_engine.' + name for name in ('recipe', 'protocol', 'client')}\n"
            "print(*sorted(heavy), *sorted(engine - allowed))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == []


# --- what is not used ------------------------------------------------------------------------------

ALL_SOURCES = [path for package in (APP, ENGINE, RESOURCES) for path in sources(package).values()]


def test_no_pickle_and_no_network() -> None:
    wrong = []
    for path in ALL_SOURCES:
        place = path.relative_to(ROOT)
        wrong += [f"{place} imports {name}" for name in imports_of(path) if name.split(".")[0] in BANNED]
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(f"{place}:{node.lineno} torch.load without weights_only=True unpickles")
            if keywords.get("allow_pickle") == "True":
                wrong.append(f"{place}:{node.lineno} allow_pickle=True")
    assert wrong == []


def test_no_print() -> None:
    wrong = []
    for path in ALL_SOURCES:
        script = path.is_relative_to(RESOURCES) and path.name != "__init__.py"
        if path.name in MAY_PRINT or script:
            continue
        wrong += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    assert wrong == []


def test_no_file_with_a_name_that_says_nothing() -> None:
    parts = [part for package in (APP, ENGINE, RESOURCES) for part in package.rglob("*")]
    wrong = [str(part.relative_to(ROOT)) for part in parts if part.stem in VAGUE_NAMES]
    assert wrong == []


# --- what lies where -------------------------------------------------------------------------------


def test_the_top_level_is_what_the_readme_says() -> None:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    top = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL


def test_the_readme_names_every_part_of_the_engine() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in ENGINE.glob("*.py")} - {"__init__.py"}
    names |= {f"{path.parent.name}/" for path in ENGINE.glob("*/__init__.py")}
    missing = [name for name in sorted(names) if not re.search(rf"(?<![\w.]){re.escape(name)}", text)]
    assert missing == [], "the tree in README.md does not name them"
