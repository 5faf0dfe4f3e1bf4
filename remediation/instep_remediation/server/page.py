"""Routes of the status page: gathers what the page shows and renders it."""

from __future__ import annotations

from datetime import UTC, datetime
from statistics import median
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import HTMLResponse
from instep_collector.boards import RankBoard
from instep_collector.page import SECURITY_HEADERS, JobPanel, Page, render
from instep_collector.page.heat_map import heat_map
from instep_collector.registry import RunState
from instep_collector.store import incidents, nodes, plans
from instep_collector.store.models import Incident
from sqlalchemy.orm import Session

from instep_remediation.server.runtime import Runtime, hang_settings
from instep_remediation.server.views import incident_view, job_view, node_view, plan_view

JOBS_SHOWN = 20
RECENT_SHOWN = 15
STEPS_RECENT = 10


def page_routes(runtime: Runtime) -> APIRouter:
    """Return the page and the page of one incident."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def show_page() -> HTMLResponse:
        with runtime.store.begin() as session:
            return HTMLResponse(render(gather(runtime, session)), headers=SECURITY_HEADERS)

    @router.get("/incidents/{id}")
    async def show_incident(id: str) -> HTMLResponse:
        with runtime.store.begin() as session:
            row = incidents.get(session, id)
            if row is None:
                raise HTTPException(404, f"There is no incident {id[:40]!r}.")
            return HTMLResponse(render(gather(runtime, session, row)), headers=SECURITY_HEADERS)

    return router


def gather(runtime: Runtime, session: Session, one: Incident | None = None) -> Page:
    """Return everything the page shows now."""
    now = runtime.clock.monotonic()
    runs = sorted(runtime.registry.runs.values(), key=lambda run: (run.is_finished, now - run.heard_at))
    settled = incidents.recent(session, limit=RECENT_SHOWN, states=("resolved",))
    made = plans.of_incident(session, one.id) if one else ()
    return Page(
        now=datetime.fromtimestamp(runtime.clock.realtime(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        jobs=[panel(runtime, run, now) for run in runs[:JOBS_SHOWN]],
        open=[shown(runtime, row) for row in reversed(incidents.active(session))],
        recent=[shown(runtime, row) for row in settled],
        plans=[plan_view(row, []) for row in plans.recent(session, limit=20, states=("waiting",))],
        nodes=[node_view(row, runtime.registry.nodes.get(row.node), now) for row in nodes.nodes(session)],
        incident=shown(runtime, one) if one else None,
        made=[plan_view(row, []) for row in made],
    )


def shown(runtime: Runtime, row: Incident) -> dict[str, Any]:
    """Return an incident with how long it lasts or lasted."""
    end = row.resolved_at if row.resolved_at is not None else runtime.clock.realtime()
    return incident_view(row, runbook_base=runtime.config.runbook_url) | {"since_seconds": max(0.0, end - row.onset_at)}


def panel(runtime: Runtime, run: RunState, now: float) -> JobPanel:
    """Return one run as the page shows it."""
    board = run.current()
    view = job_view(run, runtime.registry, now)
    recent = [step.wall_seconds for steps in board.steps.values() for step in list(steps)[-STEPS_RECENT:]]
    return JobPanel(
        job=run.job,
        run=run.run,
        attempt=run.attempt,
        state=view["state"],
        step=board.step(),
        world_size=run.world_size,
        step_seconds=median(recent) if recent else None,
        heard_age_seconds=view["heard_age_seconds"],
        restarts=f"{run.restarts_used} of {run.max_restarts} restarts used",
        unknown_ranks=[] if run.is_finished else unknown_ranks(board, runtime, now),
        nodes=sorted(run.nodes()),
        standby=sorted(run.standby),
        heat_map=heat_map(board.steps, {rank: report.node for rank, (report, _) in board.reports.items()}),
    )


def unknown_ranks(board: RankBoard, runtime: Runtime, now: float) -> list[int]:
    """Return the ranks whose last report is too old to say anything of them, as the hang detector sees it."""
    limit = hang_settings(runtime.config.hang).report_age_seconds_max
    return [report.rank for report, age in board.ranks_now(now) if age > limit]
