"""The documentation is a test: links lead somewhere, commands exist, generated pages are the real ones."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
VERBS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["instep.commands"])
HIDDEN = {".venv", ".git", "node_modules", ".pytest_cache", "build", "dist"}

FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n(.*?)^\1`*[ ]*$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"!?\[[^\]\n]*\]\(\s*<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]\n]+\]:\s+(\S+)", re.MULTILINE)
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def pages() -> list[Path]:
    found = [path for path in ROOT.rglob("*.md") if not HIDDEN & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in found if "tests" not in path.relative_to(ROOT).parts)


def in_tests(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", pages(), ids=in_tests)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?)(?: +#+)? *$", prose, re.MULTILINE)
    slugs: list[str] = []
    for heading in headings:
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        slugs.append(slug if slug not in slugs else f"{slug}-{slugs.count(slug)}")
    return {*slugs, *re.findall(r"<a (?:id|name)=\"([^\"]+)\"", prose)}


def commands(page: Path) -> list[list[str]]:
    """The `instep …` and `make …` lines of a page's fenced blocks, as words; output and comments are left out."""
    found = []
    for _, block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = re.sub(r"^\s*(\$|#|>)?\s*(sudo\s+)?(\w+=\S+\s+)*", "", line).split()
            if words and words[0].removeprefix(".venv/bin/") in ("instep", "make"):
                found.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return found


@every_page
def test_every_relative_link_leads_somewhere(page):
    prose = INLINE_CODE.sub("code", FENCE.sub("", page.read_text(encoding="utf-8")))
    broken = []
    for target in (unquote(inline or reference) for inline, reference in LINK.findall(prose)):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.is_relative_to(ROOT) or not there.exists():
            broken.append(target)
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            broken.append(f"{target} (no such heading)")
    assert broken == []


@every_page
def test_every_command_on_a_page_exists(page):
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    unknown = []
    for program, *words in commands(page):
        named = [word for word in words if not word.startswith("-") and "=" not in word]
        known = targets if program == "make" else {*VERBS, "VERB", "NOUN", "[-h]", "…", "..."}
        if named and named[0].strip(",;") not in known:
            unknown.append(" ".join([program, *words]))
    assert unknown == []


@every_page
def test_every_page_opens_with_one_title(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8")).lstrip()
    assert re.match(r"(<!--.*?-->\s*)?# \S", prose, re.DOTALL)
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_explained(verb):
    """In the README or the guide; the reference alone does not say what a verb is for."""
    written = [ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if page.name != "cli.md")]
    explained = [page for page in written if re.search(rf"\binstep {verb}\b", page.read_text(encoding="utf-8"))]
    assert explained, f"no page says what `instep {verb}` is for"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse prints help in another form from Python 3.13 on")
def test_the_command_line_page_shows_the_real_help():
    run = subprocess.run([sys.executable, "-m", "instep.reference"], capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr
    page = DOCS / "reference" / "cli.md"
    assert page.exists(), "run make docs"
    assert page.read_text(encoding="utf-8") == run.stdout, "run make docs"


def test_every_incident_kind_has_its_runbook():
    kinds = {str(kind) for kind in importlib.import_module("instep_diagnosis.verdict").Kind}
    runbooks = {page.stem for page in (DOCS / "runbooks").glob("*.md")} - {"README"}
    assert sorted(kinds - runbooks) == [], "these kinds have no page"
    assert sorted(runbooks - kinds) == [], "these pages are of no kind"


def test_the_index_lists_every_page():
    listed = {(DOCS / target).resolve() for target, _ in LINK.findall((DOCS / "README.md").read_text(encoding="utf-8"))}
    missing = [in_tests(page) for page in DOCS.rglob("*.md") if page != DOCS / "README.md" and page not in listed]
    assert sorted(missing) == []


def test_design_notes_are_numbered_without_gaps():
    notes = sorted(page.name for page in (DOCS / "designs").glob("*.md"))
    assert [name[:4] for name in notes] == [f"{number:03d}-" for number in range(1, len(notes) + 1)]


def test_the_changelog_says_what_is_not_yet_released():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = re.search(r"^## \[?Unreleased\]?$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert unreleased
    headings = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert re.search(r"^- \S", unreleased.group(1), re.MULTILINE)


def test_the_build_server_runs_the_readmes_test_command():
    readme = ROOT / "README.md"
    assert ["make", "test"] in commands(readme) or "`make test`" in readme.read_text(), "the README names make test"
    assert re.search(r"make\b.* test\b", (ROOT / ".ci" / "run").read_text())
