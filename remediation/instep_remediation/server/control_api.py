"""The control endpoints of supervisors and agents, health and metrics. Routes only translate; none of this is in the
OpenAPI document: docs/designs/001-control-protocol.md describes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from instep_collector.errors import JournalError, Refused
from instep_collector.ingest import read_body
from instep_collector.intake import check_node
from instep_collector.tokens import Principal

from instep_remediation.waiting import WAIT_SECONDS_MAX

if TYPE_CHECKING:
    from instep_remediation.server.runtime import Runtime

REPORT_BYTES_MAX = 16 * 1024 * 1024
"""A dump of all ranks of a node with their flight recorders."""
After = Annotated[int, Query(ge=0, le=2**62)]
WaitSeconds = Annotated[float, Query(ge=0.0, le=WAIT_SECONDS_MAX)]


def control_routes(runtime: Runtime) -> APIRouter:
    """Return what supervisors and agents call (docs/designs/001-control-protocol.md)."""
    router = APIRouter(prefix="/control/v1", include_in_schema=False)

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
        epoch: Annotated[str, Query(max_length=100)] = "",
        wait_seconds: WaitSeconds = 20.0,
    ) -> JSONResponse:
        orders = runtime.node_orders
        try:
            check_node(request.scope["instep.principal"], node)
            listed = await orders.wait(node, after if epoch == orders.epoch else 0, wait_seconds)
            return JSONResponse({"orders": listed, "epoch": orders.epoch})
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
    router = APIRouter(include_in_schema=False)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        away = runtime.store.trouble
        status = f"the database does not answer ({away})" if away else "ready" if runtime.is_ready else "starting"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(runtime.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
