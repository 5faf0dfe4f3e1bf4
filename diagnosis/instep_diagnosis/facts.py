"""Joining what happened to a node with what a rank does: one verdict, with the kernel line in its evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from instep_diagnosis.catalogues import CLEARED_BY_ACTION
from instep_diagnosis.catalogues.rules import ReadingRule, event_rules, reading_rules, recovery_actions
from instep_diagnosis.detectors.confidence import GPU_FAULT_ON_GPU, GPU_FAULT_ON_NODE
from instep_diagnosis.evidence import JobState, NodeFact, RankState
from instep_diagnosis.gpu_readings import ECC_UNCORRECTED, KIND, SRAM_LIMIT
from instep_diagnosis.kernel_faults import FATAL, KernelFault, assess, overruled
from instep_diagnosis.kernel_line import KernelLine, LineKind, read_kernel_line
from instep_diagnosis.process_facts import join_process_facts, names_another
from instep_diagnosis.verdict import Cause, Certainty, Evidence, Owner, Suspect, Verdict

LINE_EARLY_SECONDS, LINE_LATE_SECONDS = 5.0, 30.0
"""A driver logs an error before or after it counts it, and a line waits for whoever writes the log."""


@dataclass(frozen=True, slots=True)
class RankFault:
    """A fault of a node's GPU that may be the reason for what a rank does."""

    rank: int
    fact: NodeFact
    fault: KernelFault
    is_same_gpu: bool


def join_facts(verdict: Verdict, job: JobState, *, fact_window_seconds: float) -> Verdict:
    """The verdict with the faults of the suspects' nodes: a fatal one near the onset puts the node at fault.

    A fault of the suspect's own GPU counts most, one of its node whose GPU is not known less; one of *another* GPU of
    the node does not count. Application errors are listed as evidence and put no node at fault; those of another
    process are left out. Where nobody is blamed (all entered, none completed), a fatal fault of a rank's own GPU names
    that rank. The kind does not change, so that an open incident keeps its label. What was said of the ranks'
    processes follows (`process_facts`).
    """
    faults = _faults(job, verdict.onset_age_seconds, fact_window_seconds)
    accused = {suspect.rank for suspect in verdict.suspects}
    related = [f for f in faults if (f.rank in accused if accused else f.is_same_gpu)]
    decisive = _decisive(related, job)
    joined = replace(verdict, evidence=(*verdict.evidence, *_evidence(related)))
    blamed = _blamed(joined, job, decisive) if decisive else joined
    return join_process_facts(blamed, job, fact_window_seconds=fact_window_seconds)


def gpu_words(fact: NodeFact) -> str:
    """A fact's GPU in words: its UUID, else its index, else nothing."""
    if fact.gpu:
        return f" GPU {fact.gpu}" if fact.gpu_index is None else f" GPU {fact.gpu_index}"
    return "" if fact.gpu_index is None else f" GPU {fact.gpu_index}"


def kernel_fault(fact: NodeFact) -> KernelFault | None:
    """The meaning of a fact that is a kernel line reporting a fault, the driver's own event, what it asks to be done
    with a GPU, or a reading that says a fault by itself; None for any other."""
    match fact.kind:
        case "kernel_line":
            return assess(read_kernel_line(fact.text))
        case "gpu_event" if fact.fields.get("code", "").isdecimal():
            code = int(fact.fields["code"][:6])
            return assess(KernelLine(LineKind.XID, code, pci=fact.fields.get("pci"), text=fact.text))
        case "gpu_lost":
            return assess(KernelLine(LineKind.OTHER, pci=fact.fields.get("pci"), text="gpu-lost"))
        case "gpu_event":
            return _read(event_rules().get(fact.fields.get("type", "")))
        case "gpu_recovery":
            return _asked(fact)
        case "gpu_reading":
            return _read(reading_rules().get(fact.fields.get("fault", "")))
        case _:
            return None


def _asked(fact: NodeFact) -> KernelFault | None:
    """What a GPU asks for as a fault of its own; None where it asks for nothing."""
    stated = recovery_actions().get(recovery_of(fact) or 0)
    if stated is None or stated.severity is None:
        return None
    line = KernelLine(LineKind.OTHER, pci=fact.fields.get("pci"), text="recovery-action")
    text = f"{stated.text}, since before anybody looked" if is_of_before(fact) else stated.text
    return KernelFault(line, stated.severity, "unknown", stated.action, text, clears=CLEARED_BY_ACTION["none"])


def _read(rule: ReadingRule | None) -> KernelFault | None:
    """What a reading or an event without a number says: what its row says, or that of the line about the same."""
    if rule is None:
        return None
    own = KernelLine(LineKind.OTHER, text=rule.name)
    if rule.severity is not None:
        clears = CLEARED_BY_ACTION[rule.action]
        return KernelFault(own, rule.severity, rule.workload, rule.action, rule.text, clears=clears)
    told = KernelLine(LineKind.XID, rule.code) if rule.code else KernelLine(LineKind.OTHER, text=rule.line)
    said = assess(told)
    return None if said is None else replace(said, line=own, text=rule.text)


