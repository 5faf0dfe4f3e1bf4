"""The API's answers about jobs as they stand in its OpenAPI document. `views` makes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from instep_remediation.server.contract import Answer, Moment


class RankNow(Answer):
    """One rank as it is now."""

    rank: int
    node: str
    gpu: str
    step: int
    phase: str
    process_state: str
    report_age_seconds: float
    heartbeat_age_seconds: float


class Job(Answer):
    """One run as it is now."""

    job: str
    run: str
    attempt: int
    state: str = Field(examples=["running"])
    """`running`, `silent`, or how it ended."""
    world_size: int
    max_restarts: int
    restarts_used: int
    standby: list[str]
    step: int
    """That every rank has finished; -1 before the first."""
    is_controlled: bool
    heard_age_seconds: float
    ranks: list[RankNow]


class Jobs(Answer):
    """Runs that are known now."""

    jobs: list[Job]


class Attempt(Answer):
    """One attempt of a run."""

    attempt: int
    members: list[dict[str, Any]]
    resume_step: int | None
    cause_order: int | None
    outcome: str
    opened_at: Moment | None
    ended_at: Moment | None


class JobDetail(Job):
    """One run with its attempts."""

    attempts: list[Attempt]


class PastJob(Answer):
    """A run of which only the store knows."""

    run: str
    state: Literal["over"]
    attempts: list[Attempt]


class RankSteps(Answer):
    """One rank's last steps; null where a step was not reported."""

    rank: int
    node: str
    wall_seconds: list[float | None]
    work_seconds: list[float | None]


class Steps(Answer):
    """The last steps of the running attempt."""

    run: str
    attempt: int
    steps: list[int]
    ranks: list[RankSteps]
