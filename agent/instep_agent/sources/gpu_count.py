"""How many GPUs each part of the node sees: one that is missing everywhere is missed only against what is expected."""

from __future__ import annotations

from collections.abc import Iterator

from instep_agent.errors import Absent
from instep_agent.gpu.files import gpus_of
from instep_agent.host.pci import DEVICES, nvidia_gpus
from instep_agent.metric import gauge
from instep_agent.node import Node
from instep_agent.sight import check_listable, check_readable
from instep_agent.wire import Sample


class GpuCount:
    """NVIDIA GPUs that the driver has, those on the PCI bus (vendor 10de, class 0300 or 0302), and those expected.

    How many NVML sees, its own sources tell. A GPU that has fallen off the bus may still be in one of the lists.
    """

    name = "gpu_count"
    interval_seconds = 30.0
    deadline_seconds = 2.0
    child = ""
    rights = "reads the node's /sys, and /proc/driver/nvidia: everybody may, in a container both mounted read-only"
    metrics = (gauge("instep_gpus", "GPUs as `seen_by` driver, pci, or as the configuration expects them."),)

    def __init__(self, expected_gpus: int = 0) -> None:
        """`expected_gpus` is 0 where nothing is expected."""
        self._expected_gpus = expected_gpus

    def collect(self, node: Node) -> Iterator[Sample]:
        """Yield the counts. Raise `Absent` where there is no GPU and none is expected."""
        for folder in (node.driver / "nvidia/gpus", node.root / DEVICES):
            check_listable(folder)
        check_readable((node.driver / "nvidia/gpus").glob("*/information"))
        check_readable((node.root / DEVICES).glob("*/class"))
        counts = {"driver": len(gpus_of(node)), "pci": len(nvidia_gpus(str(node.root)))}
        if self._expected_gpus:
            counts["expected"] = self._expected_gpus
        if not any(counts.values()):
            raise Absent("This node has no NVIDIA GPU, and none is expected.")
        for seen_by, count in counts.items():
            yield Sample(name="instep_gpus", labels=(("seen_by", seen_by),), value=float(count))
