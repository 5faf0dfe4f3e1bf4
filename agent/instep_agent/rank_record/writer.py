"""The rank's end of a rank record: plain stores into shared memory, no system call, no lock.

Each slot is packed in private memory and stored with one slice assignment, so that a race (of the autograd thread with
the main thread, or of a reader with both) can at worst tear one slot, and the reader sees that. Clocks come from the
vDSO.
"""

from __future__ import annotations

import itertools
import mmap
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from instep_agent.rank_record import layout
from instep_agent.rank_record.create import create_file
from instep_agent.rank_record.identity import RankIdentity, encode_identity
from instep_agent.rank_record.layout import CompletedSource, Phase
from instep_agent.rank_record.members import group_key, to_runs

NO_TOKEN = 0
"""Token of a collective whose group is not observed; everything done with it does nothing."""
UNOBSERVED_GROUPS_MAX = 8
"""So many groups beyond the table are listed by key; then one entry stands for all further ones."""
_NAN = float("nan")
_BY_RETURN = int(CompletedSource.returned) << 24
"""A plain number: looking up a member of an Enum costs 0.1 µs in Python 3.11. Callers do well to do the same."""
_YARDSTICK_SHIFT, _YARDSTICK_NS_MAX = layout.STEP_YARDSTICK_SHIFT, layout.STEP_YARDSTICK_NS_MAX
_RETURNED, _COMPLETED, _LAST, _LIVE_AT, _OTHER_AT = range(5)
"""Places in a group's state: [returned seq, completed seq, last collective, next live slot, the one after]."""
_tail = layout.TAIL.pack
_heartbeat = layout.HEARTBEAT.pack
_collective = layout.COLLECTIVE_AS_WRITTEN.pack
_step = layout.STEP.pack
_now = time.monotonic_ns

_writers: weakref.WeakSet[RankRecordWriter] = weakref.WeakSet()


