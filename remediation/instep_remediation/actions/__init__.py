"""Every action there is: one module each, and one line in the list below."""

from __future__ import annotations

from typing import Any

from instep_remediation.actions.action import Action
from instep_remediation.actions.cordon_node import CordonNode
from instep_remediation.actions.drain_node import DrainNode
from instep_remediation.actions.notify import Notify
from instep_remediation.actions.restart import Restart
from instep_remediation.actions.uncordon_node import UncordonNode

ACTIONS: tuple[type[Action], ...] = (Restart, DrainNode, CordonNode, UncordonNode, Notify)


def read_action(name: str, arguments: dict[str, Any]) -> Action:
    """Return an action from what the store kept of it; raises KeyError for a name that is not in the list."""
    return {action.name: action for action in ACTIONS}[name].from_arguments(arguments)


__all__ = [
    "ACTIONS",
    "Action",
    "CordonNode",
    "DrainNode",
    "Notify",
    "Restart",
    "UncordonNode",
    "read_action",
]
