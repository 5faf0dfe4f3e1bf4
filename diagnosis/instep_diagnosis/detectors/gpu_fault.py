"""Fatal faults of GPUs in the kernel log, whether or not a job runs there."""

from __future__ import annotations

from collections.abc import Sequence

from instep_diagnosis.catalogues.rules import reading_rules
from instep_diagnosis.evidence import NodeFact
from instep_diagnosis.facts import fault_label, fault_now, gpu_words, is_drill
from instep_diagnosis.gpu_readings import GPU_MISSING, KIND, SRAM_LIMIT
from instep_diagnosis.kernel_faults import FATAL, KernelFault
from instep_diagnosis.verdict import Cause, Certainty, Evidence, Kind, Owner, Suspect, Verdict

ASKED = "recovery-action"


def detect_gpu_faults(facts: Sequence[NodeFact]) -> list[Verdict]:
    """One verdict for each fatal fault, by node, GPU, class and boot; the newest line of each is its evidence. What is
    only a symptom of another one has none.

    What the driver asks to be done with the GPU, where a fact says so, decides severity and action. A drill and the
    real thing are two faults, whichever is told last.
    """
    found: dict[Key, Verdict] = {}
    for fact in sorted(facts, key=lambda fact: (-fact.age_seconds, fact.event_id)):
        fault = fault_now(fact, facts)
        if fault is not None and fault.severity == FATAL and fault.is_of_device:
            key = (fact.node, gpu_of(fact, fault), fault.identity_class, fact.boot_id, is_drill(fact, fault))
            found[key] = _verdict(fact, fault)
    return [verdict for key, verdict in found.items() if not any(is_symptom(key, other) for other in found)]


Key = tuple[str, str, str, str, bool]
"""Node, GPU, class, boot and whether it is a drill."""


def is_symptom(key: Key, of: Key) -> bool:
    """Whether one fault only tells of another one: what the driver asks for, of the fault that has it ask; a GPU that
    is missing, of one that was lost; errors that were counted, of the line about them; as readings.toml says.

    >>> is_symptom(("n", "GPU-1", "recovery-action", "b", False), ("n", "GPU-1", "xid-95", "b", False))
    True
    """
    (node, gpu, name, boot, drill), (other_node, other_gpu, other, other_boot, other_drill) = key, of
    if (node, drill) != (other_node, other_drill) or boot != other_boot:
        return False
    if name == ASKED:
        return gpu == other_gpu and other not in (name, GPU_MISSING, SRAM_LIMIT)
    rule = reading_rules().get(name)
    return rule is not None and gpu in ("", other_gpu) and rule.is_part_of(other)


def may_be_symptom(fault_class: str) -> bool:
    """Whether a fault of this class may only tell of another one."""
    return fault_class == ASKED or fault_class in reading_rules()


def gpu_of(fact: NodeFact, fault: KernelFault) -> str:
    """The GPU that a fault is about: its UUID, else its index, else the PCI address in the line, else nothing."""
    if fact.gpu:
        return fact.gpu
    return str(fact.gpu_index) if fact.gpu_index is not None else fault.line.pci or ""


def _verdict(fact: NodeFact, fault: KernelFault) -> Verdict:
    label = fault_label(fault)
    is_driver = fact.kind not in ("kernel_line", KIND)
    who = "The readings" if fact.kind == KIND else "The driver" if is_driver else "The kernel"
    told = "logged" if fact.kind == "kernel_line" else "reported"
    drill = " (a drill)" if is_drill(fact, fault) else ""
    return Verdict(
        kind=Kind.GPU_FAULT,
        certainty=Certainty.CONFIRMED,
        summary=f"{label} on {fact.node}{gpu_words(fact)}{drill}: {fault.text}; action {fault.action}.",
        suspects=(Suspect(None, fact.node, gpu_of(fact, fault), Cause.GPU_FAULT, 0.95),),
        owner=Owner.NODE,
        evidence=(
            Evidence(
                text=f"{who} of {fact.node} {told} {label}{drill}.",
                node=fact.node,
                source="kernel-log" if fact.kind == "kernel_line" else "nvml",
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
