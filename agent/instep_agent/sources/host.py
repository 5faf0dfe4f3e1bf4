"""The node's own load, pressure and memory: what a slow rank is held against."""

from __future__ import annotations

import re
from collections.abc import Iterator

from instep_agent.errors import SourceFailed
from instep_agent.held_files import whole_text
from instep_agent.metric import counter, gauge
from instep_agent.node import Node
from instep_agent.wire import Sample

_RESOURCES = ("cpu", "memory", "io")
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class Host:
    """Load, pressure (PSI), memory and kills, from `/proc/loadavg`, `pressure/*`, `meminfo` and `vmstat`.

    A kernel without PSI has no pressure samples, an old one no kills; that is not a failure.
    """

    name = "host"
    interval_seconds = 5.0
    deadline_seconds = 1.0
    child = ""
    rights = "reads the node's /proc: everybody may, in a container the node's /proc mounted read-only"
    metrics = (
        gauge("instep_host_load1", "Load average of one minute, from /proc/loadavg."),
        gauge("instep_host_memory_total_bytes", "Memory of the node, from /proc/meminfo."),
        gauge("instep_host_memory_available_bytes", "Memory to be had without swapping, from /proc/meminfo."),
        gauge("instep_host_pressure_ratio", "Share of the last 10 s spent waiting, from /proc/pressure."),
        counter("instep_host_pressure_seconds_total", "Time that some, or all, tasks waited, from /proc/pressure."),
        counter("instep_host_oom_kills_total", "Processes killed because memory ran out, from /proc/vmstat."),
    )

    def collect(self, node: Node) -> Iterator[Sample]:
        """Yield the samples of one moment. Raise `SourceFailed` when /proc cannot be read."""
        try:
            load = whole_text(f"{node.proc}/loadavg").split()
            memory = parse_meminfo(whole_text(f"{node.proc}/meminfo"))
        except OSError as error:
            raise SourceFailed(
                f"Cannot read {error.filename} ({error.strerror}): mount the node's /proc read-only into "
                "the agent's pod."
            ) from error
        yield Sample(name="instep_host_load1", labels=(), value=float(load[0]))
        for key, name in (
            ("MemTotal", "instep_host_memory_total_bytes"),
            ("MemAvailable", "instep_host_memory_available_bytes"),
        ):
            if key in memory:
                yield Sample(name=name, labels=(), value=memory[key])
        for resource in _RESOURCES:
            yield from _pressure(node, resource)
        if (kills := _oom_kills(node)) is not None:
            yield Sample(name="instep_host_oom_kills_total", labels=(), value=kills)


def _pressure(node: Node, resource: str) -> Iterator[Sample]:
    try:
        text = whole_text(f"{node.proc}/pressure/{resource}")
    except OSError:  # PSI is not built in, or turned off: reading then gives "operation not supported"
        return
    for line in text.splitlines():
        kind, *fields = line.split()
        if kind not in ("some", "full"):
            continue
        labels = (("kind", kind), ("resource", resource))
        values = dict(field.split("=", 1) for field in fields if "=" in field)
        if "avg10" in values:
            yield Sample(name="instep_host_pressure_ratio", labels=labels, value=float(values["avg10"]) / 100.0)
        if "total" in values:
            yield Sample(name="instep_host_pressure_seconds_total", labels=labels, value=int(values["total"]) / 1e6)


def _oom_kills(node: Node) -> float | None:
    """Give how many processes were killed since boot; None where the kernel does not count them."""
    try:
        text = whole_text(f"{node.proc}/vmstat")
    except OSError:
        return None
    found = _OOM_KILLS.search(text)
    return float(found[1]) if found else None


def parse_meminfo(text: str) -> dict[str, float]:
    """Give bytes by name; lines in other units than kB are left out.

    >>> parse_meminfo("MemTotal: 2 kB\\nHugePages_Total: 0\\n")
    {'MemTotal': 2048.0}
    """
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if unit == "kB" and number.isdigit():
            found[name] = float(number) * 1024
    return found
