"""Routes of the status page. A form on it decides as the API does, in the name of whoever holds the session."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from instep_collector.page import Page, render, script, security_headers
from instep_collector.store.models import PlanRow
from sqlalchemy.orm.exc import StaleDataError

from instep_remediation.decisions import REASON_LENGTH_MAX
from instep_remediation.errors import DecisionError
from instep_remediation.server import page_views
from instep_remediation.server.changes import IncidentId, NodeId, PlanId
from instep_remediation.server.runtime import Runtime
from instep_remediation.server.sessions import Session

FIELDS_MAX = 10
VERSION_DIGITS_MAX = 18
FORM_TYPE = "application/x-www-form-urlencoded"
FORM_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
CHANGED = "It was changed at the same moment: look at it again, then decide."


@dataclass(frozen=True, slots=True)
class Form:
    """What a form on the page says."""

    session: Session
    reason: str
    version: int | None


def page_routes(runtime: Runtime) -> APIRouter:
    """Return the pages: everything, one incident, one node, one plan; and what brings them up to date."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def show_overview(request: Request) -> HTMLResponse:
        with runtime.store.begin() as session:
            return _page(page_views.overview(runtime, session, _browser(request)))

    @router.get("/page.js")
    async def show_script() -> Response:
        return Response(script(), media_type="text/javascript", headers=security_headers())

    @router.get("/incidents/{id}")
    async def show_incident(id: IncidentId, request: Request) -> HTMLResponse:
        with runtime.store.begin() as session:
            page = page_views.incident_page(runtime, session, _browser(request), id)
            return _page(page, f"There is no incident {id[:40]!r}.")

    @router.get("/nodes/{node}")
    async def show_node(node: NodeId, request: Request) -> HTMLResponse:
        with runtime.store.begin() as session:
            page = page_views.node_page(runtime, session, _browser(request), node)
            return _page(page, f"There is no node {node[:40]!r}.")

    @router.get("/plans/{id}")
    async def show_plan(id: PlanId, request: Request) -> HTMLResponse:
        with runtime.store.begin() as session:
            return _page(page_views.plan_page(runtime, session, _browser(request), id), f"There is no plan {id}.")

    _add_forms(router, runtime)
    return router


def _add_forms(router: APIRouter, runtime: Runtime) -> None:
    verbs: dict[str, Callable[..., PlanRow]] = {
        "approve": runtime.decisions.approve,
        "reject": runtime.decisions.reject,
        "cancel": runtime.decisions.cancel,
        "execute": runtime.decisions.execute,
    }

    @router.get("/plans/{id}/{verb}")
    async def look_again(id: PlanId, verb: str) -> Response:
        """Show the plan to whoever comes back to a form's address."""
        return RedirectResponse(f"/plans/{id}", 303, FORM_HEADERS)

    @router.post("/plans/{id}/{verb}")
    async def decide(id: PlanId, verb: str, request: Request) -> Response:
        """Decide, then show the plan; a decision that was refused is shown with its reason."""
        form = await read_form(request)
        if isinstance(form, str):
            return PlainTextResponse(form, 403, headers=FORM_HEADERS)
        if verb not in verbs:
            raise HTTPException(404, f"There is no {verb[:40]!r} of a plan.")
        problem = _decided(runtime, verbs[verb], id, form)
        if problem is None:
            runtime.runner.wake()
            return RedirectResponse(f"/plans/{id}", 303, FORM_HEADERS)
        with runtime.store.begin() as session:
            page = page_views.plan_page(runtime, session, form.session, id, problem)
            return _page(page, problem, status=409)


async def read_form(request: Request) -> Form | str:
    """Return what a form says; a sentence when it was not made for the session that sends it."""
    session = _browser(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    try:
        fields = dict(urllib.parse.parse_qsl(body.decode(), max_num_fields=FIELDS_MAX)) if kind == FORM_TYPE else {}
    except ValueError:
        fields = {}
    is_ours = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    if session is None or not is_ours or not session.has_form_token(fields.get("token", "")):
        return "This form was not made for your session: open the plan's page again, and decide there."
    version = fields.get("version", "")
    seen = int(version[:VERSION_DIGITS_MAX]) if version.isdecimal() else None
    return Form(session, " ".join(fields.get("reason", "").split()), seen)


def _decided(runtime: Runtime, verb: Callable[..., PlanRow], id: int, form: Form) -> str | None:
    """Decide in one transaction; returns why not."""
    if not 0 < len(form.reason) <= REASON_LENGTH_MAX:
        return f"A reason is needed, of {REASON_LENGTH_MAX} characters at most: it stands in the audit log."
    try:
        with runtime.store.begin() as session:
            verb(session, id, form.session.holder, form.reason, version=form.version)
    except DecisionError as error:
        return str(error)
    except StaleDataError:  # Another server on the same database was faster.
        return CHANGED
    return None


def _browser(request: Request) -> Session | None:
    """Return the browser's session; None for a program with a token, which uses the API to decide."""
    session = request.scope.get("instep.session")
    return session if isinstance(session, Session) else None


def _page(page: Page | None, missing: str = "", *, status: int = 200) -> HTMLResponse:
    if page is None:
        raise HTTPException(404, missing)
    return HTMLResponse(render(page), status, headers=security_headers(page))
