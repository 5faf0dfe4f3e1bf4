"""One look at the node: every source is asked once, twice where it compares, and what they said is printed."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from instep_agent.node import rights_of
from instep_agent.running.runner import Runner
from instep_agent.running.source_state import SourceState
from instep_agent.wire import Frame

WORDS = {"ok": "present", "absent": "absent", "failed": "failing", "stuck": "failing"}


def ask_all(runner: Runner) -> None:
    """Go on until every source has said something, or has missed its deadline; each deadline bounds this."""
    while True:
        wait_seconds = runner.run_due()
        if all(map(_has_said, runner.states)):
            break
        runner.wait(wait_seconds)


def _has_said(state: SourceState) -> bool:
    turns = 2 if getattr(state.source, "is_rate", False) and state.outcome == "ok" else 1
    return state.outcome == "stuck" or state.turns_total >= turns


def print_seen(runner: Runner, frames: list[Frame], node: str, *, is_json: bool) -> None:
    """Print everything that was seen."""
    snapshot = runner.snapshot
    if is_json:
        shown = {
            "node": node,
            "sources": {state.name: _row(state) for state in runner.states},
            "ranks": snapshot.ranks,
            "gpus": snapshot.gpus,
            "events": [event for frame in frames for event in frame.events],
            "samples": [
                {"name": each.name, "labels": dict(each.labels), "value": each.value} for each in snapshot.samples
            ],
        }
        _print_json(msgspec.to_builtins(shown))
        return
    for state in runner.states:
        sys.stdout.write(f"{state.name:16} {state.outcome:8} {state.detail}\n")
    for rank in snapshot.ranks:
        sys.stdout.write(
            f"rank {rank.rank} of {rank.job} attempt {rank.attempt}: step {rank.step}, {rank.phase}, "
            f"{rank.process_state}, {rank.heartbeat_age_seconds:.1f} s ago\n"
        )


def _row(state: SourceState) -> dict[str, Any]:
    return {
        "outcome": state.outcome,
        "detail": state.detail,
        "duration_seconds": state.duration_seconds,
        "samples": len(state.samples),
    }


def print_check(runner: Runner, *, is_json: bool) -> None:
    """Print, for each source, whether what it reads is here, and if it cannot look, why and what it needs."""
    rows = [
        {
            "source": state.name,
            "verdict": WORDS[state.outcome],
            "detail": state.detail,
            "needs": rights_of(state.source),
            "interval_seconds": state.source.interval_seconds,
            "runs_in": state.source.child or "agent",
            "samples": len(state.samples),
        }
        for state in runner.states
    ]
    if is_json:
        _print_json(rows)
        return
    for row in rows:
        sys.stdout.write(f"{row['source']:16} {row['verdict']:8} {row['detail'] or _went_well(row)}\n")
        if row["verdict"] == "failing" and row["needs"]:
            sys.stdout.write(f"{'':16} {'':8} It {row['needs']}.\n")


def _went_well(row: dict[str, Any]) -> str:
    return f"{row['samples']} samples every {row['interval_seconds']:g} s"


def _print_json(shown: object) -> None:
    import json  # one look needs it, a running agent does not

    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
