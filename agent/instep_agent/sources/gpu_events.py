"""What a GPU reports of its own accord: Xid errors and their like, the moment the driver has them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Gpu
from instep_agent.metric import Metric, counter
from instep_agent.node import Fact, Node, Reading

EVENTS_PER_TURN_MAX = 200
REPEAT_SECONDS = 60.0
"""An event that says no more than that it happened is sent once in this time for each GPU; all are counted."""
WAIT_SECONDS_MAX = 2.0
"""So that whoever waits for this process is heard again soon."""
EVENTS = counter("instep_gpu_events_total", "Events since the agent's start, by type.")
_TYPES = (
    ("nvmlEventTypeXidCriticalError", "xid"),
    ("nvmlEventTypeDoubleBitEccError", "ecc_uncorrected"),
    ("nvmlEventTypeSingleBitEccError", "ecc_corrected"),
    ("nvmlEventTypeSingleBitEccErrorStorm", "ecc_corrected_storm"),
    ("nvmlEventTypeDramRetirementEvent", "dram_retirement"),
    ("nvmlEventTypeDramRetirementFailure", "dram_retirement_failure"),
    ("nvmlEventTypeNonFatalPoisonError", "poison_nonfatal"),
    ("nvmlEventTypeFatalPoisonError", "poison_fatal"),
    ("nvmlEventTypeGpuUnavailableError", "gpu_unavailable"),
    ("nvmlEventTypeGpuRecoveryAction", "recovery_action"),
    ("nvmlEventTypePowerSourceChange", "power_source"),
)
"""Clock and P-state changes are left out: on a working GPU they come many times a second, and the state tells them."""
_NO_INSTANCE = 0xFFFFFFFF


class GpuEvents:
    """Xid, ECC, poison, retirement and recovery events of every GPU, from an NVML event set.

    `watch` waits for the driver to say something, so a fact leaves within milliseconds; `collect` sees to it every five
    seconds that the set is there, and takes what nobody waited for. The kernel log carries the same Xid as a line: who
    puts both together has PCI address, code and time for it. NVML does not tell what happened before the set was made.
    """

    name = "gpu_events"
    interval_seconds = 5.0
    deadline_seconds = 5.0
    child = "nvml"
    rights = "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them"
    metrics: tuple[Metric, ...] = (EVENTS,)

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver
        self._generation = 0
        self._set: Any = None
        self._names: dict[int, str] = {}
        self._by_handle: dict[int | None, Gpu] = {}
        self._sent_ns: dict[tuple[str, str], int] = {}
        self._counts: dict[tuple[Gpu, str], int] = {}

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield what happened, and the counts. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        self._driver.gpus(node)
        if self._set is None or self._generation != self._driver.generation:
            self._register(node)
        yield from self.watch(node, 0.0)
        for (gpu, kind), count in self._counts.items():
            yield gpu.sample(EVENTS, count, type=kind)

    def watch(self, node: Node, timeout_seconds: float) -> Iterator[Reading]:
        """Yield a fact for each event, the first within the time given, at once when it comes."""
        wait_seconds = min(timeout_seconds, WAIT_SECONDS_MAX)
        for _ in range(EVENTS_PER_TURN_MAX):
            if self._set is None or self._generation != self._driver.generation:
                return
            event = self._next(wait_seconds)
            if event is None:
                return
            wait_seconds = 0.0
            yield from self._facts(event, node)

    def _register(self, node: Node) -> None:
        """Make an event set with the types that each GPU has; a GPU that has none is left out."""
        known = [(self._driver.constant(constant), name) for constant, name in _TYPES]
        self._names = {number: name for number, name in known if number is not None}
        self._set, self._generation = self._make_set(), self._driver.generation
        before, self._by_handle = self._counts, {}
        self._counts = {}
        for gpu in self._driver.gpus(node):
            if gpu.problem:
                continue
            self._by_handle[_address(gpu.handle)] = gpu
            self._counts |= {(gpu, kind): count for (old, kind), count in before.items() if old.uuid == gpu.uuid}
            self._register_gpu(gpu, node)

    def _make_set(self) -> Any:
        try:
            return self._driver.ask("nvmlEventSetCreate")
        except nvml.NvmlRefused:  # a platform without events: the kernel log still tells
            return None

    def _register_gpu(self, gpu: Gpu, node: Node) -> None:
        try:
            supported = self._driver.ask("nvmlDeviceGetSupportedEventTypes", gpu.handle)
            wanted = sum(number for number in self._names if number & supported)
            if wanted and self._set is not None:
                self._driver.ask("nvmlDeviceRegisterEvents", gpu.handle, wanted, self._set)
        except nvml.NvmlRefused as refused:
            gpu.errors[refused.error] = gpu.errors.get(refused.error, 0) + 1
            return
        for number, kind in self._names.items():
            if number & wanted:
                self._counts.setdefault((gpu, kind), 0)

    def _next(self, wait_seconds: float) -> Any:
        try:
            return self._driver.ask("nvmlEventSetWait_v2", self._set, int(wait_seconds * 1000))
        except nvml.NvmlRefused as refused:
            if refused.error != "timeout":  # a lost GPU spoils the set: the next turn makes a new one
                self._free()
            return None

    def _free(self) -> None:
        event_set, self._set = self._set, None
        try:
            self._driver.ask("nvmlEventSetFree", event_set)
        except nvml.NvmlRefused:  # it belongs to a driver that is gone
            return

    def _facts(self, event: Any, node: Node) -> Iterator[Fact]:
        gpu = self._by_handle.get(_address(event.device))
        kind = self._names.get(event.eventType, f"type_{event.eventType:#x}")
        if gpu is None:
            return
        self._counts[gpu, kind] = self._counts.get((gpu, kind), 0) + 1
        now_ns = node.monotonic_ns()
        if kind != "xid":
            if now_ns < self._sent_ns.get((gpu.uuid, kind), 0):
                return
            self._sent_ns[gpu.uuid, kind] = now_ns + int(REPEAT_SECONDS * 1e9)
        yield Fact(
            "gpu_event", _text(gpu, kind, event.eventData), now_ns, node.realtime_ns(), _fields(gpu, kind, event)
        )


def _fields(gpu: Gpu, kind: str, event: Any) -> dict[str, str]:
    fields = {"type": kind, "gpu": str(gpu.index), "uuid": gpu.uuid, "pci": gpu.pci}
    if kind == "xid":
        fields["code"] = str(event.eventData)
    if event.gpuInstanceId != _NO_INSTANCE:
        fields["gpu_instance"] = str(event.gpuInstanceId)
    if event.computeInstanceId != _NO_INSTANCE:
        fields["compute_instance"] = str(event.computeInstanceId)
    return fields


def _text(gpu: Gpu, kind: str, data: int) -> str:
    what = f"Xid {data}" if kind == "xid" else kind.replace("_", " ")
    return f"GPU {gpu.index} ({gpu.pci}) reported {what}."


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
