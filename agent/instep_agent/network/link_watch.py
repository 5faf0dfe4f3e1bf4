"""What happened to one link between two looks: lost, back after so long, or lost and back unseen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LinkEvent(StrEnum):
    """What happened, named as the fact that says it."""

    down = "link_down"
    up = "link_up"
    flap = "link_flap"
    """The port's own counter of losses rose, and no look saw the link down: every outage was shorter than a look."""


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of a link."""

    event: LinkEvent
    count: int = 1
    seconds: float | None = None
    """Of an outage that is over: from the first look that saw it to the one that saw its end."""
    seconds_min: float | None = None
    seconds_max: float | None = None
    """None where it had begun before the first look; for flaps, what each is shorter than."""


@dataclass(slots=True)
class LinkWatch:
    """Looks at one link. Times are the node's monotonic clock, in nanoseconds."""

    downs_total: int = 0
    """Losses noticed, seen and unseen."""
    was_up: bool = False
    """At any look."""
    _is_up: bool | None = None
    _looked_ns: int = 0
    _down_ns: int = 0
    """The first look that saw it down."""
    _up_ns: int | None = None
    """The last look that saw it up."""
    _uncounted: int = 0
    """Losses that the counter has and no look saw, less those seen that it does not have yet."""
    _waits: bool = False

    def look(self, is_up: bool | None, now_ns: int) -> list[Happened]:
        """Give what happened since the last look; `is_up` is None where the state tells neither."""
        if is_up is None:
            return []
        before, looked_ns = self._is_up, self._looked_ns
        self._is_up, self._looked_ns = is_up, now_ns
        if is_up:
            happened = [self._ended(now_ns, looked_ns)] if before is False else []
            self.was_up, self._up_ns = True, now_ns
            return happened
        if before is False:
            return []
        self._down_ns = now_ns
        if before is None:
            return []
        self.downs_total += 1
        self._uncounted -= 1
        return [Happened(LinkEvent.down)]

    def count(self, rise: int, looked_seconds: float) -> list[Happened]:
        """Take what the port's counter of losses rose by since it was read last; `looked_seconds` between two looks.

        The counter is read after the state: what it has more than the looks saw may yet be seen by the next look, so
        that a flap is told only at the reading after that. So late is forgotten what the counter never gets, such as
        the loss of a port that was switched off.
        """
        before = self._uncounted
        if self._waits:
            unseen = max(0, before)
            self._uncounted = rise if before > 0 else max(0, before + rise)
        else:
            unseen = 0
            self._uncounted = before + rise
        self._waits = self._uncounted != 0
        if not unseen:
            return []
        self.downs_total += unseen
        return [Happened(LinkEvent.flap, unseen, seconds_max=looked_seconds)]

    @property
    def is_up(self) -> bool:
        """Whether the last look saw it up."""
        return self._is_up is True

    @property
    def was_seen(self) -> bool:
        """Whether any look could tell its state."""
        return self._is_up is not None

    @property
    def waits(self) -> bool:
        """Whether the counter should be read again after the next look."""
        return self._waits

    def rebase(self) -> None:
        """Begin to count anew: the port's driver did."""
        self._uncounted, self._waits = 0, False

    def _ended(self, now_ns: int, looked_ns: int) -> Happened:
        longest = None if self._up_ns is None else _seconds(self._up_ns, now_ns)
        shortest = _seconds(self._down_ns, looked_ns)
        return Happened(LinkEvent.up, 1, _seconds(self._down_ns, now_ns), shortest, longest)


def _seconds(begin_ns: int, end_ns: int) -> float:
    return (end_ns - begin_ns) / 1e9
