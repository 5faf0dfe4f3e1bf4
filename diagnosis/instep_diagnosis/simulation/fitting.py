"""Fits how sure a verdict is to what turned out right, on half of the cases, and tries it on the other half. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from instep_diagnosis.detectors.calibration import Table, in_use, share_at
from instep_diagnosis.simulation.report import strengths
from instep_diagnosis.simulation.scoring import Case
from instep_diagnosis.simulation.statistics import calibration_error, isotonic

NAMES = ("hang", "hang-live", "straggler")
CASES_MIN = 20
"""Fewer cases of one half fit nothing."""


def halves(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Cases to fit on and cases to try it on: by whether the seed is even, so that no job is in both."""
    return [case for case in cases if int(case["seed"]) % 2 == 0], [case for case in cases if int(case["seed"]) % 2]


def fit(cases: Sequence[Case], *, command: str) -> dict[str, Any]:
    """What `calibration.json` holds: tables of these cases, and those in use where there are too few of a kind. Raises
    `ValueError` where there are too few of every kind."""
    fitted, _ = halves(cases)
    counts = {name: len(strengths(fitted, name)) for name in NAMES}
    enough = {name for name, count in counts.items() if count >= CASES_MIN}
    if not enough:
        said = ", ".join(f"{count} on a {name}" for name, count in counts.items())
        raise ValueError(f"Verdicts ({said}) are too few to fit on: run at least {CASES_MIN} of a kind.")
    old = in_use()
    return {
        "source": "verdicts on simulated hangs (some with dumps missing, or gloo's), on simulated slow ranks and on "
        "real jobs, of even seeds",
        "command": command,
        "verdicts": {name: counts[name] if name in enough else old["verdicts"][name] for name in NAMES},
        "tables": {name: _table(fitted, name) if name in enough else old["tables"][name] for name in NAMES},
    }


def _table(cases: Sequence[Case], name: str) -> list[tuple[float, float]]:
    found = strengths(cases, name)
    # A hang's evidence may be weaker than any that was seen; a slow rank's is not named below its threshold.
    table = isotonic([strength for strength, _ in found], [right for _, right in found])
    return [(0.0, 0.0), *table] if name.startswith("hang") else table


def fit_lines(cases: Sequence[Case]) -> Iterator[str]:
    """What a fit on one half is worth on the other."""
    fitted, tried = halves(cases)
    for name in NAMES:
        if len(strengths(fitted, name)) < CASES_MIN:
            yield f"fit, {name}: too few verdicts, the table in use stays"
            continue
        table: Table = _table(fitted, name)
        found = strengths(tried, name)
        sure = [share_at(table, strength) for strength, _ in found]
        error = calibration_error(sure, [right for _, right in found])
        yield f"fit, {name}: expected error {error:.3f} on the other half ({len(found)} verdicts), {len(table)} rows"
