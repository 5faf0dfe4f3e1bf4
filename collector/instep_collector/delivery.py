"""At-least-once delivery made exactly-once, and the age of a frame that waited in a spool.

A frame's identity is (node, boot, epoch, sequence). Its delay is measured against the fastest frame of the last
minute from the same boot: both clocks are monotonic, only their distance is unknown, so a wrong wall clock changes
nothing. While a spool is emptied nothing is forgotten, however long that takes; and a server that starts again goes on
with the distance that it kept.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from instep_agent.wire import Frame

SEQUENCES_KEPT = 4096
"""Behind the highest one; older frames count as seen."""
EPOCHS_MAX = 60_000
BUCKET_SECONDS = 30.0
CATCHING_UP_SECONDS = 0.5
"""Frames that come nearer by more than this within a bucket are those of a spool that is emptied; what stays as far
away as it is, such as a machine that was paused, is the new distance."""


@dataclass(slots=True)
class Epoch:
    """Frames of one start of one agent."""

    highest: int = -1
    seen: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Offset:
    """The smallest distance (receipt − sender's clock) of this half minute and of the one before."""

    started_at: float
    current: float
    previous: float
    first: float
    """Of this half minute."""
    newest: float

    def delay(self, distance: float, now: float) -> float:
        """Return by how much a frame is later than the fastest one, and learn from it."""
        if now - self.started_at > BUCKET_SECONDS:
            is_catching_up = self.newest < self.first - CATCHING_UP_SECONDS
            self.previous = min(self.previous, self.current) if is_catching_up else self.current
            self.current, self.first, self.started_at = distance, distance, now
        self.current, self.newest = min(self.current, distance), distance
        return max(0.0, distance - min(self.current, self.previous))


class Deliveries:
    """Which frames were taken already, and how late each one is."""

    def __init__(self) -> None:
        self._epochs: OrderedDict[tuple[str, str, str], Epoch] = OrderedDict()
        self._offsets: OrderedDict[tuple[str, str], Offset] = OrderedDict()

    def is_seen(self, frame: Frame) -> bool:
        """Whether this frame was taken before."""
        epoch = self._epochs.get((frame.node, frame.boot_id, frame.agent_epoch))
        return epoch is not None and (frame.sequence in epoch.seen or frame.sequence <= epoch.highest - SEQUENCES_KEPT)

    def mark(self, frame: Frame) -> None:
        """Remember that it was taken."""
        key = (frame.node, frame.boot_id, frame.agent_epoch)
        epoch = self._epochs.setdefault(key, Epoch())
        self._epochs.move_to_end(key)
        while len(self._epochs) > EPOCHS_MAX:
            self._epochs.popitem(last=False)
        epoch.seen.add(frame.sequence)
        epoch.highest = max(epoch.highest, frame.sequence)
        if len(epoch.seen) > 2 * SEQUENCES_KEPT:
            epoch.seen = {sequence for sequence in epoch.seen if sequence > epoch.highest - SEQUENCES_KEPT}

    def expect(self, node: str, boot_id: str, distance: float, *, now: float) -> None:
        """Go on with the distance that a node's frames of a boot had before this server was started."""
        self._offsets[node, boot_id] = Offset(now, distance, distance, distance, distance)

    def delay_seconds(self, frame: Frame, at: float) -> float:
        """Return how much longer than the fastest recent frame this one took to arrive at `at` (monotonic)."""
        key, distance = (frame.node, frame.boot_id), at - frame.anchor.monotonic_ns / 1e9
        offset = self._offsets.get(key)
        if offset is None:
            while len(self._offsets) >= EPOCHS_MAX:
                self._offsets.popitem(last=False)
            offset = self._offsets[key] = Offset(at, distance, distance, distance, distance)
        return offset.delay(distance, at)
