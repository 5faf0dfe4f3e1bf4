"""Who waits for whom: the wait-for graph of a job's ranks over all its process groups.

In each group the members that have entered less are *behind*; a member with an open entry waits for all that are
behind it. Edges into ranks that themselves wait are not blame. What is not observed is never taken for *not entered*.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from instep_agent.wire import GroupReport

from instep_diagnosis.evidence import JobState, RankState

POINT_TO_POINT = re.compile(r"^(?:\w+:)?(?:i|batch_i)?(?P<way>send|recv)(?![a-z])", re.IGNORECASE)
_PEERS = re.compile(r"(\d+)\s*(->|<-)\s*(\d+)")
# A call that came back on NCCL may still run on the device. Only in these phases is a rank that shows no progress in
# it.
_BLOCKING_PHASES = frozenset({"wait", "backward", "optimizer"})


@dataclass(frozen=True, slots=True)
class Wait:
    """One rank's open entry in one group."""

    rank: int
    group: GroupReport
    seq: int
    age_seconds: float
    """Since it entered, as far as observed: up to the moment its report was read, not further."""
    targets: tuple[int, ...]
    """Members that have not entered it."""
    unknown: tuple[int, ...]
    """Members that nothing fresh is known of, or not in this group."""
    is_weak: bool = False
    """The peer of a point-to-point operation was not recorded, so `targets` is everybody who could be it."""


@dataclass(frozen=True, slots=True)
class WaitGraph:
    """All waits of a job, and what follows from them."""

    waits: tuple[Wait, ...]
    known: frozenset[int]
    """Ranks with a fresh report."""

    @property
    def waiting(self) -> frozenset[int]:
        """Ranks that wait for somebody who is known to be behind."""
        return frozenset(wait.rank for wait in self.waits if wait.targets)

    def roots(self) -> dict[int, tuple[Wait, ...]]:
        """Ranks that are waited for and wait for nobody, with the waits on them."""
        blocked = {wait.rank for wait in self.waits if wait.targets and not wait.is_weak}
        strong = self._waited_for(blocked, with_weak=False)
        if strong:
            return strong
        # Every strong wait ends in a rank that waits in a point-to-point operation whose peer is not recorded.
        return self._waited_for(self.waiting, with_weak=True)

    def _waited_for(self, blocked: set[int] | frozenset[int], *, with_weak: bool) -> dict[int, tuple[Wait, ...]]:
        roots: dict[int, list[Wait]] = {}
        weak_waiters = {wait.rank for wait in self.waits if wait.is_weak and wait.targets}
        for wait in self.waits:
            for target in wait.targets:
                if target in blocked or target in weak_waiters or (wait.is_weak and not with_weak):
                    continue
                roots.setdefault(target, []).append(wait)
        return {rank: tuple(waits) for rank, waits in sorted(roots.items())}

    def unknown_targets(self) -> dict[int, tuple[Wait, ...]]:
        """Ranks that somebody may be waiting for, though nothing is known of them there."""
        found: dict[int, list[Wait]] = {}
        for wait in self.waits:
            for rank in wait.unknown:
                found.setdefault(rank, []).append(wait)
        return {rank: tuple(waits) for rank, waits in sorted(found.items())}

    def complete(self) -> tuple[Wait, ...]:
        """Waits in collectives that every member has entered: nobody is behind, nobody is unknown."""
        return tuple(wait for wait in self.waits if not wait.targets and not wait.unknown)


def wait_graph(job: JobState, *, report_age_seconds_max: float) -> WaitGraph:
    """The wait-for graph of a job; ranks with a report older than `report_age_seconds_max` are unknown in it."""
    fresh = {state.rank: state for state in job.ranks if is_known(state, report_age_seconds_max)}
    waits: list[Wait] = []
    for key in sorted({group.key for state in fresh.values() for group in state.groups}):
        waits.extend(_group_waits(job, fresh, key))
    return WaitGraph(waits=tuple(waits), known=frozenset(fresh))


def is_known(state: RankState, report_age_seconds_max: float) -> bool:
    """Whether something fresh is known of a rank: its report, or that its process has ended."""
    return state.exit_code is not None or state.report_age_seconds <= report_age_seconds_max


def is_point_to_point(op: str) -> bool:
    """Whether an operation is a send or a receive, which does not count in its group's sequence."""
    return POINT_TO_POINT.match(op) is not None


