"""Reads one catalogue file and holds it to its rules, so that a bad row stops at start and not in an incident."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from instep_diagnosis.errors import CatalogueError

FOLDER_VARIABLE = "INSTEP_CATALOGUES"
"""A folder whose files replace those of the same name that come with Instep: newer data without a new release."""
CLOSED: Mapping[str, tuple[str | None, ...]] = {
    "severity": ("fatal", "warning", None),
    "workload": ("fails", "survives", "unknown"),
    "action": ("none", "restart-app", "reset-gpu", "reboot-node", "contact-support"),
}
"""Fields of any row that take one of a few words; None is *absent*."""


def read(name: str) -> dict[str, Any]:
    """The tables of one file. Raises `CatalogueError` where it cannot be read or is no TOML."""
    folder = os.environ.get(FOLDER_VARIABLE, "")
    path = Path(folder) / name
    try:
        if folder and path.is_file():
            return tomllib.loads(path.read_text(encoding="utf-8"))
        return tomllib.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueError(f"Cannot read catalogue {name} ({error}): mend it, or unset {FOLDER_VARIABLE}.") from error


def checked(name: str, label: object, row: Mapping[str, Any], fields: tuple[str, ...]) -> Mapping[str, Any]:
    """The row, if it has every one of `fields` and each closed one holds a word it may hold."""
    missing = [field for field in (*fields, "source") if field not in row]
    if missing:
        raise CatalogueError(f"Row {label} of catalogue {name} lacks {', '.join(missing)}: add it.")
    for field, words in CLOSED.items():
        if field in (*fields, "severity") and row.get(field) not in words:
            allowed = ", ".join(str(word) for word in words if word)
            raise CatalogueError(f"Row {label} of catalogue {name} has {field} {row.get(field)!r}: use {allowed}.")
    return row


def source_of(name: str, label: object, row: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Where a row comes from, in words."""
    unknown = [key for key in row["source"] if key not in sources]
    if unknown or not row["source"]:
        raise CatalogueError(f"Row {label} of catalogue {name} names no source that is listed: {unknown}.")
    return "; ".join(sources[key] for key in row["source"])
