"""Which processes hold each GPU, and how much of its memory: a rank is found among them by its pid elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Gpu, is_blank
from instep_agent.host.processes import start_ticks
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
        self._ranks: dict[tuple[int, int], dict[str, str]] = {}
        """By pid and start: who the process is, empty where no record named it at the last look."""

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the processes of every GPU. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        seen: list[tuple[Gpu, list[tuple[int, int]]]] = []
        yield from self._driver.each(node, lambda gpu: self._read(gpu, node, seen))
        labels = self._labels({pid for _, sizes in seen for _, pid in sizes}, node)
        for gpu, sizes in seen:
            for size_bytes, pid in sizes:
                yield gpu.sample(PROCESS_MEMORY, size_bytes, pid=str(pid), **labels[pid])

    def _read(self, gpu: Gpu, node: Node, seen: list[tuple[Gpu, list[tuple[int, int]]]]) -> Iterator[Sample]:
        processes = self._driver.call(gpu, node, "nvmlDeviceGetComputeRunningProcesses")
        if processes is None:
            return
        yield gpu.sample(PROCESSES, len(processes))
        known = [(each.usedGpuMemory, each.pid) for each in processes if each.usedGpuMemory is not None]
        largest = sorted(known, reverse=True)[:PROCESSES_MAX]
        seen.append((gpu, [(size, pid) for size, pid in largest if not is_blank(size, bits=64)]))

    def _labels(self, pids: set[int], node: Node) -> dict[int, dict[str, str]]:
        """Give who each process is. Records are read only where one that can be seen is not known as a rank yet."""
        starts = {pid: start_ticks(pid, node.proc) for pid in pids}
        if any(ticks and not self._ranks.get((pid, ticks)) for pid, ticks in starts.items()):
            ranks = tuple(recorded_ranks(node))
            self._ranks = {(pid, ticks): _who(pid, ranks, node) if ticks else {} for pid, ticks in starts.items()}
        return {pid: self._ranks.get((pid, ticks), {}) for pid, ticks in starts.items()}


def _who(pid: int, ranks: Sequence[RecordedRank], node: Node) -> dict[str, str]:
    identity = next((rank.identity for rank in ranks if rank.is_process(pid, node)), None)
    return {} if identity is None else {"job": identity.job, "run": identity.run, "rank": str(identity.rank)}
