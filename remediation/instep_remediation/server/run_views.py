"""One run with its attempts, and its ranks' steps: what a live view or a script asks for while a job trains."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException
from instep_collector.boards import RankBoard
from instep_collector.registry import RunState
from instep_collector.store import jobs

from instep_remediation.server.runtime import Runtime
from instep_remediation.server.views import job_view

STEPS_SHOWN_MAX = 256


def run_routes(runtime: Runtime) -> APIRouter:
    """Return the routes of single runs."""
    router = APIRouter(prefix="/api/v1/jobs")

    @router.get("/{run}")
    async def show_run(run: str) -> dict[str, Any]:
        state = _run(runtime, run)
        with runtime.store.begin() as session:
            attempts = [
                {"attempt": row.attempt, "members": row.members, "resume_step": row.resume_step, "outcome": row.outcome}
                for row in jobs.attempts_of(session, state.run)
            ]
        return job_view(state, runtime.registry, runtime.clock.monotonic()) | {"attempts": attempts}

    @router.get("/{run}/steps")
    async def show_steps(run: str) -> dict[str, Any]:
        state = _run(runtime, run)
        return {"run": state.run, "attempt": state.attempt, "ranks": _ranks(state.current(), state)}

    return router


def _run(runtime: Runtime, run: str) -> RunState:
    state = runtime.registry.runs.get(run)
    if state is None:
        raise HTTPException(404, f"There is no run {run[:40]!r}.")
    return state


def _ranks(board: RankBoard, state: RunState) -> list[dict[str, Any]]:
    """Seconds per step of each rank, newest last; `work_seconds` is its own work, without waiting for anybody or
    anything.
    """
    rows = []
    for rank, kept in sorted(board.steps.items()):
        steps = list(kept)[-STEPS_SHOWN_MAX:]
        rows.append(
            {
                "rank": rank,
                "node": state.node_of(rank),
                "steps": [step.step for step in steps],
                "wall_seconds": [round(step.wall_seconds, 6) for step in steps],
                "wait_seconds": [round(step.wait_seconds, 6) for step in steps],
                "work_seconds": [
                    round(
                        max(
                            0.0,
                            step.wall_seconds
                            - step.wait_seconds
                            - (step.starved_seconds or 0.0)
                            - step.data_seconds
                            - step.checkpoint_seconds
                            - step.evaluation_seconds,
                        ),
                        6,
                    )
                    for step in steps
                ],
            }
        )
    return rows
