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
PAIR_DESCRIPTION = "p2p"
"""How the record describes the two ends of one direction, sender first: a send and its receive have the same number
there, so the rule of every collective holds: whoever has entered less is waited for."""
_PEERS = re.compile(r"(\d+)\s*(->|<-)\s*(\d+)")
# A call that came back on NCCL may still run on the device. Only in these phases is a rank that shows no progress in
# it.
_BLOCKING_PHASES = frozenset({"wait", "backward", "optimizer"})
_AWAY_PHASES = frozenset({"data", "checkpoint", "evaluation", "finished", "teardown"})


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
    is_left: bool = False
    """The rank has gone on to a phase away from its work since: the operation runs beside it and holds nobody up."""


@dataclass(frozen=True, slots=True)
class WaitGraph:
    """All waits of a job, and what follows from them."""

    waits: tuple[Wait, ...]
    known: frozenset[int]
    """Ranks with a fresh report."""

    @property
    def waiting(self) -> frozenset[int]:
        """Ranks that wait for somebody who is known to be behind."""
        return frozenset(wait.rank for wait in self.waits if wait.targets and not wait.is_left)

    def roots(self) -> dict[int, tuple[Wait, ...]]:
        """Ranks that are waited for and wait for nobody, with the waits on them."""
        blocked = {wait.rank for wait in self.waits if wait.targets and not wait.is_weak and not wait.is_left}
        strong = self._waited_for(blocked, with_weak=False)
        if strong:
            return strong
        # Every strong wait ends in a rank that waits in a point-to-point operation whose peer is not recorded.
        return self._waited_for(self.waiting, with_weak=True)

    def _waited_for(self, blocked: set[int] | frozenset[int], *, with_weak: bool) -> dict[int, tuple[Wait, ...]]:
        roots: dict[int, list[Wait]] = {}
        weak_waiters = {wait.rank for wait in self.waits if wait.is_weak and wait.targets and not wait.is_left}
        for wait in self.waits:
            if wait.is_left:
                continue
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

    def inside(self) -> dict[int, tuple[Wait, ...]]:
        """Rank → its waits in operations that nobody is known to be missing from."""
        found: dict[int, list[Wait]] = {}
        for wait in self.waits:
            if not wait.targets:
                found.setdefault(wait.rank, []).append(wait)
        return {rank: tuple(waits) for rank, waits in found.items()}

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


def is_pair(group: GroupReport) -> bool:
    """Whether a group is one direction between two ranks, in which transfers are numbered like collectives."""
    return group.size == 2 and group.description.split(" ", 1)[0] == PAIR_DESCRIPTION


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
        is_left = _has_left(fresh[rank], group)
        if is_pair(group) and _takes_from_any(fresh, unknown):
            waits.append(_send_to_any(fresh, rank, group, unknown, is_left=is_left))
        elif _is_unnumbered(group):
            waits.append(_peer_wait(job, fresh, rank, group, members, is_left=is_left))
        else:
            seq, age = group.entered_seq or 0, _age(fresh[rank], group)
            waits.append(Wait(rank, group, seq, age, behind[seq], unknown, is_left=is_left))
    return waits


def _is_unnumbered(group: GroupReport) -> bool:
    """A transfer recorded in a larger group, whose peer only its name can tell."""
    return is_point_to_point(group.op) and not is_pair(group)


def _has_left(state: RankState, group: GroupReport) -> bool:
    """Whether the rank began to save, evaluate or fetch data after it entered: then it does not sit in the operation,
    which was not waited for, or whose end nobody has looked at yet."""
    report = state.report
    if report.phase not in _AWAY_PHASES or report.phase_age_seconds is None:
        return False
    return group.entered_age_seconds is not None and report.phase_age_seconds < group.entered_age_seconds


def _entered_seq(state: RankState, group: GroupReport) -> int | None:
    """The last collective a rank entered in a group: from its ring where its newest operation was a transfer."""
    if not _is_unnumbered(group):
        return group.entered_seq
    seqs = [e.seq for e in state.collectives if e.group_key == group.key and not is_point_to_point(e.op)]
    return max(seqs, default=None)


def _peer_wait(
    job: JobState,
    fresh: dict[int, RankState],
    rank: int,
    group: GroupReport,
    members: tuple[int, ...],
    *,
    is_left: bool,
) -> Wait:
    peer = _peer(group, members, rank)
    # A receive from any source is recorded alone: anybody may be the one who does not send.
    everybody = tuple(range(job.world_size)) if group.size == 1 else members
    candidates = everybody if peer is None else (peer,)
    others = tuple(r for r in candidates if r != rank)
    return Wait(
        rank=rank,
        group=group,
        seq=group.entered_seq or 0,
        age_seconds=_age(fresh[rank], group),
        targets=tuple(r for r in others if r in fresh and not _faces(fresh[r], group, rank, members)),
        unknown=tuple(r for r in others if r not in fresh),
        is_weak=peer is None,
        is_left=is_left,
    )


def _takes_from_any(fresh: dict[int, RankState], peers: tuple[int, ...]) -> bool:
    """Whether these ranks receive from any source: what they take is then not recorded with its sender."""
    return bool(peers) and all(rank in fresh and any(map(_is_from_any, fresh[rank].groups)) for rank in peers)


def _is_from_any(group: GroupReport) -> bool:
    return group.size == 1 and group.op == "recv_any_source"


def _send_to_any(
    fresh: dict[int, RankState], rank: int, group: GroupReport, peers: tuple[int, ...], *, is_left: bool
) -> Wait:
    """A send to a rank that receives from any source: it waits for that rank, unless it is just receiving."""
    busy = [p for p in peers if not any(_is_from_any(g) and _is_open(fresh[p], g) for g in fresh[p].groups)]
    seq, age = group.entered_seq or 0, _age(fresh[rank], group)
    return Wait(rank, group, seq, age, tuple(busy), (), is_weak=True, is_left=is_left)


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
    return any(g.key == key and _is_unnumbered(g) and _is_open(state, g) for g in state.groups)


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
