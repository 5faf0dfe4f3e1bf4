"""What the parts and the packages around them may rely on: who imports whom, which versions, an untouched urllib3."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT_TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PROJECT_TEXT)["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
OUR_PACKAGES = sorted(path.parent for path in ROOT.glob("*/instep*/__init__.py"))


def distribution(requirement: str) -> str:
    """The normalised name of the distribution that a requirement names."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def test_imports_keep_to_the_layers():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_torch_is_pinned_to_the_version_that_the_readme_claims():
    assert [line for line in CONSTRAINTS if distribution(line) == "torch"] == ["torch==2.13.0"]


def test_every_constraint_names_one_published_version():
    assert [line for line in CONSTRAINTS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)] == []
    assert "instep" not in {distribution(line) for line in CONSTRAINTS}


def test_every_requirement_is_pinned_for_development():
    pinned = {distribution(line) for line in CONSTRAINTS}
    assert sorted({distribution(line) for line in REQUIREMENTS} - pinned - {"instep"}) == [], "run make constraints"


def test_the_tests_run_with_the_pinned_versions():
    wanted = dict(line.split("==") for line in CONSTRAINTS)
    direct = {distribution(line) for line in REQUIREMENTS} - {"instep"}
    pins = {name: version for name, version in wanted.items() if distribution(name) in direct}
    installed = {name: metadata.version(name).split("+")[0] for name in pins}
    assert installed == pins, "run make setup"


def test_every_requirement_stands_beside_its_reason():
    ours = {line for line in REQUIREMENTS if not line.startswith("instep[")}
    without = []
    for requirement in ours:
        lines = [line for line in PROJECT_TEXT.splitlines() if f'"{requirement}"' in line]
        if not lines or not all(line.partition("#")[2].strip() for line in lines):
            without.append(requirement)
    assert without == [], "say on the same line what it is for"


def test_every_package_that_we_import_is_a_requirement():
    declared = {distribution(line) for line in REQUIREMENTS}
    owners = metadata.packages_distributions()
    files = [path for folder in [*OUR_PACKAGES, ROOT / "tests"] for path in folder.rglob("*.py")]
    local = {path.stem for path in files} | {path.parent.name for path in files} | sys.stdlib_module_names
    undeclared = set()
    for path in files:
        for name in _imported_roots(ast.parse(path.read_text(encoding="utf-8"))) - local:
            if not name.startswith("instep") and not declared & {distribution(owner) for owner in owners.get(name, [])}:
                undeclared.add(f"{path.relative_to(ROOT)}: {name}")
    assert undeclared == set(), "name it in pyproject.toml, with its reason"


def _imported_roots(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_urllib3_is_urllib3():
    """A distribution that puts itself in its place makes every write of the Kubernetes client fail with 415."""
    urllib3 = importlib.import_module("urllib3")
    assert set(metadata.packages_distributions()["urllib3"]) == {"urllib3"}
    assert int(urllib3.__version__.split(".")[2]) < 900, "urllib3-future numbers its patches from 900"
    assert urllib3.__version__ == metadata.version("urllib3")


def test_no_file_of_urllib3_was_overwritten():
    changed = []
    for file in metadata.files("urllib3") or []:
        if file.suffix == ".py" and file.hash:
            digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                changed.append(str(file))
    assert changed == []
