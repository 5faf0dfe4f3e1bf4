"""The GPUs of a node as the driver's own files tell them: for whatever joins an index or an address to a GPU."""

from __future__ import annotations

from instep_agent.node import Node
from instep_agent.wire import GpuReport

GPUS_MAX = 64


def gpus_of(node: Node) -> list[GpuReport]:
    """Give the node's GPUs from `/proc/driver/nvidia/gpus/<pci>/information`, none where there is no driver."""
    found = []
    for information in sorted((node.driver / "nvidia/gpus").glob("*/information"))[:GPUS_MAX]:
        try:
            found.append(parse_information(information.read_text(errors="replace")))
        except OSError:  # the driver takes away the folder of a GPU that it has lost
            continue
    return [gpu for gpu in found if gpu is not None]


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
