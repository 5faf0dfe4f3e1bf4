"""How verdicts speak of ranks and collectives, so that every sentence says the same thing the same way."""

from __future__ import annotations

from collections.abc import Sequence

from instep_diagnosis.detectors.waits import Wait


def entry_words(wait: Wait) -> str:
    """An entry as a person says it: `all_reduce seq 511 of group dp (0-3)`."""
    group = wait.group
    members = f" ({span_words(group.members)})" if group.members else ""
    return f"{group.op or 'a collective'} seq {wait.seq} of group {group.description or group.key[:8]}{members}"


def span_words(ranks: Sequence[int]) -> str:
    """Ranks in short.

    >>> span_words((0, 1, 2, 3, 8, 10))
    '0-3, 8, 10'
    """
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 2 else ", ".join(map(str, s)) for s in spans)


def ranks_words(ranks: Sequence[int], *, is_start: bool = False) -> str:
    """`rank 2`, or `ranks 0, 1, 3`."""
    words = ("rank " if len(ranks) == 1 else "ranks ") + (
        ", ".join(map(str, sorted(ranks))) if len(ranks) <= 8 else span_words(ranks)
    )
    return words.capitalize() if is_start else words


def have(count: int) -> str:
    """The verb that agrees with so many ranks."""
    return "has" if count == 1 else "have"
