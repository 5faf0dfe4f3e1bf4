"""Which faults stand on each node now, as the server heard of them; what ends one is listed with it.

Held in memory, by the rules of `instep_diagnosis.latching`; a server that starts again seeds it with its open
incidents. Times are the server's, in seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from instep_collector.registry import NodeState
from instep_collector.store.models import Incident
from instep_diagnosis.detectors.gpu_fault import gpu_of
from instep_diagnosis.evidence import NodeFact
from instep_diagnosis.facts import is_drill, recovery_of
from instep_diagnosis.kernel_faults import FATAL, KernelFault
from instep_diagnosis.latching import (
    Contained,
    Event,
    FaultSeen,
    Latch,
    LatchKey,
    LatchState,
    NodeBooted,
    RecoveryStated,
    Repaired,
    Scope,
    is_history,
    latched,
    standing,
    with_past_boot,
)
from instep_diagnosis.verdict import Verdict

from instep_remediation.verdict_json import verdict_from_json

NODES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Ending:
    """Something that ends faults was told."""

    scope: Scope
    at: float
    boot_id: str = ""
    """Of a reboot: the boot that began."""


class Latches:
    """The faults that stand, by node."""

    def __init__(self) -> None:
        self._states: dict[str, LatchState] = {}

    def seed(self, rows: Iterable[Incident]) -> None:
        """Have the faults of open incidents stand."""
        for row in rows:
            verdict = verdict_from_json(row.verdict) if row.verdict and row.mended is None else None
            latch = latch_of(row, verdict) if verdict is not None else None
            if latch is None or len(self._states) >= NODES_MAX:
                continue
            state = self._states.get(latch.key.node, LatchState())
            boots = {latch.key.node: (latch.boot_id,)} if latch.boot_id and not state.boots else state.boots
            latches = {**state.latches, latch.key: latch}
            self._states[latch.key.node] = replace(state, latches=latches, boots=boots)

    def take(self, fact: NodeFact, fault: KernelFault | None, *, at: float) -> list[Ending]:
        """Take in one fact, with the fault that it tells of if it tells of one; return what it ends."""
        is_stated = recovery_of(fact) is not None and not fact.is_drill
        event = _recovery(fact, at) if fault is None or is_stated else _seen(fact, fault, at)
        return [] if event is None else self._apply(fact.node, event)

    def is_history(self, fact: NodeFact, fault: KernelFault, *, at: float) -> bool:
        """Whether a fault was over before it was told here."""
        state = self._states.get(fact.node)
        return state is not None and is_history(state, _seen(fact, fault, at))

    def boot(self, node: NodeState, *, at: float) -> list[Ending]:
        """Take in the boot under which a node runs, begun at `at`; return what it ends."""
        state = self._states.get(node.node)
        if state is None:
            return []
        if node.boot_id in state.boots.get(node.node, ()):
            for boot_id in reversed(node.past_boots):
                self._states[node.node] = state = with_past_boot(state, node.node, boot_id)
        return self._apply(node.node, NodeBooted(node.node, node.boot_id, at))

    def nodes(self) -> list[str]:
        """Return the nodes of which anything was heard that could end with a boot."""
        return list(self._states)

    def repaired(self, node: str, *, at: float) -> None:
        """Take in that a person says that a node is mended."""
        self._apply(node, Repaired(node, "", at))

    def contained(self, fact: NodeFact, fault_class: str) -> None:
        """Take in that a fault of a fact's GPU was none."""
        self._apply(fact.node, Contained(fact.node, fact.gpu, fault_class, fact.is_drill))

    def standing(self, node: str) -> list[Latch]:
        """Return what stands on a node, worst first."""
        state = self._states.get(node)
        return [] if state is None else standing(state, node)

    def _apply(self, node: str, event: Event) -> list[Ending]:
        old = self._states.get(node)
        if old is None:
            if len(self._states) >= NODES_MAX:
                return []
            old = LatchState()
        new = self._states[node] = latched(old, event)
        boot_id = new.boots.get(node, ("",))[-1]
        marked = [(scope, at) for scope, at in new.marks.items() if old.marks.get(scope) != at]
        return [Ending(scope, at, boot_id if scope.by == "reboot" else "") for scope, at in marked]


def latch_of(row: Incident, verdict: Verdict) -> Latch | None:
    """Return the fault that an incident tells of as one that stands; None where it tells of none."""
    if not (verdict.fault_class and verdict.suspects):
        return None
    suspect = verdict.suspects[0]
    actions = [str(item.fields["action"]) for item in verdict.evidence if item.fields.get("action")]
    return Latch(
        LatchKey(suspect.node, suspect.gpu, verdict.fault_class, row.is_drill),
        FATAL,
        actions[0] if actions else "none",
        verdict.summary,
        verdict.clears,
        row.onset_at,
        row.onset_at,
        boot_id=verdict.boot_id,
    )


def is_ended(row: Incident, verdict: Verdict, ending: Ending) -> bool:
    """Whether what was told ends the fault of an incident: it is about it, of the kind that ends it, and later.

    A boot ends what was seen in an earlier one only.
    """
    latch = latch_of(row, verdict)
    if latch is None or row.onset_at > ending.at or (ending.boot_id and ending.boot_id == latch.boot_id):
        return False
    return ending.scope.ends(latch.key, latch.clears)


def sentence(verdict: Verdict, ending: Ending) -> str:
    """Return in words what ended a fault."""
    node, gpu, label = verdict.suspects[0].node, verdict.suspects[0].gpu, fault_words(verdict.fault_class)
    if ending.scope.by == "reboot":
        boot = f" (boot {ending.boot_id})" if ending.boot_id else ""
        return f"Node {node} was rebooted{boot}, which ends {label}."
    if ending.scope.by == "recovery-none":
        return f"The driver asks for nothing any more about GPU {gpu or '?'} of {node}, which ends {label}."
    return f"{fault_words(ending.scope.by)} was told of GPU {gpu or '?'} of {node}, which ends {label}."


def fault_words(fault_class: str) -> str:
    """Return a class of faults as people call it.

    >>> fault_words("xid-79"), fault_words("nvlink-down")
    ('Xid 79', 'nvlink-down')
    """
    if fault_class == "recovery-action":
        return "what the driver asked for"
    return fault_class.replace("sxid-", "SXid ").replace("xid-", "Xid ")


def _recovery(fact: NodeFact, at: float) -> Event | None:
    action = recovery_of(fact)
    if action is None or not fact.gpu or fact.is_drill:
        return None
    return RecoveryStated(fact.node, fact.gpu, action, at, fact.boot_id)


def _seen(fact: NodeFact, fault: KernelFault, at: float) -> FaultSeen:
    return FaultSeen(fact.node, gpu_of(fact, fault), fault, at, fact.boot_id, fact.event_id, is_drill(fact, fault))
