"""Composes the application: the gate, the bare ingest function, and FastAPI for everything that is not hot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from instep_collector.ingest import Application, ingest_application

from instep_remediation.server.api import control_routes, health_routes, incident_routes, job_routes
from instep_remediation.server.gate import Gate
from instep_remediation.server.page import page_routes
from instep_remediation.server.runtime import Runtime


def make_api(runtime: Runtime, *, is_watching: bool = True) -> FastAPI:
    """Return the FastAPI application; it opens and stops the runtime with its own life."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if not runtime.is_ready:
            runtime.open()
        if is_watching:
            runtime.start()
        yield
        await runtime.stop()

    app = FastAPI(
        title="Instep",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    for router in (
        control_routes(runtime),
        health_routes(runtime),
        job_routes(runtime),
        incident_routes(runtime),
        page_routes(runtime),
    ):
        app.include_router(router)

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}."}, 400)

    return app


def make_application(runtime: Runtime, *, is_watching: bool = True) -> Application:
    """Return the whole ASGI application behind its gate. Tests leave the loops out and tick by themselves."""
    return Gate(
        runtime.book,
        runtime.sessions,
        ingest=ingest_application(runtime.intake),
        rest=make_api(runtime, is_watching=is_watching),
        metrics_open=runtime.config.metrics_open,
    )
