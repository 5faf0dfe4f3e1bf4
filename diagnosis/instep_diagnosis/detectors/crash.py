"""Who brought a job down: the first to die is not always to blame, and a signal alone is no evidence against a
node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from instep_diagnosis.detectors.confidence import OUTVOTED, confidence
from instep_diagnosis.detectors.culprit import exit_words
from instep_diagnosis.detectors.mismatch import Mismatch, find_mismatch, mismatch_evidence
from instep_diagnosis.detectors.words import have, ranks_words
from instep_diagnosis.evidence import JobState, RankState
from instep_diagnosis.facts import join_facts
from instep_diagnosis.settings import CrashSettings
from instep_diagnosis.verdict import Cause, Certainty, Evidence, Kind, Owner, Suspect, Verdict

_SIGTERM = -15
"""Launchers end surviving ranks with it: a rank that died of it was told to."""


def judge_crash(job: JobState, settings: CrashSettings | None = None) -> Verdict | None:
    """Who brought the job down, from the exit codes in `job`; None while no rank has failed.

    Ranks killed by a signal come before those that exited with an error, since peers of a dead rank fail with
    "connection closed"; among equals the earliest known exit. Operations that differ between ranks are a bug of the
    script (`Kind.MISMATCH`). A fatal kernel line of the dead rank's GPU or node near the death makes the *same*
    verdict one of cause `gpu-fault` with the node at fault; its kind stays `crash`.
    """
    settings = settings or CrashSettings()
    failed = [state for state in job.ranks if state.exit_code not in (None, 0)]
    if not failed:
        return None
    mismatch = find_mismatch(job)
    verdict = _mismatched(job, failed, mismatch) if mismatch and not _is_killed(failed) else _died(job, failed)
    return join_facts(verdict, job, fact_window_seconds=settings.fact_window_seconds)


def _is_killed(failed: Sequence[RankState]) -> bool:
    """Whether somebody was killed from outside; libraries end themselves with SIGABRT when operations do not
    match."""
    return any(state.exit_code in (-9, -11, -7, -4) for state in failed)


def _died(job: JobState, failed: Sequence[RankState]) -> Verdict:
    first = _first(failed)
    others = sorted(state.rank for state in failed if state not in first)
    words = " and ".join(f"rank {s.rank} on {s.report.node or 'an unknown node'} {exit_words(_code(s))}" for s in first)
    last = _last_collective(first[0])
    follow = f"; {ranks_words(others)} failed after it" if others else ""
    tied = len(first)
    sure = confidence(0.85 if _code(first[0]) < 0 else 0.6, 0.3, tied=tied)
    return replace(
        _base(job, first),
        kind=Kind.CRASH,
        summary=f"{words[0].upper()}{words[1:]}{f', last in {last}' if last else ''}{follow}.",
        suspects=tuple(Suspect(s.rank, s.report.node, s.report.gpu, Cause.DEAD, sure) for s in first),
        owner=Owner.JOB if any(_code(s) > 0 or _code(s) in (-6, -11) for s in first) else Owner.UNKNOWN,
        cause=Cause.DEAD,
        evidence=tuple(_exit_evidence(s) for s in (*first, *(s for s in failed if s not in first))),
        waiting_ranks=tuple(sorted(s.rank for s in job.ranks if s.exit_code is None)),
    )


def _first(failed: Sequence[RankState]) -> list[RankState]:
    """Those to blame: killed by a signal before told to end before exited with an error; the earliest where times are
    known."""
    order = {state.rank: _order(_code(state)) for state in failed}
    best = min(order.values())
    equals = [state for state in failed if order[state.rank] == best]
    ages = [state.exit_age_seconds for state in equals]
    if len(equals) > 1 and all(age is not None for age in ages):
        oldest = max(age for age in ages if age is not None)
        return [state for state in equals if state.exit_age_seconds == oldest]
    return equals


def _order(code: int) -> int:
    # SIGABRT is how a library gives up: often a victim of its peer, as an exit with an error is.
    return 1 if code in (-6, _SIGTERM) or code > 0 else 0


def _code(state: RankState) -> int:
    return state.exit_code or 0


def _mismatched(job: JobState, failed: Sequence[RankState], mismatch: Mismatch) -> Verdict:
    cause = Cause.SKIPPED_COLLECTIVE if mismatch.is_skip else Cause.MISMATCHED_COLLECTIVE
    states = {state.rank: state for state in job.ranks}
    tied = len(mismatch.culprits) if mismatch.is_tie else 1
    sure = confidence(OUTVOTED, 0.0, tied=tied)
    died = sorted(state.rank for state in failed)
    return replace(
        _base(job, failed),
        kind=Kind.MISMATCH,
        summary=f"{mismatch.in_words()} {ranks_words(died, is_start=True)} {have(len(died))} failed over it.",
        suspects=tuple(
            Suspect(rank, states[rank].report.node, states[rank].report.gpu, cause, sure) for rank in mismatch.culprits
        ),
        owner=Owner.JOB,
        cause=cause,
        group=mismatch.group_words.removeprefix("group "),
        seq=mismatch.seq,
        op=mismatch.expected[0] if mismatch.expected else "",
        evidence=(*mismatch_evidence(job, mismatch), *(_exit_evidence(state) for state in failed)),
    )


def _base(job: JobState, failed: Sequence[RankState]) -> Verdict:
    group = max(failed[0].groups, key=lambda g: -(g.entered_age_seconds or 0.0), default=None)
    ages = [state.exit_age_seconds or 0.0 for state in failed]
    return Verdict(
        kind=Kind.CRASH,
        certainty=Certainty.CONFIRMED,
        summary="",
        suspects=(),
        owner=Owner.UNKNOWN,
        evidence=(),
        job=job.job,
        run=job.run,
        attempt=job.attempt,
        onset_step=min((state.report.step for state in job.ranks), default=None),
        onset_age_seconds=max(ages),
        group=f"{group.description} ({group.key})".lstrip() if group else "",
        seq=group.entered_seq if group else None,
        op=group.op if group else "",
        cost_gpu_seconds=round(max(ages) * job.world_size, 3),
    )


def _last_collective(state: RankState) -> str:
    group = max(state.groups, key=lambda g: -(g.entered_age_seconds or 0.0), default=None)
    if group is None or not group.entered_seq:
        return ""
    return f"{group.op or 'a collective'} seq {group.entered_seq} of group {group.description or group.key[:8]}"


def _exit_evidence(state: RankState) -> Evidence:
    last = _last_collective(state)
    return Evidence(
        text=f"Rank {state.rank} {exit_words(_code(state))}" + (f"; its last collective was {last}." if last else "."),
        node=state.report.node,
        rank=state.rank,
        source="supervisor",
        age_seconds=state.exit_age_seconds,
        fields={"exit_code": state.exit_code, "step": state.report.step, "phase": state.report.phase},
    )
