"""From a record to the wire: sequence numbers and ages, computed on the node where both clocks are one clock."""

from __future__ import annotations

from pathlib import Path

from instep_agent.clocks import boot_id as current_boot_id
from instep_agent.errors import RecordStale
from instep_agent.host.processes import PROC, Process, look_at
from instep_agent.rank_record.decode import Collective, Heartbeat
from instep_agent.rank_record.reader import GroupState, RankRecord
from instep_agent.wire import CollectiveEntry, GroupReport, RankReport

STALLED_AFTER_SECONDS = 1.0
"""A rank silent for longer is reported with its last collectives."""
COLLECTIVES_MAX = 64
"""In a report on the wire every second; a dump, taken once, may hold more."""
FUTURE_NS_MAX = 1_000_000_000
"""A time further ahead than this is not a late clock reading but nonsense, and not believed."""


def report(
    record: RankRecord,
    *,
    now_monotonic_ns: int,
    boot_id: str | None = None,
    proc: Path = PROC,
    process: Process | None = None,
    collectives_max: int = COLLECTIVES_MAX,
) -> RankReport:
    """Give what goes on the wire for a record read at `now_monotonic_ns` of this node's CLOCK_MONOTONIC.

    `process` is the record's own, for who looks at it again and again. Raise RecordStale when the record is from before
    the last boot (`boot_id`: this boot's, read when not given).
    """
    header, identity = record.header, record.identity
    this_boot = current_boot_id(proc) if boot_id is None else boot_id
    if header.anchor.boot_id != this_boot:
        raise RecordStale(f"{record.path} was written before this node's last boot: remove it.")
    beat = _believable(record.heartbeat, now_monotonic_ns)
    age = _age(_last_sign(record, beat, now_monotonic_ns), now_monotonic_ns)
    if process is None:
        look = look_at(header.pid, header.pid_start_ticks, namespace=header.pid_namespace, proc=proc)
    else:
        look = process.look()
    return RankReport(
        job=identity.job,
        run=identity.run,
        attempt=identity.attempt,
        rank=identity.rank,
        local_rank=identity.local_rank,
        world_size=identity.world_size,
        pid=header.pid,
        node=identity.node,
        gpu=identity.gpu,
        mesh=identity.mesh,
        is_annotated=identity.is_annotated,
        step=beat.step if beat else 0,
        micro_step=beat.micro_step if beat else 0,
        phase=beat.phase.name if beat else "unknown",
        phase_age_seconds=_age_or_none(beat.phase_since_ns if beat else None, now_monotonic_ns),
        heartbeat_age_seconds=age,
        process_state=look.state,
        cpu_seconds=look.cpu_seconds,
        groups=tuple(_group(state, now_monotonic_ns) for state in record.groups),
        steps=record.steps,
        collectives=_tail(record, now_monotonic_ns, collectives_max) if age > STALLED_AFTER_SECONDS else (),
        unobserved=identity.unobserved,
    )


def _believable(beat: Heartbeat | None, now_ns: int) -> Heartbeat | None:
    return beat if beat is not None and beat.monotonic_ns <= now_ns + FUTURE_NS_MAX else None


def _last_sign(record: RankRecord, beat: Heartbeat | None, now_ns: int) -> int:
    """Give the latest moment the rank wrote anything; a collective counts, a record with nothing else its creation."""
    moments = [beat.monotonic_ns if beat else record.header.anchor.monotonic_ns]
    for state in record.groups:
        if state.live is not None:
            moments += [
                at
                for at in (state.live.entered_ns, state.live.returned_ns, state.live.completed_ns)
                if at is not None and at <= now_ns + FUTURE_NS_MAX
            ]
    return max(moments)


def _age(moment_ns: int, now_ns: int) -> float:
    return max(0.0, (now_ns - moment_ns) / 1e9)


def _age_or_none(moment_ns: int | None, now_ns: int) -> float | None:
    return None if moment_ns is None or moment_ns > now_ns + FUTURE_NS_MAX else _age(moment_ns, now_ns)


def _group(state: GroupState, now_ns: int) -> GroupReport:
    group, live = state.group, state.live
    if live is None:  # both copies unreadable: not observed
        return GroupReport(
            key=group.key, description=group.description, ordinal=group.ordinal, size=group.size, members=group.members
        )
    return GroupReport(
        key=group.key,
        description=group.description,
        ordinal=group.ordinal,
        size=group.size,
        members=group.members,
        entered_seq=live.seq,
        returned_seq=live.group_returned_seq,
        completed_seq=live.group_completed_seq,
        op=live.op.name if live.seq else "",
        payload_bytes=live.payload_bytes,
        entered_age_seconds=_age_or_none(live.entered_ns, now_ns),
    )


def _tail(record: RankRecord, now_ns: int, most: int) -> tuple[CollectiveEntry, ...]:
    """Give the last collectives, oldest first."""
    return tuple(_entry(record, entry, now_ns) for entry in record.collectives[-most:])


def _entry(record: RankRecord, entry: Collective, now_ns: int) -> CollectiveEntry:
    state = record.groups[entry.group]
    return CollectiveEntry(
        group_key=state.group.key,
        seq=entry.seq,
        op=entry.op.name,
        payload_bytes=entry.payload_bytes,
        entered_age_seconds=_age_or_none(entry.entered_ns, now_ns) or 0.0,
        is_completed=_is_completed(entry, state),
    )


def _is_completed(entry: Collective, state: GroupState) -> bool | None:
    """Give None where the group's completions are not observed at all."""
    if entry.completed_ns is not None:
        return True
    if state.live is None or state.live.group_completed_seq is None:
        return None
    return entry.seq <= state.live.group_completed_seq
