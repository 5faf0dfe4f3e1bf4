"""The generated files: which there are, what is in them, whether those in a folder are these."""

from __future__ import annotations

import json
from pathlib import Path

from instep_dashboards.errors import DashboardsError
from instep_dashboards.fleet import FLEET
from instep_dashboards.job import JOB
from instep_dashboards.panels import as_json
from instep_dashboards.rules import as_yaml

BOARDS = (FLEET, JOB)
DOCS_URL = "docs"
"""As the server's messages have it; give the address of your copy of the documentation."""


def files(docs_url: str = DOCS_URL) -> dict[str, str]:
    """Give text by file name, relative to the folder of generated files."""
    boards = {
        f"{board.uid.removeprefix('instep-')}.json": json.dumps(as_json(board, docs_url), indent=1, ensure_ascii=False)
        + "\n"
        for board in BOARDS
    }
    return {**boards, "rules/instep.yaml": as_yaml(docs_url)}


def write(folder: Path, docs_url: str) -> list[Path]:
    """Write every file and return their paths. Raise DashboardsError when one cannot be written."""
    written = []
    for name, text in files(docs_url).items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DashboardsError(f"Cannot write {path} ({error.strerror}): choose another --out folder.") from error
        written.append(path)
    return written


def differing(folder: Path, docs_url: str) -> list[Path]:
    """Return the files that are missing or not what would be generated now."""
    found = []
    for name, text in files(docs_url).items():
        path = folder / name
        try:
            is_same = path.read_text(encoding="utf-8") == text
        except FileNotFoundError:
            is_same = False
        except (OSError, UnicodeDecodeError) as error:
            raise DashboardsError(f"Cannot read {path} ({error}): is {folder} the right folder?") from error
        if not is_same:
            found.append(path)
    return found