def fault_now(fact: NodeFact, facts: Iterable[NodeFact]) -> KernelFault | None:
    """The meaning of a fact after what the driver asks to be done with the same GPU, as the facts beside it tell.

    Errors that were only counted mean nothing of their own beside the driver's line about them: it may say that they
    were contained.
    """
    fault = kernel_fault(fact)
    if any(is_line_of(other, fact) for other in facts):
        return None
    is_own = fact.kind == "gpu_recovery" or _is_lasting(fact)  # The driver says so itself.
    return fault if fault is None or is_own else overruled(fault, _recovery(fact, facts))


def _is_lasting(fact: NodeFact) -> bool:
    """Whether a fact is about a GPU's life: the reset that its driver asks for now does not undo it."""
    return fact.kind == KIND and fact.fields.get("fault") == SRAM_LIMIT


def is_of_before(fact: NodeFact) -> bool:
    """Whether a fact says what was so before anybody looked: since when is not known, and its time is the latest."""
    is_reading = fact.kind == KIND and "is_new" not in fact.fields
    return is_reading or (fact.kind == "gpu_recovery" and "is_standing" in fact.fields)


def is_counted(fact: NodeFact) -> bool:
    """Whether a fact says that there were errors, which a line may call contained: a counter rose at some time since
    it was read before, or the driver reported an event without a number."""
    if fact.kind == "gpu_event":
        rule = event_rules().get(fact.fields.get("type", ""))
        return rule is not None and rule.name == ECC_UNCORRECTED
    return fact.kind == KIND and fact.fields.get("fault") == ECC_UNCORRECTED


def tells_of_memory(fact: NodeFact) -> bool:
    """Whether a fact is the driver's own line or event about an error of a GPU's memory."""
    fault = kernel_fault(fact) if fact.kind in ("kernel_line", "gpu_event") else None
    rule = reading_rules().get(ECC_UNCORRECTED)
    if fault is None or rule is None or fault.line.kind is not LineKind.XID:
        return False
    return fault.line.code in rule.part_of


def is_line_of(line: NodeFact, counted: NodeFact) -> bool:
    """Whether a line tells of errors that were counted: of the same GPU, and of the time in which they happened."""
    if not is_counted(counted) or not tells_of_memory(line):
        return False
    fault = kernel_fault(line)
    is_alike = fault is not None and is_drill(line, fault) == counted.is_drill
    is_same = is_alike and (line.node, line.gpu, line.boot_id) == (counted.node, counted.gpu, counted.boot_id)
    within = counted.fields.get("within_seconds", "")
    seconds = float(within) if within.isdecimal() and len(within) <= 8 else 0.0
    earlier_seconds = line.age_seconds - counted.age_seconds
    return is_same and -LINE_LATE_SECONDS <= earlier_seconds <= seconds + LINE_EARLY_SECONDS


def recovery_of(fact: NodeFact) -> int | None:
    """The recovery action that a fact says a GPU asks for now, 0 for none; None where it is about something else."""
    value = fact.fields.get("action", "") if fact.kind == "gpu_recovery" else ""
    return int(value) if value.isdecimal() and len(value) <= 3 else None


def _recovery(fact: NodeFact, facts: Iterable[NodeFact]) -> int | None:
    """What the fault's GPU asks for. That it asks for nothing any more ends an older fault and excuses no newer one.
    What a drill makes it ask for is about a drill's fault only."""
    told = [
        other
        for other in facts
        if (other.node, other.boot_id, other.is_drill) == (fact.node, fact.boot_id, fact.is_drill)
        if recovery_of(other) is not None
        if (other.gpu and other.gpu == fact.gpu) or (other.gpu_index is not None and other.gpu_index == fact.gpu_index)
    ]
    newest = min(told, key=lambda other: other.age_seconds, default=None)
    return (recovery_of(newest) or None) if newest is not None else None


def is_drill(fact: NodeFact, fault: KernelFault) -> bool:
    """Whether a fault was made on purpose: as its agent says, or as the driver says in the line itself."""
    return fact.is_drill or fault.line.is_injected


def fault_label(fault: KernelFault) -> str:
    """A fault as people call it, such as `Xid 79`."""
    words = fault.fault_class.replace("sxid-", "SXid ").replace("xid-", "Xid ")
    return _LABELS.get(words, words)


_LABELS = {
    "gpu-lost": "GPU lost",
    "gpu-missing": "GPU missing",
    "row-remap-failed": "Row remap failure",
    "ecc-uncorrected": "Uncorrected ECC error",
    "sram-threshold": "SRAM error limit",
    "poison-fatal": "Fatal poison error",
    "gpu-unavailable": "GPU unavailable",
    "recovery-action": "Recovery action",
}


