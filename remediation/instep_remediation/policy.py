"""The policy: which verdict leads to which actions. One TOML file; without one the defaults below hold.

Nodes are watch-only: draining is proposed and printed; what may become of a proposal is `nodes.drain`. Jobs are
restarted within the budget that `instep run --max-restarts` gave them (0 unless said otherwise).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_strict = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class JobPolicy(BaseModel):
    """What may be done to jobs."""

    model_config = _strict
    restart: bool = True
    """Order restarts after a crash or a confirmed hang, within the job's own budget."""
    restart_interval_seconds_min: float = Field(default=0.0, ge=0.0)
    """Not sooner than this after the last restart order of the same run: a storm of restarts mends nothing."""


class NodePolicy(BaseModel):
    """What may be done to nodes."""

    model_config = _strict
    drain: Literal["propose", "approve", "auto", "off"] = "propose"
    """`propose` shows a drain: nothing happens unless somebody with `operate` approves it, and the executor can change
    nodes. `approve` is the same, and the server does not start with an executor that changes nothing. `auto` drains
    without asking, within the guards; in a drill it asks all the same. `off` does not even propose."""
    drain_timeout_seconds: float = Field(default=1800.0, gt=0.0, le=604_800.0)
    """A step that has not ended after this long fails its plan."""
    unavailable_max: int = Field(default=1, ge=0, le=10_000)
    """So many nodes may be cordoned or drained by us at once; further ones wait."""
    exclude: bool = True
    """Leave a node out of a restart when there is evidence against the node itself."""
    confidence_min: float = Field(default=0.8, ge=0.0, le=1.0)
    """Less sure than this, a node is neither left out nor proposed for draining."""


class GuardPolicy(BaseModel):
    """Limits that no verdict overrides."""

    model_config = _strict
    evidence_age_seconds_max: float = Field(default=30.0, gt=0.0)
    """A verdict drawn from older evidence plans nothing."""
    failures_max: int = Field(default=3, ge=1, le=1000)
    """After so many failed node plans in a row nothing is carried out without approval until a person resets the
    breaker."""
    hold_seconds_max: float = Field(default=600.0, gt=0.0, le=604_800.0)
    """An automatic drain that the guards held back for longer waits for a person's approval."""


class Policy(BaseModel):
    """The whole policy."""

    model_config = _strict
    jobs: JobPolicy = JobPolicy()
    nodes: NodePolicy = NodePolicy()
    guards: GuardPolicy = GuardPolicy()
