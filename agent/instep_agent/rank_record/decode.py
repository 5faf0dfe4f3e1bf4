"""From untrusted bytes to values: every number is checked, and a slot that fails is as if never written."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from msgspec import Struct

from instep_agent.errors import RecordInvalid, RecordVersionUnknown
from instep_agent.rank_record import layout
from instep_agent.rank_record.identity import RankIdentity, decode_identity
from instep_agent.rank_record.layout import CompletedSource, Op, Phase, Region, Regions
from instep_agent.rank_record.members import MEMBERS_MAX, from_runs
from instep_agent.wire import ClockAnchor, StepReport

SLOTS_MAX = 16_384
SLOT_BYTES_MAX = 65_536
SECONDS_MAX = 1e8
"""About three years; a longer duration is not believed."""
COUNT_MAX = 2**62


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The fixed part of a record: where things are, and which process on which boot writes it."""

    version: tuple[int, int]
    pid: int
    pid_start_ticks: int
    pid_namespace: int
    anchor: ClockAnchor
    regions: Regions


class Heartbeat(Struct, frozen=True):
    """The last sign of life; times in nanoseconds of the node's monotonic clock, None is *not observed*."""

    monotonic_ns: int
    step: int
    micro_step: int
    phase: Phase
    phase_since_ns: int | None
    cpu_ns: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """The part of a process group that never changes."""

    key: str
    ordinal: int
    size: int
    description: str
    members: tuple[int, ...] | None


class Collective(Struct, frozen=True):
    """One collective, with the marks of its group when it was written; None is *not observed*."""

    write: int
    token: int
    group: int
    op: Op
    source: CompletedSource
    seq: int
    payload_bytes: int
    entered_ns: int | None
    returned_ns: int | None
    completed_ns: int | None
    group_returned_seq: int | None
    group_completed_seq: int | None


def head_of(slot: bytes) -> int:
    """Give the sequence at the head of a slot, which may be torn; 0 when it was never written."""
    return int.from_bytes(slot[:8], "little")


def sequence_of(slot: bytes) -> int:
    """Give the sequence of a whole slot; 0 when it was never written or is torn."""
    seq = int.from_bytes(slot[:8], "little")
    if not seq or len(slot) < 8 + layout.TAIL.size:
        return 0
    checksum, low = layout.TAIL.unpack_from(slot, len(slot) - layout.TAIL.size)
    return seq if low == seq & 0xFFFFFFFF and checksum == crc32(memoryview(slot)[: -layout.TAIL.size]) else 0


def decode_header(data: bytes, file_bytes: int) -> RecordHeader:
    """Give the header; raise RecordInvalid or RecordVersionUnknown with a sentence that has no path in it yet."""
    if len(data) < layout.HEADER_BYTES or data[:8] == bytes(8):
        raise RecordInvalid("it is shorter than a header, or still being created")
    (
        magic,
        major,
        minor,
        header_bytes,
        size,
        pid,
        ticks,
        namespace,
        boot,
        monotonic,
        realtime,
        uncertainty,
        *numbers,
        _reserved,
        checksum,
    ) = layout.HEADER.unpack_from(data)
    if magic != layout.MAGIC:
        raise RecordInvalid("it does not start with INSTEPRR")
    if major != layout.MAJOR:
        raise RecordVersionUnknown(
            f"it has version {major}.{minor}, and this reader knows {layout.MAJOR}.x: "
            "use the same Instep release for job and agent"
        )
    if checksum != crc32(data[: layout.HEADER_CRC_AT]):
        raise RecordInvalid("the checksum of its header is wrong")
    if not layout.HEADER_BYTES <= header_bytes <= size <= file_bytes:
        raise RecordInvalid("it is shorter than its header says")
    if not 0 < pid < 2**31:
        raise RecordInvalid("its process number is impossible")
    anchor = ClockAnchor(
        boot_id=boot.rstrip(b"\0").decode("ascii", "replace"),
        monotonic_ns=monotonic,
        realtime_ns=realtime,
        uncertainty_ns=uncertainty,
    )
    regions = _decode_regions(numbers, header_bytes, size)
    return RecordHeader((major, minor), pid, ticks, namespace, anchor, regions)


def _decode_regions(numbers: list[int], header_bytes: int, size: int) -> Regions:
    regions = Regions(*(Region(*numbers[at : at + 3]) for at in range(0, 18, 3)))
    known = layout.lay_out()
    for region, ours in zip(regions.in_order(), known.in_order(), strict=True):
        if not (
            header_bytes <= region.offset
            and region.end <= size
            and 0 < region.slots <= SLOTS_MAX
            and ours.slot_bytes <= region.slot_bytes <= SLOT_BYTES_MAX
        ):
            raise RecordInvalid("a region of it lies outside the file, or has impossible slots")
    if min(regions.identity.slots, regions.heartbeat.slots) < 2 or regions.live.slots < 2 * regions.group.slots:
        raise RecordInvalid("a region of it has too few slots")
    return regions


