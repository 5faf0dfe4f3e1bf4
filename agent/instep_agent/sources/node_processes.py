"""What the node's processes are doing, and whether the services that GPUs need are among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from instep_agent.errors import SourceFailed
from instep_agent.host.pci import has_nvswitch
from instep_agent.host.processes import name_and_state, process_ids
from instep_agent.metric import gauge
from instep_agent.node import Node
from instep_agent.sight import check_readable
from instep_agent.wire import Sample

STATES = ("running", "sleeping", "uninterruptible", "stopped", "zombie")
_FABRIC_MANAGER = "nv-fabricmanager"
_PERSISTENCE_DAEMON = "nvidia-persistenced"
_NAME_CHARACTERS_MAX = 15
"""The kernel keeps so much of a process's name."""


class NodeProcesses:
    """Processes of the node by state, from `/proc/<pid>/stat`, and the services of the GPU driver among them.

    `uninterruptible` waits in the kernel, for storage or a driver. The fabric manager is looked for on nodes with
    NVSwitches only, the persistence daemon on nodes with an NVIDIA driver. In a container without the node's pid
    namespace the node's processes cannot be seen, and the services are not reported as missing.
    """

    name = "node_processes"
    interval_seconds = 30.0
    deadline_seconds = 2.0
    child = ""
    rights = "sees the node's processes: the node's pid namespace (`hostPID`), or its /proc and `proc`"
    metrics = (
        gauge("instep_node_processes", "Processes in this state."),
        gauge("instep_node_service_is_running", "1 when a process of the service exists that the node's GPUs need."),
    )

    def collect(self, node: Node) -> Iterator[Sample]:
        """Yield the number of processes by state. Raise `SourceFailed` when the node's processes cannot be seen."""
        try:
            numbers = process_ids(node.proc)
        except OSError as error:
            raise SourceFailed(
                f"Cannot list {node.proc} ({(error.strerror or '').lower()}): mount the node's /proc read-only into "
                "the agent's pod."
            ) from error
        looks = [look for pid in numbers if (look := name_and_state(pid, node.proc)) is not None]
        if not looks:
            check_readable(node.proc / str(pid) / "stat" for pid in numbers)
        by_state = Counter(state for _, state in looks)
        for state in STATES:
            yield Sample(name="instep_node_processes", labels=(("state", state),), value=float(by_state[state]))
        needed = [_PERSISTENCE_DAEMON] if (node.driver / "nvidia").is_dir() else []
        if has_nvswitch(str(node.root), node.driver):
            needed.append(_FABRIC_MANAGER)
        names = {name for name, _ in looks}
        if needed and "kthreadd" not in names and not names & {each[:_NAME_CHARACTERS_MAX] for each in needed}:
            raise SourceFailed(
                "Only the processes of this container can be seen, so that services of the node cannot be looked for: "
                "give the agent's pod hostPID, or mount the node's /proc and set `proc`."
            )
        for service in needed:
            is_running = service[:_NAME_CHARACTERS_MAX] in names
            labels = (("service", service),)
            yield Sample(name="instep_node_service_is_running", labels=labels, value=float(is_running))
