"""Let no new work be placed on a node; what runs there goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from instep_remediation.actions.action import Action


@dataclass(frozen=True, slots=True)
class CordonNode(Action):
    """Mark the node unschedulable and repel new pods from it."""

    name: ClassVar[str] = "cordon_node"
    is_about_nodes: ClassVar[bool] = True
    node: str
    reason: str

    def describe(self) -> str:
        """Return the line that is printed."""
        return f"cordon node {self.node}: {self.reason}"

    def arguments(self) -> dict[str, Any]:
        """Return its fields as JSON values."""
        return {"node": self.node, "reason": self.reason}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Return the action again."""
        return cls(arguments["node"], arguments["reason"])
