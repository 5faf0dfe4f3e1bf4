"""Which faults stand: a fault that was seen stands until something named ends it, never because time has passed.

What ends a fault is a list in its row (`clears`): a reset of the GPU, a new boot of the node, a person, the driver that
asks for nothing any more, or a cancelling code. Time is in the events; there is no clock.

Drills stand like real faults, labelled, so that a drill can be followed to its end. They are kept apart: a drill never
hides a real fault, its codes end drills only, and it never counts as a repetition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from instep_diagnosis.catalogues import ACTIONS, CLEARED_BY_ACTION, cancelling_codes
from instep_diagnosis.catalogues.rules import recovery_actions, return_rule
from instep_diagnosis.kernel_faults import FATAL, KernelFault, recovery_stated
from instep_diagnosis.kernel_line import LineKind
from instep_diagnosis.repeats import Occurrence, Repetition, repeated_codes, repetitions

LATCHES_MAX = 4096
BOOTS_MAX = 8
"""Boots remembered of each node, to know a late line of an earlier one."""
ENDS_MAX = 1024
MARKS_MAX = 4096
OCCURRENCES_MAX = 1024
EVENTS_MAX = 1024
RECOVERY_CLASS = "recovery-action"


@dataclass(frozen=True, slots=True)
class FaultSeen:
    """A line with its meaning, on one GPU (or, with an empty one, on the node)."""

    node: str
    gpu: str
    fault: KernelFault
    at_seconds: float
    boot_id: str = ""
    event_id: str = ""
    is_drill: bool = False


@dataclass(frozen=True, slots=True)
class RecoveryStated:
    """NVML's recovery action of a GPU."""

    node: str
    gpu: str
    value: int
    at_seconds: float
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class GpuReset:
    """A GPU was reset; an empty one stands for all of the node."""

    node: str
    gpu: str
    at_seconds: float


@dataclass(frozen=True, slots=True)
class NodeBooted:
    """A node runs under a boot id, new or not."""

    node: str
    boot_id: str
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Repaired:
    """A person says that a GPU, or with an empty one the whole node, is repaired; or that a drill is over."""

    node: str
    gpu: str
    at_seconds: float
    is_drill: bool = False
    """End drills only."""


@dataclass(frozen=True, slots=True)
class Contained:
    """The driver says of errors that were counted on a GPU that they were contained: the fault was none."""

    node: str
    gpu: str
    fault_class: str
    is_drill: bool = False


Event = FaultSeen | RecoveryStated | GpuReset | NodeBooted | Repaired | Contained


@dataclass(frozen=True, slots=True)
class LatchKey:
    """What makes two lines the same fault."""

    node: str
    gpu: str
    fault_class: str
    is_drill: bool = False


@dataclass(frozen=True, slots=True)
class Latch:
    """A fault that stands."""

    key: LatchKey
    severity: str | None
    action: str
    text: str
    clears: tuple[str, ...]
    first_seconds: float
    last_seconds: float
    count: int = 1
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """A fault that stood and was ended."""

    key: LatchKey
    by: str
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Scope:
    """What an event ends: faults of a GPU, or with an empty one of the whole node."""

    by: str
    """The word in `clears` that it answers."""
    node: str
    gpu: str = ""
    is_drill: bool | None = None
    """Drills only, real faults only, or both."""

    def ends(self, key: LatchKey, clears: tuple[str, ...]) -> bool:
        """Whether it ends a fault that such events end."""
        is_there = key.node == self.node and (not self.gpu or key.gpu == self.gpu)
        return is_there and self.by in clears and self.is_drill in (None, key.is_drill)


@dataclass(frozen=True, slots=True)
class LatchState:
    """What stands, and what must be remembered to judge the next event."""

    latches: Mapping[LatchKey, Latch] = field(default_factory=dict)
    boots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """node → its boots, newest last."""
    ends: tuple[End, ...] = ()
    marks: Mapping[Scope, float] = field(default_factory=dict)
    """When such an event was last seen, for lines that come late."""
    seen: tuple[Occurrence, ...] = ()
    events: tuple[str, ...] = ()
    refused: int = 0
    """Faults that found no room."""


