"""One rank's flight-recorder dump, from the plain values of a pickle or of JSON.

Written for torch's formats 2.1 to 2.10 and for gloo's and NCCL's habits; what an unknown version leaves out is *not
known*. Nothing in a dump is believed beyond what its type and bounds allow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from instep_diagnosis.wait_graph.history import Progress, Signature, Standing

ENTRIES_MAX = 200_000
"""A hundred times the recorder's default."""
GROUPS_MAX = 4_096
MEMBERS_MAX = 131_072
NAME_LETTERS_MAX = 128
NUMBER_MAX = 1 << 40
"""Larger counters are garbage that old versions are known to write."""

_STATES = {"scheduled": Progress.ENTERED, "started": Progress.STARTED, "completed": Progress.COMPLETED}
_PEERS = re.compile(r"(?P<way>send|recv)\s+(?P<left>\d{1,9})\s*(?:->|<-)\s*(?P<right>\d{1,9})")

Plain = object
"""A value of a pickle or of JSON: nothing but dictionaries, lists, tuples, words, numbers, truths and None."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation as a recorder has it."""

    record_id: int
    pg_id: int
    name: str
    """The group's local name."""
    description: str
    seq: int
    op: str
    progress: Progress
    signature: Signature
    is_transfer: bool = False
    peers: tuple[int, int] | None = None
    """Sender and receiver in ranks of the group, where it is a transfer that names them."""
    is_last_of_batch: bool = False
    """The record of a whole batch of coalesced operations, which alone carries the batch's state."""
    created_ns: int = 0
    is_timed: bool = False
    """When its device began it is on record, which only is where timing is on."""
    op_id: int = 0
    """Its number among all operations of the group: transfers count here too, also those that are not listed."""


@dataclass(frozen=True, slots=True)
class GroupName:
    """What a rank calls a group, and who it says is in it."""

    name: str
    description: str
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecorderDump:
    """One rank's dump."""

    entries: tuple[Entry, ...]
    groups: tuple[GroupName, ...]
    statuses: Mapping[int, Standing] = field(default_factory=dict)
    """By the rank's local group id."""
    rank: int | None = None
    """Where the dump says so itself."""
    is_gloo: bool = False


def read_dump(value: Plain) -> RecorderDump | None:
    """The dump that a value holds, or None where it is none.

    >>> read_dump({"entries": [], "pg_config": {"0": {"name": "0", "desc": "dp", "ranks": "[0, 1]"}}}).groups
    (GroupName(name='0', description='dp', members=(0, 1)),)
    >>> read_dump([1]) is None
    True
    """
    if not isinstance(value, dict) or not any(key in value for key in ("entries", "pg_config", "pg_status")):
        return None
    listed = value.get("entries")
    listed = listed[-ENTRIES_MAX:] if isinstance(listed, list) else []
    raw = [entry for entry in listed if isinstance(entry, dict) and ("profiling_name" in entry or "state" in entry)]
    if listed and not raw:
        # Of a form that nobody knows: what its rank has called is not known, rather than nothing.
        return None
    entries = tuple(sorted((_entry(entry) for entry in raw), key=lambda entry: entry.record_id))
    return RecorderDump(
        entries=entries,
        groups=_groups(value.get("pg_config")),
        statuses=_statuses(value.get("pg_status")),
        rank=_first_number(value, ("rank", "global_rank")),
        is_gloo=any(word(entry.get("profiling_name")).startswith("gloo:") for entry in raw),
    )


def _entry(raw: Mapping[Plain, Plain]) -> Entry:
    backend, _, op = word(raw.get("profiling_name")).rpartition(":")
    name, description = _group_words(raw.get("process_group"))
    found = _PEERS.search(op)
    is_transfer = raw.get("is_p2p") is True or found is not None
    seq = number(raw.get("p2p_seq_id" if is_transfer else "collective_seq_id"))
    if seq is None:
        seq = number(raw.get("seq_id")) or 0
    ends = None
    if found:
        left, right = int(found["left"]), int(found["right"])
        ends = (left, right) if found["way"] == "send" else (right, left)
    return Entry(
        record_id=number(raw.get("record_id")) or number(raw.get("id")) or 0,
        pg_id=_signed(raw.get("pg_id")),
        name=name,
        description=description,
        seq=seq,
        op=op or backend,
        progress=_progress(raw),
        signature=_signature(op, raw, is_transfer=is_transfer),
        is_transfer=is_transfer,
        peers=ends,
        is_last_of_batch=op == "coalesced",
        is_timed=bool(_number_up_to(raw.get("time_discovered_started_ns"), 1 << 63)),
        op_id=number(raw.get("op_id")) or 0,
        created_ns=_number_up_to(raw.get("time_created_ns"), 1 << 63) or 0,
    )


