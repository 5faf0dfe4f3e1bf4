"""The read API under `/api/v1`, the control endpoints of supervisors, health and metrics. Routes only translate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from instep_collector.errors import JournalError, Refused
from instep_collector.ingest import read_body
from instep_collector.intake import check_node
from instep_collector.store import incidents, jobs, nodes, orders, plans
from instep_collector.store.models import PlanRow
from instep_collector.tokens import Principal
from sqlalchemy.orm import Session

from instep_remediation.server.bundle import incident_bundle
from instep_remediation.server.views import (
    attempt_view,
    incident_view,
    job_view,
    node_view,
    order_view,
    plan_view,
    steps_view,
)
from instep_remediation.waiting import WAIT_SECONDS_MAX

if TYPE_CHECKING:
    from instep_remediation.server.runtime import Runtime

REPORT_BYTES_MAX = 16 * 1024 * 1024
"""A dump of all ranks of a node with their flight recorders."""
STATES_SHOWN = ("suspect", "open", "resolved")
"""Withdrawn suspicions and merged incidents are listed when they are asked for."""
After = Annotated[int, Query(ge=0, le=2**62)]
WaitSeconds = Annotated[float, Query(ge=0.0, le=WAIT_SECONDS_MAX)]
Limit = Annotated[int, Query(ge=1, le=1000)]
States = Annotated[list[str] | None, Query(max_length=10)]


def control_routes(runtime: Runtime) -> APIRouter:
    """Return what supervisors and agents call (docs/designs/001-control-protocol.md)."""
    router = APIRouter(prefix="/control/v1")

    @router.post("/reports")
    async def reports(request: Request) -> JSONResponse:
        return await _taken(request, runtime.intake.take_report)

    @router.get("/orders")
    async def wait_for_orders(
        run: Annotated[str, Query(min_length=1, max_length=200)],
        after: After = 0,
        wait_seconds: WaitSeconds = 20.0,
    ) -> JSONResponse:
        return JSONResponse({"orders": await runtime.hub.wait(run, after, wait_seconds)})

    @router.get("/node-orders")
    async def wait_for_node_orders(
        request: Request,
        node: Annotated[str, Query(min_length=1, max_length=200)],
        after: After = 0,
        wait_seconds: WaitSeconds = 20.0,
    ) -> JSONResponse:
        try:
            check_node(request.scope["instep.principal"], node)
            return JSONResponse({"orders": await runtime.node_orders.wait(node, after, wait_seconds)})
        except Refused as refused:
            raise HTTPException(refused.status, refused.detail) from refused

    @router.post("/node-dumps")
    async def node_dumps(request: Request) -> JSONResponse:
        return await _taken(request, runtime.intake.take_node_dump)

    return router


async def _taken(request: Request, take: Callable[[bytes, Principal], Awaitable[str | int]]) -> JSONResponse:
    """Read a body, have it kept, and acknowledge it."""
    try:
        raw = await read_body(request.scope, request.receive, REPORT_BYTES_MAX)
        return JSONResponse({"acknowledged": await take(raw, request.scope["instep.principal"])})
    except Refused as refused:
        raise HTTPException(refused.status, refused.detail) from refused
    except JournalError as error:
        raise HTTPException(503, str(error)) from error


def health_routes(runtime: Runtime) -> APIRouter:
    """Return health, readiness and metrics."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        return JSONResponse({"status": "ready" if runtime.is_ready else "starting"}, 200 if runtime.is_ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(runtime.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def job_routes(runtime: Runtime) -> APIRouter:
    """Return what is known of jobs and nodes now."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/jobs")
    async def list_jobs() -> dict[str, Any]:
        now = runtime.clock.monotonic()
        runs = sorted(runtime.registry.runs.values(), key=lambda run: (run.is_finished, run.job, run.run))
        return {"jobs": [job_view(run, runtime.registry, now) for run in runs]}

    @router.get("/jobs/{run}")
    async def show_job(run: str) -> dict[str, Any]:
        with runtime.store.begin() as session:
            attempts = [attempt_view(row) for row in jobs.attempts(session, run)]
        live = runtime.registry.runs.get(run)
        if live is None:
            kept = _found(attempts, f"There is no run {run[:40]!r}.")
            return {"run": run, "state": "over", "attempts": kept}
        return job_view(live, runtime.registry, runtime.clock.monotonic()) | {"attempts": attempts}

    @router.get("/jobs/{run}/steps")
    async def show_steps(run: str, steps: Annotated[int, Query(ge=1, le=256)] = 60) -> dict[str, Any]:
        live = _found(runtime.registry.runs.get(run), f"There is no run {run[:40]!r}.")
        return steps_view(live, steps)

    @router.get("/nodes")
    async def list_nodes() -> dict[str, Any]:
        now = runtime.clock.monotonic()
        with runtime.store.begin() as session:
            rows = nodes.nodes(session)
        return {"nodes": [node_view(row, runtime.registry.nodes.get(row.node), now) for row in rows]}

    return router


def incident_routes(runtime: Runtime) -> APIRouter:
    """Return incidents and their bundles, plans and orders."""
    router = APIRouter(prefix="/api/v1")
    base = runtime.config.runbook_url

    @router.get("/incidents")
    async def list_incidents(state: States = None, limit: Limit = 200) -> dict[str, Any]:
        with runtime.store.begin() as session:
            rows = incidents.recent(session, limit=limit, states=state or STATES_SHOWN)
            return {"incidents": [incident_view(row, runbook_base=base) for row in rows]}

    @router.get("/incidents/{id}")
    async def show_incident(id: str) -> dict[str, Any]:
        with runtime.store.begin() as session:
            row = _found(incidents.get(session, id), f"There is no incident {id[:40]!r}.")
            return incident_view(row, runbook_base=base) | {
                "plans": _plans(session, plans.of_incident(session, row.id))
            }

    @router.get("/incidents/{id}/bundle")
    async def export_incident(id: str) -> Response:
        with runtime.store.begin() as session:
            row = _found(incidents.get(session, id), f"There is no incident {id[:40]!r}.")
            data = incident_bundle(session, row, runbook_base=base)
        disposition = f'attachment; filename="{row.id}.zip"'
        return Response(data, media_type="application/zip", headers={"Content-Disposition": disposition})

    @router.get("/plans")
    async def list_plans(state: States = None, limit: Limit = 200) -> dict[str, Any]:
        with runtime.store.begin() as session:
            return {"plans": _plans(session, plans.recent(session, limit=limit, states=state or ()))}

    @router.get("/plans/{id}")
    async def show_plan(id: Annotated[int, Path(ge=0, le=2**62)]) -> dict[str, Any]:
        with runtime.store.begin() as session:
            return _plans(session, [_found(plans.get(session, id), f"There is no plan {id}.")])[0]

    @router.get("/orders")
    async def list_orders(limit: Limit = 200) -> dict[str, Any]:
        with runtime.store.begin() as session:
            return {"orders": [order_view(row) for row in orders.recent(session, limit=limit)]}

    @router.post("/page-links")
    async def make_page_link() -> dict[str, str]:
        return {"page_link": runtime.page_link()}

    return router


def _plans(session: Session, rows: Sequence[PlanRow]) -> list[dict[str, Any]]:
    return [plan_view(row, list(plans.actions(session, row.id))) for row in rows]


def _found(row: Any, detail: str) -> Any:
    if row is None or row == []:
        raise HTTPException(404, detail)
    return row
