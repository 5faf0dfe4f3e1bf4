"""What the driver itself says must be done with a GPU before it can be used again: it knows better than any table."""

from __future__ import annotations

from collections.abc import Iterator

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


class GpuRecovery:
    """The recovery action that the driver asks for, for every GPU, from NVML.

    Every 2 s: it decides what is done with the node, so it should be there when the events of the same fault are; one
    field for each GPU is the whole cost. A change is a fact as well, since a reading alone comes with no event.
    """

    name = "gpu_recovery"
    interval_seconds = 2.0
    deadline_seconds = 5.0
    child = "nvml"
    rights = "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them"
    metrics: tuple[Metric, ...] = tuple(each.metric for each in FIELDS)

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver
        self._asked: dict[str, int] = {}

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield one action per GPU. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        yield from self._driver.each(node, lambda gpu: self._of(gpu, node))

    def _of(self, gpu: Gpu, node: Node) -> Iterator[Sample | Fact]:
        for sample in self._driver.field_samples(gpu, node, FIELDS):
            yield sample
            action = int(sample.value)
            if action != self._asked.get(gpu.uuid, 0):
                self._asked[gpu.uuid] = action
                yield _fact(gpu, node, action)


def _fact(gpu: Gpu, node: Node, action: int) -> Fact:
    text = f"GPU {gpu.index} ({gpu.pci}) asks for recovery action {action}."
    fields = {"gpu": str(gpu.index), "uuid": gpu.uuid, "pci": gpu.pci, "action": str(action)}
    return Fact("gpu_recovery", text, node.monotonic_ns(), node.realtime_ns(), fields)
