"""From how strong the evidence is to how often such evidence was right.

The tables lie in `calibration.json` beside this module, with the command that fitted them and what it used: rows of
strength and measured share, to be joined by straight lines. `instep bench diagnosis --fit` fits them anew on one half
of its cases and prints what they are worth on the other half.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

TABLES = Path(__file__).with_name("calibration.json")
CONFIDENCE_MAX = 0.99
"""A table is fitted on some hundreds of cases: more than this it cannot know."""

Table = Sequence[tuple[float, float]]


def calibrated(name: str, strength: float) -> float:
    """The measured share of right answers for evidence of this strength, by the table of that name.

    >>> calibrated("straggler", 1e9) <= CONFIDENCE_MAX
    True
    """
    return share_at(_table(name), strength)


def share_at(table: Table, strength: float) -> float:
    """The same by a table at hand.

    >>> share_at([(0.0, 0.5), (1.0, 0.9)], 0.5)
    0.7
    """
    strengths, shares = zip(*table, strict=True)
    return round(min(CONFIDENCE_MAX, float(np.interp(strength, strengths, shares))), 3)


@cache
def in_use() -> dict[str, Any]:
    """The file as it is: its tables, of how many verdicts each is, and where they come from."""
    found: dict[str, Any] = json.loads(TABLES.read_text(encoding="utf-8"))
    return found


@cache
def _table(name: str) -> Table:
    return tuple((float(strength), float(share)) for strength, share in in_use()["tables"][name])
