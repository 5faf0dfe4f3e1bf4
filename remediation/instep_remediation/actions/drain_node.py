"""Take a node out of service until it is mended: cordon, then evict within disruption budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from instep_remediation.actions.action import Action


@dataclass(frozen=True, slots=True)
class DrainNode(Action):
    """Proposed to people; done by itself only where the policy says `nodes.drain = "auto"`."""

    name: ClassVar[str] = "drain_node"
    is_about_nodes: ClassVar[bool] = True
    node: str
    reason: str

    def describe(self) -> str:
        """Return the line that is printed."""
        return f"drain node {self.node}: {self.reason}"

    def arguments(self) -> dict[str, Any]:
        """Return its fields as JSON values."""
        return {"node": self.node, "reason": self.reason}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Return the action again."""
        return cls(arguments["node"], arguments["reason"])
