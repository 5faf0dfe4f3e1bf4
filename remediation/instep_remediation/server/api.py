"""The read API under `/api/v1`, the control endpoints of supervisors, health and metrics. Routes only translate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from instep_collector.errors import JournalError, Refused
from instep_collector.ingest import read_body
from instep_collector.store import incidents, nodes, orders, plans

from instep_remediation.orders import WAIT_SECONDS_MAX
from instep_remediation.server.bundle import incident_bundle
from instep_remediation.server.views import incident_view, job_view, node_view, order_view, plan_view

if TYPE_CHECKING:
    from instep_remediation.server.runtime import Runtime

REPORT_BYTES_MAX = 16 * 1024 * 1024
"""A dump of all ranks of a node with their flight recorders."""
Limit = Annotated[int, Query(ge=1, le=1000)]


def control_routes(runtime: Runtime) -> APIRouter:
    """Return what supervisors call (docs/designs/001-control-protocol.md)."""
    router = APIRouter(prefix="/control/v1")

    @router.post("/reports")
    async def reports(request: Request) -> JSONResponse:
        try:
            raw = await read_body(request.scope, request.receive, REPORT_BYTES_MAX)
            taken = await runtime.intake.take_report(raw, request.scope["instep.principal"])
        except Refused as refused:
            raise HTTPException(refused.status, refused.detail) from refused
        except JournalError as error:
            raise HTTPException(503, str(error)) from error
        return JSONResponse({"acknowledged": taken})

    @router.get("/orders")
    async def wait_for_orders(
        run: Annotated[str, Query(min_length=1, max_length=200)],
        after: Annotated[int, Query(ge=0, le=2**62)] = 0,
        wait_seconds: Annotated[float, Query(ge=0.0, le=WAIT_SECONDS_MAX)] = 20.0,
    ) -> JSONResponse:
        return JSONResponse({"orders": await runtime.hub.wait(run, after, wait_seconds)})

    return router


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


def read_routes(runtime: Runtime) -> APIRouter:
    """Return the read API."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/jobs")
    async def list_jobs() -> dict[str, Any]:
        now = runtime.clock.monotonic()
        runs = sorted(runtime.registry.runs.values(), key=lambda run: (run.is_finished, run.job, run.run))
        return {"jobs": [job_view(run, runtime.registry, now) for run in runs]}

    @router.get("/nodes")
    async def list_nodes() -> dict[str, Any]:
        now = runtime.clock.monotonic()
        with runtime.store.begin() as session:
            return {
                "nodes": [node_view(row, runtime.registry.nodes.get(row.node), now) for row in nodes.nodes(session)]
            }

    @router.get("/incidents")
    async def list_incidents(
        state: Annotated[list[str] | None, Query(max_length=10)] = None, limit: Limit = 200
    ) -> dict[str, Any]:
        with runtime.store.begin() as session:
            rows = incidents.recent(session, limit=limit, states=state or ())
            return {"incidents": [incident_view(row, runbook_base=runtime.config.runbook_url) for row in rows]}

    @router.get("/incidents/{id}")
    async def show_incident(id: str) -> dict[str, Any]:
        with runtime.store.begin() as session:
            row = _found(incidents.get(session, id), f"There is no incident {id[:40]!r}.")
            made = [
                plan_view(plan, list(plans.actions(session, plan.id))) for plan in plans.of_incident(session, row.id)
            ]
            return incident_view(row, runbook_base=runtime.config.runbook_url) | {"plans": made}

    @router.get("/incidents/{id}/bundle")
    async def export_incident(id: str) -> Response:
        with runtime.store.begin() as session:
            row = _found(incidents.get(session, id), f"There is no incident {id[:40]!r}.")
            data = incident_bundle(session, row, runbook_base=runtime.config.runbook_url)
        return Response(
            data, media_type="application/zip", headers={"Content-Disposition": f'attachment; filename="{row.id}.zip"'}
        )

    @router.get("/plans")
    async def list_plans(
        state: Annotated[list[str] | None, Query(max_length=10)] = None, limit: Limit = 200
    ) -> dict[str, Any]:
        with runtime.store.begin() as session:
            return {
                "plans": [
                    plan_view(row, list(plans.actions(session, row.id)))
                    for row in plans.recent(session, limit=limit, states=state or ())
                ]
            }

    @router.get("/plans/{id}")
    async def show_plan(id: Annotated[int, Path(ge=0, le=2**62)]) -> dict[str, Any]:
        with runtime.store.begin() as session:
            row = _found(plans.get(session, id), f"There is no plan {id}.")
            return plan_view(row, list(plans.actions(session, row.id)))

    @router.get("/orders")
    async def list_orders(limit: Limit = 200) -> dict[str, Any]:
        with runtime.store.begin() as session:
            return {"orders": [order_view(row) for row in orders.recent(session, limit=limit)]}

    @router.post("/page-links")
    async def make_page_link() -> dict[str, str]:
        return {"page_link": runtime.page_link()}

    return router


def _found(row: Any, detail: str) -> Any:
    if row is None:
        raise HTTPException(404, detail)
    return row