def latched(state: LatchState, event: Event) -> LatchState:
    """The state after one event.

    >>> from instep_diagnosis.kernel_faults import assess
    >>> from instep_diagnosis.kernel_line import read_kernel_line
    >>> fault = assess(read_kernel_line("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."))
    >>> state = latched(LatchState(), FaultSeen("node-a", "GPU-1", fault, 10.0, boot_id="one"))
    >>> [latch.key.fault_class for latch in standing(state, "node-a")]
    ['xid-79']
    >>> standing(latched(state, NodeBooted("node-a", "two", 90.0)), "node-a")
    []
    """
    if isinstance(event, NodeBooted):
        return _booted(state, event.node, event.boot_id, event.at_seconds)
    if isinstance(event, GpuReset):
        return _ended(state, Scope("reset", event.node, event.gpu), event.at_seconds)
    if isinstance(event, Contained):
        key = LatchKey(event.node, event.gpu, event.fault_class, event.is_drill)
        return replace(state, latches={other: latch for other, latch in state.latches.items() if other != key})
    if isinstance(event, Repaired):
        scope = Scope("person", event.node, event.gpu, True if event.is_drill else None)
        return _ended(state, scope, event.at_seconds)
    state = _booted(state, event.node, event.boot_id, event.at_seconds) if event.boot_id else state
    return _recovery(state, event) if isinstance(event, RecoveryStated) else _seen(state, event)


def standing(state: LatchState, node: str, gpu: str | None = None) -> list[Latch]:
    """What stands on a node, or on one GPU and on the node as a whole, worst first."""
    latches = [latch for key, latch in state.latches.items() if key.node == node]
    found = [latch for latch in latches if gpu is None or latch.key.gpu in (gpu, "")]
    return sorted(found, key=lambda one: (one.severity != FATAL, -ACTIONS.index(one.action), one.first_seconds))


def action_for(state: LatchState, node: str, gpu: str) -> str:
    """What the real faults that stand on a GPU need: what the driver asks for, else the most of what their rows say."""
    found = [latch for latch in standing(state, node, gpu) if not latch.key.is_drill]
    stated = [latch for latch in found if latch.key.fault_class == RECOVERY_CLASS]
    actions = [latch.action for latch in stated or found]
    return max(actions, key=ACTIONS.index, default="none")


def is_history(state: LatchState, event: FaultSeen) -> bool:
    """Whether a fault is told after its end: of a boot that is over, or from before what has ended such a one."""
    return _is_over(state, _latch(state, event))


def with_past_boot(state: LatchState, node: str, boot_id: str) -> LatchState:
    """The state with a boot that came before those it knows, and of which it hears now."""
    known = state.boots.get(node, ())
    if not known or boot_id in known:
        return state
    return replace(state, boots={**state.boots, node: (boot_id, *known)[-BOOTS_MAX:]})


def _booted(state: LatchState, node: str, boot_id: str, at_seconds: float) -> LatchState:
    """A boot that was not known before ends what a reboot ends; a boot of before changes nothing."""
    known = state.boots.get(node, ())
    if boot_id in known:
        return state
    state = replace(state, boots={**state.boots, node: (*known, boot_id)[-BOOTS_MAX:]})
    return _ended(state, Scope("reboot", node), at_seconds) if known else state


def _ended(state: LatchState, scope: Scope, at_seconds: float) -> LatchState:
    """Without the faults that the event ends and that were last seen before it."""
    marks = {**state.marks, scope: max(at_seconds, state.marks.get(scope, at_seconds))}
    if len(marks) > MARKS_MAX:
        del marks[min(marks, key=marks.__getitem__)]
    gone = {
        key
        for key, latch in state.latches.items()
        if latch.last_seconds <= at_seconds and scope.ends(key, latch.clears)
    }
    kept = {key: latch for key, latch in state.latches.items() if key not in gone}
    ends = (*state.ends, *(End(key, scope.by, at_seconds) for key in sorted(gone, key=repr)))[-ENDS_MAX:]
    return replace(state, latches=kept, ends=ends, marks=marks)


def _recovery(state: LatchState, event: RecoveryStated) -> LatchState:
    stated = recovery_actions().get(event.value)
    if stated is None or _is_stale_boot(state, event.node, event.boot_id):
        return state
    if stated.severity is None:
        return _ended(state, Scope("recovery-none", event.node, event.gpu, False), event.at_seconds)
    key, at = LatchKey(event.node, event.gpu, RECOVERY_CLASS), event.at_seconds
    latch = Latch(key, stated.severity, stated.action, stated.text, CLEARED_BY_ACTION["none"], at, at, 1, event.boot_id)
    return state if _is_over(state, latch) else _standing(state, latch)


