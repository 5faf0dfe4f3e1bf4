"""Names of process groups that mean the same on every rank, and a short text for their members."""

from __future__ import annotations

from collections.abc import Sequence

from instep_agent.digest import digest

MEMBERS_MAX = 65_536
"""A record that claims a larger group is not believed: its text is short, but its expansion is not."""


def group_key(members: Sequence[int], description: str, ordinal: int) -> str:
    """Give 16 hex digits that are equal on every member of a group.

    They are the BLAKE2b-64 of the members in group order, the description, and the ordinal: how many groups of the
    same members and description were made before. Torch's own group numbers are local to a rank.

    >>> group_key([0, 1], "dp", 0) == group_key((0, 1), "dp", 0)
    True
    >>> group_key([0, 1], "dp", 0) == group_key([1, 0], "dp", 0)
    False
    """
    text = f"{','.join(map(str, members))}\n{description}\n{ordinal}"
    return digest(text.encode(), 8)


def to_runs(members: Sequence[int]) -> str:
    """Give members in order as runs `first-last` or `first-last:stride`, separated by commas.

    >>> to_runs([0, 1, 2, 3, 8])
    '0-3,8'
    >>> to_runs([1, 9, 17, 25])
    '1-25:8'
    """
    runs, start = [], 0
    while start < len(members):
        end = _run_end(members, start)
        runs.append(_run_text(members[start], members[end], end - start))
        start = end + 1
    return ",".join(runs)


def _run_end(members: Sequence[int], start: int) -> int:
    """Give the index of the last member of the run at `start`; two members make a run only when they are neighbours."""
    end = start
    if start + 1 < len(members):
        stride = members[start + 1] - members[start]
        while stride > 0 and end + 1 < len(members) and members[end + 1] - members[end] == stride:
            end += 1
        if end == start + 1 and stride != 1:
            end = start
    return end


def _run_text(first: int, last: int, steps: int) -> str:
    if steps == 0:
        return str(first)
    stride = (last - first) // steps
    return f"{first}-{last}" if stride == 1 else f"{first}-{last}:{stride}"


def from_runs(text: str, size: int) -> tuple[int, ...] | None:
    """Give the members, or None unless the text is well formed and names exactly `size` of them (untrusted input).

    >>> from_runs("0-3,8", 5)
    (0, 1, 2, 3, 8)
    >>> from_runs("0-999999999", 5) is None
    True
    """
    if not 0 < size <= MEMBERS_MAX or not text.isascii():
        return None
    members: list[int] = []
    try:
        for run in text.split(","):
            span, _, stride = run.partition(":")
            first, _, last = span.partition("-")
            part = range(int(first), int(last or first) + 1, int(stride or 1))
            if part.step < 1 or len(part) > size - len(members) or part.stop > 2**31:
                return None
            members.extend(part)
    except ValueError:
        return None
    return tuple(members) if len(members) == size else None
