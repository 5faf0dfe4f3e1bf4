"""Counters of collectives as evidence: how many each rank has enqueued, started and completed in each group, from a
file of one's own making or from NCCL's RAS (launches alone).

The form is described in docs/reference/hang-evidence.md. Whatever is left out is *not known*.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from instep_diagnosis.wait_graph.history import Call, Group, History, Progress, RankHistory, Standing
from instep_diagnosis.wait_graph.recorder import Plain, member_numbers, number, standing, word

RANKS_MAX = 131_072
RAS_TRUST = 0.6
"""One look at launch counts: a difference of one passes by itself on a job that runs."""

_COUNTERS = re.compile(r"^(last_)?(enqueued|launched|scheduled|started|completed)(_collective)?$")
_PIPELINE = re.compile(r"pipeline|^pp\b|p2p|point.to.point", re.IGNORECASE)
_WORLD = re.compile(r"^(default(_pg)?|world)$", re.IGNORECASE)
_TRANSFERS = frozenset({"Send", "Recv", "SendRecv", "send", "recv"})
_DEFAULT_GROUP = "default"


def read_counters(value: Plain) -> History | None:
    """The history that a counter file or an answer of RAS holds, or None where it is neither.

    >>> read_counters({"0": {"completed": 3}, "1": {"completed": 2}}).ranks[1].standings
    {'default': Standing(entered=None, started=None, completed=2)}
    """
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("communicators"), list):
        return _ras(value)
    listed = value.get("ranks", {key: raw for key, raw in value.items() if number(key) is not None})
    ranks = _by_rank(listed)
    if not ranks:
        return None
    described = value.get("groups")
    groups = described if isinstance(described, dict) else {}
    return _history(ranks, groups, number(value.get("world_size")))


def _by_rank(listed: Plain) -> dict[int, Plain]:
    """Rank → its entry, from a dictionary or from a list."""
    if isinstance(listed, list):
        rows = [(raw.get("rank", place) if isinstance(raw, dict) else place, raw) for place, raw in enumerate(listed)]
    else:
        rows = list(listed.items()) if isinstance(listed, dict) else []
    found = {rank: raw for key, raw in rows[:RANKS_MAX] if (rank := number(key)) is not None and rank < RANKS_MAX}
    return dict(sorted(found.items()))


def _group_rows(raw: Mapping[Plain, Plain]) -> dict[str, Mapping[Plain, Plain]]:
    """Group name → what a rank's entry says of it; an entry that is itself counters is of the only group."""
    if any(isinstance(key, str) and _COUNTERS.match(key) for key in raw):
        return {_DEFAULT_GROUP: raw}
    inner = raw.get("groups")
    rows = inner if isinstance(inner, dict) else raw
    return {word(name): row for name, row in rows.items() if isinstance(row, dict)}


def _history(ranks: Mapping[int, Plain], described: Mapping[Plain, Plain], world_size: int | None) -> History:
    rows = {rank: _group_rows(raw) for rank, raw in ranks.items() if isinstance(raw, dict)}
    stated = {
        word(name): member_numbers(row.get("members")) for name, row in described.items() if isinstance(row, dict)
    }
    top = max([*ranks, *(rank for members in stated.values() for rank in members)], default=-1)
    world = tuple(range(max(top + 1, min(world_size or 0, RANKS_MAX))))
    groups: dict[str, Group] = {}
    keys: dict[tuple[int, str], str] = {}
    seen: dict[str, list[int]] = defaultdict(list)
    for rank, of_rank in rows.items():
        for name, row in of_rank.items():
            own = member_numbers(row.get("members")) or stated.get(name, ())
            key = f"{name} ({','.join(map(str, own))})" if own and name not in stated else name
            keys[rank, name] = key
            seen[key].append(rank)
            groups.setdefault(key, Group(key, _described(name, described), own))
    for key, group in groups.items():
        groups[key] = group if group.members else _with_members(group, seen[key], world)
    for name, members in stated.items():
        if members and name not in groups:  # nobody says anything of it: its members may wait there
            groups[name] = Group(name, _described(name, described), members)
    left_out = sorted({key for key, group in groups.items() if _is_of_transfers(group, rows, keys, described)})
    standings = _standings(rows, keys, left_out)
    found = {
        rank: _rank_history(rank, ranks[rank], of_rank, {n: keys[rank, n] for n in of_rank}, standings[rank])
        for rank, of_rank in rows.items()
        if any(one != Standing() for one in standings[rank].values())
    }
    silent = {rank: _process_words(ranks.get(rank)) or "no counters" for rank in world if rank not in found}
    notes = tuple(f"Group {key} was left out: its transfers count differently on each rank." for key in left_out)
    kept = {key: group for key, group in groups.items() if key not in left_out}
    return History(world, kept, found, silent, notes, source="counters")


def _described(name: str, described: Mapping[Plain, Plain]) -> str:
    row = described.get(name)
    return (word(row.get("description")) if isinstance(row, dict) else "") or name


def _with_members(group: Group, seen: list[int], world: tuple[int, ...]) -> Group:
    """A group whose members nobody states: the whole job, where it is called so or most ranks are in it."""
    is_world = bool(_WORLD.match(group.key)) or 2 * len(seen) > len(world)
    return Group(group.key, group.description, world if is_world else tuple(seen), is_listed=is_world)


