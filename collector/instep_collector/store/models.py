"""Tables. Moments (`*_at`) are seconds since 1970 UTC of the server's clock as doubles: one type on every database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Identity = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself in INTEGER columns only."""

NAME = String(200)


class Base(DeclarativeBase):
    """All tables of the store."""

    type_annotation_map = {float: Double, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 (SQLAlchemy's form)


class Job(Base):
    """One run of a job."""

    __tablename__ = "jobs"
    run: Mapped[str] = mapped_column(NAME, primary_key=True)
    job: Mapped[str] = mapped_column(NAME, index=True)
    state: Mapped[str] = mapped_column(String(20))
    """`running`, `finished`, `failed`."""
    attempt: Mapped[int]
    world_size: Mapped[int]
    max_restarts: Mapped[int]
    restarts_used: Mapped[int]
    standby: Mapped[list[Any]]
    started_at: Mapped[float]
    ended_at: Mapped[float | None]


class Attempt(Base):
    """One attempt of a run."""

    __tablename__ = "attempts"
    run: Mapped[str] = mapped_column(ForeignKey("jobs.run", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    members: Mapped[list[Any]]
    resume_step: Mapped[int | None]
    cause_order: Mapped[int | None] = mapped_column(BigInteger)
    opened_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str] = mapped_column(String(40))


class Rank(Base):
    """One rank of an attempt."""

    __tablename__ = "ranks"
    run: Mapped[str] = mapped_column(ForeignKey("jobs.run", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(NAME)
    exit_code: Mapped[int | None]
    exited_at: Mapped[float | None]


class Node(Base):
    """One node, as its agent described it last."""

    __tablename__ = "nodes"
    node: Mapped[str] = mapped_column(NAME, primary_key=True)
    cluster: Mapped[str] = mapped_column(String(200))
    boot_id: Mapped[str] = mapped_column(String(200))
    gpus: Mapped[list[Any]]
    first_seen_at: Mapped[float]
    last_seen_at: Mapped[float]
    booted_at: Mapped[float | None]
    """When this boot began by its frames, on the server's clock."""


class EventRow(Base):
    """One raw fact of a node."""

    __tablename__ = "events"
    id: Mapped[str] = mapped_column(String(300), primary_key=True)
    node: Mapped[str] = mapped_column(NAME, index=True)
    kind: Mapped[str] = mapped_column(String(100))
    text: Mapped[str] = mapped_column(Text)
    fields: Mapped[dict[str, Any]]
    is_drill: Mapped[bool]
    realtime: Mapped[float]
    """When it happened, by the node's clock."""
    received_at: Mapped[float] = mapped_column(index=True)


class Incident(Base):
    """One cause: what is wrong, where, since when, how sure, on what evidence, and what was done."""

    __tablename__ = "incidents"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    identity: Mapped[str] = mapped_column(String(700), unique=True)
    """(run, attempt, kind, onset step) or (node, device, fault class, boot id): opening twice opens once."""
    kind: Mapped[str] = mapped_column(String(40))
    """Of its first verdict; the alert's label."""
    family: Mapped[str] = mapped_column(String(20))
    """`stop`, `straggler` or `gpu-fault`: a fault that proves to have stopped a job becomes a stop."""
    state: Mapped[str] = mapped_column(String(20), index=True)
    """`suspect`, `open`, `resolved`, `withdrawn` (a suspect that was nothing) or `merged`."""
    merged_into: Mapped[str | None] = mapped_column(String(40))
    job: Mapped[str] = mapped_column(NAME)
    run: Mapped[str] = mapped_column(NAME, index=True)
    attempt: Mapped[int]
    labels: Mapped[dict[str, Any]]
    """Of its alert; fixed when it is opened."""
    is_drill: Mapped[bool]
    summary: Mapped[str] = mapped_column(Text)
    onset_step: Mapped[int | None]
    verdict: Mapped[dict[str, Any] | None]
    """As `instep_diagnosis.codec` writes it; None while it is being localised."""
    evidence: Mapped[dict[str, Any] | None]
    """The bundle from which the verdict was drawn, so that it can be drawn again."""
    done: Mapped[list[Any]]
    """What was done, one sentence each."""
    resolution: Mapped[str] = mapped_column(Text)
    onset_at: Mapped[float]
    alarm_at: Mapped[float | None]
    verdict_at: Mapped[float | None]
    ordered_at: Mapped[float | None]
    restarted_at: Mapped[float | None]
    step_kept_at: Mapped[float | None]
    step_kept: Mapped[int | None]
    resolved_at: Mapped[float | None]
    opened_at: Mapped[float] = mapped_column(index=True)
    acknowledged_at: Mapped[float | None]
    acknowledged_by: Mapped[str] = mapped_column(NAME, default="")
    acknowledgement: Mapped[str] = mapped_column(Text, default="")
    """What whoever looks after it said."""
    mended: Mapped[dict[str, Any] | None]
    """Its device was mended (`at`, `sentence`) while the job's own stop was not over: it ends with that."""
    version: Mapped[int] = mapped_column()
    """Grows with every change: who decides on an older one is told so."""
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's form)


class PlanRow(Base):
    """One plan: made for an incident, or by hand for a node."""

    __tablename__ = "plans"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    incident: Mapped[str | None] = mapped_column(ForeignKey("incidents.id", ondelete="CASCADE"), index=True)
    """None when a person made it by hand."""
    job: Mapped[str] = mapped_column(NAME)
    run: Mapped[str] = mapped_column(NAME)
    attempt: Mapped[int]
    state: Mapped[str] = mapped_column(String(20), index=True)
    """`waiting` (a proposal nobody has decided on), `approved` (to be carried out as soon as the guards allow),
    `executing`, `done`, `failed`, `rejected`, `cancelled` or `closed` (overtaken: there is nothing left to do)."""
    reason: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    """As it is printed."""
    created_at: Mapped[float]
    ended_at: Mapped[float | None]
    decided_at: Mapped[float | None]
    decided_by: Mapped[str] = mapped_column(NAME, default="")
    """Who approved, rejected or cancelled it last; the server itself where the policy says `auto`."""
    decision: Mapped[str] = mapped_column(Text, default="")
    """Why."""
    is_automatic: Mapped[bool] = mapped_column(default=False)
    """Approved by the policy, by nobody else."""
    is_drill: Mapped[bool] = mapped_column(default=False)
    """Its cause was made on purpose."""
    version: Mapped[int] = mapped_column()
    """Grows with every change of state or decision; the steps' progress does not count."""
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 (SQLAlchemy's form)
    __table_args__ = ({"sqlite_autoincrement": True},)


class ActionRow(Base):
    """One action of a plan, written before and after it is carried out."""

    __tablename__ = "actions"
    plan: Mapped[int] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    arguments: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(20))
    """`ordered` (a coordinator has the order), `proposed`, `approved`, `executing`, `done`, `failed`, `rejected` or
    `cancelled`."""
    detail: Mapped[str] = mapped_column(Text)
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]


class StepRow(Base):
    """One step of a node action: the journal from which a server that died goes on."""

    __tablename__ = "steps"
    plan: Mapped[int] = mapped_column(Identity, primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    """Of its action in the plan."""
    step: Mapped[int] = mapped_column(primary_key=True)
    """Its own index in the action."""
    name: Mapped[str] = mapped_column(String(40))
    node: Mapped[str] = mapped_column(NAME)
    mark: Mapped[str] = mapped_column(String(300))
    """Names it for ever; the same at every asking."""
    arguments: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(20))
    """`pending`, `executing` (written before it is carried out), `done`, `failed` or `cancelled`."""
    detail: Mapped[str] = mapped_column(Text)
    tries: Mapped[int]
    """How often it was asked for."""
    next_at: Mapped[float]
    """Not asked again sooner."""
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    __table_args__ = (
        ForeignKeyConstraint(["plan", "position"], ["actions.plan", "actions.position"], ondelete="CASCADE"),
    )


class Cordon(Base):
    """One node that we took out of service, from the first step of a cordon or drain to the end of the uncordon."""

    __tablename__ = "cordons"
    node: Mapped[str] = mapped_column(NAME, primary_key=True)
    plan: Mapped[int] = mapped_column(BigInteger)
    """Which began it."""
    actor: Mapped[str] = mapped_column(NAME)
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[float]


class Breaker(Base):
    """Counts node plans that failed in a row; once open, nothing is carried out by itself until a person resets it."""

    __tablename__ = "breakers"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    failures: Mapped[int]
    opened_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(Text)
    """Of the last failure."""
    reset_at: Mapped[float | None]
    reset_by: Mapped[str] = mapped_column(NAME)


class Answer(Base):
    """The answer to one change that carried an `Idempotency-Key`: the same asking gets it again."""

    __tablename__ = "answers"
    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(NAME, primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    """Of method, path and body."""
    status: Mapped[int]
    body: Mapped[dict[str, Any]]
    at: Mapped[float] = mapped_column(index=True)


class OrderRow(Base):
    """One order to a run's coordinator; ids grow and are never used again."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    run: Mapped[str] = mapped_column(NAME, index=True)
    attempt: Mapped[int]
    action: Mapped[str] = mapped_column(String(20))
    exclude: Mapped[list[Any]]
    reason: Mapped[str] = mapped_column(Text)
    incident: Mapped[str] = mapped_column(ForeignKey("incidents.id", ondelete="CASCADE"))
    deadline_seconds: Mapped[float]
    created_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str] = mapped_column(String(20))
    """Empty while it is listed; then `done`, `refused`, `expired` or `obsolete`."""
    detail: Mapped[str] = mapped_column(Text)
    __table_args__ = (UniqueConstraint("incident", "attempt", "action"), {"sqlite_autoincrement": True})


class Audit(Base):
    """Who changed what, and why."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(Identity, primary_key=True)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(NAME)
    action: Mapped[str] = mapped_column(String(60))
    subject: Mapped[str] = mapped_column(String(300))
    reason: Mapped[str] = mapped_column(Text)
    __table_args__ = ({"sqlite_autoincrement": True},)


class Webhook(Base):
    """One message to people, kept until it is delivered."""

    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    """`<incident>:<occasion>`: queueing twice sends once, and the receiver may use it likewise."""
    incident: Mapped[str] = mapped_column(ForeignKey("incidents.id", ondelete="CASCADE"))
    body: Mapped[dict[str, Any]]
    tries: Mapped[int]
    created_at: Mapped[float]
    next_at: Mapped[float]
    delivered_at: Mapped[float | None] = mapped_column(Double, index=True)
    error: Mapped[str] = mapped_column(Text)
