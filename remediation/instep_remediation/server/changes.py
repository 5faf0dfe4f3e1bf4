"""Changes that people make over `/api/v1`. Routes only translate: `decisions` decides, and one transaction holds the
change, its audit line and the answer that is given again for the same `Idempotency-Key`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import JSONResponse
from instep_collector.store import answers
from instep_collector.store.models import Answer, Incident, PlanRow
from instep_collector.tokens import Principal
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from instep_remediation.errors import KeyReused, NotPossible, Outdated
from instep_remediation.node_executor import Step
from instep_remediation.server import contract
from instep_remediation.server.views import (
    breaker_view,
    incident_view,
    plan_answer,
    planned_step_view,
)

if TYPE_CHECKING:
    from instep_remediation.server.runtime import Runtime

KEY_LENGTH_MAX = 200
ETAG = re.compile(r'"(\d{1,18})"')
NEVER = -1
"""A version that nothing has: an If-Match that is none of ours matches nothing."""

PlanId = Annotated[int, Path(ge=0, le=2**62)]
IncidentId = Annotated[str, Path(max_length=40, pattern="^[A-Za-z0-9-]+$")]
NodeId = Annotated[str, Path(max_length=200, pattern=r"^[^\x00/]+$", alias="node")]


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for a change, and under which conditions."""

    actor: str
    token_sha256: str
    key: str
    """Empty: every asking is a change of its own."""
    request_sha256: str
    version: int | None
    """From If-Match; None takes any."""


async def asking(
    request: Request,
    idempotency_key: Annotated[
        str,
        Header(
            max_length=KEY_LENGTH_MAX,
            pattern="^[!-~]*$",
            description="The same change asked for again with the same key within 24 hours is made once.",
        ),
    ] = "",
    if_match: Annotated[
        str, Header(max_length=100, description="The ETag of what was looked at; 412 when it has changed since.")
    ] = "",
) -> Asking:
    """Return who asks for a change, from a request's headers and body."""
    principal: Principal = request.scope["instep.principal"]
    body = await request.body()
    target = f"{request.method} {request.url.path}\n".encode()
    token = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
    return Asking(
        principal.name,
        hashlib.sha256(token).hexdigest(),
        idempotency_key,
        hashlib.sha256(target + body).hexdigest(),
        version_of(if_match),
    )


Asked = Annotated[Asking, Depends(asking)]


def version_of(if_match: str) -> int | None:
    """Return the version that an If-Match header asks for.

    >>> version_of('"3"'), version_of("*"), version_of('W/"3"')
    (3, None, -1)
    """
    if if_match.strip() in ("", "*"):
        return None
    found = ETAG.fullmatch(if_match.strip())
    return int(found[1]) if found else NEVER


def etag(version: int | None) -> dict[str, str]:
    """Return the ETag header of a version."""
    return {} if version is None else {"ETag": f'"{version}"'}


Do = Callable[[Session], dict[str, Any]]


def taken(runtime: Runtime, asked: Asking, do: Do) -> JSONResponse:
    """Make a change, keep its answer with it, and wake the runner; a known key gets the answer that it got before."""
    try:
        with runtime.store.begin() as session:
            status, body = _made_once(session, asked, do, at=runtime.clock.realtime())
    except StaleDataError as error:  # Another server on the same database was faster.
        raise Outdated("It was changed at the same moment: look at it again, then decide.") from error
    except IntegrityError as error:
        raise NotPossible("The same was asked for at the same moment: ask again with the same key.") from error
    runtime.runner.wake()
    return JSONResponse(body, status, headers=etag(body.get("version")))


def _made_once(session: Session, asked: Asking, do: Do, *, at: float) -> tuple[int, dict[str, Any]]:
    """Return status and body of a change, made now or under the same key before."""
    known = answers.get(session, asked.token_sha256, asked.key) if asked.key else None
    if known is None:
        body = do(session)
        if asked.key:
            answers.keep(session, _answer(asked, 200, body, at=at))
        return 200, body
    if known.request_sha256 != asked.request_sha256:
        raise KeyReused(f"The Idempotency-Key {asked.key} was used for another request: take a new one.")
    return known.status, known.body


def _answer(asked: Asking, status: int, body: dict[str, Any], *, at: float) -> Answer:
    return Answer(
        token_sha256=asked.token_sha256,
        key=asked.key,
        request_sha256=asked.request_sha256,
        status=status,
        body=body,
        at=at,
    )


