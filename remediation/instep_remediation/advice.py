"""What a person should do next, by cause. Short: the runbook page has the rest."""

from __future__ import annotations

from instep_diagnosis.kernel_faults import FATAL
from instep_diagnosis.verdict import Cause, Kind, Verdict

NEXT: dict[Cause, str] = {
    Cause.STOPPED: "Find out who stopped the process (SIGSTOP, a debugger, a frozen cgroup); the node is not accused.",
    Cause.GIL_HELD: "Look at the rank's stack: native code keeps Python's lock. Report it to the owner of that code.",
    Cause.USER_CODE: "Look at the rank's stack: the script itself waits or computes there while its peers wait.",
    Cause.UNINTERRUPTIBLE: "Check storage and drivers on the node: the process is in uninterruptible sleep.",
    Cause.DEAD: "Read the rank's own log for the reason of its end; check the node's kernel log for an OOM kill.",
    Cause.SKIPPED_COLLECTIVE: "A code bug: this rank's script went past a collective that the others entered.",
    Cause.MISMATCHED_COLLECTIVE: "A code bug: ranks called different collectives at the same place.",
    Cause.DEVICE: "Check the GPUs and the network of the group's nodes: all entered, none came back.",
    Cause.GPU_FAULT: "Drain the node and have the GPU repaired or reset before it is given work again.",
    Cause.SLOW_COMPUTE: "Check clocks, temperature and power of the GPU, and other load on the node.",
    Cause.SLOW_STALL: "The rank waits inside its own work: look at its stack and its node's storage and host.",
    Cause.STARVED: "Other processes take the rank's CPU: check limits and neighbours on the node.",
    Cause.DATA: "Check the data loader and the storage it reads from.",
    Cause.THERMAL: "Check fans, inlet temperature and heat sink of the GPU; take the node out until it is cool.",
    Cause.POWER_CAP: "Compare the GPU's power limit with its peers' and set it back, or check the power supplies.",
    Cause.UNKNOWN: "Look at the evidence and the ranks' logs: the cause could not be told.",
}

REPAIRS = {
    "reboot-node": "Drain the node and reboot it before it is given work again.",
    "reset-gpu": "Drain the node and reset the GPU before it is given work again.",
}
"""What a fault of a GPU asks for, where the catalogue or the driver knows; what does more comes first."""


def next_steps(verdict: Verdict | None) -> str:
    """Return one sentence or two for whoever is on call."""
    if verdict is None:
        return "Wait: the evidence is being collected."
    if not verdict.suspects:
        return NEXT[Cause.UNKNOWN]
    cause = verdict.suspects[0].cause
    return _repair(verdict) or NEXT[cause] if cause is Cause.GPU_FAULT else NEXT[cause]


def _repair(verdict: Verdict) -> str:
    """What the fatal faults in the evidence ask for."""
    fatal = (item.fields for item in verdict.evidence if item.fields.get("severity", FATAL) == FATAL)
    asked = {fields.get("action") for fields in fatal}
    return next((text for action, text in REPAIRS.items() if action in asked), "")


def runbook(kind: str, base: str) -> str:
    """Return the address of an incident kind's runbook page.

    >>> runbook("hang", "https://example.org/runbooks/")
    'https://example.org/runbooks/hang.md'
    """
    known = kind if kind in {k.value for k in Kind} else "index"
    return f"{base.rstrip('/')}/{known}.md"
