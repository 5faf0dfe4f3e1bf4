"""Did ranks call different operations under one number? A bug in the script: the majority tells whose.

Where a group has no majority, groups of the same kind at the same number are asked; where they are silent too, all
that differ are named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from instep_diagnosis.wait_graph.history import Group, History, Progress, Signature

_Calls = dict[int, dict[int, tuple[Signature, Progress]]]
"""seq → rank → what it called, and how far it came."""

WORDS = ("operation", "size", "dtype")
MIXED_UP_CALLS = 8
"""gloo's messages carry numbers and no names, so that those of a wrong call are taken for another's: ranks go on for a
while, one of them short of a message, and marks of completion mean nothing. No two operations are rightly one call,
however long ago; sizes and dtypes that differ are held against a rank among so many newest calls only."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first number of a group under which its ranks called different things."""

    group: Group
    seq: int
    called: Mapping[int, Signature]
    """rank → what it called."""
    expected: Signature | None
    """What the majority called; None in a tie."""
    is_skip: bool
    """What the culprits called is what follows the expected operation: they left one out."""
    is_by_peers: bool = False
    """The group itself is tied; others of its kind told which side is right."""

    @property
    def culprits(self) -> tuple[int, ...]:
        """Those that differ; all of them in a tie."""
        expected = self.expected
        return tuple(sorted(r for r, own in self.called.items() if expected is None or not _is_same(own, expected)))

    @property
    def seen_share(self) -> float:
        """The share of the group whose call under this number is on record: the others may stand on either side."""
        return len(self.called) / max(1, len(self.group.members), len(self.called))

    @property
    def what(self) -> str:
        """In what they differ: operation, size or dtype."""
        kinds = set(self.called.values())
        return next(
            (word for place, word in enumerate(WORDS) if len({k[place] for k in kinds if k[place]}) > 1), "call"
        )


def find_mismatches(history: History) -> tuple[Mismatch, ...]:
    """The earliest mismatch of each group, the surest first: a majority before a tie, then the larger group.

    What every member completed is passed over: whatever differs there has held up nobody. Not always so with gloo,
    whose completion is not seen but concluded from later calls (`MIXED_UP_CALLS`).
    """
    calls = _by_group(history)
    kinds: dict[tuple[str, int], list[str]] = defaultdict(list)
    for key in sorted(calls):
        kinds[_kind(history.groups[key])].append(key)
    found = []
    for key in sorted(calls):
        group = history.groups[key]
        is_concluded = not any(history.ranks[rank].has_device for of_seq in calls[key].values() for rank in of_seq)
        if seq := _first_difference(calls[key], is_concluded=is_concluded):
            others = [calls[other] for other in kinds[_kind(group)] if other != key] if group.description else []
            found.append(_judge(group, seq, calls[key], others))
    return tuple(sorted(found, key=lambda m: (m.expected is None, m.is_by_peers, -len(m.called), m.group.key)))


def _by_group(history: History) -> dict[str, _Calls]:
    calls: dict[str, _Calls] = defaultdict(lambda: defaultdict(dict))
    for rank, known in history.ranks.items():
        for call in known.calls:
            if call.signature[0]:
                calls[call.group][call.seq][rank] = (call.signature, call.progress)
    return calls


def _kind(group: Group) -> tuple[str, int]:
    return group.description, len(group.members)


def _first_difference(calls: _Calls, *, is_concluded: bool) -> int | None:
    newest = max(calls)
    for seq in sorted(calls):
        signatures = {signature for signature, _ in calls[seq].values()}
        if len(signatures) == 1 or _agree(signatures):
            continue
        is_done = all(progress is Progress.COMPLETED for _, progress in calls[seq].values())
        is_doubted = is_concluded and (newest - seq < MIXED_UP_CALLS or len({op for op, *_ in signatures}) > 1)
        if is_doubted or not is_done:
            return seq
    return None


def _agree(signatures: Iterable[Signature]) -> bool:
    columns = zip(*signatures, strict=True)
    return all(len({word for word in column if word}) <= 1 for column in columns)


def _is_same(one: Signature, other: Signature) -> bool:
    return _agree((one, other))


def _judge(group: Group, seq: int, calls: _Calls, peers: Iterable[_Calls]) -> Mismatch:
    called = {rank: signature for rank, (signature, _) in sorted(calls[seq].items())}
    expected = _majority(called.values())
    is_by_peers = False
    if expected is None:
        expected = _peers_majority(set(called.values()), seq, peers)
        is_by_peers = expected is not None
    mismatch = Mismatch(group, seq, called, expected, is_skip=False, is_by_peers=is_by_peers)
    if expected is None or not _is_skip(mismatch, calls):
        return mismatch
    return replace(mismatch, is_skip=True)


def _majority(signatures: Iterable[Signature]) -> Signature | None:
    counts = Counter(signatures).most_common(2)
    return None if len(counts) > 1 and counts[0][1] == counts[1][1] else counts[0][0]


def _peers_majority(sides: set[Signature], seq: int, peers: Iterable[_Calls]) -> Signature | None:
    """The side that other groups of the same kind took at this number, where all that took one took the same."""
    taken = {signature for calls in peers for signature, _ in calls.get(seq, {}).values() if signature in sides}
    return taken.pop() if len(taken) == 1 else None


def _is_skip(mismatch: Mismatch, calls: _Calls) -> bool:
    """Whether what each culprit called is what the others call next."""
    ahead = {
        signature for rank, (signature, _) in calls.get(mismatch.seq + 1, {}).items() if rank not in mismatch.culprits
    }
    return bool(ahead) and all(mismatch.called[rank] in ahead for rank in mismatch.culprits)
