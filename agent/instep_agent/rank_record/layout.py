"""The bytes of a rank record: what rank and agent agree on. docs/reference/rank-record.md shows it as tables.

Everything is little-endian and unpadded. Every slot starts with its write sequence (u64) and ends with a CRC-32 of all
bytes before it (u32) and the low half of the same sequence (u32); a slot that was never written has sequence 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"INSTEPRR"
MAJOR = 1
MINOR = 0
RECORD_BYTES_MAX = 4 << 20
"""A reader refuses a larger file; this version writes about 180 KiB."""

UNKNOWN_NS = -1
"""A time that was not observed."""
UNKNOWN_SEQ = -1
"""A sequence number that was not observed (as opposed to 0: none yet)."""


class Phase(IntEnum):
    """What a rank says it is doing; the wire carries the name."""

    unknown = 0
    startup = 1
    """Before the first finished step: import, initialisation, compilation."""
    data = 2
    forward = 3
    backward = 4
    wait = 5
    """Blocked in a collective."""
    optimizer = 6
    checkpoint = 7
    evaluation = 8
    between = 9
    """After an optimizer step in a script that marks nothing: what it does is not known."""
    user = 10
    """Inside an annotated loop, outside every marked phase."""
    finished = 11
    teardown = 12


class Op(IntEnum):
    """Operations of torch.distributed, by torch's own names."""

    unknown = 0
    all_reduce = 1
    all_reduce_coalesced = 2
    broadcast = 3
    all_gather = 4
    all_gather_into_tensor = 5
    all_gather_coalesced = 6
    reduce_scatter = 7
    reduce_scatter_tensor = 8
    reduce_scatter_coalesced = 9
    reduce = 10
    gather = 11
    scatter = 12
    all_to_all = 13
    all_to_all_single = 14
    barrier = 15
    monitored_barrier = 16
    send = 17
    recv = 18
    recv_any_source = 19


class CompletedSource(IntEnum):
    """How a collective's completion became known."""

    unknown = 0
    returned = 1
    """The call blocks until done, so its return is the completion."""
    polled = 2
    """Something asked the work object now and then: the time is late by up to the polling interval."""
    wait = 3
    """The script waited for the work object."""
    event = 4
    """A device event, read later: the time is the device's."""


HEADER = struct.Struct("<8sHHIQQQQ40sqqq18III")
"""magic, major, minor, header bytes, file bytes, pid, pid start ticks, pid namespace, boot id, anchor monotonic ns,
anchor realtime ns, anchor uncertainty ns, six regions (offset, slots, bytes per slot), reserved, CRC-32 of all before
it."""
TAIL = struct.Struct("<II")
"""CRC-32, low half of the write sequence."""
IDENTITY_HEAD = struct.Struct("<QII")
"""sequence, bytes of JSON, reserved; the JSON follows."""
HEARTBEAT = struct.Struct("<QqqIHxxqq")
"""sequence, monotonic ns, step, micro step, phase, padding, phase since ns, CPU ns of the main thread or -1."""
GROUP = struct.Struct("<QQIIBBH64s388s")
"""sequence, key, ordinal, size, flags, bytes of description, bytes of members, description, members as runs."""
COLLECTIVE = struct.Struct("<QQHBB4xqqqqqqq")
"""sequence, token, group slot, op, completed source, padding, seq, payload bytes, entered ns, returned ns, completed
ns, and the group's last returned and completed seq at the time of writing."""
COLLECTIVE_AS_WRITTEN = struct.Struct("<QQI4xqqqqqqq")
"""The same bytes with group slot, op and source in one number: each argument of `pack` costs the writer 10 ns."""
STEP = struct.Struct("<Qqq10dqqII")
"""sequence (counts steps from 1), step, ended ns, seconds: wall, data, forward, backward, optimizer, checkpoint,
evaluation, wait, cpu, starved; tokens, sum of squared lengths, micro steps, flags."""

GROUP_MEMBERS_TRUNCATED = 1
STEP_SKIPPED = 1
STEP_YARDSTICK_SHIFT = 8
"""From this bit on a step's flags hold the yardstick in nanoseconds; 0 is *not observed*."""
STEP_YARDSTICK_NS_MAX = (1 << 24) - 1
DESCRIPTION_BYTES_MAX = 64
MEMBERS_TEXT_BYTES_MAX = 388
IDENTITY_SLOT_BYTES = 8192

HEADER_BYTES = HEADER.size
HEADER_CRC_AT = HEADER.size - 4


@dataclass(frozen=True, slots=True)
class Region:
    """One array of equal slots in the file."""

    offset: int
    slots: int
    slot_bytes: int

    @property
    def end(self) -> int:
        """First byte after the region."""
        return self.offset + self.slots * self.slot_bytes

    def at(self, slot: int) -> int:
        """Offset of one slot in the file."""
        return self.offset + slot * self.slot_bytes


@dataclass(frozen=True, slots=True)
class Regions:
    """Where everything is, in the order of the header.

    Identity and heartbeat have two slots, a group's live state two per group: the writer takes them in turns, so that
    a rank killed in the middle of a write leaves the other one whole.
    """

    identity: Region
    heartbeat: Region
    group: Region
    live: Region
    step: Region
    collective: Region

    def in_order(self) -> tuple[Region, ...]:
        """The six regions as the header lists them."""
        return (self.identity, self.heartbeat, self.group, self.live, self.step, self.collective)


def lay_out(*, groups: int = 64, steps: int = 256, collectives: int = 1024) -> Regions:
    """Give the regions of a new record, one behind the other."""
    shapes = (
        (2, IDENTITY_SLOT_BYTES),
        (2, HEARTBEAT.size + TAIL.size),
        (groups, GROUP.size + TAIL.size),
        (2 * groups, COLLECTIVE.size + TAIL.size),
        (steps, STEP.size + TAIL.size),
        (collectives, COLLECTIVE.size + TAIL.size),
    )
    regions, offset = [], HEADER_BYTES
    for slots, slot_bytes in shapes:
        regions.append(Region(offset, slots, slot_bytes))
        offset = regions[-1].end
    return Regions(*regions)
