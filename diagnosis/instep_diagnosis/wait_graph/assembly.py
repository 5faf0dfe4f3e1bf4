"""Dumps of many ranks laid over one another: the same groups, the same transfers, whatever each rank calls them.

A group is what its description and its members say; where a rank has several alike, the order in which it made them.
Local names and ids are used within one dump only, unless the dumps say nothing about members (raw gloo dumps).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from instep_diagnosis.wait_graph.history import Call, Group, History, Progress, RankHistory, Standing
from instep_diagnosis.wait_graph.recorder import Entry, RecorderDump

WORLD_SIZE_MAX = 131_072

_Names = dict[tuple[str, str], Group]
"""(local name, description) → group, for one rank."""


def assemble(
    dumps: Mapping[int, RecorderDump], silent: Mapping[int, str] | None = None, notes: tuple[str, ...] = ()
) -> History:
    """One history of all ranks' dumps; ranks that groups name and that have no dump are silent."""
    world = _world(dumps, silent or {})
    groups: dict[str, Group] = {}
    names = {rank: _named(dump, groups) for rank, dump in dumps.items()}
    _add_unlisted(dumps, names, groups, world)
    calls = {rank: _collective_calls(dump, names[rank]) for rank, dump in dumps.items()}
    _add_transfers(dumps, names, groups, calls)
    with_transfers = {key for rank, dump in dumps.items() for key in _transfer_groups(dump, names[rank])}
    ranks = {
        rank: RankHistory(
            rank=rank,
            calls=tuple(call for _, call in sorted(calls[rank], key=lambda found: found[0])),
            standings={} if dump.is_gloo else _standings(dump, names[rank], with_transfers),
            has_device=not dump.is_gloo,
            has_timing=any(entry.is_timed for entry in dump.entries),
            may_transfer=_may_transfer(dump),
            has_hidden_transfers=_has_hidden_transfers(dump),
            has_idle_groups=_has_idle_groups(dump),
        )
        for rank, dump in sorted(dumps.items())
    }
    without = {rank: (silent or {}).get(rank, "no dump") for rank in world if rank not in dumps}
    return History(tuple(world), groups, ranks, without, notes)


def _world(dumps: Mapping[int, RecorderDump], silent: Mapping[int, str]) -> list[int]:
    found = {*dumps, *silent}
    for dump in dumps.values():
        for group in dump.groups:
            found.update(group.members)
    # The default group of a job has all ranks: a hole in their numbers is a rank without a dump.
    top = max(found, default=-1)
    return list(range(top + 1)) if top < WORLD_SIZE_MAX else sorted(found)


def _named(dump: RecorderDump, groups: dict[str, Group]) -> _Names:
    """A rank's own names of its groups, by description, members and order of making."""
    ids = {(entry.name, entry.description): entry.pg_id for entry in reversed(dump.entries)}
    listed = sorted(
        (group for group in dump.groups if group.members),
        key=lambda group: _made_at(group.name, ids.get((group.name, group.description), -1)),
    )
    counts: dict[tuple[str, int], int] = defaultdict(int)
    found: _Names = {}
    for group in listed:
        # Of numbers only, and so the same on each run; taken once, as a group may have all ranks in it.
        members = hash(group.members) & 0xFFFFFFFFFFFFFFFF
        ordinal = counts[group.description, members]
        counts[group.description, members] += 1
        key = f"{group.description}#{ordinal}:{members:x}"
        found[group.name, group.description] = groups.setdefault(key, Group(key, group.description, group.members))
    return found


def _made_at(name: str, pg_id: int) -> tuple[int, int, str]:
    """Sorts groups as they were made: local ids and numbered names both grow."""
    return (int(name) if name.isdigit() else pg_id, pg_id, name)


def _add_unlisted(
    dumps: Mapping[int, RecorderDump], names: Mapping[int, _Names], groups: dict[str, Group], world: list[int]
) -> None:
    """Groups that entries name and their rank's list of groups does not: another rank's list may; else their members
    are those seen in them."""
    is_needed = any((e.name, e.description) not in names[rank] for rank, dump in dumps.items() for e in dump.entries)
    listed = {
        (local, rank): group
        for of_rank in (names.values() if is_needed else ())
        for local, group in of_rank.items()
        for rank in group.members
    }
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    for rank, dump in dumps.items():
        for entry in dump.entries:
            local = (entry.name, entry.description)
            if local not in names[rank] and (local, rank) in listed:
                names[rank][local] = listed[local, rank]
            elif local not in names[rank]:
                seen[local].add(rank)
    for (name, description), ranks in seen.items():
        is_world = description == "default_pg" or (name == "0" and not description)
        key = f"{description}@{name}"
        words = description or name or "without a name"
        members = tuple(world) if is_world else tuple(sorted(ranks))
        group = groups.setdefault(key, Group(key, words, members, is_listed=is_world))
        for rank in ranks:
            names[rank][name, description] = group


def _collective_calls(dump: RecorderDump, names: _Names) -> list[tuple[int, Call]]:
    """A rank's collectives with their record numbers; what was coalesced under one number is one call."""
    batches: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in dump.entries:
        if not entry.is_transfer:
            batches[names[entry.name, entry.description].key, entry.seq].append(entry)
    newest: dict[str, int] = {}
    for key, seq in batches:
        newest[key] = max(newest.get(key, 0), seq)
    return [
        (batch[0].record_id, _as_call(key, seq, batch, is_done=dump.is_gloo and seq < newest[key]))
        for (key, seq), batch in batches.items()
    ]