def _progress(raw: Mapping[Plain, Plain]) -> Progress:
    state = _STATES.get(word(raw.get("state")).lower(), Progress.ENTERED)
    if raw.get("retired") is True or _number_up_to(raw.get("time_discovered_completed_ns"), 1 << 63):
        return Progress.COMPLETED
    if _number_up_to(raw.get("time_discovered_started_ns"), 1 << 63):
        return max(state, Progress.STARTED)
    return state


def _signature(op: str, raw: Mapping[Plain, Plain], *, is_transfer: bool) -> Signature:
    """What all ranks must agree on: sizes on the side on which the operation is even, none where it may be uneven."""
    if op == "coalesced" or not op:
        return ("", "", "")
    plain = op.lower().lstrip("_")
    is_output = "scatter" in plain or (is_transfer and plain.startswith("recv"))
    side = "output" if is_output else "input"
    is_uneven = "to_all" in plain or "toall" in plain or "barrier" in plain
    sizes = "" if is_uneven else _elements(raw.get(f"{side}_sizes"))
    dtypes = raw.get(f"{side}_dtypes")
    kinds = sorted({word(kind) for kind in dtypes[:64]}) if isinstance(dtypes, list | tuple) else []
    return ("transfer" if is_transfer else op, sizes, "" if "barrier" in plain else ", ".join(kinds))


def _elements(sizes: Plain) -> str:
    """How many elements all tensors have together: shapes of equal content may differ.

    >>> _elements([[2, 3], [4]]), _elements([])
    ('10 elements', '')
    """
    if not isinstance(sizes, list | tuple) or not sizes:
        return ""
    total = 0
    for shape in sizes[:4_096]:
        count = 1
        for side in shape[:16] if isinstance(shape, list | tuple) else (shape,):
            count *= number(side) or 0
        total += count
    return f"{total} elements"


def _groups(config: Plain) -> tuple[GroupName, ...]:
    if not isinstance(config, dict):
        return ()
    found = []
    for key, raw in list(config.items())[:GROUPS_MAX]:
        if isinstance(raw, dict) and (word(raw.get("name")) or word(key)):
            name = word(raw.get("name")) or word(key)
            found.append(GroupName(name, word(raw.get("desc")), member_numbers(raw.get("ranks"))))
    return tuple(found)


def member_numbers(ranks: Plain) -> tuple[int, ...]:
    """Members from a list, or from its words as torch writes them; never evaluated.

    >>> member_numbers("[0, 4]"), member_numbers([2, 3]), member_numbers("__import__('os')")
    ((0, 4), (2, 3), ())
    """
    if isinstance(ranks, str) and re.fullmatch(r"\s*\[[\d,\s]*\]\s*", ranks):
        try:
            ranks = json.loads(ranks)
        except ValueError:
            return ()
    if not isinstance(ranks, list | tuple) or len(ranks) > MEMBERS_MAX:
        return ()
    numbers = [number(rank) for rank in ranks]
    return () if None in numbers else tuple(dict.fromkeys(n for n in numbers if n is not None))


def _statuses(status: Plain) -> dict[int, Standing]:
    if not isinstance(status, dict):
        return {}
    found = {}
    for key, raw in list(status.items())[:GROUPS_MAX]:
        pg_id = number(key)
        if pg_id is not None and isinstance(raw, dict):
            found[pg_id] = standing(raw)
    return found


def standing(raw: Mapping[Plain, Plain]) -> Standing:
    """Counters under torch's names or short ones; negative and absurd ones are *not known*.

    >>> standing({"last_enqueued_collective": "7", "last_started_collective": -1, "completed": 93459313471793})
    Standing(entered=7, started=None, completed=None)
    """
    entered = _first_number(raw, ("last_enqueued_collective", "last_enqueued", "enqueued", "launched", "scheduled"))
    started = _first_number(raw, ("last_started_collective", "last_started", "started"))
    completed = _first_number(raw, ("last_completed_collective", "last_completed", "completed"))
    if started is not None and entered is not None and started > entered:
        started = None
    if completed is not None and entered is not None and completed > entered:
        completed = None
    return Standing(entered, started, completed)


def _first_number(raw: Mapping[Plain, Plain], names: tuple[str, ...]) -> int | None:
    return next((found for name in names if (found := number(raw.get(name))) is not None), None)


def number(value: Plain) -> int | None:
    """A whole number from 0 on, or its digits; None for anything else."""
    return _number_up_to(value, NUMBER_MAX)


def _number_up_to(value: Plain, limit: int) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= limit else None


def _signed(value: Plain) -> int:
    found = number(value)
    return -1 if found is None else found


def word(value: Plain) -> str:
    """A word of bounded length; empty for anything else."""
    return str(value)[:NAME_LETTERS_MAX] if isinstance(value, str | int) else ""


def _group_words(value: Plain) -> tuple[str, str]:
    if isinstance(value, list | tuple) and len(value) == 2:
        return word(value[0]), word(value[1])
    return word(value), ""
