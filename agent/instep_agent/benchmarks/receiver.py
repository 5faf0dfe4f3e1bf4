"""What a benchmark asks of whoever takes the agent's frames: the real server, or the plain receiver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Stored:
    """One event, as it is kept."""

    id: str
    kind: str
    text: str
    fields: dict[str, str]
    node: str
    at_seconds: float = 0.0
    """When it happened, by the wall clock of its node."""
    kept_at_seconds: float = 0.0
    """When it was kept, by the receiver's."""

    @property
    def lines(self) -> int:
        """How many lines of the kernel log it stands for."""
        return int(self.fields.get("count", 1)) if self.kind.startswith("kernel_line") else 0


class Receiver(Protocol):
    """Takes frames from the moment that it has started."""

    @property
    def url(self) -> str:
        """Where the agent sends to."""

    @property
    def token(self) -> str:
        """What the agent shows; known once it has started."""

    def start(self) -> None:
        """Begin to take frames."""

    def close(self) -> None:
        """Stop."""

    def wait_for_event(self, text: str, timeout_seconds: float, *, kind: str = "") -> int | None:
        """Give when an event with this text was kept, in nanoseconds of the monotonic clock; None when none was."""

    def stored(self) -> list[Stored]:
        """Give every event that is kept, in the order in which they came."""