def _faults(job: JobState, onset_age_seconds: float, window_seconds: float) -> list[RankFault]:
    found = []
    asked = [fact for fact in job.facts if recovery_of(fact) is not None]
    for fact in job.facts:
        fault = fault_now(fact, job.facts if is_counted(fact) else asked)
        if fault is None or fault.subject == "process" or abs(fact.age_seconds - onset_age_seconds) > window_seconds:
            continue
        if is_of_before(fact):
            continue  # That explains nothing that happened now.
        is_of_device = fault.severity == FATAL and fault.is_of_device
        for state in job.ranks:
            if not is_of_device and names_another(fact, state, job):
                continue
            if state.report.node == fact.node and _may_be_on(state, fact):
                found.append(RankFault(state.rank, fact, fault, _is_same_gpu(state, fact)))
    told = {(one.rank, is_drill(one.fact, one.fault)) for one in found if recovery_of(one.fact) is None}
    # What the driver asks for is a part of the fault that has it ask, where there is one.
    return [
        one for one in found if recovery_of(one.fact) is None or (one.rank, is_drill(one.fact, one.fault)) not in told
    ]


def _may_be_on(state: RankState, fact: NodeFact) -> bool:
    """Whether the fact may concern this rank's GPU: it is the same, or one of the two is not known."""
    own = state.report.gpu
    is_comparable = fact.gpu_index is not None if own.isdigit() else bool(own and fact.gpu)
    return _is_same_gpu(state, fact) or not is_comparable


def _is_same_gpu(state: RankState, fact: NodeFact) -> bool:
    gpu = state.report.gpu
    return bool(gpu) and (gpu == fact.gpu or (fact.gpu_index is not None and gpu == str(fact.gpu_index)))


def _decisive(related: Sequence[RankFault], job: JobState) -> dict[int, RankFault]:
    """rank → the fatal fault that explains it best; a drill's, only where there is no real one."""
    best: dict[int, RankFault] = {}
    for found in sorted(related, key=lambda f: (is_drill(f.fact, f.fault), not f.is_same_gpu, -f.fact.age_seconds)):
        if found.fault.severity == FATAL and found.fault.is_of_device:
            best.setdefault(found.rank, found)
    return best


def _evidence(related: Sequence[RankFault]) -> tuple[Evidence, ...]:
    lines: dict[str, Evidence] = {}
    for found in related:
        fact, fault = found.fact, found.fault
        drill = " (a drill)" if is_drill(fact, fault) else ""
        label = "" if fault.line.code is None else f"{'SXid' if fault.line.kind == 'sxid' else 'Xid'} {fault.line.code}"
        is_line = fact.kind == "kernel_line"
        label = label or ("Kernel fault" if is_line else fault_label(fault))
        text = f"{label} on {fact.node}{gpu_words(fact)}{drill}: {fault.text}."
        lines.setdefault(
            fact.event_id,
            Evidence(
                text=text,
                node=fact.node,
                rank=found.rank,
                source="kernel-log" if is_line else "nvml",
                age_seconds=fact.age_seconds,
                fields={
                    "line": fact.text,
                    "code": fault.line.code,
                    "pci": fault.line.pci,
                    "severity": fault.severity,
                    "action": fault.action,
                    "gpu": fact.gpu,
                    "event_id": fact.event_id,
                    "is_same_gpu": found.is_same_gpu,
                    "is_drill": is_drill(fact, fault),
                },
            ),
        )
    return tuple(lines.values())


def _blamed(verdict: Verdict, job: JobState, decisive: dict[int, RankFault]) -> Verdict:
    states = {state.rank: state for state in job.ranks}
    old = {suspect.rank: suspect for suspect in verdict.suspects}
    blamed = [_suspect(states[rank], found, old.get(rank)) for rank, found in sorted(decisive.items())]
    others = [suspect for suspect in verdict.suspects if suspect.rank not in decisive]
    first = min(
        decisive.values(),
        key=lambda found: (is_drill(found.fact, found.fault), not found.is_same_gpu, found.rank),
    )
    label = fault_label(first.fault)
    drill = " (a drill)" if is_drill(first.fact, first.fault) else ""
    seen = f"{label} ({first.fault.text}) on {first.fact.node}{gpu_words(first.fact)}{drill}"
    distance = first.fact.age_seconds - verdict.onset_age_seconds
    when = f"{abs(distance):.1f} s {'earlier' if distance >= 0 else 'later'}"
    return replace(
        verdict,
        certainty=Certainty.CONFIRMED,
        summary=f"{verdict.summary.rstrip('.')}; {seen} {when}.",
        suspects=tuple(sorted(blamed, key=lambda s: -s.confidence)) + tuple(others),
        owner=Owner.NODE,
        cause=Cause.GPU_FAULT,
        is_node_at_fault=True,
        is_drill=verdict.is_drill or is_drill(first.fact, first.fault),
        fault_class=first.fault.identity_class,
        boot_id=first.fact.boot_id,
        clears=first.fault.clears,
    )


def _suspect(state: RankState, found: RankFault, old: Suspect | None) -> Suspect:
    weight = GPU_FAULT_ON_GPU if found.is_same_gpu else GPU_FAULT_ON_NODE
    return Suspect(
        rank=state.rank,
        node=state.report.node,
        gpu=found.fact.gpu or state.report.gpu,
        cause=Cause.GPU_FAULT,
        # Two independent reasons to name the rank: it is the one that stopped, and its GPU failed.
        confidence=weight if old is None else round(1 - (1 - weight) * (1 - min(0.7, old.confidence)), 3),
    )
