"""What carries out changes to nodes: the small seam behind which Kubernetes, and later Slurm or a webhook, stand.

A plan's action becomes steps; each is journalled before and after it is carried out. A server that dies in between
carries the same step out again, so a step must be idempotent: asked twice, it leaves what one asking leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from instep_remediation.actions import Action


@dataclass(frozen=True, slots=True)
class Step:
    """One change to one node, such as `cordon`, `taint`, `condition`, `event`, `evict`, `uncordon`."""

    name: str
    node: str
    mark: str
    """Names this step for ever (`plan-7-0-evict`): what it creates carries the mark, so a second asking finds it."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """JSON values only; kept with the step."""

    def describe(self) -> str:
        """Return one printable line.

        >>> Step("cordon", "node-b", "plan-7-0-cordon").describe()
        'cordon node-b'
        """
        words = ", ".join(f"{key} {value}" for key, value in sorted(self.arguments.items()))
        return f"{self.name} {self.node}" + (f" ({words})" if words else "")


class Outcome(StrEnum):
    """How carrying out a step went."""

    DONE = "done"
    WAITING = "waiting"
    """Not yet: a disruption budget refuses, pods are still ending, the API server asks to come again."""
    FAILED = "failed"
    """It will not go by trying again: somebody has to look."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The answer to one asking."""

    outcome: Outcome
    detail: str = ""
    """One sentence for the plan's page and the audit log."""
    retry_after_seconds: float = 1.0
    """When `WAITING`: not sooner than this."""


class NodeExecutor(Protocol):
    """Changes nodes. Blocking: called from a worker thread, and each call ends within about ten seconds."""

    @property
    def name(self) -> str:
        """Such as `kubernetes`, or `print` for the one that changes nothing."""

    @property
    def is_changing(self) -> bool:
        """Whether it can change anything; with one that cannot, plans stay proposals."""

    def steps(self, action: Action, mark: str) -> Sequence[Step]:
        """Return the steps of a node action, in order. Pure: the plan is printed from them before anything is done."""

    def carry_out(self, step: Step) -> Progress:
        """Carry one step out, or go on with it. Whatever goes wrong outside is in the answer, not raised."""
