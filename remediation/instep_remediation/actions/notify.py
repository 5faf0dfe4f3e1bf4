"""Tell people, once for each incident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from instep_remediation.actions.action import Action


@dataclass(frozen=True, slots=True)
class Notify(Action):
    """One message through the outbox to each configured receiver."""

    name: ClassVar[str] = "notify"
    incident: str

    def describe(self) -> str:
        """Return the line that is printed."""
        return f"notify people about incident {self.incident}"

    def arguments(self) -> dict[str, Any]:
        """Return its fields as JSON values."""
        return {"incident": self.incident}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Return the action again."""
        return cls(arguments["incident"])
