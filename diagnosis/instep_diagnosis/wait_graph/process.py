"""What a word about a process says of why its rank does not go on."""

from __future__ import annotations

from instep_diagnosis.verdict import Cause

_LETTERS = {"T": Cause.STOPPED, "t": Cause.STOPPED, "D": Cause.UNINTERRUPTIBLE, "Z": Cause.DEAD, "X": Cause.DEAD}
_WORDS = (
    ("stopped", Cause.STOPPED),
    ("uninterruptible", Cause.UNINTERRUPTIBLE),
    ("d state", Cause.UNINTERRUPTIBLE),
    ("gil", Cause.GIL_HELD),
    ("dead", Cause.DEAD),
    ("gone", Cause.DEAD),
    ("zombie", Cause.DEAD),
    ("exited", Cause.DEAD),
    ("killed", Cause.DEAD),
    ("loader", Cause.DATA),
    ("checkpoint", Cause.USER_CODE),
    ("user", Cause.USER_CODE),
)


def process_cause(words: str) -> Cause:
    """The cause that a process state, a letter as the kernel gives it or words, stands for.

    >>> process_cause("T"), process_cause("waits in its data loader"), process_cause("sleeping")
    (<Cause.STOPPED: 'stopped'>, <Cause.DATA: 'data'>, <Cause.UNKNOWN: 'unknown'>)
    """
    lowered = words.lower()
    named = next((cause for word, cause in _WORDS if word in lowered), Cause.UNKNOWN)
    return _LETTERS.get(words, named)
