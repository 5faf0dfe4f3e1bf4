"""Which GPUs the node has, from the driver's own files: enough to join a kernel line to a rank."""

from __future__ import annotations

from collections.abc import Iterator

from instep_agent.errors import Absent
from instep_agent.metric import Metric
from instep_agent.node import Node
from instep_agent.wire import GpuReport

GPUS_MAX = 64


class GpuInventory:
    """GPU index, UUID and PCI address, from `/proc/driver/nvidia/gpus/<pci>/information`.

    The index is the device minor (`/dev/nvidia<minor>`). A driver that has lost a GPU may drop its folder: then the GPU
    is missing here, which is a fact of its own.
    """

    name = "gpu_inventory"
    interval_seconds = 10.0
    deadline_seconds = 2.0
    child = ""
    rights = "sees /proc/driver/nvidia of the node: everybody may, in a container the driver's or the node's /proc"
    metrics: tuple[Metric, ...] = ()

    def collect(self, node: Node) -> Iterator[GpuReport]:
        """Yield one report per GPU. Raise `Absent` on a node without the NVIDIA driver."""
        folder = node.driver / "nvidia/gpus"
        if not folder.is_dir():
            raise Absent(f"{folder} does not exist: no NVIDIA driver is loaded.")
        for information in sorted(folder.glob("*/information"))[:GPUS_MAX]:
            gpu = parse_information(information.read_text(errors="replace"))
            if gpu is not None:
                yield gpu


def parse_information(text: str) -> GpuReport | None:
    """Give the GPU that one `information` file describes, or None when it names no address.

    >>> parse_information("GPU UUID: \\t GPU-1\\nBus Location: \\t 0000:3B:00.0\\nDevice Minor: \\t 2\\n")
    GpuReport(index=2, uuid='GPU-1', pci='0000:3b:00')
    """
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    minor, location = fields.get("Device Minor", ""), fields.get("Bus Location", "")
    if not minor.isdigit() or not location:
        return None
    return GpuReport(
        index=int(minor), uuid=fields.get("GPU UUID", ""), pci=location.lower().rpartition(".")[0] or location
    )
