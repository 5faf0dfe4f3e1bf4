"""The reading API under `/api/v1`: jobs, nodes, incidents, plans, orders, audit, policy. Routes only translate; answers
are made by `views` and described by `contract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from instep_collector.store import audit, breaker, cordons, incidents, jobs, nodes, orders, plans

from instep_remediation.server import contract, job_contract
from instep_remediation.server.bundle import incident_bundle
from instep_remediation.server.changes import IncidentId, NodeId, PlanId, etag
from instep_remediation.server.views import (
    attempt_view,
    audit_view,
    breaker_view,
    fact_view,
    incident_view,
    job_view,
    lasting_drills,
    latch_view,
    node_view,
    order_view,
    plan_answer,
    steps_view,
)

if TYPE_CHECKING:
    from instep_remediation.server.runtime import Runtime

STATES_SHOWN = ("suspect", "open", "resolved")
"""Withdrawn suspicions and merged incidents are listed when they are asked for."""
FACTS_SHOWN = 100
"""Raw facts in the answer about one node."""
Limit = Annotated[int, Query(ge=1, le=1000)]
IncidentStates = Annotated[list[contract.IncidentState] | None, Query(max_length=10)]
PlanStates = Annotated[list[contract.PlanState] | None, Query(max_length=10)]
Run = Annotated[str, Path(max_length=200, pattern=r"^[^\x00/]+$")]
Word = Annotated[str, Query(max_length=300, pattern=r"^[^\x00]*$")]
ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
}


def job_routes(runtime: Runtime) -> APIRouter:
    """Return what is known of jobs and nodes now."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/jobs", response_model=job_contract.Jobs, tags=["jobs"])
    async def list_jobs() -> JSONResponse:
        """Return the runs that are known now."""
        now = runtime.clock.monotonic()
        runs = sorted(runtime.registry.runs.values(), key=lambda run: (run.is_finished, run.job, run.run))
        return JSONResponse({"jobs": [job_view(run, runtime.registry, now) for run in runs]})

    @router.get("/jobs/{run}", response_model=job_contract.JobDetail | job_contract.PastJob, tags=["jobs"])
    async def show_job(run: Run) -> JSONResponse:
        """Return one run with its attempts."""
        with runtime.store.begin() as session:
            attempts = [attempt_view(row) for row in jobs.attempts(session, run)]
        live = runtime.registry.runs.get(run)
        if live is None:
            kept = _found(attempts, f"There is no run {run[:40]!r}.")
            return JSONResponse({"run": run, "state": "over", "attempts": kept})
        view = job_view(live, runtime.registry, runtime.clock.monotonic())
        return JSONResponse(view | {"attempts": attempts})

    @router.get("/jobs/{run}/steps", response_model=job_contract.Steps, tags=["jobs"])
    async def show_steps(run: Run, steps: Annotated[int, Query(ge=1, le=256)] = 60) -> JSONResponse:
        """Return the last steps of a run's ranks."""
        live = _found(runtime.registry.runs.get(run), f"There is no run {run[:40]!r}.")
        return JSONResponse(steps_view(live, steps))

    @router.get("/nodes", response_model=contract.Nodes, tags=["nodes"])
    async def list_nodes() -> JSONResponse:
        """Return every node whose agent has been heard of."""
        now = runtime.clock.monotonic()
        with runtime.store.begin() as session:
            rows, ours = nodes.nodes(session), {row.node: row for row in cordons.all_nodes(session)}
        live = runtime.registry.nodes
        return JSONResponse({"nodes": [node_view(row, live.get(row.node), now, ours.get(row.node)) for row in rows]})

    @router.get("/nodes/{node}", response_model=contract.NodeDetail, tags=["nodes"])
    async def show_node(node: NodeId) -> JSONResponse:
        """Return one node, and the plans about it that are not over."""
        with runtime.store.begin() as session:
            row = _found(nodes.get(session, node), f"There is no node {node[:40]!r}.")
            live = runtime.registry.nodes.get(node)
            view = node_view(row, live, runtime.clock.monotonic(), cordons.get(session, node))
            about = {plan.id: plan for plan, _ in plans.of_node(session, node)}
            said = {
                "latched": [latch_view(latch) for latch in runtime.latches.standing(node)],
                "drills": lasting_drills(session, now=runtime.clock.realtime(), node=node),
                "facts": [fact_view(fact) for fact in nodes.events(session, node=node, limit=FACTS_SHOWN)],
            }
            return JSONResponse(view | said | {"plans": [plan_answer(session, plan) for plan in about.values()]})

    return router


