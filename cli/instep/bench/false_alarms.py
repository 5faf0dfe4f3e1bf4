"""Everything that Instep said during a soak, and during which disturbance it said it; of a healthy job it must say
nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from instep.local.client import Client, plain

STATES = ("suspect", "open", "resolved", "withdrawn")
STEPS_KEPT = 128


@dataclass(slots=True)
class Row:
    """One disturbance of one job, as the table shows it."""

    job: str
    run: str
    disturbance: str
    began_at: float
    seconds: float = 0.0
    longest_pause_seconds: float = 0.0
    """Between two steps of the job: that it paused, and went on."""
    alarms: int = 0
    suspects: int = 0
    restarts: int = 0
    note: str = ""
    wrong: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Said:
    """One incident or suspect, with the steps around it as they were when it was first seen."""

    incident: dict[str, Any]
    steps: dict[str, Any]

    @property
    def is_alarm(self) -> bool:
        """Whether it was ever more than a suspicion."""
        return self.incident["alarm_at"] is not None or self.incident["state"] in ("open", "resolved")

    @property
    def at(self) -> float:
        """Realtime at which it was said; of what was withdrawn only the onset is known."""
        return float(self.incident["alarm_at"] or self.incident["onset_at"] or 0.0)


class Watcher:
    """Collects incidents while the soak runs. Asked while the server is away, it learns nothing and goes on."""

    def __init__(self, client: Callable[[], Client]) -> None:
        self._client = client
        self._asked_at = 0.0
        self.said: dict[str, Said] = {}
        self.attempts: dict[str, int] = {}
        """run → attempts that were opened."""

    def look(self, run: str, *, every_seconds: float = 1.0) -> None:
        """Ask what is new, not more often than this."""
        if time.monotonic() - self._asked_at < every_seconds:
            return
        self._asked_at = time.monotonic()
        try:
            self._take(run)
        except (OSError, ValueError):
            return  # away, or the run is not known yet: the next look sees what this one did not

    def _take(self, run: str) -> None:
        client = self._client()
        rows = client.get("/api/v1/incidents?" + "&".join(f"state={state}" for state in STATES))["incidents"]
        for row in rows:
            known = self.said.get(row["id"])
            if known is None or known.incident["state"] != row["state"]:
                details = plain(client.get(f"/api/v1/incidents/{row['id']}"))
                steps = known.steps if known else _steps(client, row["run"] or run)
                self.said[row["id"]] = Said(details, steps)
        self.attempts[run] = len(client.get(f"/api/v1/jobs/{run}")["attempts"])

    def unknown_ranks(self, run: str, node: str, age_seconds_min: float) -> list[int]:
        """Return the node's ranks of which nothing was heard for so long."""
        ranks = self._client().get(f"/api/v1/jobs/{run}")["ranks"]
        return [row["rank"] for row in ranks if row["node"] == node and row["report_age_seconds"] > age_seconds_min]


def _steps(client: Client, run: str) -> dict[str, Any]:
    try:
        return dict(client.get(f"/api/v1/jobs/{run}/steps?steps={STEPS_KEPT}"))
    except ValueError:
        return {}


def attribute(rows: Sequence[Row], said: Sequence[Said], attempts: dict[str, int]) -> None:
    """Count everything that was said at the disturbance that had begun last; restarts at the last one of their job."""
    for one in said:
        before = [row for row in rows if row.began_at <= one.at] or list(rows[:1])
        if one.is_alarm:
            before[-1].alarms += 1
        else:
            before[-1].suspects += 1
    for run, count in attempts.items():
        mine = [row for row in rows if row.run == run]
        if mine:
            counted = sum(row.restarts for row in mine)
            mine[-1].restarts += max(0, count - 1 - counted)


def table(rows: Sequence[Row]) -> str:
    """One line for each disturbance, under its job."""
    head = ("disturbance", "seconds", "longest pause", "alarms", "suspects", "restarts", "")
    cells: list[tuple[str, ...]] = [head]
    for number, row in enumerate(rows):
        if number == 0 or rows[number - 1].run != row.run:
            cells.append((f"{row.job}:", *[""] * 6))
        times = (f"{row.seconds:.0f}", f"{row.longest_pause_seconds:.1f} s")
        counts = (str(row.alarms), str(row.suspects), str(row.restarts))
        notes = "; ".join(filter(None, [row.note, *row.wrong]))
        cells.append((f"  {row.disturbance}", *times, *counts, notes))
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(_line(line, widths) for line in cells)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), *numbers, cells[-1]]).rstrip()
