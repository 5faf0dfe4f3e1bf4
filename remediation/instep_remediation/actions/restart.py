"""Restart a job's ranks from the last step that all of them kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from instep_remediation.actions.action import Action


@dataclass(frozen=True, slots=True)
class Restart(Action):
    """An order to the run's coordinator: stop this attempt, open the next one without `exclude`."""

    name: ClassVar[str] = "restart"
    job: str
    run: str
    attempt: int
    exclude: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the line that is printed.

        >>> Restart("gpt", "r1", 2, ("node-b",)).describe()
        'restart job gpt (run r1, attempt 2) from its last kept step, without node-b'
        """
        place = f"without {', '.join(self.exclude)}" if self.exclude else "in place"
        return f"restart job {self.job} (run {self.run}, attempt {self.attempt}) from its last kept step, {place}"

    def arguments(self) -> dict[str, Any]:
        """Return its fields as JSON values."""
        return {"job": self.job, "run": self.run, "attempt": self.attempt, "exclude": list(self.exclude)}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Return the action again."""
        return cls(arguments["job"], arguments["run"], arguments["attempt"], tuple(arguments["exclude"]))
