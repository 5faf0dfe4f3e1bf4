"""Fatal faults of GPUs in the kernel log, whether or not a job runs there."""

from __future__ import annotations

from collections.abc import Sequence

from instep_diagnosis.evidence import NodeFact
from instep_diagnosis.facts import fault_label, fault_now, gpu_words, is_drill
from instep_diagnosis.kernel_faults import FATAL, KernelFault
from instep_diagnosis.verdict import Cause, Certainty, Evidence, Kind, Owner, Suspect, Verdict


def detect_gpu_faults(facts: Sequence[NodeFact]) -> list[Verdict]:
    """One verdict for each fatal fault, by node, GPU, class and boot; the newest line of each is its evidence.

    What the driver asks to be done with the GPU, where a fact says so, decides severity and action. A drill and the
    real thing are two faults, whichever is told last.
    """
    found: dict[tuple[str, str, str, str, bool], Verdict] = {}
    for fact in sorted(facts, key=lambda fact: (-fact.age_seconds, fact.event_id)):
        fault = fault_now(fact, facts)
        if fault is not None and fault.severity == FATAL and fault.is_of_device:
            key = (fact.node, gpu_of(fact, fault), fault.identity_class, fact.boot_id, is_drill(fact, fault))
            found[key] = _verdict(fact, fault)
    return list(found.values())


def gpu_of(fact: NodeFact, fault: KernelFault) -> str:
    """The GPU that a fault is about: its UUID, else its index, else the PCI address in the line, else nothing."""
    if fact.gpu:
        return fact.gpu
    return str(fact.gpu_index) if fact.gpu_index is not None else fault.line.pci or ""


def _verdict(fact: NodeFact, fault: KernelFault) -> Verdict:
    label = fault_label(fault)
    is_driver = fact.kind != "kernel_line"
    told = "reported" if is_driver else "logged"
    drill = " (a drill)" if is_drill(fact, fault) else ""
    return Verdict(
        kind=Kind.GPU_FAULT,
        certainty=Certainty.CONFIRMED,
        summary=f"{label} on {fact.node}{gpu_words(fact)}{drill}: {fault.text}; action {fault.action}.",
        suspects=(Suspect(None, fact.node, gpu_of(fact, fault), Cause.GPU_FAULT, 0.95),),
        owner=Owner.NODE,
        evidence=(
            Evidence(
                text=f"{'The driver' if is_driver else 'The kernel'} of {fact.node} {told} {label}{drill}.",
                node=fact.node,
                source="nvml" if is_driver else "kernel-log",
                age_seconds=fact.age_seconds,
                fields={
                    "line": fact.text,
                    "code": fault.line.code,
                    "action": fault.action,
                    "event_id": fact.event_id,
                    "is_drill": bool(drill),
                },
            ),
        ),
        onset_age_seconds=fact.age_seconds,
        is_node_at_fault=True,
        is_drill=bool(drill),
        cause=Cause.GPU_FAULT,
        fault_class=fault.identity_class,
        boot_id=fact.boot_id,
        clears=fault.clears,
    )
