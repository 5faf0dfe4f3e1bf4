"""The RDMA counters that have a name of their own: file, metric as node_exporter spells it, and where it stops.

Widths are those of the port counters of the InfiniBand specification, as the kernel's drivers/infiniband/core/sysfs.c
defines them: such a counter stops at its highest number and never wraps. A driver that counts further is recognised by
its counting further. Data counters are 4 byte words.
"""

from __future__ import annotations

from dataclasses import dataclass

from instep_agent.metric import Metric, counter

_PREFIX = "node_infiniband_"
_FRAMES_ONLY = {
    "port_rcv_switch_relay_errors",
    "port_rcv_constraint_errors",
    "port_xmit_constraint_errors",
    "VL15_dropped",
    "unicast_rcv_packets",
    "unicast_xmit_packets",
    "multicast_rcv_packets",
    "multicast_xmit_packets",
    "duplicate_request",
    "implied_nak_seq_err",
    "req_cqe_flush_error",
    "req_remote_access_errors",
    "req_remote_invalid_request",
    "resp_cqe_flush_error",
    "resp_local_length_error",
    "resp_remote_access_errors",
    "roce_adp_retrans_to",
    "roce_slow_restart",
    "roce_slow_restart_cnps",
    "roce_slow_restart_trans",
    "rp_cnp_ignored",
    "rx_atomic_requests",
    "rx_dct_connect",
    "rx_read_requests",
    "rx_write_requests",
}
"""Files whose counters /metrics leaves out: they stay at 0, count what is no fault, or go with one that is shown. Eight
ports would have 200 series of them.
"""


@dataclass(frozen=True, slots=True)
class RdmaCounter:
    """One counter file."""

    folder: str
    file: str
    metric: Metric
    bits: int = 0
    """Its width where it stops at its highest number, 0 where it never does in practice."""
    scale: float = 1.0

    @property
    def maximum(self) -> int:
        """Where it stops, 0 when it does not."""
        return 2**self.bits - 1 if self.bits else 0


def _port(file: str, name: str, help: str, bits: int = 0, scale: float = 1.0) -> RdmaCounter:
    stops = f" Stops at {2**bits - 1}." if 0 < bits < 32 else ""
    return RdmaCounter("counters", file, _metric(file, name, help + stops), bits, scale)


def _hardware(file: str, name: str, help: str) -> RdmaCounter:
    return RdmaCounter("hw_counters", file, _metric(file, name, help))


def _metric(file: str, name: str, help: str) -> Metric:
    return counter(f"{_PREFIX}{name}_total", help, is_on_page=file not in _FRAMES_ONLY)


