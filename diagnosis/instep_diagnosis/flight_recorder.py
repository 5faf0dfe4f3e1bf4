"""torch's flight recorder as evidence: the last collective of each group that a rank's own torch has on record.

A dump crosses a trust boundary: it is JSON or a pickle as torch writes them (format 2.10), read with bounds and
believed for nothing but what is compared with other ranks. A gloo recorder has no point-to-point, no durations, and
only local names of groups, so entries are told apart by the group's description; see docs/reference/collectives.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.files.restricted_unpickler import RefusedPickle, load_plain

TEXT_BYTES_MAX = 8 << 20
"""2,000 entries, the recorder's default, take about 1 MB."""
PICKLE_BYTES_MAX = 5 << 20
"""The most that an agent sends of all ranks of a node; 2,000 entries take 0.4 MB and a quarter of a second."""
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
    return _newest(trace)


def last_entries_pickled(data: bytes) -> tuple[LastEntry, ...]:
    """Return the newest collective of each group of a pickled dump. Raises `EvidenceError` where it cannot be read;
    nothing in it is ever carried out.

    >>> last_entries_pickled(b"\\x80\\x02}q\\x00X\\x07\\x00\\x00\\x00entriesq\\x01]q\\x02s.")
    ()
    """
    if len(data) > PICKLE_BYTES_MAX:
        raise EvidenceError(f"it has {len(data)} bytes, at most {PICKLE_BYTES_MAX} are read")
    try:
        return _newest(msgspec.convert(load_plain(data), type=_Trace))
    except RefusedPickle as error:
        raise EvidenceError(str(error)) from error
    except (msgspec.ValidationError, RecursionError) as error:
        raise EvidenceError("it is no flight-recorder dump") from error


def _newest(trace: _Trace) -> tuple[LastEntry, ...]:
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
