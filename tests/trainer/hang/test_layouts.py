"""Real jobs in every layout: the guilty rank is named, nobody else; and a long evaluation before it raised nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from instep_diagnosis.verdict import Cause

from tests.trainer.hang.watched import watched

pytestmark = pytest.mark.real
AFTER_THE_PAUSE = 15
"""Steps by which the pause after step 12 is over."""
CASES = (
    # layout, fault, guilty rank, cause
    ("fsdp:pause", "stop", 2, Cause.STOPPED),
    ("tensor-data:pause", "sleep", 3, Cause.USER_CODE),
    ("fsdp-tensor:inner:pause", "skip", 0, Cause.SKIPPED_COLLECTIVE),
    ("pipeline:middle:pause", "gil", 1, Cause.GIL_HELD),
    ("stages:inner:pause", "skip", 1, Cause.SKIPPED_COLLECTIVE),
)


def test_in_every_layout_the_guilty_rank_is_named_and_a_pause_raises_nothing(tmp_path: Path) -> None:
    found, told = [], []
    with watched(tmp_path, [layout for layout, *_ in CASES]) as job:
        for attempt, (_layout, fault, rank, _cause) in enumerate(CASES):
            stalls = job.begins(attempt, steps=AFTER_THE_PAUSE)
            job.inject(fault, rank)
            seen = job.judges()
            found.append((stalls, seen.blamed, seen.verdict and seen.verdict.cause))
            told.append((stalls, seen.verdict or seen.states[-1]))
            job.ends_attempt()
    wrong = [case for case, one in zip(CASES, found, strict=True) if one != ([], [case[2]], case[3])]
    assert found == [([], [rank], cause) for _layout, _fault, rank, cause in CASES], (wrong, told)
