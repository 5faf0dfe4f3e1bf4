"""How fast a fault is at the server, and what is left of a storm of them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from instep_agent.benchmarks.simulated_node import SimulatedNode
from instep_agent.benchmarks.stand_ins import GPUS, scenario_pci
from instep_agent.benchmarks.usage import group_of, memory
from instep_agent.folding import WINDOW_SECONDS
from instep_agent.inject.injection import DRILL_WORD
from instep_agent.inject.places import write_kernel_log

SECONDS_MAX = 2.0
"""From the fault to the server, for 99 of 100."""
GIVE_UP_SECONDS = 20.0
PAUSE_SECONDS = 0.55
"""Between two faults; a little over half a second, so that they fall at every place of the agent's turns. The kernel
itself takes no more than 10 lines in 5 s from one writer."""
STORM_EVENTS_MAX = 30
STORM_PSS_BYTES_MAX = 60 << 20
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class FaultTimes:
    """Seconds from the fault to the server's acknowledgement, by the way it came; `lost` never did."""

    kernel_line: list[float]
    nvml_event: list[float]
    lost: int

    @property
    def is_within(self) -> bool:
        """Whether none was lost and 99 of 100 were fast enough."""
        return not self.lost and all(quantile(each, 0.99) <= SECONDS_MAX for each in self._ways().values())

    def _ways(self) -> dict[str, list[float]]:
        return {"kernel line": self.kernel_line, "NVML event": self.nvml_event}

    def numbers(self) -> dict[str, object]:
        """Give the numbers for programs."""
        return {"kernel_line_seconds": self.kernel_line, "nvml_event_seconds": self.nvml_event, "lost": self.lost}

    def text(self) -> str:
        """Give the table for people."""
        lines = [f"{'':12} {'faults':>6} {'p50':>8} {'p99':>8} {'max':>8}   (seconds, fault to server)"]
        for name, seconds in self._ways().items():
            numbers = f"{statistics.median(seconds):8.3f} {quantile(seconds, 0.99):8.3f} {max(seconds):8.3f}"
            lines.append(f"{name:12} {len(seconds):6} {numbers}")
        lines.append(f"lost: {self.lost}; bar: p99 of {SECONDS_MAX:g} s: {'held' if self.is_within else 'NOT held'}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Storm:
    """What came of many identical lines."""

    lines: int
    counted: int
    """As the first line and the events that count the others tell."""
    events: int
    pss_bytes: int
    seconds: float
    """From the first line to the event that tells the count."""

    @property
    def is_within(self) -> bool:
        """Whether the count is exact, in few events, within the memory."""
        return (
            self.counted == self.lines and self.events <= STORM_EVENTS_MAX and self.pss_bytes <= STORM_PSS_BYTES_MAX
        )

    def text(self) -> str:
        """Give the sentence for people."""
        return (
            f"{self.lines} identical lines: {self.events} events at the server (bar {STORM_EVENTS_MAX}) that count "
            f"{self.counted}, {self.seconds:.1f} s; at most {self.pss_bytes / _MIB:.1f} MiB PSS (bar "
            f"{STORM_PSS_BYTES_MAX / _MIB:.0f}): {'held' if self.is_within else 'NOT held'}"
        )


def measure_faults(node: SimulatedNode, count: int) -> FaultTimes:
    """Let every second fault be a kernel line and the others NVML events, of all GPUs in turn."""
    ways: tuple[list[float], list[float]] = ([], [])
    lost = 0
    for number in range(count):
        pci, code = scenario_pci(number % GPUS), 1000 + number
        began_ns = time.monotonic_ns()
        if number % 2:
            node.scenario.event(number % GPUS, code)
            found_ns = node.sink.wait_for_event(f"reported Xid {code}.", GIVE_UP_SECONDS, kind="gpu_event")
        else:
            write_kernel_log(node.kernel_log, [f"NVRM: Xid (PCI:{pci}): {code}, pid=1, name=bench, {DRILL_WORD}"])
            found_ns = node.sink.wait_for_event(f"): {code}, ", GIVE_UP_SECONDS, kind="kernel_line")
        if found_ns is None:
            lost += 1
        else:
            ways[number % 2].append((found_ns - began_ns) / 1e9)
        time.sleep(PAUSE_SECONDS)
    return FaultTimes(*ways, lost)


def measure_storm(node: SimulatedNode, count: int) -> Storm:
    """Write the line so often; wait until the agent has told how often."""
    line = f"NVRM: Xid (PCI:{scenario_pci(0)}): 13, pid=1, name=bench, {DRILL_WORD}\n".encode()
    began_ns, peak = time.monotonic_ns(), 0
    left, chunk = count, 2000
    with node.kernel_log.open("ab") as log:
        while left:
            now = min(left, chunk)
            log.write(line * now)
            left -= now
    found_ns = None
    for _ in range(int((WINDOW_SECONDS + 60) / 0.5)):
        peak = max(peak, memory(group_of(node.agent.pid)).pss_bytes)
        found_ns = node.sink.wait_for_event("said again", 0.5, kind="kernel_lines_repeated")
        if found_ns is not None:
            break
    events = [event for _, event in node.sink.events if event.kind.startswith("kernel_line")]
    counted = sum(int(event.fields.get("count", 1)) for event in events)
    return Storm(count, counted, len(events), peak, ((found_ns or time.monotonic_ns()) - began_ns) / 1e9)


def quantile(values: list[float], share: float) -> float:
    """Give the value below which this share of the values lies, by the nearest rank; infinity without any.

    >>> quantile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else float("inf")
