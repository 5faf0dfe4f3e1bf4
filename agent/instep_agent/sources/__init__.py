"""Every source of the agent, one file each; the list is explicit, and a test checks that it is complete."""

from __future__ import annotations

from collections.abc import Sequence

from instep_agent.gpu.nvml import Driver, shared
from instep_agent.node import Source
from instep_agent.ranks.places import RankTable
from instep_agent.sources.clock import Clock
from instep_agent.sources.disk_io import DiskIo
from instep_agent.sources.ethernet import Ethernet
from instep_agent.sources.gpu_count import GpuCount
from instep_agent.sources.gpu_events import GpuEvents
from instep_agent.sources.gpu_identity import GpuIdentity
from instep_agent.sources.gpu_inventory import GpuInventory
from instep_agent.sources.gpu_links import GpuLinks
from instep_agent.sources.gpu_memory_health import GpuMemoryHealth
from instep_agent.sources.gpu_pcie import GpuPcie
from instep_agent.sources.gpu_performance import GpuPerformance
from instep_agent.sources.gpu_processes import GpuProcesses
from instep_agent.sources.gpu_recovery import GpuRecovery
from instep_agent.sources.gpu_state import GpuState
from instep_agent.sources.host import Host
from instep_agent.sources.kernel_log import KernelLog
from instep_agent.sources.log_lines import LogLines
from instep_agent.sources.mounts import Mounts
from instep_agent.sources.nccl_ras import ADDRESSES, NcclRas
from instep_agent.sources.node_processes import NodeProcesses
from instep_agent.sources.pcie import Pcie
from instep_agent.sources.rank_cpu import RankCpu
from instep_agent.sources.rank_records import RankRecords
from instep_agent.sources.rdma_counters import RdmaCounters
from instep_agent.sources.rdma_ports import RdmaPorts

GPU_SOURCES = (
    GpuEvents,
    GpuState,
    GpuRecovery,
    GpuMemoryHealth,
    GpuLinks,
    GpuPcie,
    GpuPerformance,
    GpuProcesses,
    GpuIdentity,
)
"""They share one driver, and with it one child process."""
LINK_SOURCES = (RdmaPorts, RdmaCounters, Pcie, Ethernet)
"""They ask devices through /sys, which may never answer, and share one child process."""
HOST_SOURCES = (Host, Clock, DiskIo, Mounts, NodeProcesses)
SOURCES = (
    KernelLog,
    RankRecords,
    GpuInventory,
    GpuCount,
    RankCpu,
    *HOST_SOURCES,
    LogLines,
    NcclRas,
    *GPU_SOURCES,
    *LINK_SOURCES,
)
"""In the order they are asked: what a verdict may wait for comes first."""


def all_sources(
    *,
    ranks_interval_seconds: float = RankRecords.interval_seconds,
    ranks_calm_interval_seconds: float = RankRecords.calm_interval_seconds,
    discovery_interval_seconds: float = RankRecords.discovery_interval_seconds,
    expected_gpus: int = 0,
    nccl_ras_addresses: Sequence[str] = ADDRESSES,
    log_files: Sequence[str] = (),
) -> tuple[Source, ...]:
    """Give one instance of every source."""
    table = RankTable()
    ranks = RankRecords(
        ranks_interval_seconds,
        discovery_interval_seconds,
        calm_interval_seconds=ranks_calm_interval_seconds,
        table=table,
    )
    jobs = (LogLines(log_files), NcclRas(nccl_ras_addresses))
    gpus = (GpuInventory(), GpuCount(expected_gpus))
    host = (RankCpu(table), *(source() for source in HOST_SOURCES))
    return (KernelLog(table.rank_of), ranks, *gpus, *host, *jobs, *gpu_sources(), *link_sources())


def gpu_sources(driver: Driver = shared) -> tuple[Source, ...]:
    """Give one instance of every source that reads NVML, over one driver."""
    return tuple(source(driver) for source in GPU_SOURCES)


def link_sources() -> tuple[Source, ...]:
    """Give one instance of every source that asks network hardware or the bus."""
    return tuple(source() for source in LINK_SOURCES)