def _seen(state: LatchState, event: FaultSeen) -> LatchState:
    if event.event_id and event.event_id in state.events:
        return state
    if event.event_id:
        state = replace(state, events=(*state.events, event.event_id)[-EVENTS_MAX:])
    state = _cancelled(state, event)
    if not event.is_drill and not event.fault.line.is_injected:
        state = _counted(state, event)
    latch = _latch(state, event)
    if not latch.clears or _is_over(state, latch):
        return state
    return _standing(state, latch)


def _cancelled(state: LatchState, event: FaultSeen) -> LatchState:
    """Without the faults of the same GPU that this very code ends."""
    by = event.fault.fault_class
    if event.fault.line.kind is LineKind.XID and event.fault.line.code == 154:
        stated = recovery_stated(event.fault.line.text)
        by = "recovery-none" if stated is not None and stated.severity is None else by
    if by != "recovery-none" and by not in cancelling_codes():
        return state
    return _ended(state, Scope(by, event.node, event.gpu, _is_drill(event)), event.at_seconds)


def _counted(state: LatchState, event: FaultSeen) -> LatchState:
    """With the suspicion that a repetition raises, if it raises one."""
    if event.fault.line.kind is not LineKind.XID or event.fault.line.code not in repeated_codes():
        return state
    one = Occurrence(event.node, event.gpu, event.fault.line, event.at_seconds)
    state = replace(state, seen=(*state.seen, one)[-OCCURRENCES_MAX:])
    for found in repetitions([past for past in state.seen if past.line.code == one.line.code]):
        if (found.node, found.gpu) == (event.node, event.gpu):
            state = _suspected(state, found, event.boot_id)
    return state


def _suspected(state: LatchState, found: Repetition, boot_id: str) -> LatchState:
    key, at = LatchKey(found.node, found.gpu, found.fault_class), found.last_seconds
    text = f"{found.rule.text} ({found.part})" if found.part else found.rule.text
    latch = Latch(key, found.rule.severity, found.rule.action, text, ("person",), at, at, 1, boot_id)
    return state if _is_over(state, latch) else _standing(state, latch)


def _is_drill(event: FaultSeen) -> bool:
    return event.is_drill or event.fault.line.is_injected


def _is_stale_boot(state: LatchState, node: str, boot_id: str) -> bool:
    return bool(boot_id) and boot_id in state.boots.get(node, ())[:-1]


def _is_over(state: LatchState, latch: Latch) -> bool:
    """Whether the line came late: of a boot that is over, or from before what has ended such a fault."""
    if "reboot" in latch.clears and _is_stale_boot(state, latch.key.node, latch.boot_id):
        return True
    return any(latch.last_seconds < at and scope.ends(latch.key, latch.clears) for scope, at in state.marks.items())


def _latch(state: LatchState, event: FaultSeen) -> Latch:
    fault, at = event.fault, event.at_seconds
    key = LatchKey(event.node, event.gpu, fault.identity_class, _is_drill(event))
    latch = Latch(key, fault.severity, fault.action, fault.text, fault.clears, at, at, 1, event.boot_id)
    rule = return_rule()
    repairs = [end for end in state.ends if end.key == key and end.by in ("reset", "reboot")]
    if sum(end.at_seconds > at - rule.window_seconds for end in repairs) < rule.count:
        return latch
    return replace(latch, action="contact-support", text=f"{fault.text}; {rule.text}", clears=("person",))


def _standing(state: LatchState, new: Latch) -> LatchState:
    """With the fault among those that stand: folded into the same one, or where there is room."""
    old = state.latches.get(new.key)
    if old is None and len(state.latches) >= LATCHES_MAX:
        return replace(state, refused=state.refused + 1)
    return replace(state, latches={**state.latches, new.key: new if old is None else _folded(old, new)})


def _folded(old: Latch, new: Latch) -> Latch:
    """Both as one: what the newer line says, unless the older one needs a person and the newer one does not."""
    said = new if new.last_seconds >= old.last_seconds and old.clears != ("person",) else old
    return replace(
        said,
        first_seconds=min(old.first_seconds, new.first_seconds),
        last_seconds=max(old.last_seconds, new.last_seconds),
        count=old.count + new.count,
    )
