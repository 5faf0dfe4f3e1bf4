"""A call of the GPU driver hangs: do all other sources keep their intervals, which call is named, and what is left?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from instep_agent.benchmarks.faults import SECONDS_MAX, inject
from instep_agent.benchmarks.lateness import Lateness
from instep_agent.benchmarks.ports import value_of
from instep_agent.benchmarks.process_table import Process, process_table
from instep_agent.benchmarks.receiver import Stored
from instep_agent.benchmarks.simulated_node import SimulatedNode
from instep_agent.benchmarks.usage import group_of
from instep_agent.node import Source
from instep_agent.running.runner import WOKEN_SECONDS
from instep_agent.running.source_state import OUTCOMES
from instep_agent.sources import all_sources

CALL = "nvmlDeviceGetPowerUsage"
DRIVER_CHILD = "nvml"
LOOK_SECONDS = 0.05
LINE_EVERY_SECONDS = 2.0
WATCH_SECONDS = 30.0
"""As long as the longest interval of the other sources."""
RECOVER_SECONDS_MAX = 120.0
GAP_INTERVALS_MAX = 2.0
GAP_SLACK_SECONDS = 2 * LOOK_SECONDS + 0.1
"""A turn shows at the next look; and two turns that took equally long to the nanosecond look like one."""


@dataclass(slots=True)
class Turns:
    """When a source was seen to have had a turn: the largest gap while all is well, and while the driver hangs."""

    source: str
    interval_seconds: float
    last_seconds: float
    turn_seconds: float = float("nan")
    """How long that turn took, as the page tells."""
    before_seconds: float = 0.0
    during_seconds: float = 0.0

    def look(self, turn_seconds: float, now_seconds: float, *, is_hanging: bool) -> None:
        """Take a look at the page's duration of its last turn; another one than before is another turn."""
        gap_seconds = now_seconds - self.last_seconds
        if is_hanging:
            self.during_seconds = max(self.during_seconds, gap_seconds)
        else:
            self.before_seconds = max(self.before_seconds, gap_seconds)
        if turn_seconds != self.turn_seconds:
            self.turn_seconds, self.last_seconds = turn_seconds, now_seconds

    def is_within(self, late_seconds: float) -> bool:
        """Whether it kept its interval on a machine that wakes a process so late."""
        return self.during_seconds <= GAP_INTERVALS_MAX * self.interval_seconds + GAP_SLACK_SECONDS + late_seconds


@dataclass(slots=True)
class Hang:
    """What was seen of a hang."""

    seconds: float
    turns: list[Turns]
    late_seconds: float = 0.0
    """By how much the machine itself was late meanwhile."""
    line_seconds: list[float] = field(default_factory=list)
    """From each line of the kernel log that was written meanwhile until it was kept; infinite when it never was."""
    finding: Stored | None = None
    found_seconds: float = 0.0
    """From the beginning of the hang until the finding was kept."""
    recovered: Stored | None = None
    recovered_seconds: float = 0.0
    """From the end of the hang."""
    before: list[Process] = field(default_factory=list)
    after: list[Process] = field(default_factory=list)
    started: int = 0
    """Processes that the agent had at any time."""
    left: list[Process] = field(default_factory=list)
    """Alive and no longer of the agent, or zombies."""
    left_at_end: list[Process] = field(default_factory=list)
    """Alive after the agent was told to stop."""

    @property
    def is_within(self) -> bool:
        """Whether the promise was kept."""
        is_named = self.finding is not None and self.finding.fields.get("call", "").startswith(CALL)
        is_clean = not (self.left or self.left_at_end) and len(self.after) == len(self.before)
        is_seen = self.recovered is not None and max(self.line_seconds) <= SECONDS_MAX
        return is_named and is_clean and is_seen and all(one.is_within(self.late_seconds) for one in self.turns)

    def text(self) -> str:
        """Give the table for people."""
        lines = [f"{'source':16} {'interval':>8} {'before':>10} {'hanging':>10}   (largest gap, in intervals)"]
        for one in sorted(self.turns, key=lambda each: each.interval_seconds):
            gaps = (one.before_seconds / one.interval_seconds, one.during_seconds / one.interval_seconds)
            numbers = "".join(f" {each:10.2f}" for each in gaps) + (
                "" if one.is_within(self.late_seconds) else "   NOT held"
            )
            lines.append(f"{one.source:16} {one.interval_seconds:6g} s{numbers}")
        said = self.finding.text if self.finding else "none"
        back = f"{self.recovered.text} ({self.recovered_seconds:.1f} s)" if self.recovered else "not seen"
        lines += [
            f"a process that only sleeps woke up to {self.late_seconds:.2f} s late meanwhile: the machine's own part",
            f"kernel lines meanwhile: {len(self.line_seconds)}, kept after at most {max(self.line_seconds):.2f} s (bar "
            f"{SECONDS_MAX:g})",
            f"finding after {self.found_seconds:.1f} s: {said}",
            f"recovery, after the call came back: {back}",
            f"processes: {len(self.before)} before, {self.started} in all, {len(self.after)} afterwards",
            f"left behind or zombies: {_names(self.left)}; after the agent's end: {_names(self.left_at_end)}",
        ]
        return "\n".join([*lines, "held" if self.is_within else "NOT held"])