def _as_call(key: str, seq: int, batch: list[Entry], *, is_done: bool) -> Call:
    """One call for what was entered under one number. gloo's older calls of a group are done, whatever their mark."""
    whole = [entry for entry in batch if entry.is_last_of_batch]
    parts = [entry for entry in batch if not entry.is_last_of_batch] or batch
    progress = max(entry.progress for entry in whole) if whole else min(entry.progress for entry in parts)
    signature = parts[0].signature
    if len(parts) > 1:
        op, size, kind = zip(*(part.signature for part in parts), strict=True)
        signature = (" + ".join(op), " + ".join(size), " + ".join(kind))
    return Call(
        key, seq, parts[0].op, Progress.COMPLETED if is_done else progress, signature, created_ns=parts[0].created_ns
    )


def _transfer_groups(dump: RecorderDump, names: _Names) -> set[str]:
    return {names[entry.name, entry.description].key for entry in dump.entries if entry.is_transfer}


def _standings(dump: RecorderDump, names: _Names, with_transfers: set[str]) -> dict[str, Standing]:
    """Counters by group, learned through the ids in the entries; where these leave some out, through their order.

    Counters of groups with transfers count these too, so that they cannot be compared between ranks.
    """
    by_id = {entry.pg_id: names[entry.name, entry.description].key for entry in dump.entries}
    ordered = sorted((name for name, _ in names if name.isdigit()), key=int)
    keys = {name: group.key for (name, _), group in names.items()}
    if len(ordered) == len(dump.statuses) == len(names):
        paired = {pg_id: keys[name] for pg_id, name in zip(sorted(dump.statuses), ordered, strict=True)}
        if all(paired.get(pg_id, key) == key for pg_id, key in by_id.items()):
            by_id = paired
    found = {by_id[pg_id]: standing for pg_id, standing in dump.statuses.items() if pg_id in by_id}
    return {key: standing for key, standing in found.items() if key not in with_transfers}


def _may_transfer(dump: RecorderDump) -> bool:
    """Whether a gloo rank called a send, which is not listed but counted, after its newest entry of a group."""
    newest = {entry.pg_id: entry.op_id for entry in dump.entries}
    return dump.is_gloo and any(
        status.entered is not None and pg_id in newest and 0 < newest[pg_id] < status.entered
        for pg_id, status in dump.statuses.items()
    )


def _has_hidden_transfers(dump: RecorderDump) -> bool:
    """Whether a gloo rank called transfers at any time: its entries' numbers then leave some out."""
    return dump.is_gloo and (_may_transfer(dump) or any(entry.op_id > entry.seq for entry in dump.entries))


def _has_idle_groups(dump: RecorderDump) -> bool:
    used = {(entry.name, entry.description) for entry in dump.entries}
    return dump.is_gloo and any(
        (group.name, group.description) not in used and group.description != "default_pg"
        for group in dump.groups
        if len(group.members) > 1
    )


def _add_transfers(
    dumps: Mapping[int, RecorderDump],
    names: Mapping[int, _Names],
    groups: dict[str, Group],
    calls: Mapping[int, list[tuple[int, Call]]],
) -> None:
    """Transfers as groups of their two ends, one for each direction."""
    channels: dict[tuple[str, int, int], dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    partners: dict[tuple[str, int], set[int]] = defaultdict(set)
    for rank, dump in dumps.items():
        for entry in _with_batch_state(dump):
            group = names[rank][entry.name, entry.description]
            ends = _global_ends(entry, group)
            if ends and rank in ends:
                channels[group.key, *ends][rank].append(entry)
                partners[group.key, rank].update(ends)
    for (key, sender, receiver), sides in channels.items():
        ends = (sender, receiver)
        is_numbered = all(len(partners.get((key, end), ends)) <= 2 for end in ends)
        channel = Group(f"{key}/{sender}>{receiver}", groups[key].description, ends, is_transfer=True)
        groups[channel.key] = channel
        for rank, entries in sides.items():
            numbers = [entry.seq for entry in entries] if is_numbered else _numbered_from_the_open(entries)
            for entry, seq in zip(entries, numbers, strict=True):
                op = entry.op.partition(" ")[0]
                calls[rank].append((entry.record_id, Call(channel.key, seq, op, entry.progress, entry.signature)))


def _with_batch_state(dump: RecorderDump) -> list[Entry]:
    """A rank's transfers, those of a batch with the state of the batch, which alone is kept up to date."""
    transfers = [entry for entry in dump.entries if entry.is_transfer]
    batches = {(e.name, e.description, e.seq): e.progress for e in transfers if e.is_last_of_batch}
    return [
        replace(entry, progress=batches.get((entry.name, entry.description, entry.seq), entry.progress))
        for entry in transfers
        if not entry.is_last_of_batch
    ]


def _global_ends(entry: Entry, group: Group) -> tuple[int, int] | None:
    if entry.peers is None or max(entry.peers) >= len(group.members):
        return None
    return group.members[entry.peers[0]], group.members[entry.peers[1]]


def _numbered_from_the_open(entries: list[Entry]) -> list[int]:
    """Numbers for a channel whose ends count differently: transfers complete in order at both ends, so the first open
    one is the same on both."""
    first_open = next(
        (place for place, entry in enumerate(entries) if entry.progress < Progress.COMPLETED), len(entries)
    )
    return [1_000_000 + place - first_open for place in range(len(entries))]