def _is_of_transfers(
    group: Group,
    rows: Mapping[int, Mapping[str, Mapping[Plain, Plain]]],
    keys: Mapping[tuple[int, str], str],
    described: Mapping[Plain, Plain],
) -> bool:
    """Whether a group's counts are of sends and receives of more than two ranks, which need not agree."""
    row = described.get(group.key)
    if isinstance(row, dict) and isinstance(row.get("transfers"), bool):
        return bool(row["transfers"]) and len(group.members) > 2
    if len(group.members) <= 2:
        return False
    ops = {word(rows[rank][name].get("op")) for (rank, name), key in keys.items() if key == group.key}
    return bool(_PIPELINE.search(group.description)) or any(op.startswith(("send", "recv")) for op in ops)


def _standings(
    rows: Mapping[int, Mapping[str, Mapping[Plain, Plain]]], keys: Mapping[tuple[int, str], str], left_out: list[str]
) -> dict[int, dict[str, Standing]]:
    """Rank → group key → counters. In a group of which no rank says what it has enqueued, what each has started is
    compared in its place."""
    found = {
        rank: {keys[rank, name]: standing(row) for name, row in of_rank.items() if keys[rank, name] not in left_out}
        for rank, of_rank in rows.items()
    }
    with_enqueued = {key for of_rank in found.values() for key, one in of_rank.items() if one.entered is not None}
    return {
        rank: {
            key: one if key in with_enqueued or one.started is None else replace(one, entered=one.started)
            for key, one in of_rank.items()
        }
        for rank, of_rank in found.items()
    }


def _rank_history(
    rank: int,
    raw: Plain,
    rows: Mapping[str, Mapping[Plain, Plain]],
    keys: Mapping[str, str],
    standings: Mapping[str, Standing],
) -> RankHistory:
    calls = [
        call for name, key in keys.items() if key in standings and (call := _call(key, rows[name], standings[key]))
    ]
    return RankHistory(rank, tuple(calls), standings, is_ordered=False, process=_process_words(raw))


def _process_words(raw: Plain) -> str:
    return (word(raw.get("process")) or word(raw.get("state"))) if isinstance(raw, dict) else ""


def _call(key: str, row: Mapping[Plain, Plain], found: Standing) -> Call | None:
    """The newest operation, where the file names it."""
    op = word(row.get("op"))
    if not op or found.entered is None:
        return None
    progress = Progress.ENTERED
    if found.started is not None and found.started >= found.entered:
        progress = Progress.STARTED
    if found.completed is not None and found.completed >= found.entered:
        progress = Progress.COMPLETED
    is_transfer = op.startswith(("send", "recv"))
    size = word(row.get("size", row.get("size_bytes", "")))
    return Call(key, found.entered, op, progress, ("transfer" if is_transfer else op, size, word(row.get("dtype"))))


def _ras(value: Mapping[Plain, Plain]) -> History | None:
    """NCCL's RAS, JSON form: launches by communicator. The largest communicator tells the ranks' global numbers."""
    listed = value["communicators"]
    comms = [comm for comm in listed if isinstance(comm, dict)] if isinstance(listed, list) else []
    comms.sort(key=lambda comm: (-_size(comm), word(comm.get("hash"))))
    if not comms:
        return None
    numbers = {_process(row): rank for row in _rows(comms[0], "ranks") if (rank := number(row.get("rank"))) is not None}
    groups: dict[str, Group] = {}
    standings: dict[int, dict[str, Standing]] = defaultdict(dict)
    process: dict[int, str] = {}
    silent: dict[int, str] = {}
    for place, comm in enumerate(comms):
        key = word(comm.get("hash")) or f"communicator {place}"
        key += f":{word(comm.get('secondary_hash'))}" if comm.get("secondary_hash") else ""
        members = set(range(_size(comm))) if place == 0 else set()
        for row in _rows(comm, "ranks"):
            rank = numbers.get(_process(row))
            if rank is not None:
                members.add(rank)
                standings[rank][key] = Standing(entered=_launches(row.get("collective_counts")))
                process[rank] = _ras_process(row)
        for row in _rows(comm, "missing_ranks") if place == 0 else []:
            rank = number(row.get("rank"))
            if rank is not None:
                members.add(rank)
                silent[rank] = "RAS considers it dead" if row.get("considered_dead") else "it does not answer RAS"
        groups[key] = Group(key, f"communicator {key}", tuple(sorted(members)))
    ranks = {r: RankHistory(r, (), found, is_ordered=False, process=process[r]) for r, found in standings.items()}
    world = tuple(sorted({*ranks, *silent, *range(min(_size(comms[0]), RANKS_MAX))}))
    without = {rank: silent.get(rank, "RAS does not list it") for rank in world if rank not in ranks}
    note = "RAS counts launches, not completions: a difference of one may pass; look twice, some seconds apart."
    return History(world, groups, ranks, without, (note,), source="ras", trust=RAS_TRUST)


def _size(comm: Mapping[Plain, Plain]) -> int:
    return number(comm.get("size")) or len(_rows(comm, "ranks")) + len(_rows(comm, "missing_ranks"))


def _rows(comm: Mapping[Plain, Plain], name: str) -> list[Mapping[Plain, Plain]]:
    listed = comm.get(name)
    return [row for row in listed[:RANKS_MAX] if isinstance(row, dict)] if isinstance(listed, list) else []


def _process(row: Mapping[Plain, Plain]) -> tuple[str, str, str]:
    return word(row.get("host")), word(row.get("pid")), word(row.get("nvml_dev", row.get("cuda_dev", "")))


def _launches(counts: Plain) -> int | None:
    if not isinstance(counts, dict):
        return None
    return sum(number(count) or 0 for op, count in counts.items() if word(op) not in _TRANSFERS)


def _ras_process(row: Mapping[Plain, Plain]) -> str:
    status = row.get("status")
    is_aborted = isinstance(status, dict) and bool(status.get("abort_flag"))
    return "its communicator was aborted" if is_aborted else ""
