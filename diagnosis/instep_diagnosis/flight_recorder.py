"""torch's flight recorder as evidence: the last collective of each group that a rank's own torch has on record.

The text crosses a trust boundary: it is JSON as torch writes it (format 2.10), read with bounds and believed for
nothing but what
is compared with other ranks. A gloo recorder has no point-to-point, no durations, and only local names of groups, so
entries are
told apart by the group's description; see docs/reference/collectives.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

TEXT_BYTES_MAX = 8 << 20
"""2,000 entries, the recorder's default, take about 1 MB."""
NAME_LETTERS_MAX = 64


class _Entry(msgspec.Struct):
    collective_seq_id: int = 0
    profiling_name: str = ""
    process_group: tuple[str, str] = ("", "")
    is_p2p: bool = False


class _Trace(msgspec.Struct):
    entries: list[_Entry] = []


@dataclass(frozen=True, slots=True)
class LastEntry:
    """The newest collective of one group."""

    group: str
    """The group's description, or its local name where it has none."""
    seq: int
    op: str


def last_entries(text: str) -> tuple[LastEntry, ...]:
    """Return the newest collective of each group, by description; empty for text that is not such a dump.

    >>> last_entries('{"entries": [{"collective_seq_id": 7, "profiling_name": "gloo:all_reduce", '
    ...              '"process_group": ["0", "default_pg"]}]}')
    (LastEntry(group='default_pg', seq=7, op='all_reduce'),)
    """
    if not text or len(text) > TEXT_BYTES_MAX:
        return ()
    try:
        trace = msgspec.json.decode(text, type=_Trace)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return ()
    newest: dict[str, LastEntry] = {}
    for entry in trace.entries:
        if entry.is_p2p:
            continue
        name, description = entry.process_group
        group = (description or name)[:NAME_LETTERS_MAX]
        if group not in newest or entry.collective_seq_id > newest[group].seq:
            op = entry.profiling_name.partition(":")[2] or entry.profiling_name
            newest[group] = LastEntry(group, entry.collective_seq_id, op[:NAME_LETTERS_MAX])
    return tuple(newest[group] for group in sorted(newest))
