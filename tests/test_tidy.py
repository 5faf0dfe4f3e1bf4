"""What no linter knows: lengths, names, lists that must agree, files that should not be here."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ["agent", "diagnosis", "collector", "remediation", "trainer", "dashboards", "cli"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc"}
DURATIONS = ("timeout", "interval", "duration", "age", "delay", "patience", "grace", "elapsed")
GENERATED = {".pyc", ".pyo", ".so", ".o", ".db", ".db-wal", ".db-shm", ".sqlite", ".sqlite3", ".whl", ".zip", ".log"}
TEXT = {"", ".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".sh", ".service", ".ini"}

# Spelled in pieces, so that these lines do not find themselves.
MACHINE_PATH = re.compile(r"(?<![\w.>}~*])/(" + "|".join(["work", "root", "farm"]) + ")/")
LEFT_FOR_LATER = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")


@cache
def tracked() -> list[Path]:
    """Files under version control, and new ones that it does not ignore; without git, every file that is not hidden."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        listed = [str(name) for name in names if not any(word.startswith((".", "__pycache__")) for word in name.parts)]
    return [path for path in (ROOT / name for name in listed) if path.is_file()]


def modules() -> list[Path]:
    """Every Python file of our packages."""
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PARTS]


def texts() -> list[tuple[str, str]]:
    """Every tracked text file that we wrote, as (name, text)."""
    found = [path for path in tracked() if path.suffix in TEXT and path.name != "LICENSE"]
    return [(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8", errors="replace")) for path in found]


@cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in modules()]


def test_no_module_is_longer_than_its_limit():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}


def test_no_function_is_longer_than_its_limit():
    found = {}
    for name, tree in trees():
        if "/migrations/versions/" in name:  # a flat list of tables, never changed once it is released
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    found[f"{name}:{node.lineno} {node.name}"] = lines
    assert found == {}


def test_modules_are_named_for_what_they_hold():
    named = [path.relative_to(ROOT) for path in modules()]
    assert [str(path) for path in named if NAMES_THAT_SAY_NOTHING & {path.stem, *path.parts}] == []


def test_every_module_opens_with_a_sentence_on_its_place():
    without = []
    for name, tree in trees():
        opening = (ast.get_docstring(tree) or "").split("\n\n")[0].rstrip()
        if len(opening.split()) < 2 or not opening.endswith((".", ":", "!", "?", ")", "`")):
            without.append(name)
    assert without == []


def test_durations_carry_their_unit():
    found = []
    for name, tree in trees():
        for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            for field in owner.body:
                if isinstance(field, ast.AnnAssign) and _is_number(field.annotation):
                    target = ast.unparse(field.target)
                    if target.lower().rsplit("_", 1)[-1] in DURATIONS:
                        found.append(f"{name}:{field.lineno} {owner.name}.{target}")
    assert found == [], "add the unit, as in timeout_seconds"


def _is_number(annotation: ast.expr) -> bool:
    return bool({"float", "int"} & {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)})


def test_no_generated_file_is_tracked():
    names = [path.relative_to(ROOT) for path in tracked()]
    recorded = {".log", ".zip"}  # what a test replays may be one of these
    found = [name for name in names if name.suffix in GENERATED - (recorded if name.parts[0] == "tests" else set())]
    assert [str(name) for name in found] == []
    assert [str(name) for name in names if "__pycache__" in name.parts or "egg-info" in str(name)] == []


def test_no_file_names_a_path_of_one_machine():
    assert _lines_with(MACHINE_PATH) == []


def test_nothing_is_left_for_later():
    assert _lines_with(LEFT_FOR_LATER) == [], "finish it, or file it"


def _lines_with(pattern: re.Pattern[str]) -> list[str]:
    lines = [(name, line) for name, text in texts() for line in text.splitlines()]
    return [f"{name}: {line.strip()}" for name, line in lines if pattern.search(line)]


def test_no_module_is_dead():
    """Each module is imported by another one, started by name, or an entry point."""
    everything = "\n".join(text for name, text in texts() if not name.startswith(("docs/", "tests/")))
    imported = _imported_names() | set(re.findall(r"\binstep(?:_\w+)?(?:\.\w+)+", everything))
    dead = []
    for path in modules():
        dotted = _dotted(path)
        is_package = path.name in ("__init__.py", "__main__.py", "conftest.py")
        is_found_by_others = "migrations" in path.parts or path.name == "sitecustomize.py"  # Alembic; the interpreter
        if not (is_package or is_found_by_others) and dotted not in imported:
            dead.append(dotted)
    assert dead == [], "nothing imports these"


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:]).removesuffix(".__init__")


def _imported_names() -> set[str]:
    """Every dotted name that an import statement of our packages could mean."""
    found = set()
    for path, (_, tree) in zip(modules(), trees(), strict=True):
        package = _dotted(path).split(".") if path.name == "__init__.py" else _dotted(path).split(".")[:-1]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("package", ["instep_agent", "instep", "instep_trainer", "instep_diagnosis"])
def test_importing_a_part_loads_nothing_heavy(package):
    """The agent stays light, and a rank pays for nothing that it does not use."""
    heavy = ["torch", "numpy", "fastapi", "sqlalchemy", "kubernetes", "pydantic", "uvicorn", "jinja2", "alembic"]
    program = f"import {package}, sys; print(*[name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


GROUPS = PYPROJECT["project"]["entry-points"]
TARGETS = {f"{group}:{name}": target for group, points in GROUPS.items() for name, target in points.items()}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_every_entry_point_is_something_callable(target):
    module, _, attribute = target.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("group", GROUPS)
def test_the_installation_knows_every_entry_point(group):
    installed = {point.name: point.value for point in entry_points(group=group)}
    assert installed == GROUPS[group], "run make setup"
