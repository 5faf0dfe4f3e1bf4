"""Give a node back to the scheduler: undo what a cordon or a drain did to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from instep_remediation.actions.action import Action


@dataclass(frozen=True, slots=True)
class UncordonNode(Action):
    """Take our taint and condition away and mark the node schedulable."""

    name: ClassVar[str] = "uncordon_node"
    is_about_nodes: ClassVar[bool] = True
    node: str
    reason: str

    def describe(self) -> str:
        """Return the line that is printed."""
        return f"uncordon node {self.node}: {self.reason}"

    def arguments(self) -> dict[str, Any]:
        """Return its fields as JSON values."""
        return {"node": self.node, "reason": self.reason}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Return the action again."""
        return cls(arguments["node"], arguments["reason"])
