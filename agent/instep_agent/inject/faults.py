"""Every fault that a node can have; the list is explicit, and a test checks that it is complete."""

from __future__ import annotations

from instep_agent.inject.disk_full import DiskFull
from instep_agent.inject.driver_hang import DriverHang
from instep_agent.inject.ecc import Ecc
from instep_agent.inject.injection import NodeFault
from instep_agent.inject.link import LinkDown, LinkFlap
from instep_agent.inject.oom import Oom
from instep_agent.inject.rdma_counter import CounterJump, CounterSaturated
from instep_agent.inject.remap import Remap
from instep_agent.inject.sxid import Sxid
from instep_agent.inject.thermal import Thermal
from instep_agent.inject.xid import Xid

NODE_FAULTS: tuple[NodeFault, ...] = (
    Xid(),
    Sxid(),
    Ecc("corrected"),
    Ecc("uncorrected"),
    Remap("pending"),
    Remap("failed"),
    Thermal(),
    DriverHang(),
    LinkDown(),
    LinkFlap(),
    CounterJump(),
    CounterSaturated(),
    DiskFull(),
    Oom(),
)
BY_NAME = {fault.name: fault for fault in NODE_FAULTS}