COUNTERS = (
    _port("link_downed", "link_downed", "Times the link was lost and went down.", 8),
    _port("link_error_recovery", "link_error_recovery", "Times the link was trained again and recovered.", 8),
    _port("symbol_error", "symbol_error", "Symbol errors on the lanes; some are normal on HDR and faster links.", 16),
    _port(
        "local_link_integrity_errors",
        "local_link_integrity_errors",
        "Times the physical errors exceeded the port's limit.",
        4,
    ),
    _port("excessive_buffer_overrun_errors", "excessive_buffer_overrun_errors", "Overruns of the receive buffer.", 4),
    _port("port_rcv_errors", "port_errors_received", "Malformed packets received.", 16),
    _port(
        "port_rcv_remote_physical_errors",
        "port_receive_remote_physical_errors",
        "Packets that another hop had marked as bad.",
        16,
    ),
    _port("port_rcv_switch_relay_errors", "port_receive_switch_relay_errors", "Packets that could not be sent on.", 16),
    _port(
        "port_rcv_constraint_errors",
        "port_constraint_errors_received",
        "Packets refused by a partition or raw filter.",
        8,
    ),
    _port(
        "port_xmit_constraint_errors",
        "port_constraint_errors_transmitted",
        "Packets not sent because of a partition or raw filter.",
        8,
    ),
    _port("port_rcv_discards", "port_discards_received", "Packets received and dropped."),
    _port("port_xmit_discards", "port_discards_transmitted", "Packets dropped instead of sent: congested or down.", 16),
    _port("port_xmit_wait", "port_transmit_wait", "Ticks with data to send and no credit to send it.", 32),
    _port("VL15_dropped", "vl15_dropped", "Management packets dropped.", 16),
    _port("port_rcv_data", "port_data_received_bytes", "Bytes received.", 32, 4.0),
    _port("port_xmit_data", "port_data_transmitted_bytes", "Bytes sent.", 32, 4.0),
    _port("port_rcv_packets", "port_packets_received", "Packets received.", 32),
    _port("port_xmit_packets", "port_packets_transmitted", "Packets sent.", 32),
    _port("unicast_rcv_packets", "unicast_packets_received", "Unicast packets received."),
    _port("unicast_xmit_packets", "unicast_packets_transmitted", "Unicast packets sent."),
    _port("multicast_rcv_packets", "multicast_packets_received", "Multicast packets received."),
    _port("multicast_xmit_packets", "multicast_packets_transmitted", "Multicast packets sent."),
    _hardware("duplicate_request", "duplicate_requests_packets", "Requests received that had been carried out before."),
    _hardware("implied_nak_seq_err", "implied_nak_seq_errors", "Answers out of the order that was expected."),
    _hardware("local_ack_timeout_err", "local_ack_timeout_errors", "Acknowledge timers expired; retries are left."),
    _hardware("np_cnp_sent", "np_cnp_packets_sent", "Congestion notices sent by the receiver."),
    _hardware("np_ecn_marked_roce_packets", "np_ecn_marked_roce_packets_received", "Packets marked on the way."),
    _hardware("out_of_buffer", "out_of_buffer_drops", "Drops because the receiver had posted no buffer."),
    _hardware("out_of_sequence", "out_of_sequence_packets_received", "Packets received out of order."),
    _hardware("packet_seq_err", "packet_sequence_errors", "Sequence error NAKs received; retries are left."),
    _hardware("req_cqe_error", "req_cqes_errors", "Completions in error at the requester."),
    _hardware("req_cqe_flush_error", "req_cqes_flush_errors", "Completions flushed at the requester."),
    _hardware("req_remote_access_errors", "req_remote_access_errors", "Remote access errors at the requester."),
    _hardware("req_remote_invalid_request", "req_remote_invalid_request_errors", "Requests refused by the peer."),
    _hardware("resp_cqe_error", "resp_cqes_errors", "Completions in error at the responder."),
    _hardware("resp_cqe_flush_error", "resp_cqes_flush_errors", "Completions flushed at the responder."),
    _hardware("resp_local_length_error", "resp_local_length_errors", "Local length errors at the responder."),
    _hardware("resp_remote_access_errors", "resp_remote_access_errors", "Remote access errors at the responder."),
    _hardware("rnr_nak_retry_err", "rnr_nak_retry_packets_received", "Receiver-not-ready NAKs; retries are left."),
    _hardware("roce_adp_retrans", "roce_adp_retransmits", "Adaptive retransmissions."),
    _hardware("roce_adp_retrans_to", "roce_adp_retransmits_timeout", "Adaptive retransmissions that timed out."),
    _hardware("roce_slow_restart", "roce_slow_restart_used", "Times slow restart was used."),
    _hardware("roce_slow_restart_cnps", "roce_slow_restart_cnps", "Congestion notices of slow restart."),
    _hardware("roce_slow_restart_trans", "roce_slow_restart", "Changes into slow restart."),
    _hardware("rp_cnp_handled", "rp_cnp_packets_handled", "Congestion notices that slowed the sender down."),
    _hardware("rp_cnp_ignored", "rp_cnp_ignored_packets_received", "Congestion notices ignored."),
    _hardware("rx_atomic_requests", "rx_atomic_requests", "Atomic requests received."),
    _hardware("rx_dct_connect", "rx_dct_connect_requests", "Connection requests of dynamic transport received."),
    _hardware("rx_read_requests", "rx_read_requests", "Read requests received."),
    _hardware("rx_write_requests", "rx_write_requests", "Write requests received."),
    _hardware("rx_icrc_encapsulated", "rx_icrc_encapsulated_errors", "RoCE packets with a wrong checksum."),
)
BY_FILE = {(one.folder, one.file): one for one in COUNTERS}