class RankRecordWriter:
    """Writes one rank's record. Made by `create`; a forked child's copy writes nothing that anybody sees."""

    __slots__ = (
        "__weakref__",
        "_beats",
        "_cpu_ns",
        "_entries",
        "_group_of_key",
        "_groups",
        "_heartbeat_at",
        "_identity",
        "_identity_seq",
        "_live_at",
        "_phase",
        "_phase_since_ns",
        "_pid",
        "_regions",
        "_ring_at",
        "_ring_slots",
        "_step_at",
        "_step_slots",
        "_steps",
        "_store",
        "_tokens",
        "_writes",
        "path",
    )

    def __init__(self, path: Path, store: mmap.mmap, regions: layout.Regions, identity: RankIdentity) -> None:
        self.path = path
        self._store: Any = store
        self._regions = regions
        self._identity = identity
        self._pid = os.getpid()
        self._identity_seq = 0
        self._beats = 0
        self._writes = 0
        self._steps = 0
        self._phase = -1
        self._phase_since_ns = layout.UNKNOWN_NS
        self._cpu_ns = layout.UNKNOWN_NS
        self._tokens: Iterator[int] = itertools.count(1)  # next() is atomic, += is not
        self._ring_slots = regions.collective.slots
        self._heartbeat_at = _slices(regions.heartbeat)
        self._ring_at = _slices(regions.collective)
        self._live_at = _slices(regions.live)
        self._step_at = _slices(regions.step)
        self._step_slots = regions.step.slots
        # A collective is [token, state of its group, slot and op and source of completion in one number, seq, bytes,
        # entered, returned, completed, place in the ring]: a list,
        # because attributes of an object cost three times as much to unpack.
        self._entries: list[list[Any]] = [[NO_TOKEN]] * self._ring_slots
        self._groups: list[list[Any]] = []
        self._group_of_key: dict[str, int | None] = {}

    @classmethod
    def create(
        cls, root: Path | str, identity: RankIdentity, *, groups: int = 64, steps: int = 256, collectives: int = 1024
    ) -> RankRecordWriter:
        """Claim `<root>/<node>/<run>/<attempt>/<rank>` and give its writer, with phase `startup` written.

        Raise RecordTaken when the record exists, RecordNoRoom when it does not fit, ValueError for an identity beyond
        its limits.
        """
        regions = layout.lay_out(groups=groups, steps=steps, collectives=collectives)
        encode_identity(identity)
        path, store = create_file(Path(root), identity, regions)
        writer = cls(path, store, regions, identity)
        writer.update_identity()
        writer.heartbeat(0, 0, Phase.startup)
        store[: len(layout.MAGIC)] = layout.MAGIC  # last: until now no reader takes the file for a record
        _writers.add(writer)
        return writer

    @property
    def identity(self) -> RankIdentity:
        """The identity as last written."""
        return self._identity

    def update_identity(self, **changes: Any) -> RankIdentity:
        """Write the identity again with some fields changed (`mesh`, `unobserved`, …) and give the new one."""
        identity = msgspec.structs.replace(self._identity, **changes)
        text = encode_identity(identity)
        region = self._regions.identity
        room = region.slot_bytes - layout.IDENTITY_HEAD.size - layout.TAIL.size
        if len(text) > room:
            raise ValueError(
                f"The identity of rank {identity.rank} takes {len(text)} bytes, and a record has room for {room}."
            )
        self._identity, self._identity_seq = identity, self._identity_seq + 1
        head = layout.IDENTITY_HEAD.pack(self._identity_seq, len(text), 0)
        self._put(region, self._identity_seq & 1, head + text.ljust(room, b"\0"), self._identity_seq)
        return identity

    def heartbeat(self, step: int, micro_step: int, phase: int, *, cpu_ns: int | None = None) -> None:
        """Say that the rank is alive: `step` steps are finished over the whole run, and `phase` goes on or begins.

        `cpu_ns` is the CPU time of the main thread, where the caller has it: reading it is a system call, so it is not
        done here.
        """
        now = _now()
        if phase != self._phase:
            self._phase = phase
            self._phase_since_ns = now
        if cpu_ns is not None:
            self._cpu_ns = cpu_ns
        self._beats = seq = self._beats + 1
        body = _heartbeat(seq, now, step, micro_step, phase, self._phase_since_ns, self._cpu_ns)
        self._store[self._heartbeat_at[seq & 1]] = body + _tail(crc32(body), seq & 0xFFFFFFFF)

    def declare_group(self, members: Sequence[int], description: str = "", ordinal: int = 0) -> int | None:
        """Give the slot of a process group, taking one when it is new; None when the table is full.

        A group that found no room is named in the identity's `unobserved`.
        """
        if os.getpid() != self._pid:  # a fork that bypasses Python runs none of Python's fork hooks
            self._detach()
        key = group_key(members, description, ordinal)
        if key in self._group_of_key:
            return self._group_of_key[key]
        group = len(self._groups)
        if group >= self._regions.group.slots:
            self._group_of_key[key] = None
            self._name_unobserved(key)
            return None
        nothing: list[Any] = [NO_TOKEN, None, group, 0, 0, -1, -1, -1, None]
        state = [0, layout.UNKNOWN_SEQ, nothing, self._live_at[2 * group], self._live_at[2 * group + 1]]
        nothing[1] = state
        self._groups.append(state)
        self._write(nothing)
        self._put_group(group, key, members, description, ordinal)
        self._group_of_key[key] = group
        return group

    def enter(self, group: int | None, seq: int, op: int, payload_bytes: int) -> int:
        """Record that the rank called collective `seq` of `group` (counted from 1); give the token for what follows."""
        if group is None:
            return NO_TOKEN
        token = next(self._tokens)
        at = token % self._ring_slots
        state = self._groups[group]
        group_returned, group_completed, _last, live_at, other_at = state
        what, now, ring_at = group | op << 16, _now(), self._ring_at[at]
        self._entries[at] = entry = [token, state, what, seq, payload_bytes, now, -1, -1, ring_at]
        self._writes = write = self._writes + 1
        body = _collective(write, token, what, seq, payload_bytes, now, -1, -1, group_returned, group_completed)
        store = self._store
        slot = body + _tail(crc32(body), write & 0xFFFFFFFF)
        store[ring_at] = slot
        store[live_at] = slot
        state[_LAST], state[_LIVE_AT], state[_OTHER_AT] = entry, other_at, live_at
        return token

    def returned(self, token: int) -> None:
        """Record that the call came back (on NCCL: was launched)."""
        entry = self._entries[token % self._ring_slots]
        if entry[0] != token or not token:
            return None  # so many collectives ago that its slot is another's
        entry[6] = now = _now()
        state, seq = entry[1], entry[3]
        if seq > state[_RETURNED]:
            state[_RETURNED] = seq
        group_returned, group_completed, last, live_at, other_at = state
        if last is not entry:
            return self._write(entry)
        # The usual case: the ring gets the time together with the completion, which saves a third of this call.
        self._writes = write = self._writes + 1
        body = _collective(
            write, token, entry[2], seq, entry[4], entry[5], now, entry[7], group_returned, group_completed
        )
        self._store[live_at] = body + _tail(crc32(body), write & 0xFFFFFFFF)
        state[_LIVE_AT], state[_OTHER_AT] = other_at, live_at
        return None

    def completed(self, token: int, source: int, at_ns: int | None = None) -> None:
        """Record that the collective is done, how that is known, and when (CLOCK_MONOTONIC; now when not given)."""
        entry = self._entries[token % self._ring_slots]
        if entry[0] != token or not token:
            return
        entry[7] = _now() if at_ns is None else at_ns
        entry[2] = entry[2] & 0xFFFFFF | source << 24
        state, seq = entry[1], entry[3]
        if seq > state[_COMPLETED]:
            state[_COMPLETED] = seq
        self._write(entry)

    def returned_completed(self, token: int) -> None:
        """Record in one write that a blocking call came back, which is its completion."""
        entry = self._entries[token % self._ring_slots]
        if entry[0] != token or not token:
            return
        entry[6] = entry[7] = _now()
        entry[2] |= _BY_RETURN
        state, seq = entry[1], entry[3]
        if seq > state[_RETURNED]:
            state[_RETURNED] = seq
        if seq > state[_COMPLETED]:
            state[_COMPLETED] = seq
        self._write(entry)

    def finish_step(
        self,
        step: int,
        wall_seconds: float,
        *,
        data_seconds: float = 0.0,
        forward_seconds: float = 0.0,
        backward_seconds: float = 0.0,
        optimizer_seconds: float = 0.0,
        checkpoint_seconds: float = 0.0,
        evaluation_seconds: float = 0.0,
        wait_seconds: float = 0.0,
        cpu_seconds: float = _NAN,
        starved_seconds: float = _NAN,
        yardstick_ns: int = 0,
        tokens: int = 0,
        tokens_squared: int = 0,
        micro_steps: int = 1,
        is_skipped: bool = False,
    ) -> None:
        """Add one finished step to the ring; the fields are those of `wire.StepReport`, NaN is *not observed*."""
        if os.getpid() != self._pid:
            self._detach()
        self._steps = seq = self._steps + 1
        body = _step(
            seq,
            step,
            _now(),
            wall_seconds,
            data_seconds,
            forward_seconds,
            backward_seconds,
            optimizer_seconds,
            checkpoint_seconds,
            evaluation_seconds,
            wait_seconds,
            cpu_seconds,
            starved_seconds,
            tokens,
            tokens_squared,
            micro_steps,
            min(yardstick_ns, _YARDSTICK_NS_MAX) << _YARDSTICK_SHIFT | is_skipped,
        )
        self._store[self._step_at[seq % self._step_slots]] = body + _tail(crc32(body), seq & 0xFFFFFFFF)

    def close(self) -> None:
        """Let go of the mapping; the file stays for whoever reads it. Later writes do nothing."""
        self._detach()

    def _write(self, entry: list[Any]) -> None:
        """Store one collective in the ring, and the group's last one with the group's marks in its live slot."""
        token, state, what, number, payload_bytes, entered, returned, completed, ring_at = entry
        group_returned, group_completed, last, live_at, other_at = state
        self._writes = seq = self._writes + 1
        body = _collective(
            seq, token, what, number, payload_bytes, entered, returned, completed, group_returned, group_completed
        )
        slot = body + _tail(crc32(body), seq & 0xFFFFFFFF)
        store = self._store
        if token:
            store[ring_at] = slot
        if last is entry:
            store[live_at] = slot
            state[_LIVE_AT], state[_OTHER_AT] = other_at, live_at
        else:
            self._write_live(last)

    def _write_live(self, last: list[Any]) -> None:
        """Renew the marks in the live slot, after an older collective than the last one has made progress."""
        token, state, what, number, payload_bytes, entered, returned, completed, _ring_at = last
        self._writes = seq = self._writes + 1
        body = _collective(
            seq, token, what, number, payload_bytes, entered, returned, completed, state[_RETURNED], state[_COMPLETED]
        )
        self._store[state[_LIVE_AT]] = body + _tail(crc32(body), seq & 0xFFFFFFFF)
        state[_LIVE_AT], state[_OTHER_AT] = state[_OTHER_AT], state[_LIVE_AT]

    def _put(self, region: layout.Region, slot: int, body: bytes, seq: int) -> None:
        at = region.at(slot)
        self._store[at : at + region.slot_bytes] = body + _tail(crc32(body), seq & 0xFFFFFFFF)

    def _put_group(self, group: int, key: str, members: Sequence[int], description: str, ordinal: int) -> None:
        runs = to_runs(members).encode()
        flags = 0
        if len(runs) > layout.MEMBERS_TEXT_BYTES_MAX:
            runs, flags = b"", layout.GROUP_MEMBERS_TRUNCATED
        text = description.encode()[: layout.DESCRIPTION_BYTES_MAX]
        body = layout.GROUP.pack(1, int(key, 16), ordinal, len(members), flags, len(text), len(runs), text, runs)
        self._put(self._regions.group, group, body, 1)

    def _name_unobserved(self, key: str) -> None:
        listed = self._identity.unobserved
        beyond = sum(name.startswith("group:") for name in listed)
        name = f"group:{key}" if beyond < UNOBSERVED_GROUPS_MAX else "group:more"
        if name not in listed:
            self.update_identity(unobserved=(*listed, name))

    def _detach(self) -> None:
        """Send all further writes to private memory: cheaper than asking at every write whether to write."""
        store = self._store
        if isinstance(store, mmap.mmap):
            self._store = bytearray(len(store))
            store.close()


def _slices(region: layout.Region) -> list[slice]:
    """Slot positions made once: building a slice at each write costs as much as the store."""
    return [slice(region.at(slot), region.at(slot) + region.slot_bytes) for slot in range(region.slots)]


def _detach_all() -> None:
    for writer in tuple(_writers):
        writer._detach()


os.register_at_fork(after_in_child=_detach_all)
