"""The API's requests and answers as they stand in its OpenAPI document. `views` makes the answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from instep_remediation.decisions import REASON_LENGTH_MAX

Moment = str
"""ISO 8601 in UTC, or null while it has not come."""
IncidentState = Literal["suspect", "open", "resolved", "withdrawn", "merged"]
PlanState = Literal["waiting", "approved", "executing", "done", "failed", "rejected", "cancelled", "closed"]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL is not allowed in text")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]


class Request(BaseModel):
    """What a change needs."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"reason": "The GPU is to be replaced today."}]},
    )
    reason: Annotated[Text, Field(min_length=1, max_length=REASON_LENGTH_MAX)]
    """Why; it stands in the audit log."""


class NodeRequest(Request):
    """What a change of a node needs."""

    dry_run: bool = False
    """Return the steps as they would be carried out, and write nothing."""


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class FieldError(Answer):
    """One value that is not allowed."""

    pointer: str | None = None
    """Where in the body, as a JSON pointer."""
    parameter: str | None = None
    """Or which parameter or header."""
    detail: str


class Problem(Answer):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["urn:instep:problem:not-possible"])
    title: str = Field(examples=["It cannot be done now"])
    status: int = Field(examples=[409])
    detail: str = Field(examples=["Plan 7 is done: there is nothing in it to be decided on about nodes."])
    instance: str = Field(examples=["/api/v1/plans/7/approve"])
    errors: list[FieldError] | None = None


class Step(Answer):
    """One step of a node action, from the journal."""

    step: int
    name: str = Field(examples=["evict"])
    node: str
    state: Literal["pending", "executing", "done", "failed", "cancelled"]
    detail: str
    tries: int
    """How often it was asked for."""
    started_at: Moment | None
    ended_at: Moment | None


class Action(Answer):
    """One action of a plan."""

    position: int
    name: str = Field(examples=["drain_node"])
    arguments: dict[str, Any]
    state: Literal["ordered", "proposed", "approved", "executing", "done", "failed", "rejected", "cancelled"]
    detail: str
    """How it ended, or what it waits for."""
    started_at: Moment | None
    ended_at: Moment | None
    steps: list[Step]


class Plan(Answer):
    """One plan."""

    id: int = Field(examples=[7])
    incident: str | None
    """Null when a person made it by hand."""
    job: str
    run: str
    attempt: int
    state: PlanState
    reason: str
    text: str
    """As it is printed."""
    created_at: Moment | None
    ended_at: Moment | None
    decided_at: Moment | None
    decided_by: str
    decision: str
    is_automatic: bool
    """Approved by the policy alone."""
    is_drill: bool
    """Its cause was made on purpose."""
    version: int
    """For If-Match; also in the ETag header."""
    actions: list[Action]


class Plans(Answer):
    """Plans, newest first."""

    plans: list[Plan]


class PlannedStep(Answer):
    """A step as it would be carried out."""

    position: int
    name: str
    node: str
    mark: str
    """Names the step for ever; the same at every asking."""
    arguments: dict[str, Any]
    text: str = Field(examples=["cordon node-b"])


class DryRun(Answer):
    """What would be done; nothing was written."""

    executor: str = Field(examples=["kubernetes"])
    is_changing: bool
    """False with an executor that changes nothing, whatever is approved."""
    steps: list[PlannedStep]


class Latched(Answer):
    """Since when an incident's fault stands, and what ends it."""

    since: Moment | None
    clears: list[str] = Field(examples=[["reboot", "person"]])
    """`reset`, `reboot`, `person`, `recovery-none` or a code; time never ends it."""
    mended: str
    """What mended it already: the incident ends as soon as the job is over its stop. Empty: nothing has."""


class Latch(Answer):
    """One fault that stands on a node."""

    gpu: str
    fault_class: str = Field(examples=["xid-79"])
    severity: Literal["fatal", "warning"] | None
    action: str
    text: str
    is_drill: bool
    since: Moment | None
    last: Moment | None
    count: int
    """Lines."""
    clears: list[str]


