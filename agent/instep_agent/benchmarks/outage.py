"""The server is away: what of the agent's frames and faults is in the real store afterwards, how often, in which order.

Faults go on meanwhile; the agent is killed in the middle, and once more while it catches up.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instep_agent.benchmarks.faults import PAUSE_SECONDS, inject, times_kept
from instep_agent.benchmarks.ports import value_of
from instep_agent.benchmarks.relay import Acknowledged, Relay
from instep_agent.benchmarks.simulated_node import SimulatedNode
from instep_agent.errors import ConfigurationInvalid
from instep_agent.uplink.spool import BYTES_MAX

FAULTS_AROUND = 3
"""Before the server goes, and after it has come back."""
LOOK_SECONDS = 0.5
CATCH_UP_SECONDS_MAX = 120.0
CAUGHT_UP_FRAMES = 3
UNTOLD_FRAMES_MAX = 3
"""Frames that an agent made, or gave up, between the last look at its page and the moment that it was killed."""
ON_DISK_RATIO_MAX = 1.05
"""The file system's own view of the spool: each frame has a head, and one that loses its samples is there twice
for a moment."""


@dataclass(slots=True)
class Outage:
    """What was seen."""

    seconds: float
    spool_bytes_max: int
    spool_bytes: int = 0
    """The most, as the agent tells."""
    disk_bytes: int = 0
    """The most, as the folder holds."""
    kills: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    is_in_order: bool = False
    frames: int = 0
    again: int = 0
    """Deliveries beyond the first."""
    refused_again: int = 0
    """What the server itself counts as delivered again."""
    missing: int = 0
    """Frames between others that never came."""
    told: int = 0
    """Frames that the agent says it gave up."""
    torn: int = 0
    is_oldest_first: bool = False
    unsaved: int = 0
    """Frames that were in the spool when an agent was killed, never came, and were not told either."""
    catch_up_seconds: float = 0.0

    @property
    def is_within(self) -> bool:
        """Whether the promise was kept."""
        is_whole = not (self.lost or self.doubled or self.torn or self.unsaved) and self.is_in_order
        is_told = abs(self.told - self.missing) <= UNTOLD_FRAMES_MAX * self.kills and self.is_oldest_first
        is_bounded = self.spool_bytes <= self.spool_bytes_max and self.disk_bytes <= self._disk_bytes_max
        return is_whole and is_told and is_bounded and self.again == self.refused_again

    @property
    def _disk_bytes_max(self) -> float:
        return ON_DISK_RATIO_MAX * self.spool_bytes_max

    def text(self) -> str:
        """Give the table for people."""
        rows = [
            ("server away, agent killed", f"{self.seconds:g} s, {self.kills} times", ""),
            ("faults injected", len(self.faults), ""),
            ("lost", self.lost, "bar 0"),
            ("stored more than once", self.doubled, "bar 0"),
            ("stored in their order, as the frames were", "yes" if self.is_in_order else "no", "bar yes"),
            ("frames acknowledged", self.frames, ""),
            ("delivered again, and passed over by the server", f"{self.again}, {self.refused_again}", "bar equal"),
            ("in a killed agent's spool and never delivered", self.unsaved, "bar 0"),
            ("torn in the spool", self.torn, "bar 0"),
            ("given up, as the agent tells", self.told, ""),
            ("missing between those that came", self.missing, f"bar {self.told}, ±{UNTOLD_FRAMES_MAX} each kill"),
            ("given up were the oldest", "yes" if self.is_oldest_first else "no", "bar yes"),
            ("spool at its fullest", f"{self.spool_bytes:,} bytes", f"bar {self.spool_bytes_max:,}"),
            ("its files", f"{self.disk_bytes:,} bytes", f"bar {self._disk_bytes_max:,.0f}"),
            ("until the spool was empty again", f"{self.catch_up_seconds:.1f} s", ""),
        ]
        lines = [f"{name:48} {value!s:>18}   {bar}".rstrip() for name, value, bar in rows]
        return "\n".join([*lines, "held" if self.is_within else "NOT held"])


class _Watch:
    """Injects, looks at the spool, and kills; fills in an `Outage`."""

    def __init__(self, node: SimulatedNode, relay: Relay, found: Outage) -> None:
        self.node, self.relay, self.found = node, relay, found
        self._injected, self._injected_seconds = 0, 0.0
        self._told: dict[str, float] = {}
        self._in_spool = 0
        self._made_first = 0
        """Frames that the first agent made: the last of them may be among those that were given up."""
        self._left: list[tuple[int, int, int]] = []
        """For each kill: acknowledged before, in the spool, and told until then."""

    def inject(self) -> None:
        """Put the next fault where it arises, so long after the last one that neither overtakes the other there."""
        time.sleep(max(0.0, self._injected_seconds + PAUSE_SECONDS - time.monotonic()))
        self._injected_seconds = time.monotonic()
        self.found.faults.append(inject(self.node, self._injected))
        self._injected += 1

    def look(self) -> int:
        """Note how full the spool is and what was given up; give how many frames wait."""
        disk_bytes = _bytes_of(self.node.spool)
        self.found.disk_bytes = max(self.found.disk_bytes, disk_bytes)
        page = self.node.page()
        self.found.spool_bytes = max(self.found.spool_bytes, int(value_of(page, "instep_agent_spool_bytes") or 0))
        for kind in ("samples", "events", "torn"):
            self._told[kind] = value_of(page, f'instep_agent_spool_dropped_total{{kind="{kind}"}}') or 0.0
        self._in_spool = int(value_of(page, "instep_agent_spool_frames") or 0)
        if not self.found.kills:
            sent = int(value_of(page, "instep_agent_uplink_sent_total") or 0)
            self._made_first = sent + self._in_spool + int(sum(self._told.values()))
        return self._in_spool

    def wait(self, until_seconds: float) -> None:
        """Look until then."""
        while (left_seconds := until_seconds - time.monotonic()) > 0:
            self.look()
            time.sleep(min(LOOK_SECONDS, left_seconds))

    def kill(self) -> None:
        """Kill the agent, and start another one."""
        came = len({one.place for one in self.relay.acknowledged})
        self.look()
        self.node.agent.kill()
        self.node.agent.wait()
        if self.node.kernel_log.is_char_device():  # the kernel keeps its lines for whoever comes later; a file does not
            self._injected += self._injected % 2  # even ones are lines
            self.inject()
        self.sum_up()
        self._left.append((came, self._in_spool, self.found.told))
        self.found.kills += 1
        self.node.start_agent()
        self.node.wait_until_it_sees_everything()

    def sum_up(self) -> None:
        """Add what this agent told to what the earlier ones did."""
        self.found.told += int(self._told.pop("samples", 0) + self._told.pop("events", 0))
        self.found.torn += int(self._told.pop("torn", 0))

    def catch_up(self) -> None:
        """Kill the agent once when a third of what waits has gone; then wait until the spool is empty."""
        came_before, waiting = len(self.relay.acknowledged), self._in_spool
        began_seconds = time.monotonic()
        while len(self.relay.acknowledged) < came_before + waiting // 3:
            _give_up_after(began_seconds)
            time.sleep(0.001)
        self.kill()
        while self.look() > CAUGHT_UP_FRAMES:
            _give_up_after(began_seconds)
            time.sleep(LOOK_SECONDS / 5)
        self.found.catch_up_seconds = time.monotonic() - began_seconds

    def judge(self, came_before: int) -> None:
        """Compare what is stored with what was injected, and the frames that came with each other."""
        found, came = self.found, self.relay.acknowledged
        stored = self.relay.stored()
        kept = [times_kept(stored, *fault) for fault in found.faults]
        found.lost, found.doubled = kept.count(0), sum(max(0, each - 1) for each in kept)
        places = list(dict.fromkeys(one.place for one in came))
        order = [
            next((n for n, one in enumerate(stored) if one.kind == kind and text in one.text), -1)
            for kind, text in found.faults
        ]
        found.is_in_order = places == sorted(places) and order == sorted(order)
        found.frames, found.again = len(places), len(came) - len(places)
        found.refused_again = int(self.relay.server.counted("ingest_frames_duplicate_total"))
        missing = missing_between([*places, (0, self._made_first)])
        found.missing = len(missing)
        found.is_oldest_first = is_oldest_first(missing, came[came_before:])
        for came_then, in_spool, told_then in self._left:
            delivered = len(places) + (found.told - told_then) + UNTOLD_FRAMES_MAX
            found.unsaved += max(0, came_then + in_spool - delivered)


def measure_outage(
    node: SimulatedNode, relay: Relay, seconds: float, *, faults: int = 20, spool_bytes_max: int = BYTES_MAX
) -> Outage:
    """Take the server away for so long, with so many faults meanwhile; say what came of it."""
    found = Outage(seconds, spool_bytes_max)
    watch = _Watch(node, relay, found)
    for _ in range(FAULTS_AROUND):
        watch.inject()
        relay.wait_for_event(found.faults[-1][1], CATCH_UP_SECONDS_MAX)
    watch.inject()  # it is on its way while the server is killed
    relay.server.kill()
    came_before = len(relay.acknowledged)
    began_seconds = time.monotonic()
    for number in range(faults):
        watch.inject()
        watch.wait(began_seconds + seconds * (number + 1) / faults)
        if number == faults // 2:
            watch.kill()
    relay.server.start()
    watch.catch_up()
    for _ in range(FAULTS_AROUND):
        watch.inject()
        relay.wait_for_event(found.faults[-1][1], CATCH_UP_SECONDS_MAX)
    watch.look()
    watch.sum_up()
    watch.judge(came_before)
    return found


def missing_between(places: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Give the frames that are not there though a later one of the same agent is; each agent counts from 1.

    >>> missing_between([(0, 1), (0, 4), (1, 2)]) == {(0, 2), (0, 3), (1, 1)}
    True
    """
    highest: dict[int, int] = {}
    for number, sequence in places:
        highest[number] = max(highest.get(number, 0), sequence)
    made = {(number, sequence) for number, last in highest.items() for sequence in range(1, last + 1)}
    return made - set(places)


def is_oldest_first(missing: set[tuple[int, int]], came: Sequence[Acknowledged]) -> bool:
    """Whether every frame with samples that came after the outage is younger than all that never came, but for one of
    each agent that was on its way when it would have been given up.

    >>> is_oldest_first({(0, 2)}, [Acknowledged(0, 1, False, 9), Acknowledged(0, 3, True, 9)])
    True
    >>> is_oldest_first({(0, 2)}, [Acknowledged(0, 1, True, 9)])
    True
    >>> is_oldest_first({(0, 3)}, [Acknowledged(0, 1, True, 9), Acknowledged(0, 2, True, 9)])
    False
    """
    older = [one.place for one in came if one.has_samples and missing and one.place < max(missing)]
    return all(count <= 1 for count in Counter(number for number, _ in older).values())


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was sent meanwhile
            total += 0 if path.suffix == ".dictionary" else path.stat().st_size
    return total


def _give_up_after(began_seconds: float) -> None:
    if time.monotonic() > began_seconds + CATCH_UP_SECONDS_MAX:
        raise ConfigurationInvalid(f"The agent has not caught up within {CATCH_UP_SECONDS_MAX:g} s.")
