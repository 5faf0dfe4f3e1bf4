"""Which of a driver's statistics are kept, and as what: PFC, pause, discards and the physical layer.

Names are those of mlx5 (`rx_prio3_pause`), bnxt_en (`rx_pfc_ena_frames_pri3`, `pfc_pri3_rx_duration_us`) and ice
(`rx_priority_3_xoff.nic`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from instep_agent.metric import Metric, counter

PAUSE = counter("instep_ethernet_priority_pause_frames_total", "PFC pause frames of every priority.", is_on_page=False)
PAUSE_SECONDS = counter(
    "instep_ethernet_priority_pause_seconds_total", "Time paused by PFC, of every priority.", is_on_page=False
)
TRANSITIONS = counter(
    "instep_ethernet_priority_pause_transitions_total", "Changes into PFC pause, of every priority.", is_on_page=False
)
DISCARDS = counter("instep_ethernet_priority_discards_total", "Frames dropped, of every priority.", is_on_page=False)
LOSSLESS = {
    PAUSE.name: counter(
        "instep_ethernet_lossless_pause_frames_total",
        "PFC pause frames of the priorities that ever paused: received, the network throttles this node; transmitted, "
        "this node throttles the network.",
    ),
    PAUSE_SECONDS.name: counter(
        "instep_ethernet_lossless_pause_seconds_total", "Time paused by PFC, of the priorities that ever paused."
    ),
    DISCARDS.name: counter(
        "instep_ethernet_lossless_discards_total", "Frames dropped, of the priorities that ever paused."
    ),
}
"""What /metrics shows: a priority is taken for lossless when it ever paused, in either direction."""
GLOBAL_PAUSE = counter("instep_ethernet_pause_frames_total", "Pause frames of the whole link, not of one priority.")
STORMS = counter("instep_ethernet_pause_storms_total", "Pause storms that the card noticed in itself, by severity.")
PORT_DISCARDS = counter("instep_ethernet_discards_total", "Frames dropped by the card for want of room.")
PHYSICAL = counter("instep_ethernet_physical_events_total", "Errors and events of the physical layer, by name.")
OTHER = counter("instep_ethernet_statistic_total", "Another statistic of the driver, by its name.", is_on_page=False)
METRICS: tuple[Metric, ...] = (
    *LOSSLESS.values(),
    GLOBAL_PAUSE,
    STORMS,
    PORT_DISCARDS,
    PHYSICAL,
    PAUSE,
    PAUSE_SECONDS,
    TRANSITIONS,
    DISCARDS,
    OTHER,
)
_DIRECTIONS = {"rx": "receive", "tx": "transmit"}
_MICROSECONDS = 1e-6
_TABLE = tuple(
    (re.compile(pattern), metric, scale)
    for pattern, metric, scale in (
        (r"(?P<direction>[rt]x)_prio(?P<priority>\d)_pause", PAUSE, 1.0),
        (r"(?P<direction>[rt]x)_pfc_ena_frames_pri(?P<priority>\d)", PAUSE, 1.0),
        (r"(?P<direction>[rt]x)_priority_(?P<priority>\d)_xoff\.nic", PAUSE, 1.0),
        (r"(?P<direction>[rt]x)_prio(?P<priority>\d)_pause_duration", PAUSE_SECONDS, _MICROSECONDS),
        (r"pfc_pri(?P<priority>\d)_(?P<direction>[rt]x)_duration_us", PAUSE_SECONDS, _MICROSECONDS),
        (r"(?P<direction>[rt]x)_prio(?P<priority>\d)_pause_transition", TRANSITIONS, 1.0),
        (r"pfc_pri(?P<priority>\d)_(?P<direction>[rt]x)_transitions", TRANSITIONS, 1.0),
        (r"(?P<direction>[rt]x)_prio(?P<priority>\d)_discards", DISCARDS, 1.0),
        (r"(?P<direction>[rt]x)_(?:global_pause|pause_frames)", GLOBAL_PAUSE, 1.0),
        (r"link_xoff_(?P<direction>[rt]x)\.nic", GLOBAL_PAUSE, 1.0),
        (r"tx_pause_storm_(?P<severity>warning|error)_events", STORMS, 1.0),
        (r"(?P<direction>[rt]x)_discards_phy", PORT_DISCARDS, 1.0),
        (r"(?P<event>rx_(?:pcs_)?symbol_err_phy|rx_corrected_bits_phy|rx_err_lane_\d_phy)", PHYSICAL, 1.0),
        (r"(?P<event>rx_crc_errors_phy|link_down_events_phy|module_(?:unplug|bad_cable))", PHYSICAL, 1.0),
        (r"(?P<statistic>rx_prio\d_(?:buf_discard|cong_discard|marked)|rx_out_of_buffer)", OTHER, 1.0),
        (r"(?P<statistic>rx_buffer_passed_thres_phy|rx_icrc_encapsulated|outbound_pci_\w+)", OTHER, 1.0),
    )
)


@dataclass(frozen=True, slots=True)
class Kept:
    """One statistic that is kept."""

    place: int
    """Among the driver's statistics."""
    metric: Metric
    labels: tuple[tuple[str, str], ...]
    priority: str
    scale: float


def kept(interface: str, names: list[str], kept_max: int) -> list[Kept]:
    """Give what is kept of a driver's statistics, each metric and labels once.

    >>> [(one.place, one.labels) for one in kept("eth0", ["rx_packets", "tx_prio3_pause"], 10)]
    [(1, (('device', 'eth0'), ('direction', 'transmit'), ('priority', '3')))]
    """
    found: dict[tuple[str, object], Kept] = {}
    for place, name in enumerate(names):
        for pattern, metric, scale in _TABLE:
            if match := pattern.fullmatch(name):
                words = {key: _DIRECTIONS.get(text, text) for key, text in match.groupdict().items()}
                words["device"] = interface
                labels = tuple(sorted(words.items()))
                found.setdefault((metric.name, labels), Kept(place, metric, labels, words.get("priority", ""), scale))
                break
        if len(found) >= kept_max:
            break
    return list(found.values())
