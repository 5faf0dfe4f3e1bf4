"""What is kept of very many equal lines of the kernel log, some of them overwritten before anybody could read them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from instep_agent.benchmarks.ports import value_of
from instep_agent.benchmarks.receiver import Stored
from instep_agent.benchmarks.simulated_node import SimulatedNode
from instep_agent.benchmarks.stand_ins import scenario_pci
from instep_agent.benchmarks.usage import group_of, memory
from instep_agent.inject.injection import DRILL_WORD
from instep_agent.lines.folding import WINDOW_SECONDS

EVENTS_MAX = 30
BYTES_MAX = 60 << 20
CHUNK_LINES = 2000
GAP_EVERY_LINES, GAP_LINES = 100_000, 500
"""So often the numbers of the log skip so many lines; a multiple of a chunk."""
SETTLE_SECONDS = WINDOW_SECONDS + 60.0
LOOK_SECONDS = 0.5
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Storm:
    """What came of many equal lines."""

    lines: int
    read: int
    """As the agent counts them."""
    counted: int
    """As the kept events tell."""
    skipped: int
    lost: int
    """What the kept events tell of lines that were skipped."""
    events: int
    pss_bytes: int
    rss_bytes: int
    seconds: float
    """From the first line to the event that tells the count."""

    @property
    def is_within(self) -> bool:
        """Whether the counts are exact, in few events, within the memory."""
        is_exact = self.counted == self.read == self.lines and self.lost == self.skipped
        return is_exact and self.events <= EVENTS_MAX and max(self.pss_bytes, self.rss_bytes) <= BYTES_MAX

    def text(self) -> str:
        """Give the table for people."""
        rows = [
            ("equal lines written", self.lines, ""),
            ("read by the agent", self.read, f"bar {self.lines}"),
            ("told by the events that are kept", self.counted, f"bar {self.lines}"),
            ("skipped by the log's numbers", self.skipped, ""),
            ("told as lost", self.lost, f"bar {self.skipped}"),
            ("events kept", self.events, f"bar at most {EVENTS_MAX}"),
        ]
        lines = [f"{name:34} {value:9}   {bar}".rstrip() for name, value, bar in rows]
        sizes = (("agent with children, PSS", self.pss_bytes), ("of them the largest, RSS", self.rss_bytes))
        lines += [f"{name:34} {size / _MIB:9.1f}   MiB, bar at most {BYTES_MAX / _MIB:.0f}" for name, size in sizes]
        lines.append(f"{'until the count was kept':34} {self.seconds:9.1f}   s")
        return "\n".join([*lines, "held" if self.is_within else "NOT held"])


def measure_storm(node: SimulatedNode, lines: int) -> Storm:
    """Write so many lines; wait until the events that are kept have told how many, and how many were skipped."""
    began_seconds, peak_pss, peak_rss = time.monotonic(), 0, 0
    skipped = _write(node, lines)
    kept: list[Stored] = []
    while time.monotonic() < began_seconds + SETTLE_SECONDS:
        used = memory(group_of(node.agent.pid))
        peak_pss = max(peak_pss, used.pss_bytes)
        peak_rss = max(peak_rss, *(memory([pid]).rss_bytes for pid in group_of(node.agent.pid)))
        kept = [one for one in node.receiver.stored() if one.kind.startswith("kernel_line")]
        if _counted(kept) >= lines and _lost(kept) >= skipped:
            break
        time.sleep(LOOK_SECONDS)
    took_seconds = time.monotonic() - began_seconds
    read = int(value_of(node.page(), "instep_kernel_log_lines_total") or 0)
    return Storm(lines, read, _counted(kept), skipped, _lost(kept), len(kept), peak_pss, peak_rss, seconds=took_seconds)


def _write(node: SimulatedNode, lines: int) -> int:
    """Write records as the kernel gives them; give how many numbers were left out."""
    text = f"NVRM: Xid (PCI:{scenario_pci(0)}): 13, pid=1, name=bench, {DRILL_WORD}"
    with node.kernel_log.open("ab") as log:
        for first in range(0, lines, CHUNK_LINES):
            number = 1 + first + first // GAP_EVERY_LINES * GAP_LINES
            now_microseconds = time.monotonic_ns() // 1000
            chunk = range(number, number + min(CHUNK_LINES, lines - first))
            log.write("".join(f"3,{each},{now_microseconds},-;{text}\n" for each in chunk).encode())
    return (lines - 1) // GAP_EVERY_LINES * GAP_LINES


def _counted(kept: Sequence[Stored]) -> int:
    return sum(one.lines for one in kept if one.kind != "kernel_lines_lost")


def _lost(kept: Sequence[Stored]) -> int:
    return sum(one.lines for one in kept if one.kind == "kernel_lines_lost")