def incident_routes(runtime: Runtime) -> APIRouter:
    """Return incidents and their bundles."""
    router = APIRouter(prefix="/api/v1", tags=["incidents"])
    base = runtime.config.runbook_url

    @router.get("/incidents", response_model=contract.Incidents)
    async def list_incidents(state: IncidentStates = None, limit: Limit = 200) -> JSONResponse:
        """Return incidents, newest first; withdrawn and merged ones only when asked for."""
        with runtime.store.begin() as session:
            rows = incidents.recent(session, limit=limit, states=state or STATES_SHOWN)
            return JSONResponse({"incidents": [incident_view(row, runbook_base=base) for row in rows]})

    @router.get("/incidents/{id}", response_model=contract.IncidentDetail)
    async def show_incident(id: IncidentId) -> JSONResponse:
        """Return one incident with its plans; a merged one leads to the one it is a part of."""
        with runtime.store.begin() as session:
            row = _found(incidents.get(session, id), f"There is no incident {id[:40]!r}.")
            made = [plan_answer(session, plan) for plan in plans.of_incident(session, row.id)]
            return JSONResponse(incident_view(row, runbook_base=base) | {"plans": made}, headers=etag(row.version))

    @router.get("/incidents/{id}/bundle", response_class=Response, responses=ZIP)
    async def export_incident(id: IncidentId) -> Response:
        """Return a zip of JSON files from which the verdict can be drawn again."""
        with runtime.store.begin() as session:
            row = _found(incidents.get(session, id), f"There is no incident {id[:40]!r}.")
            data = incident_bundle(session, row, runbook_base=base)
        disposition = f'attachment; filename="{row.id}.zip"'
        return Response(data, media_type="application/zip", headers={"Content-Disposition": disposition})

    return router


def plan_routes(runtime: Runtime) -> APIRouter:
    """Return plans and orders."""
    router = APIRouter(prefix="/api/v1", tags=["plans"])

    @router.get("/plans", response_model=contract.Plans)
    async def list_plans(state: PlanStates = None, limit: Limit = 200) -> JSONResponse:
        """Return plans, newest first."""
        with runtime.store.begin() as session:
            rows = plans.recent(session, limit=limit, states=state or ())
            return JSONResponse({"plans": [plan_answer(session, row) for row in rows]})

    @router.get("/plans/{id}", response_model=contract.Plan)
    async def show_plan(id: PlanId) -> JSONResponse:
        """Return one plan with what became of each action and step."""
        with runtime.store.begin() as session:
            row = _found(plans.get(session, id), f"There is no plan {id}.")
            return JSONResponse(plan_answer(session, row), headers=etag(row.version))

    @router.get("/orders", response_model=contract.Orders)
    async def list_orders(limit: Limit = 200) -> JSONResponse:
        """Return orders to coordinators, newest first."""
        with runtime.store.begin() as session:
            return JSONResponse({"orders": [order_view(row) for row in orders.recent(session, limit=limit)]})

    return router


def policy_routes(runtime: Runtime) -> APIRouter:
    """Return the audit log, the policy, the breaker, and links to the page."""
    router = APIRouter(prefix="/api/v1", tags=["policy"])

    @router.get("/audit", response_model=contract.AuditLines)
    async def list_audit(subject: Word = "", actor: Word = "", limit: Limit = 200) -> JSONResponse:
        """Return who changed what, and why, newest first; `subject` is such as `plan 7` or `node node-b`."""
        with runtime.store.begin() as session:
            rows = audit.find(session, subject=subject, actor=actor, limit=limit)
            return JSONResponse({"audit": [audit_view(row) for row in rows]})

    @router.get("/policy", response_model=contract.EffectivePolicy)
    async def show_policy() -> JSONResponse:
        """Return the policy in effect, and what carries changes out."""
        source = str(runtime.config.policy) if runtime.config.policy else "default"
        executor = {"name": runtime.nodes.name, "is_changing": runtime.nodes.is_changing}
        policy = runtime.policy.model_dump(mode="json")
        return JSONResponse({"source": source, "executor": executor, "policy": policy})

    @router.get("/breaker", response_model=contract.BreakerState)
    async def show_breaker() -> JSONResponse:
        """Return whether automatic plans are carried out."""
        with runtime.store.begin() as session:
            return JSONResponse(breaker_view(breaker.get(session), runtime.policy.guards.failures_max))

    @router.post("/page-links", response_model=contract.PageLink)
    async def make_page_link(request: Request) -> JSONResponse:
        """Return a link to the page that works once; with scope `operate` it lets decide. Needs `view`."""
        return JSONResponse({"page_link": runtime.page_link(request.scope["instep.principal"])})

    return router


def _found(row: Any, detail: str) -> Any:
    if row is None or row == []:
        raise HTTPException(404, detail)
    return row
