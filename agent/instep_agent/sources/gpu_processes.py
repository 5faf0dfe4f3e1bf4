"""Which processes hold each GPU, and how much of its memory: a rank is found among them by its pid elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Gpu, is_blank
from instep_agent.metric import Metric, gauge
from instep_agent.node import Node, Reading
from instep_agent.ranks.recorded import RecordedRank, recorded_ranks
from instep_agent.wire import Sample

PROCESSES_MAX = 32
"""Of one GPU; the largest are kept."""
PROCESSES = gauge("instep_gpu_processes", "Processes that compute on the GPU (nvmlDeviceGetComputeRunningProcesses).")
PROCESS_MEMORY = gauge(
    "instep_gpu_process_memory_bytes",
    "Device memory of one process, by its pid on the node; of a rank also by job, run and rank.",
    is_on_page=False,
)


class GpuProcesses:
    """Processes with a compute context on every GPU, from NVML; pids are those of the node's own namespace.

    Every 10 s: processes come and go with a job's start and end, which other sources tell sooner. A process is a rank
    where a record names it, by its start and by its number in its own pid namespace, and belongs to the same user.
    """

    name = "gpu_processes"
    interval_seconds = 10.0
    deadline_seconds = 5.0
    child = "nvml"
    rights = (
        "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them; in a pod "
        "pids are the node's with hostPID: true; ranks are told by their records, which root or their owner may read"
    )
    metrics: tuple[Metric, ...] = (PROCESSES, PROCESS_MEMORY)

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the processes of every GPU. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        self._driver.gpus(node)
        ranks = tuple(recorded_ranks(node))
        yield from self._driver.each(node, lambda gpu: self._read(gpu, node, ranks))

    def _read(self, gpu: Gpu, node: Node, ranks: Sequence[RecordedRank]) -> Iterator[Sample]:
        processes = self._driver.call(gpu, node, "nvmlDeviceGetComputeRunningProcesses")
        if processes is None:
            return
        yield gpu.sample(PROCESSES, len(processes))
        known = [(each.usedGpuMemory, each.pid) for each in processes if each.usedGpuMemory is not None]
        for size_bytes, pid in sorted(known, reverse=True)[:PROCESSES_MAX]:
            if not is_blank(size_bytes, bits=64):
                yield gpu.sample(PROCESS_MEMORY, size_bytes, pid=str(pid), **_rank_labels(pid, ranks, node))


def _rank_labels(pid: int, ranks: Sequence[RecordedRank], node: Node) -> dict[str, str]:
    """Give who the process is, empty where no record names it."""
    identity = next((rank.identity for rank in ranks if rank.is_process(pid, node)), None)
    return {} if identity is None else {"job": identity.job, "run": identity.run, "rank": str(identity.rank)}
