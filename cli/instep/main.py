"""The dispatcher: `instep VERB …` finds VERB among the installed entry points and hands the rest of the line to it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib.metadata import entry_points

DIE_WITH_PARENT = "INSTEP_DIE_WITH_PARENT"
"""Pid of the process that starts this one, when this one must not outlive it (the demo, a benchmark)."""
PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return its exit status: 0 fine, 1 found something, 2 used wrongly, 3 could not look."""
    words = sys.argv[1:] if arguments is None else arguments
    if parent := os.environ.pop(DIE_WITH_PARENT, ""):
        die_with_parent(int(parent))
    verbs = {point.name: point for point in entry_points(group="instep.commands")}
    if not words or words[0] in ("-h", "--help"):
        print("usage: instep VERB …\n\nverbs: " + ", ".join(sorted(verbs)))
        return 0 if words else 2
    if words[0] not in verbs:
        print(f"instep: there is no verb {words[0]!r}; verbs are {', '.join(sorted(verbs))}.", file=sys.stderr)
        return 2
    try:
        command = verbs[words[0]].load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("instep"):
            raise
        print(
            f"instep {words[0]}: module {error.name!r} is missing: install the extra that brings it, "
            f"such as pip install 'instep[all]'.",
            file=sys.stderr,
        )
        return 3
    try:
        status = int(command(words[1:]) or 0)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough (`instep … | head`). Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process in order (SIGTERM) when the process that started it dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(143)
