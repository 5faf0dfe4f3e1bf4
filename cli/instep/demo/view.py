"""What the demo shows while it plays, and the table at its end."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from instep.demo.acts import Act
from instep.demo.play import Stage
from instep.demo.score import Score
from instep.local.client import Client

LOOK_SECONDS = 0.4
PLAIN_SECONDS = 5.0
SHADES = " ░▒▓█"
STRIP_STEPS = 60


class View:
    """Draws in place on a terminal; elsewhere it prints a line now and then."""

    def __init__(self, client: Client, page_link: str) -> None:
        self._client = client
        self._is_terminal = sys.stdout.isatty()
        self._drawn_at = self._asked_at = 0.0
        self._lines = 0
        self._said: set[str] = set()
        self._board: dict[str, Any] = {}
        self._incidents: list[dict[str, Any]] = []
        self._page_link = page_link
        self._asking = threading.Lock()

    def look(self, stage: Stage) -> None:
        """Show the run as it is now."""
        now = time.monotonic()
        if now - self._asked_at >= LOOK_SECONDS and self._asking.acquire(blocking=False):
            self._asked_at = now
            threading.Thread(target=self._ask, args=(stage.run,), daemon=True).start()
        for line in self._news(stage):
            self._print_above(line)
        if now - self._drawn_at >= (LOOK_SECONDS if self._is_terminal else PLAIN_SECONDS):
            self._drawn_at = now
            self._draw(stage)

    def done(self) -> None:
        """Leave the last picture where it is."""
        self._lines = 0

    def _ask(self, run: str) -> None:
        try:
            self._incidents = self._client.incidents(run)
            self._board = self._client.get(f"/api/v1/jobs/{run}/steps")
        except (OSError, ValueError):
            pass  # the picture of before stays; the server's own failure shows in the score
        finally:
            self._asking.release()

    def _news(self, stage: Stage) -> list[str]:
        news = [f"  ▶ {message}" for message in stage.messages]
        for incident in self._incidents:
            news.append(f"  ● {incident['kind']}: {incident['summary']}")
            if incident.get("step_kept_at"):
                news.append(f"    ↳ the job goes on: {incident['kind']} of attempt {incident.get('attempt')} is over")
        fresh = [line for line in news if (stage.run + line) not in self._said]
        self._said.update(stage.run + line for line in fresh)
        return fresh

    def _print_above(self, line: str) -> None:
        self._erase()
        print(line, flush=True)

    def _draw(self, stage: Stage) -> None:
        lines = [f"  {stage.title}: {bar(stage.step, stage.steps)} step {stage.step}/{stage.steps}{self._rate(stage)}"]
        if self._is_terminal:
            lines += [f"    {row}" for row in strip(self._board)]
            self._erase()
        width = shutil.get_terminal_size().columns
        print("\n".join(line[: width - 1] if self._is_terminal else line for line in lines), flush=True)
        self._lines = len(lines) if self._is_terminal else 0

    def _rate(self, stage: Stage) -> str:
        walls = [wall for row in self._board.get("ranks", [])[:1] for wall in row.get("wall_seconds", [])[-10:] if wall]
        return f", {len(walls) / sum(walls):.1f} steps/s" if walls else ""

    def _erase(self) -> None:
        if self._lines:
            print(f"\x1b[{self._lines}F\x1b[J", end="")
            self._lines = 0


def bar(done: int, whole: int, width: int = 30) -> str:
    """A progress bar.

    >>> bar(1, 2, 4)
    '[██  ]'
    """
    full = round(width * done / whole)
    return "[" + "█" * full + " " * (width - full) + "]"


def strip(board: dict[str, Any]) -> list[str]:
    """One row per rank: its own work of each step against the median of all, darker is slower."""
    rows = board.get("ranks", [])
    works = [work for row in rows for work in row.get("work_seconds", []) if work]
    if not works:
        return []
    middle = sorted(works)[len(works) // 2]
    return [
        f"rank {row['rank']} {row.get('node', '')} "
        + "".join(shade(work, middle) for work in row.get("work_seconds", [])[-STRIP_STEPS:])
        for row in rows
    ]


def shade(work: float | None, middle: float) -> str:
    """One step's sign.

    >>> shade(1.0, 1.0), shade(2.0, 1.0), shade(None, 1.0)
    ('░', '█', '·')
    """
    if not work:
        return "·"
    return SHADES[max(1, min(len(SHADES) - 1, int((work / middle - 0.85) * 5) + 1))]


def table(score: Score) -> str:
    """The table at the end."""
    head = ("act", "onset → alarm", "alarm → verdict", "verdict → next kept step", "steps lost", "right?")
    rows = [
        head,
        *(
            (
                row.act.title,
                seconds(row.onset_to_alarm_seconds),
                seconds(row.alarm_to_verdict_seconds),
                seconds(row.verdict_to_kept_seconds),
                "–" if row.steps_lost is None else str(row.steps_lost),
                "right" if not row.wrong else "WRONG: " + "; ".join(row.wrong),
            )
            for row in score.rows
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def seconds(value: float | None) -> str:
    """A duration, or a dash where there is none."""
    return "–" if value is None else f"{value:.2f} s"


def verdicts(incidents: Sequence[dict[str, Any]]) -> str:
    """Each incident as the on-call engineer reads it."""
    lines = []
    for incident in incidents:
        lines.append(f"  {incident['summary']}")
        lines.append(
            f"    owner: {incident.get('owner')} · how sure: {incident.get('confidence') or 0:.2f} · "
            f"cost so far: {incident.get('cost_gpu_seconds', 0) / 3600:.4f} GPU-hours"
        )
        lines += [f"    - {item['text']}" for item in incident.get("evidence", [])[:6]]
        for plan in incident.get("plans", []):
            lines += [
                f"    plan: {action['name']} {describe(action['arguments'])} [{action['state']}]"
                for action in plan["actions"]
            ]
    return "\n".join(lines)


def describe(arguments: dict[str, Any]) -> str:
    """An action's arguments on one line."""
    return ", ".join(f"{name} {value}" for name, value in arguments.items() if value not in (None, "", []))


def headline(seed: int, acts: Sequence[Act]) -> str:
    """What is going to be played."""
    return f"seed {seed}: " + "; ".join(f"step {act.step}: {act.title}" for act in acts)
