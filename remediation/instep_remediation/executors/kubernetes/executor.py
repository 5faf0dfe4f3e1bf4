"""Carries node actions out in a Kubernetes cluster, through the official client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kubernetes import client

from instep_remediation.actions import Action, CordonNode, DrainNode, UncordonNode
from instep_remediation.executors.kubernetes.connection import NodeGone, StepEnds
from instep_remediation.executors.kubernetes.eviction import Evictions
from instep_remediation.executors.kubernetes.marks import NodeMarks
from instep_remediation.executors.kubernetes.settings import KubernetesConfig
from instep_remediation.node_executor import Outcome, Progress, Step

STEPS: dict[type[Action], tuple[str, ...]] = {
    CordonNode: ("cordon", "event"),
    DrainNode: ("taint", "cordon", "condition", "event", "evict"),
    UncordonNode: ("condition", "untaint", "uncordon", "event"),
}
REASONS: dict[type[Action], str] = {
    CordonNode: "InstepCordon",
    DrainNode: "InstepDrain",
    UncordonNode: "InstepReturn",
}
MESSAGE_LETTERS_MAX = 1000
"""Events take no more than 1,024 letters."""


class KubernetesExecutor:
    """Taints, cordons, tells of it on the node, evicts within budgets; and takes back only what it did."""

    name = "kubernetes"
    is_changing = True

    def __init__(self, api: client.ApiClient, settings: KubernetesConfig) -> None:
        marks = NodeMarks(api, settings)
        self._carry_out: dict[str, Callable[[Step], Progress]] = {
            "taint": marks.taint,
            "untaint": marks.untaint,
            "cordon": marks.cordon,
            "uncordon": marks.uncordon,
            "condition": marks.condition,
            "event": marks.event,
            "evict": Evictions(api, settings).evict,
        }

    def steps(self, action: Action, mark: str) -> Sequence[Step]:
        """Return the steps of a node action, in order."""
        arguments = action.arguments()
        return [
            Step(name, str(arguments["node"]), f"{mark}-{name}", _arguments(name, action, mark))
            for name in STEPS[type(action)]
        ]

    def carry_out(self, step: Step) -> Progress:
        """Carry one step out; whatever the API server says is in the answer."""
        try:
            return self._carry_out[step.name](step)
        except NodeGone as gone:
            return replace(gone.progress, outcome=Outcome.DONE) if _takes_back(step) else gone.progress
        except StepEnds as end:
            return end.progress


def _takes_back(step: Step) -> bool:
    """Whether a step undoes what we did. On a node that was removed all of it is undone, and its place is free."""
    is_of_return = step.arguments.get("reason") == REASONS[UncordonNode]
    return step.name in ("untaint", "uncordon") or is_of_return


def _arguments(name: str, action: Action, mark: str) -> dict[str, Any]:
    message = str(action.arguments()["reason"])[:MESSAGE_LETTERS_MAX]
    is_return = isinstance(action, UncordonNode)
    match name:
        case "taint":
            return {"plan": mark}
        case "condition":
            return {"status": "True" if is_return else "False", "reason": REASONS[type(action)], "message": message}
        case "event":
            kind = "Normal" if is_return else "Warning"
            return {"reason": REASONS[type(action)], "message": message, "type": kind}
        case _:
            return {}
