"""Which GPUs the node has, from the driver's own files: enough to join a kernel line to a rank."""

from __future__ import annotations

from collections.abc import Iterator

from instep_agent.errors import Absent
from instep_agent.gpu.files import gpus_of
from instep_agent.metric import Metric
from instep_agent.node import Node
from instep_agent.sight import check_listable, check_readable
from instep_agent.wire import GpuReport


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
        check_listable(folder)
        if not folder.is_dir():
            raise Absent(f"{folder} does not exist: no NVIDIA driver is loaded.")
        check_readable(sorted(folder.glob("*/information")))
        yield from gpus_of(node)
