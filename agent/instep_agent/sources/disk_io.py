"""How long the node's disks take: what a slow data loader or checkpoint is held against."""

from __future__ import annotations

from collections.abc import Iterator

from instep_agent.errors import Absent, SourceFailed
from instep_agent.metric import counter, gauge
from instep_agent.node import Node
from instep_agent.wire import Sample

DISKS_MAX = 64
_NO_DISKS = ("loop", "ram", "zram", "sr", "fd")
_FIELDS = (
    ("instep_disk_reads_total", 3, 1.0),
    ("instep_disk_read_seconds_total", 6, 1e-3),
    ("instep_disk_writes_total", 7, 1.0),
    ("instep_disk_write_seconds_total", 10, 1e-3),
    ("instep_disk_requests_in_flight", 11, 1.0),
    ("instep_disk_busy_seconds_total", 12, 1e-3),
)
"""Metric, field of /proc/diskstats, factor to its unit: Documentation/admin-guide/iostats of the kernel."""


class DiskIo:
    """Requests and time of every whole disk, from `/proc/diskstats`; latency is seconds over requests.

    Partitions are left out where `/sys/block` tells them from disks; loop devices and memory disks always are.
    """

    name = "disk_io"
    interval_seconds = 10.0
    deadline_seconds = 1.0
    child = ""
    rights = "reads the node's /proc and /sys: everybody may, in a container both mounted read-only"
    metrics = (
        counter("instep_disk_reads_total", "Reads that the disk has finished."),
        counter("instep_disk_read_seconds_total", "Time that these reads took, each from its request to its end."),
        counter("instep_disk_writes_total", "Writes that the disk has finished."),
        counter("instep_disk_write_seconds_total", "Time that these writes took, each from its request to its end."),
        gauge("instep_disk_requests_in_flight", "Requests that the disk works on now."),
        counter("instep_disk_busy_seconds_total", "Time in which the disk had any request to work on."),
    )

    def collect(self, node: Node) -> Iterator[Sample]:
        """Yield the counters of each disk. Raise `Absent` where there is none, `SourceFailed` if it cannot be read."""
        path = node.proc / "diskstats"
        try:
            rows = [line.split() for line in path.read_text().splitlines()]
        except OSError as error:
            raise SourceFailed(
                f"Cannot read {path} ({(error.strerror or '').lower()}): mount the node's /proc read-only into the "
                "agent's pod."
            ) from error
        whole = _whole_disks(node)
        rows = [row for row in rows if len(row) > 12 and not row[2].startswith(_NO_DISKS)]
        disks = [row for row in rows if whole is None or row[2] in whole]
        if not disks:
            raise Absent(f"{path} names no disk.")
        for row in disks[:DISKS_MAX]:
            for name, field, factor in _FIELDS:
                yield Sample(name=name, labels=(("device", row[2]),), value=int(row[field]) * factor)


def _whole_disks(node: Node) -> set[str] | None:
    try:
        return {each.name.replace("!", "/") for each in (node.root / "sys/block").iterdir()}
    except OSError:
        return None
