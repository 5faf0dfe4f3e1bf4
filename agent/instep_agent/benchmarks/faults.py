"""How fast a fault is at the server: from where it arises until it can be read from the store."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from instep_agent.benchmarks.receiver import Stored
from instep_agent.benchmarks.simulated_node import SimulatedNode
from instep_agent.benchmarks.stand_ins import GPUS, scenario_pci
from instep_agent.inject.injection import DRILL_WORD
from instep_agent.inject.places import write_kernel_log

SECONDS_MAX = 2.0
"""From the fault to the server, for 99 of 100."""
GIVE_UP_SECONDS = 20.0
CODE_FIRST = 1000 * (1 + secrets.randbelow(9000))
"""Of this run: a real kernel log still holds the lines of an earlier one, which the agent reports for some minutes,
and folds with what says the same.
"""
PAUSE_SECONDS = 0.55
"""Between two faults; a little over half a second, so that they fall at every place of the agent's turns. The kernel
itself takes no more than 10 lines in 5 s from one writer."""


@dataclass(frozen=True, slots=True)
class FaultTimes:
    """Seconds from the fault until the receiver has kept it, by the way it came; `lost` never were."""

    kernel_line: list[float]
    nvml_event: list[float]
    lost: int
    doubled: int
    """Events that are kept more than once for one fault."""

    @property
    def is_within(self) -> bool:
        """Whether each is kept once, and 99 of 100 were fast enough."""
        return not (self.lost or self.doubled) and all(
            quantile(each, 0.99) <= SECONDS_MAX for each in self._ways().values()
        )

    def _ways(self) -> dict[str, list[float]]:
        return {"kernel line": self.kernel_line, "NVML event": self.nvml_event}

    def numbers(self) -> dict[str, object]:
        """Give the numbers for programs."""
        seconds = {"kernel_line_seconds": self.kernel_line, "nvml_event_seconds": self.nvml_event}
        return {**seconds, "lost": self.lost, "doubled": self.doubled}

    def text(self) -> str:
        """Give the table for people."""
        lines = [f"{'':12} {'faults':>6} {'p50':>8} {'p99':>8} {'max':>8}   (seconds, fault to server)"]
        for name, seconds in self._ways().items():
            three = (statistics.median(seconds), quantile(seconds, 0.99), max(seconds)) if seconds else ()
            lines.append(f"{name:12} {len(seconds):6}" + "".join(f" {each:8.3f}" for each in three))
        lines.append(
            f"lost: {self.lost}, doubled: {self.doubled}; bar: p99 of {SECONDS_MAX:g} s: "
            f"{'held' if self.is_within else 'NOT held'}"
        )
        return "\n".join(lines)


def measure_faults(node: SimulatedNode, count: int) -> FaultTimes:
    """Let every second fault be a kernel line and the others NVML events, of all GPUs in turn."""
    ways: tuple[list[float], list[float]] = ([], [])
    sent: list[tuple[str, str]] = []
    for number in range(count):
        began_ns = time.monotonic_ns()
        sent.append(inject(node, number))
        kind, text = sent[-1]
        found_ns = node.receiver.wait_for_event(text, GIVE_UP_SECONDS, kind=kind)
        if found_ns is not None:
            ways[number % 2].append((found_ns - began_ns) / 1e9)
        time.sleep(PAUSE_SECONDS)
    kept = [times_kept(node.receiver.stored(), *one) for one in sent]
    return FaultTimes(*ways, lost=kept.count(0), doubled=sum(max(0, each - 1) for each in kept))


def inject(node: SimulatedNode, number: int) -> tuple[str, str]:
    """Put one fault where it arises; give the kind of its event and what its text holds. Even ones are kernel lines."""
    gpu, code = number % GPUS, CODE_FIRST + number
    if number % 2:
        node.scenario.event(gpu, code)
        return "gpu_event", f"reported Xid {code}."
    line = f"{code}, pid=1, name=bench, {DRILL_WORD}"
    write_kernel_log(node.kernel_log, [f"NVRM: Xid (PCI:{scenario_pci(gpu)}): {line}"])
    return "kernel_line", line


def times_kept(stored: Sequence[Stored], kind: str, text: str) -> int:
    """Give how many events of this kind and text are kept."""
    return sum(one.kind == kind and text in one.text for one in stored)


def quantile(values: list[float], share: float) -> float:
    """Give the value below which this share of the values lies, by the nearest rank; infinity without any.

    >>> quantile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else float("inf")
