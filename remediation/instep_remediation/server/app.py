"""Composes the application: the gate, the bare ingest function, and FastAPI for everything that is not hot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from instep_collector.ingest import Application, ingest_application

from instep_remediation.server.api import incident_routes, job_routes, plan_routes, policy_routes
from instep_remediation.server.changes import change_routes
from instep_remediation.server.control_api import control_routes, health_routes
from instep_remediation.server.gate import Gate
from instep_remediation.server.openapi import describe_api
from instep_remediation.server.page import page_routes
from instep_remediation.server.problems import add_problem_handlers
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
        plan_routes(runtime),
        policy_routes(runtime),
        change_routes(runtime),
        page_routes(runtime),
    ):
        app.include_router(router)

    add_problem_handlers(app)
    app.openapi = lambda: describe_api(app)  # type: ignore[method-assign]
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