def plan_change_routes(runtime: Runtime) -> APIRouter:
    """Return what people decide about plans."""
    router = APIRouter(prefix="/api/v1/plans/{id}", tags=["plans"])
    decisions = runtime.decisions

    def decided(verb: Callable[..., PlanRow], id: int, change: contract.Request, asked: Asking) -> JSONResponse:
        def do(session: Session) -> dict[str, Any]:
            return plan_answer(session, verb(session, id, asked.actor, change.reason, version=asked.version))

        return taken(runtime, asked, do)

    @router.post("/approve", response_model=contract.Plan)
    async def approve_plan(id: PlanId, change: contract.Request, asked: Asked) -> JSONResponse:
        """Allow what the plan proposes about nodes; it is carried out as soon as the guards let it."""
        return decided(decisions.approve, id, change, asked)

    @router.post("/reject", response_model=contract.Plan)
    async def reject_plan(id: PlanId, change: contract.Request, asked: Asked) -> JSONResponse:
        """Refuse what the plan proposes: nothing of it is done."""
        return decided(decisions.reject, id, change, asked)

    @router.post("/cancel", response_model=contract.Plan)
    async def cancel_plan(id: PlanId, change: contract.Request, asked: Asked) -> JSONResponse:
        """Begin no further step; what was done stays done."""
        return decided(decisions.cancel, id, change, asked)

    @router.post("/execute", response_model=contract.Plan)
    async def execute_plan(id: PlanId, change: contract.Request, asked: Asked) -> JSONResponse:
        """Carry the plan out now, or say why not; a failed one goes on from the step that failed."""
        return decided(decisions.execute, id, change, asked)

    @router.post("/dry-run", response_model=contract.DryRun)
    async def dry_run_plan(id: PlanId) -> JSONResponse:
        """Return the steps as they would be carried out; nothing is written."""
        with runtime.store.begin() as session:
            found = decisions.dry_run(session, id)
            return JSONResponse(dry_run_view(runtime, [(action.position, step) for action, step in found]))

    return router


def incident_change_routes(runtime: Runtime) -> APIRouter:
    """Return what people decide about incidents and the breaker."""
    router = APIRouter(prefix="/api/v1")

    @router.post("/incidents/{id}/acknowledge", response_model=contract.Incident, tags=["incidents"])
    async def acknowledge_incident(id: IncidentId, change: contract.Request, asked: Asked) -> JSONResponse:
        """Say that somebody looks after it."""

        def do(session: Session) -> dict[str, Any]:
            row: Incident = runtime.decisions.acknowledge(
                session, id, asked.actor, change.reason, version=asked.version
            )
            session.flush()
            return incident_view(row, runbook_base=runtime.config.runbook_url)

        return taken(runtime, asked, do)

    @router.post("/breaker/reset", response_model=contract.BreakerState, tags=["policy"])
    async def reset_breaker(change: contract.Request, asked: Asked) -> JSONResponse:
        """Let automatic plans be carried out again. Needs the scope `admin`."""

        def do(session: Session) -> dict[str, Any]:
            row = runtime.decisions.reset_breaker(session, asked.actor, change.reason)
            return breaker_view(row, runtime.policy.guards.failures_max)

        return taken(runtime, asked, do)

    return router


def node_change_routes(runtime: Runtime) -> APIRouter:
    """Return what people change about nodes by hand."""
    router = APIRouter(prefix="/api/v1/nodes/{node}", tags=["nodes"])
    decisions = runtime.decisions

    def changed(verb: str, node: str, change: contract.NodeRequest, asked: Asking) -> JSONResponse:
        if change.dry_run:
            with runtime.store.begin() as session:
                found = decisions.node_steps(session, node, verb, change.reason)
                return JSONResponse(dry_run_view(runtime, [(0, step) for step in found]))

        def do(session: Session) -> dict[str, Any]:
            return plan_answer(session, decisions.change_node(session, node, verb, asked.actor, change.reason))

        return taken(runtime, asked, do)

    @router.post("/cordon", response_model=contract.Plan | contract.DryRun)
    async def cordon_node(node: NodeId, change: contract.NodeRequest, asked: Asked) -> JSONResponse:
        """Make an approved plan that lets no new work be placed on the node."""
        return changed("cordon", node, change, asked)

    @router.post("/uncordon", response_model=contract.Plan | contract.DryRun)
    async def uncordon_node(node: NodeId, change: contract.NodeRequest, asked: Asked) -> JSONResponse:
        """Make an approved plan that gives the node back to the scheduler."""
        return changed("uncordon", node, change, asked)

    @router.post("/drain", response_model=contract.Plan | contract.DryRun)
    async def drain_node(node: NodeId, change: contract.NodeRequest, asked: Asked) -> JSONResponse:
        """Make an approved plan that cordons the node and evicts what runs there."""
        return changed("drain", node, change, asked)

    @router.post("/repaired", response_model=contract.Repaired | contract.DryRun)
    async def repaired_node(node: NodeId, change: contract.NodeRequest, asked: Asked) -> JSONResponse:
        """Say that the node is mended: its latched faults are over, and it is uncordoned."""
        if change.dry_run:
            return changed("uncordon", node, change, asked)

        said_at: list[float] = []

        def do(session: Session) -> dict[str, Any]:
            made, ended = decisions.repaired(session, node, asked.actor, change.reason)
            said_at.append(runtime.clock.realtime())
            return {
                "plan": plan_answer(session, made) if made is not None else None,
                "resolved": [row.id for row in ended if row.state == "resolved"],
                "remembered": [row.id for row in ended if row.state != "resolved"],
            }

        answer = taken(runtime, asked, do)
        for at in said_at:  # Not when an earlier answer is given again.
            runtime.latches.repaired(node, at=at)
        return answer

    return router


def dry_run_view(runtime: Runtime, found: Sequence[tuple[int, Step]]) -> dict[str, Any]:
    """Return (position, step) as they would be carried out."""
    return {
        "executor": runtime.nodes.name,
        "is_changing": runtime.nodes.is_changing,
        "steps": [planned_step_view(position, step) for position, step in found],
    }


def change_routes(runtime: Runtime) -> APIRouter:
    """Return all of them."""
    router = APIRouter()
    for made in (plan_change_routes(runtime), incident_change_routes(runtime), node_change_routes(runtime)):
        router.include_router(made)
    return router