def measure_hang(node: SimulatedNode, seconds: float, *, watch_seconds: float = WATCH_SECONDS) -> Hang:
    """Let a call of the driver hang for so long; look on until every source of the driver answers again.

    For `watch_seconds` before, everything is well.
    """
    others, drivers = _sources()
    now_seconds = time.monotonic()
    turns = [Turns(one.name, _interval(one), now_seconds) for one in others if _is_looking(node.page(), one)]
    found = Hang(seconds, turns, before=process_table(group_of(node.agent.pid)))
    seen: dict[Process, None] = {}
    _look(node, turns, seen, now_seconds + watch_seconds, is_hanging=False)
    began_seconds = time.time()
    with Lateness() as lateness:
        written = _hang(node, turns, seen, seconds)
        released_seconds = time.time()
        _wait_for_recovery(node, turns, seen, drivers)
    found.late_seconds = lateness.seconds
    _judge(found, node, seen, began_seconds, released_seconds)
    kept = {one.text: one.kept_at_seconds for one in node.receiver.stored() if one.kind == "kernel_line"}
    for text, at_seconds in written:
        found_at = [kept_at_seconds for known, kept_at_seconds in kept.items() if text in known]
        found.line_seconds.append(min(found_at, default=math.inf) - at_seconds)
    return found


def _hang(
    node: SimulatedNode, turns: Sequence[Turns], seen: dict[Process, None], seconds: float
) -> list[tuple[str, float]]:
    """Let the call hang for so long; give the lines of the kernel log that were written meanwhile, and when."""
    line = f"*.hang {CALL}"
    written: list[tuple[str, float]] = []
    until_seconds = time.monotonic() + seconds
    node.scenario.add(line)
    while time.monotonic() < until_seconds:
        written.append((inject(node, 2 * len(written))[1], time.time()))
        _look(node, turns, seen, min(until_seconds, time.monotonic() + LINE_EVERY_SECONDS), is_hanging=True)
    node.scenario.remove(line)
    return written


def _wait_for_recovery(
    node: SimulatedNode, turns: Sequence[Turns], seen: dict[Process, None], drivers: Sequence[Source]
) -> None:
    until_seconds = time.monotonic() + RECOVER_SECONDS_MAX
    while time.monotonic() < until_seconds:
        _look(node, turns, seen, time.monotonic() + 1.0, is_hanging=True)
        if all(_is_looking(node.page(), one) for one in drivers):
            return


def _interval(source: Source) -> float:
    """Give how often a source is asked at least; one that wakes the agent is asked more rarely than that in peace."""
    return max(source.interval_seconds, WOKEN_SECONDS if hasattr(source, "wake_descriptor") else 0.0)


def _sources() -> tuple[list[Source], list[Source]]:
    """Give the sources that ask no GPU driver, and those that do."""
    sources = all_sources()
    drivers = [one for one in sources if one.child == DRIVER_CHILD]
    return [one for one in sources if one not in drivers], drivers


def _is_looking(page: str, source: Source) -> bool:
    """Whether the source looked and found what it reads: one whose hardware is absent has no interval to keep."""
    return value_of(page, f'instep_agent_source_state{{source="{source.name}"}}') == OUTCOMES["ok"]


def _look(
    node: SimulatedNode, turns: Sequence[Turns], seen: dict[Process, None], until_seconds: float, *, is_hanging: bool
) -> None:
    """Look at the agent's page and its processes until then."""
    while (now_seconds := time.monotonic()) < until_seconds:
        page = node.page()
        for one in turns:
            took_seconds = value_of(page, f'instep_agent_source_duration_seconds{{source="{one.source}"}}')
            one.look(took_seconds or 0.0, now_seconds, is_hanging=is_hanging)
        seen.update(dict.fromkeys(process_table(group_of(node.agent.pid))))
        time.sleep(max(0.0, now_seconds + LOOK_SECONDS - time.monotonic()))


def _judge(
    found: Hang, node: SimulatedNode, seen: dict[Process, None], began_seconds: float, released_seconds: float
) -> None:
    """Fill in what was said and which processes there are, now and when the agent has ended."""
    stuck = [one for one in node.receiver.stored() if one.kind == "source_stuck"]
    found.finding = next((one for one in stuck if CALL in one.text), stuck[0] if stuck else None)
    of_source = found.finding.fields.get("source", "") if found.finding else ""
    node.receiver.wait_for_event(f"Source {of_source} answers again", RECOVER_SECONDS_MAX, kind="source_recovered")
    found.recovered = next(
        (
            one
            for one in node.receiver.stored()
            if one.kind == "source_recovered" and one.fields.get("source") == of_source
        ),
        None,
    )
    if found.finding:
        found.found_seconds = found.finding.at_seconds - began_seconds
    if found.recovered:
        found.recovered_seconds = found.recovered.at_seconds - released_seconds
    group = group_of(node.agent.pid)
    found.after = process_table(group)
    found.started = len(seen)
    alive = process_table([one.pid for one in seen])
    found.left = [one for one in alive if one.is_zombie or (one in seen and one.pid not in group)]
    node.stop_agent()
    found.left_at_end = [one for one in process_table([one.pid for one in seen]) if one in seen]


def _names(processes: Sequence[Process]) -> str:
    return ", ".join(f"{one.pid}{' (zombie)' if one.is_zombie else ''}" for one in processes) or "none"
