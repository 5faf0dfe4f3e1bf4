"""What the driver itself says must be done with a GPU before it can be used again: it knows better than any table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Field, Gpu
from instep_agent.metric import Metric, gauge
from instep_agent.node import Fact, Node, Reading
from instep_agent.wire import Sample

FIELDS = (
    Field(
        "GET_GPU_RECOVERY_ACTION",
        gauge(
            "instep_gpu_recovery_action",
            "0 none, 1 reset the GPU, 2 reboot the node, 3 drain peers, 4 drain and reset, 5 recover the IMEX domain, "
            "6 reset its bus, 7 reboot the system (field GET_GPU_RECOVERY_ACTION).",
        ),
    ),
)
START_SECONDS = 30.0
"""A source that was made so long ago and looks for the first time does so in a new process of an old agent."""


class GpuRecovery:
    """The recovery action that the driver asks for, for every GPU, from NVML.

    Every 2 s: it decides what is done with the node, so it should be there when the events of the same fault are; one
    field for each GPU is the whole cost. A change is a fact as well, since a reading alone comes with no event. What
    stood already when the agent began is told as standing: since when, NVML does not say. A process that takes the
    place of one that hung tells it as a change: it may have come with what hung.
    """

    name = "gpu_recovery"
    interval_seconds = 2.0
    deadline_seconds = 5.0
    child = "nvml"
    rights = "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them"
    metrics: tuple[Metric, ...] = tuple(each.metric for each in FIELDS)

    def __init__(
        self, driver: nvml.Driver = nvml.shared, *, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._driver = driver
        self._monotonic_ns = monotonic_ns
        self._made_ns = monotonic_ns()
        self._asked: dict[str, int] = {}
        """By UUID: what was asked for at the last look."""

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield one action per GPU. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        yield from self._driver.each(node, lambda gpu: self._of(gpu, node))

    def _of(self, gpu: Gpu, node: Node) -> Iterator[Sample | Fact]:
        for sample in self._driver.field_samples(gpu, node, FIELDS):
            yield sample
            action = int(sample.value)
            before = self._asked.get(gpu.uuid)
            self._asked[gpu.uuid] = action
            if action != (before or 0):
                yield _fact(gpu, node, action, is_standing=before is None and self._is_start())

    def _is_start(self) -> bool:
        return self._monotonic_ns() - self._made_ns < START_SECONDS * 1e9


def _fact(gpu: Gpu, node: Node, action: int, *, is_standing: bool) -> Fact:
    text = f"GPU {gpu.index} ({gpu.pci}) asks for recovery action {action}."
    fields = {"gpu": str(gpu.index), "uuid": gpu.uuid, "pci": gpu.pci, "action": str(action)}
    if is_standing:
        text = f"{text[:-1]}, and did so already at the agent's first look."
        fields["is_standing"] = "true"
    return Fact("gpu_recovery", text, node.monotonic_ns(), node.realtime_ns(), fields)