class Incident(Answer):
    """One incident."""

    id: str = Field(examples=["inc-1f2e3d4c5b6a"])
    kind: str = Field(examples=["hang"])
    state: IncidentState
    job: str
    run: str
    attempt: int
    summary: str
    is_drill: bool
    labels: dict[str, str]
    """Of its alert; they never change."""
    onset_step: int | None
    certainty: str
    confidence: float | None
    owner: str
    suspects: list[dict[str, Any]]
    verdict: dict[str, Any] | None
    done: list[str]
    next: str
    runbook: str
    latched: Latched | None
    """Of an open incident about a fault of a device; null for any other."""
    resolution: str
    step_kept: int | None
    opened_at: Moment | None
    merged_into: str | None
    acknowledged_at: Moment | None
    acknowledged_by: str
    acknowledgement: str
    version: int
    """For If-Match; also in the ETag header."""
    timeline: dict[str, Any]
    """`*_at` in ISO 8601, `*_realtime` in seconds since 1970."""
    latencies: dict[str, float | None]


class IncidentDetail(Incident):
    """One incident with its plans."""

    plans: list[Plan]


class Incidents(Answer):
    """Incidents, newest first."""

    incidents: list[Incident]


class Cordoned(Answer):
    """That a node is out of service by us."""

    plan: int
    actor: str
    reason: str
    since: Moment | None


class Node(Answer):
    """One node, as its agent described it last."""

    node: str
    cluster: str
    boot_id: str
    gpus: list[dict[str, Any]]
    first_seen_at: Moment | None
    last_seen_at: Moment | None
    heard_age_seconds: float | None
    """Null when its agent was not heard of since the server started."""
    cordoned: Cordoned | None
    """Null when we did not take it out of service."""


class Fact(Answer):
    """One raw fact, as a node's agent told it."""

    id: str
    kind: str = Field(examples=["kernel_line"])
    text: str
    fields: dict[str, str]
    is_drill: bool
    """It was made on purpose."""
    at: Moment | None
    """By the node's own clock."""
    received_at: Moment | None


class Drill(Answer):
    """A drill that lasts."""

    node: str
    drill: str
    fault: str = Field(examples=["thermal"])
    since: Moment | None


class NodeDetail(Node):
    """One node with what it said and what is planned about it."""

    latched: list[Latch]
    """Faults that stand, worst first."""
    drills: list[Drill]
    """Those that last now."""
    facts: list[Fact]
    """The last ones, newest first."""

    plans: list[Plan]
    """Those that are not over."""


class Nodes(Answer):
    """Nodes by name."""

    nodes: list[Node]


class Repaired(Answer):
    """What ended because a person says that a node is mended."""

    plan: Plan | None
    """Which uncordons it; null with an executor that changes nothing."""
    resolved: list[str]
    """Incidents that are over."""
    remembered: list[str]
    """Incidents that end as soon as their job is over its stop; it need not be said again."""


class Order(Answer):
    """One order to a run's coordinator."""

    id: int
    run: str
    attempt: int
    action: str
    exclude: list[str]
    reason: str
    incident: str
    deadline_seconds: float
    outcome: str
    detail: str
    created_at: Moment | None
    ended_at: Moment | None


class Orders(Answer):
    """Orders, newest first."""

    orders: list[Order]


class AuditLine(Answer):
    """Who changed what, and why."""

    id: int
    at: Moment | None
    actor: str
    action: str = Field(examples=["approve"])
    subject: str = Field(examples=["plan 7"])
    reason: str


class AuditLines(Answer):
    """Audit lines, newest first."""

    audit: list[AuditLine]


class Executor(Answer):
    """What carries changes to nodes out."""

    name: str
    is_changing: bool


class EffectivePolicy(Answer):
    """The policy in effect."""

    source: str
    """The file, or `default`."""
    executor: Executor
    policy: dict[str, dict[str, Any]]


class BreakerState(Answer):
    """The breaker before node actions that nobody approved."""

    is_open: bool
    failures: int
    failures_max: int
    opened_at: Moment | None
    reason: str
    reset_at: Moment | None
    reset_by: str


class PageLink(Answer):
    """A link to the page that works once."""

    page_link: str
