"""Did every rank call the same operation under the same number? If not, the script has a bug, and the majority is
right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from instep_diagnosis.detectors.habits import departing
from instep_diagnosis.detectors.waits import is_point_to_point
from instep_diagnosis.detectors.words import ranks_words
from instep_diagnosis.evidence import JobState, RankState
from instep_diagnosis.verdict import Evidence

Signature = tuple[str, int]
"""Operation and payload in bytes; 0 bytes where the operation's payload may rightly differ between ranks."""

_UNNAMED = frozenset({"", "unknown"})
_EVEN_OPS = frozenset(
    {
        "all_reduce",
        "all_reduce_coalesced",
        "all_gather",
        "all_gather_into_tensor",
        "broadcast",
        "reduce",
        "reduce_scatter",
        "reduce_scatter_tensor",
    }
)
"""Operations in which every rank must hand over as many bytes as the others."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first number in a group under which ranks called different operations."""

    group_key: str
    group_words: str
    seq: int
    culprits: tuple[int, ...]
    """Those who differ from the majority; all of them where there is no majority."""
    is_tie: bool
    is_skip: bool
    """The culprit's operation is the one its peers call next: it skipped one."""
    signatures: dict[int, Signature]
    """rank → what it called."""
    expected: Signature | None
    """What the majority called; None in a tie."""

    def in_words(self) -> str:
        """One sentence."""
        parts = []
        for signature, _ in Counter(self.signatures.values()).most_common():
            ranks = [rank for rank, own in self.signatures.items() if own == signature]
            parts.append(f"{ranks_words(ranks)} called {_words(signature)}")
        return f"Under seq {self.seq} of {self.group_words}, {' and '.join(parts)}."


def find_mismatch(job: JobState) -> Mismatch | None:
    """The earliest mismatch among the operations on record, or None. Point-to-point operations are not compared."""
    found = [mismatch for key in _keys(job) if (mismatch := _in_group(job, key))]
    # Later differences follow from the first one; between groups the largest majority is the surest.
    return min(found, key=lambda m: (m.is_tie, -len(m.signatures), m.seq, m.group_key), default=None)


def mismatch_evidence(job: JobState, mismatch: Mismatch) -> tuple[Evidence, ...]:
    """One line for each rank: what it called under the number in question."""
    nodes = {state.rank: state.report.node for state in job.ranks}
    return tuple(
        Evidence(
            text=f"Rank {rank} called {op}{f' of {size} bytes' if size else ''} as seq {mismatch.seq}.",
            node=nodes.get(rank, ""),
            rank=rank,
            source="rank-record",
            fields={"op": op, "payload_bytes": size, "seq": mismatch.seq, "group_key": mismatch.group_key},
        )
        for rank, (op, size) in mismatch.signatures.items()
    )


def _keys(job: JobState) -> list[str]:
    return sorted({group.key for state in job.ranks for group in state.groups})


def _in_group(job: JobState, key: str) -> Mismatch | None:
    history = {state.rank: _signatures(state, key) for state in job.ranks}
    for seq in sorted({seq for called in history.values() for seq in called}):
        called = {rank: own[seq] for rank, own in history.items() if seq in own}
        if not _agree(called):
            return _judge(job, key, seq, called, history)
    return None


def _signatures(state: RankState, key: str) -> dict[int, Signature]:
    """seq → what this rank called, from its ring and its newest entry."""
    called = {
        entry.seq: _signature(entry.op, entry.payload_bytes)
        for entry in state.collectives
        if entry.group_key == key and entry.op not in _UNNAMED and not is_point_to_point(entry.op)
    }
    for group in state.groups:
        is_named = group.op not in _UNNAMED and not is_point_to_point(group.op)
        if group.key == key and group.entered_seq and is_named:
            called[group.entered_seq] = _signature(group.op, group.payload_bytes)
    return called


def _signature(op: str, payload_bytes: int) -> Signature:
    return (op, payload_bytes if op in _EVEN_OPS else 0)


def _agree(called: dict[int, Signature]) -> bool:
    ops = {op for op, _ in called.values()}
    sizes = {size for _, size in called.values() if size}
    return len(ops) <= 1 and len(sizes) <= 1


def _judge(
    job: JobState, key: str, seq: int, called: dict[int, Signature], history: dict[int, dict[int, Signature]]
) -> Mismatch:
    strays = set(departing(state for state in job.ranks if state.rank in called))
    counts = Counter(called.values()).most_common()
    if len(counts) > 1 and counts[0][1] == counts[1][1] and strays:
        # As many on either side: those that did as always are right.
        counts = Counter(own for rank, own in called.items() if rank not in strays).most_common()
    is_tie = len(counts) > 1 and counts[0][1] == counts[1][1]
    expected = None if is_tie else counts[0][0]
    culprits = tuple(sorted(rank for rank, own in called.items() if own != expected))
    group = next(group for state in job.ranks for group in state.groups if group.key == key)
    return Mismatch(
        group_key=key,
        group_words=f"group {group.description or key[:8]}",
        seq=seq,
        culprits=culprits,
        is_tie=is_tie,
        is_skip=expected is not None and all(_is_ahead(rank, seq, expected, history) for rank in culprits),
        signatures=dict(sorted(called.items())),
        expected=expected,
    )


def _is_ahead(rank: int, seq: int, expected: Signature, history: dict[int, dict[int, Signature]]) -> bool:
    """Whether what a rank called is what usually follows the operation that its peers called."""
    own = history[rank][seq]
    followers = {
        called[number + 1]
        for other, called in history.items()
        if other != rank
        for number, signature in called.items()
        if signature == expected and number + 1 in called
    }
    return own in followers


def _words(signature: Signature) -> str:
    op, size = signature
    return f"{op} ({size} bytes)" if size else op
