"""An RDMA port loses its link: for as long as the drill lasts, or so shortly that only the port's own counter tells."""

from __future__ import annotations

from instep_agent.drills import Change, Mark, Said
from instep_agent.inject.injection import Injection, Target, TreeChange, needs_device
from instep_agent.inject.rdma_counter import counter_change, port_folder, port_labels

_KINDS = ("link_down", "link_up", "link_flap", "rdma_counters_reset")


class LinkDown:
    """State DOWN, physical state Polling, and one more in the port's count of losses."""

    name = "link-down"
    help = "an RDMA port without link: --device, --port"

    def injection(self, target: Target) -> Injection:
        """Give state, physical state and count."""
        labels, folder = port_labels(target), port_folder(target)
        text = f"Port {target.port} of {needs_device(target)} lost its link; physical state Polling."
        return Injection(
            tree=(
                TreeChange(f"{folder}/counters/link_downed", add=1),
                TreeChange(f"{folder}/phys_state", "2: Polling"),
                TreeChange(f"{folder}/state", "1: DOWN"),
            ),
            changes=(
                Change(metric="node_infiniband_state_id", labels=labels, set=1.0),
                Change(metric="node_infiniband_physical_state_id", labels=labels, set=2.0),
                Change(metric="instep_rdma_port_downs_total", labels=labels, add=1.0),
                counter_change(target, "link_downed", add=1.0),
            ),
            marks=tuple(Mark(kind=kind, fields=labels) for kind in _KINDS),
            said=(Said(kind="link_down", text=text, fields=labels | {"phys_state": "Polling"}),),
        )


class LinkFlap:
    """So many more in the port's count of losses, while every look finds the link there."""

    name = "link-flap"
    help = "an RDMA port that loses its link for moments: --device, --port, --count (default 1)"

    def injection(self, target: Target) -> Injection:
        """Give the count."""
        labels, count = port_labels(target), target.count
        text = (
            f"Port {target.port} of {needs_device(target)} lost its link {count} times between two looks, each time "
            "for less than a look."
        )
        return Injection(
            tree=(TreeChange(f"{port_folder(target)}/counters/link_downed", add=count),),
            changes=(
                Change(metric="instep_rdma_port_downs_total", labels=labels, add=float(count)),
                counter_change(target, "link_downed", add=float(count)),
            ),
            marks=tuple(Mark(kind=kind, fields=labels) for kind in _KINDS),
            said=(Said(kind="link_flap", text=text, fields=labels | {"count": str(count)}),),
        )
