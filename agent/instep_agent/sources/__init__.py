"""Every source of the agent, one file each; the list is explicit, and a test checks that it is complete."""

from __future__ import annotations

from instep_agent.node import Source
from instep_agent.sources.gpu_inventory import GpuInventory
from instep_agent.sources.host import Host
from instep_agent.sources.kernel_log import KernelLog
from instep_agent.sources.rank_records import RankRecords

SOURCES = (KernelLog, RankRecords, GpuInventory, Host)
"""In the order they are asked: what a verdict may wait for comes first."""


def all_sources(
    *,
    ranks_interval_seconds: float = RankRecords.interval_seconds,
    discovery_interval_seconds: float = RankRecords.discovery_interval_seconds,
) -> tuple[Source, ...]:
    """Give one instance of every source."""
    return (KernelLog(), RankRecords(ranks_interval_seconds, discovery_interval_seconds), GpuInventory(), Host())