def decode_identity_slot(slot: bytes) -> RankIdentity | None:
    """Give the identity in a slot, or None when it is torn or not acceptable."""
    if not sequence_of(slot):
        return None
    _seq, length, _reserved = layout.IDENTITY_HEAD.unpack_from(slot)
    start = layout.IDENTITY_HEAD.size
    if length > len(slot) - start - layout.TAIL.size:
        return None
    try:
        return decode_identity(slot[start : start + length])
    except ValueError:
        return None


def decode_heartbeat(slot: bytes) -> tuple[int, Heartbeat] | None:
    """Give sequence and heartbeat, or None when torn or absurd."""
    if not sequence_of(slot):
        return None
    seq, monotonic, step, micro_step, phase, since, cpu = layout.HEARTBEAT.unpack_from(slot)
    if not 0 <= monotonic < COUNT_MAX or not 0 <= step < COUNT_MAX:
        return None
    return seq, Heartbeat(monotonic, step, micro_step, _PHASES.get(phase, Phase.unknown), _known(since), _known(cpu))


def decode_group(slot: bytes, members_max: int = MEMBERS_MAX) -> Group | None:
    """Give the static part of a group, or None when torn or never written; without members if it has more than that."""
    if not sequence_of(slot):
        return None
    (_seq, key, ordinal, size, flags, description_bytes, members_bytes, description, members) = (
        layout.GROUP.unpack_from(slot)
    )
    whole = not flags & layout.GROUP_MEMBERS_TRUNCATED and size <= members_max
    return Group(
        f"{key:016x}",
        ordinal,
        size,
        description[:description_bytes].decode("utf-8", "ignore"),
        from_runs(members[:members_bytes].decode("latin-1"), size) if whole else None,
    )


def decode_collective(slot: bytes) -> Collective | None:
    """Give a collective, or None when torn, never written or absurd."""
    if not sequence_of(slot):
        return None
    (
        write,
        token,
        group,
        op,
        source,
        seq,
        payload_bytes,
        entered,
        returned,
        completed,
        group_returned,
        group_completed,
    ) = layout.COLLECTIVE.unpack_from(slot)
    if not 0 <= seq < COUNT_MAX:
        return None
    return Collective(
        write,
        token,
        group,
        _OPS.get(op, Op.unknown),
        _SOURCES.get(source, CompletedSource.unknown),
        seq,
        payload_bytes if 0 <= payload_bytes < COUNT_MAX else 0,
        _known(entered),
        _known(returned),
        _known(completed),
        _known(group_returned),
        _known(group_completed),
    )


def decode_step(slot: bytes) -> tuple[int, StepReport] | None:
    """Give count and report of a finished step, or None when torn, never written or without a sound duration."""
    if not sequence_of(slot):
        return None
    seq, step, _ended, *rest = layout.STEP.unpack_from(slot)
    wall, data, forward, backward, optimizer, checkpoint, evaluation, wait, cpu, starved = map(_seconds, rest[:10])
    tokens, tokens_squared, micro_steps, flags = rest[10:]
    if wall is None or not 0 <= step < COUNT_MAX:
        return None
    return seq, StepReport(
        step=step,
        wall_seconds=wall,
        data_seconds=data or 0.0,
        forward_seconds=forward or 0.0,
        backward_seconds=backward or 0.0,
        optimizer_seconds=optimizer or 0.0,
        checkpoint_seconds=checkpoint or 0.0,
        evaluation_seconds=evaluation or 0.0,
        wait_seconds=wait or 0.0,
        cpu_seconds=cpu,
        starved_seconds=starved,
        yardstick_seconds=(flags >> layout.STEP_YARDSTICK_SHIFT) * 1e-9 or None,
        tokens=_count(tokens),
        tokens_squared=_count(tokens_squared),
        micro_steps=micro_steps,
        is_skipped=bool(flags & layout.STEP_SKIPPED),
    )


_OPS = {op.value: op for op in Op}
_SOURCES = {source.value: source for source in CompletedSource}
_PHASES = {phase.value: phase for phase in Phase}


def _known(number: int) -> int | None:
    return number if 0 <= number < COUNT_MAX else None


def _count(number: int) -> int:
    return number if 0 <= number < COUNT_MAX else 0


def _seconds(value: float) -> float | None:
    return value if 0.0 <= value <= SECONDS_MAX else None  # neither holds of NaN