def _group_waits(job: JobState, fresh: dict[int, RankState], key: str) -> list[Wait]:
    reports = {rank: group for rank, state in fresh.items() for group in state.groups if group.key == key}
    members = _members(job, reports)
    seqs = {rank: _entered_seq(fresh[rank], group) for rank, group in reports.items()}
    entered = {rank: seq for rank, seq in seqs.items() if seq is not None}
    in_transfer = {rank for rank in reports if _has_open_transfer(fresh[rank], key)}
    unknown = tuple(rank for rank in members if rank not in entered and rank not in in_transfer)
    # Waiters at one number wait for the same ranks, so that each set is made once, however large the group.
    behind = {
        seq: tuple(rank for rank in members if entered.get(rank, seq) < seq or rank in in_transfer)
        for seq in set(entered.values())
    }
    waits = []
    for rank, group in sorted(reports.items()):
        if not _is_open(fresh[rank], group):
            continue
        if is_point_to_point(group.op):
            waits.append(_peer_wait(fresh, rank, group, members))
        else:
            seq = group.entered_seq or 0
            waits.append(Wait(rank, group, seq, _age(fresh[rank], group), behind[seq], unknown))
    return waits


def _entered_seq(state: RankState, group: GroupReport) -> int | None:
    """The last collective a rank entered in a group: from its ring where its newest operation was a transfer."""
    if not is_point_to_point(group.op):
        return group.entered_seq
    seqs = [e.seq for e in state.collectives if e.group_key == group.key and not is_point_to_point(e.op)]
    return max(seqs, default=None)


def _peer_wait(fresh: dict[int, RankState], rank: int, group: GroupReport, members: tuple[int, ...]) -> Wait:
    peer = _peer(group, members, rank)
    candidates = members if peer is None else (peer,)
    others = tuple(r for r in candidates if r != rank)
    return Wait(
        rank=rank,
        group=group,
        seq=group.entered_seq or 0,
        age_seconds=_age(fresh[rank], group),
        targets=tuple(r for r in others if r in fresh and not _faces(fresh[r], group, rank, members)),
        unknown=tuple(r for r in others if r not in fresh),
        is_weak=peer is None,
    )


def _peer(group: GroupReport, members: tuple[int, ...], rank: int) -> int | None:
    """Global rank of the other end, where the operation names it (`send 0->1`, in ranks of the group)."""
    found = _PEERS.search(group.op)
    if not found:
        return None
    ends = [members[int(end)] if int(end) < len(members) else int(end) for end in (found[1], found[3])]
    return next((end for end in ends if end != rank), None)


def _faces(state: RankState, group: GroupReport, rank: int, members: tuple[int, ...]) -> bool:
    """Whether a peer is itself at the other end of the same transfer: then the link is slow, and neither is to
    blame."""
    for other in state.groups:
        if other.key == group.key and is_point_to_point(other.op) and _is_open(state, other):
            ways = {_way(other.op), _way(group.op)}
            return _peer(other, members, state.rank) == rank and ways == {"send", "recv"}
    return False


def _way(op: str) -> str:
    found = POINT_TO_POINT.match(op)
    return found["way"].lower() if found else ""


def _has_open_transfer(state: RankState, key: str) -> bool:
    """A member that sits in a send or receive of the group has not entered the collective that others wait in."""
    return any(g.key == key and is_point_to_point(g.op) and _is_open(state, g) for g in state.groups)


def _members(job: JobState, reports: dict[int, GroupReport]) -> tuple[int, ...]:
    """Global ranks of a group; where no record had room for them, those observed in it, or everybody if it is that
    large."""
    for group in reports.values():
        if group.members is not None:
            return group.members
    if any(group.size == job.world_size for group in reports.values()):
        return tuple(range(job.world_size))
    return tuple(sorted(reports))


def _is_open(state: RankState, group: GroupReport) -> bool:
    """Whether the rank's last operation in a group has not completed."""
    if not group.entered_seq or state.exit_code is not None:
        return False
    if group.completed_seq is not None:
        return group.completed_seq < group.entered_seq
    if (group.returned_seq or 0) < group.entered_seq:
        return True
    for entry in reversed(state.collectives):
        if (entry.group_key, entry.seq) == (group.key, group.entered_seq) and entry.is_completed is not None:
            return not entry.is_completed
    return state.report.phase in _BLOCKING_PHASES


def _age(state: RankState, group: GroupReport) -> float:
    aged = state.report.heartbeat_age_seconds if group.entered_age_seconds is None else group.entered_age_seconds
    return max(0.0, aged - state.report_age_seconds)
