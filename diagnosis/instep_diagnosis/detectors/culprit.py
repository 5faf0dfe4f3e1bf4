"""Why does this rank not go on? From process state, stacks and what it was last seen doing."""

from __future__ import annotations

from dataclasses import dataclass, field

from instep_diagnosis.detectors.stacks import benign_reason, in_words, is_in_collective, main_thread, user_frame
from instep_diagnosis.evidence import RankState
from instep_diagnosis.verdict import Cause, Evidence, Owner, StuckAt

SIGNALS = {1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL",
           11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM"}  # fmt: skip

Fields = dict[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class HostState:
    """Why a rank's process does not go on."""

    cause: Cause
    words: str
    """Continues a sentence: `its process is stopped (SIGSTOP)`."""
    weight: float
    """How surely this alone would show that the rank does not go on, between 0 and 1 (`detectors.confidence`)."""
    owner: Owner
    stuck_at: StuckAt = StuckAt.HOST
    benign: str = ""
    """What it does that may rightly take long; then it is a suspect at most."""
    evidence: tuple[Evidence, ...] = field(default=())


def host_state(state: RankState) -> HostState:
    """Why a rank does not go on, from the strongest evidence there is."""
    return _from_process(state) or _from_stacks(state) or _from_phase(state)


def exit_words(exit_code: int) -> str:
    """An exit code as a person says it.

    >>> exit_words(-9), exit_words(1)
    ('was killed by SIGKILL', 'exited with status 1')
    """
    if exit_code < 0:
        return f"was killed by {SIGNALS.get(-exit_code, f'signal {-exit_code}')}"
    return f"exited with status {exit_code}"


def _from_process(state: RankState) -> HostState | None:
    process = state.report.process_state
    if state.exit_code is not None:
        return _frozen(state, Cause.DEAD, f"its process {exit_words(state.exit_code)}", Owner.JOB)
    if process in ("gone", "zombie"):
        words = "its process is gone" if process == "gone" else "its process is a zombie"
        return _frozen(state, Cause.DEAD, words, Owner.UNKNOWN)
    if process == "stopped":
        return _frozen(state, Cause.STOPPED, "its process is stopped (SIGSTOP)", Owner.JOB)
    if process == "uninterruptible":
        words = "its process sleeps uninterruptibly in the kernel (storage or a driver)"
        return _frozen(state, Cause.UNINTERRUPTIBLE, words, Owner.UNKNOWN, weight=0.8)
    return None


def _frozen(state: RankState, cause: Cause, words: str, owner: Owner, weight: float = 0.9) -> HostState:
    process = "ended" if state.exit_code is not None else state.report.process_state
    fields: Fields = {"process_state": process, "pid": state.report.pid, "exit_code": state.exit_code}
    seen = _evidence(state, f"Rank {state.rank}: {words}.", "process-state", fields)
    return HostState(cause, words, weight, owner, evidence=(seen, *_stack_evidence(state)))


def _from_stacks(state: RankState) -> HostState | None:
    holds_gil = any(stack.owns_gil for stack in state.stacks)
    stack = main_thread(state.stacks)
    frame = user_frame(stack) if stack else None
    where = f" at {in_words(frame)}" if frame else ""
    seen = _stack_evidence(state)
    if state.answers is False and holds_gil:
        return HostState(Cause.GIL_HELD, f"it holds the GIL{where} and does not answer", 0.8, Owner.JOB, evidence=seen)
    if stack is None:
        return None
    if benign := benign_reason(stack):
        words = f"it is {benign}{where}"
        return HostState(Cause.USER_CODE, words, 0.2, Owner.JOB, benign=benign, evidence=seen)
    if is_in_collective(stack):
        words = f"it sits inside a collective itself{where}"
        return HostState(Cause.DEVICE, words, 0.3, Owner.UNKNOWN, StuckAt.DEVICE, evidence=seen)
    if frame:
        return HostState(Cause.USER_CODE, f"it is in its own code{where}", 0.7, Owner.JOB, evidence=seen)
    return None


def _from_phase(state: RankState) -> HostState:
    phase, process = state.report.phase, state.report.process_state
    fields: Fields = {"phase": phase, "process_state": process}
    idle = state.report.heartbeat_age_seconds
    text = f"Rank {state.rank} is in phase {phase} and has shown no sign of life for {idle:.1f} s."
    seen = (_evidence(state, text, "rank-record", fields), *_stack_evidence(state))
    if state.answers is False:
        words = "its Python does not answer, as when it is stopped or the GIL is held"
        return HostState(Cause.UNKNOWN, words, 0.7, Owner.UNKNOWN, evidence=seen)
    if phase in ("forward", "optimizer", "user", "between") and process in ("running", "sleeping"):
        return HostState(Cause.USER_CODE, f"its process is alive in phase {phase}", 0.5, Owner.JOB, evidence=seen)
    return HostState(Cause.UNKNOWN, f"it was last seen in phase {phase}", 0.3, Owner.UNKNOWN, evidence=seen)


def _stack_evidence(state: RankState) -> tuple[Evidence, ...]:
    stack = main_thread(state.stacks)
    if stack is None or not stack.frames:
        return ()
    frame = user_frame(stack) or stack.frames[0]
    fields: Fields = {
        "function": frame.function,
        "file": frame.file,
        "line": frame.line,
        "owns_gil": any(thread.owns_gil for thread in state.stacks),
        "answers": state.answers,
        "innermost": in_words(stack.frames[0]),
    }
    return (_evidence(state, f"Rank {state.rank}'s main thread is at {in_words(frame)}.", "stack", fields),)


def _evidence(state: RankState, text: str, source: str, fields: Fields) -> Evidence:
    report = state.report
    return Evidence(text, report.node, state.rank, source, state.report_age_seconds, fields)
