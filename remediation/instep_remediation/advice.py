"""What a person should do next, by cause. Short: the runbook page has the rest."""

from __future__ import annotations

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
    Cause.UNKNOWN: "Look at the evidence and the ranks' logs: the cause could not be told.",
}


def next_steps(verdict: Verdict | None) -> str:
    """Return one sentence or two for whoever is on call."""
    if verdict is None:
        return "Wait: the evidence is being collected."
    if not verdict.suspects:
        return NEXT[Cause.UNKNOWN]
    return NEXT[verdict.suspects[0].cause]


def runbook(kind: str, base: str) -> str:
    """Return the address of an incident kind's runbook page.

    >>> runbook("hang", "https://example.org/runbooks/")
    'https://example.org/runbooks/hang.md'
    """
    known = kind if kind in {k.value for k in Kind} else "index"
    return f"{base.rstrip('/')}/{known}.md"
