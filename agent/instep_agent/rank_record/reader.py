"""The agent's end of a rank record: `pread` on a file that somebody else may truncate, replace or fill with nonsense.

Never mapped: reading a mapping after its owner has truncated the file kills the reader with SIGBUS.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from msgspec import Struct

from instep_agent.errors import RecordInvalid, RecordVersionUnknown
from instep_agent.rank_record import decode, layout
from instep_agent.rank_record.decode import Collective, Group, Heartbeat, RecordHeader
from instep_agent.rank_record.identity import RankIdentity
from instep_agent.rank_record.layout import Region
from instep_agent.wire import StepReport

STEPS_PER_READ_MAX = 1024
"""What is more comes with the next reads, so that no record holds its reader up."""
MEMBERS_HELD_MAX = 1 << 17
"""Of all groups of one record; further groups come without their members."""


class GroupState(Struct, frozen=True):
    """A process group of the rank: what it is, and its last collective (None when that slot is not readable)."""

    group: Group
    live: Collective | None


class RankRecord(Struct, frozen=True):
    """What a record said at one moment. `steps` are those not given by the same reader before, oldest first."""

    path: str
    header: RecordHeader
    identity: RankIdentity
    heartbeat: Heartbeat | None
    groups: tuple[GroupState, ...]
    steps: tuple[StepReport, ...]
    collectives: tuple[Collective, ...]
    """The ring in the order of entering; empty when it was not asked for."""


class RecordReader:
    """Holds one record open and reads what is new. Close it, or use it in a `with`."""

    def __init__(self, path: Path | str, *, dir_fd: int | None = None, uid: int | None = None) -> None:
        """Open `path` (beneath `dir_fd` where given) without following a link at its end.

        `uid` is the only owner that is believed; None believes any. Raise RecordInvalid for anything but a sound
        record.
        """
        self.path = str(path)
        self._descriptor = _open(self.path, dir_fd)
        try:
            self.header = self._read_header(uid)
            self._identity = self._read_identity() or self._refuse("its identity is torn")
        except BaseException:  # also an interrupt; it goes on to whoever called
            os.close(self._descriptor)
            raise
        self._heartbeat: tuple[int, Heartbeat] | None = None
        self._heartbeat_bytes = self._live_bytes = self._step_bytes = b""
        """What was read last and needs no second look while it has not changed; of the steps, the slot of the next."""
        self._live: tuple[GroupState, ...] = ()
        self._groups: list[Group] = []
        self._next_step = 1
        self.members_held = 0
        """Members of groups that this reader keeps: 36 bytes each."""

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the reader is of no further use."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def owner(self) -> int:
        """The user who owns the file."""
        return os.fstat(self._descriptor).st_uid

    @property
    def identity(self) -> RankIdentity:
        """The identity as last read."""
        return self._identity[1]

    def read(self, *, with_collectives: bool = True) -> RankRecord:
        """Give the state now, and the steps finished since the last call."""
        if self._identity_seq() != self._identity[0]:
            self._identity = self._read_identity() or self._identity
        self._read_heartbeat()
        self._read_new_groups()
        return RankRecord(
            self.path,
            self.header,
            self.identity,
            self._heartbeat[1] if self._heartbeat else None,
            self._read_live(),
            self._read_new_steps(),
            self.read_collectives() if with_collectives else (),
        )

    def read_collectives(self) -> tuple[Collective, ...]:
        """Give the ring of collectives in the order of entering."""
        slots = self._slots(self.header.regions.collective)
        found = {
            entry.token: entry
            for entry in map(decode.decode_collective, slots)
            if entry is not None and entry.token and entry.seq and entry.group < len(self._groups)
        }
        return tuple(found[token] for token in sorted(found))

    def group_keys(self) -> tuple[str, ...]:
        """Give the keys of the groups by slot, to read a collective's `group`."""
        return tuple(group.key for group in self._groups)

    def _refuse(self, why: str) -> NoReturn:
        raise RecordInvalid(f"{self.path} is not a rank record: {why}.")

    def _read_header(self, uid: int | None) -> RecordHeader:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RecordInvalid(f"{self.path} is not a rank record: it is not a regular file.")
        if uid is not None and status.st_uid != uid:
            raise RecordInvalid(f"{self.path} is not believed: it belongs to user {status.st_uid}, not to {uid}.")
        if status.st_size > layout.RECORD_BYTES_MAX:
            raise RecordInvalid(f"{self.path} is not a rank record: it is larger than {layout.RECORD_BYTES_MAX} bytes.")
        try:
            return decode.decode_header(os.pread(self._descriptor, layout.HEADER_BYTES, 0), status.st_size)
        except RecordVersionUnknown as error:
            raise RecordVersionUnknown(f"Cannot read the rank record {self.path}: {error}.") from None
        except RecordInvalid as error:
            raise RecordInvalid(f"{self.path} is not a rank record: {error}.") from None

    def _slot(self, region: Region, slot: int) -> bytes:
        return os.pread(self._descriptor, region.slot_bytes, region.at(slot))

    def _slots(self, region: Region, count: int | None = None) -> list[bytes]:
        """Give the slots from the first on; those that a truncated file lacks come as empty bytes."""
        size, slots = region.slot_bytes, region.slots if count is None else count
        data = os.pread(self._descriptor, slots * size, region.offset)
        return [data[at * size : (at + 1) * size] for at in range(slots)]

    def _identity_seq(self) -> int:
        """Give the largest sequence at the head of an identity slot, which is all that is read when nothing changed."""
        region = self.header.regions.identity
        return max(int.from_bytes(os.pread(self._descriptor, 8, region.at(slot)), "little") for slot in (0, 1))

    def _read_identity(self) -> tuple[int, RankIdentity] | None:
        found = [
            (decode.sequence_of(slot), identity)
            for slot in self._slots(self.header.regions.identity, 2)
            if (identity := decode.decode_identity_slot(slot))
        ]
        return max(found, key=lambda pair: pair[0], default=None)

    def _read_heartbeat(self) -> None:
        """Keep the newest whole heartbeat; while one is being torn, the last good one stays."""
        region = self.header.regions.heartbeat
        data = os.pread(self._descriptor, 2 * region.slot_bytes, region.offset)
        if data == self._heartbeat_bytes:
            return
        self._heartbeat_bytes = data
        newest = next(filter(None, map(decode.decode_heartbeat, _newest_first(data, region.slot_bytes))), None)
        if newest and (self._heartbeat is None or newest[0] >= self._heartbeat[0]):
            self._heartbeat = newest

    def _read_new_groups(self) -> None:
        region = self.header.regions.group
        while len(self._groups) < region.slots:
            room = MEMBERS_HELD_MAX - self.members_held
            group = decode.decode_group(self._slot(region, len(self._groups)), room)
            if group is None:
                return
            self.members_held += len(group.members or ())
            self._groups.append(group)

    def _read_live(self) -> tuple[GroupState, ...]:
        region = self.header.regions.live
        pair_bytes = 2 * region.slot_bytes
        data = os.pread(self._descriptor, pair_bytes * len(self._groups), region.offset)
        if data != self._live_bytes or len(self._live) != len(self._groups):
            self._live_bytes = data
            pairs = (data[at * pair_bytes : (at + 1) * pair_bytes] for at in range(len(self._groups)))
            self._live = tuple(
                GroupState(group, _last_collective(pair, region.slot_bytes, at))
                for at, (group, pair) in enumerate(zip(self._groups, pairs, strict=True))
            )
        return self._live

    def _read_new_steps(self) -> tuple[StepReport, ...]:
        """Give the steps from the next one on: slot by slot while they follow, the whole ring when one is missing."""
        region = self.header.regions.step
        steps: list[StepReport] = []
        while len(steps) < min(region.slots, STEPS_PER_READ_MAX):
            slot = self._slot(region, self._next_step % region.slots)
            if slot == self._step_bytes:  # as it was when the next step was not there yet
                return tuple(steps)
            found = decode.decode_step(slot)
            seq = found[0] if found else decode.sequence_of(slot)
            if seq != self._next_step:
                if seq > self._next_step or (not seq and any(slot)):
                    return (*steps, *self._scan_steps())
                self._step_bytes = slot
                return tuple(steps)
            self._next_step += 1
            if found:
                steps.append(found[1])
        return tuple(steps)

    def _scan_steps(self) -> tuple[StepReport, ...]:
        """The ring has overtaken the reader, or a slot is torn: take whatever is whole and new."""
        found = sorted(
            (
                step
                for step in map(decode.decode_step, self._slots(self.header.regions.step))
                if step and step[0] >= self._next_step
            ),
            key=lambda step: step[0],
        )[:STEPS_PER_READ_MAX]
        if found:
            self._next_step = found[-1][0] + 1
        return tuple(step for _seq, step in found)


def _newest_first(data: bytes, slot_bytes: int) -> tuple[bytes, bytes]:
    """Give the two slots that a writer takes in turns; which of them is whole is seen when they are decoded."""
    first, second = data[:slot_bytes], data[slot_bytes:]
    return (first, second) if decode.head_of(first) >= decode.head_of(second) else (second, first)


def _last_collective(pair: bytes, slot_bytes: int, group: int) -> Collective | None:
    for entry in map(decode.decode_collective, _newest_first(pair, slot_bytes)):
        if entry is not None and entry.group == group:
            return entry
    return None


def read_record(path: Path | str, *, dir_fd: int | None = None, uid: int | None = None) -> RankRecord:
    """Give everything that a record says now; raise RecordInvalid when it is not a sound one."""
    with RecordReader(path, dir_fd=dir_fd, uid=uid) as reader:
        return reader.read()


def _open(path: str, dir_fd: int | None) -> int:
    """O_NONBLOCK, because opening a FIFO that somebody left there would otherwise wait for its writer for ever."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=dir_fd)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RecordInvalid(f"Cannot open the rank record {path} ({why}).") from error
