"""Reads the JSON of NCCL RAS (NCCL 2.28.7 and later)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from instep_agent.errors import SourceFailed
from instep_agent.nccl.ras_answer import RANKS_NAMED_MAX, Communicator, Lag, Place, RasAnswer, Trouble

_IN_PROGRESS = 7
_ERRORS = {
    1: "unhandled CUDA error",
    2: "system error",
    3: "internal error",
    4: "invalid argument",
    5: "invalid usage",
    6: "remote process error",
}
"""Values of ncclResult_t, in NCCL's own words."""
_STATES = ("abort", "finalize", "running", "init", "nocomm")
"""The first that any rank has is the communicator's, as in NCCL's own summary."""


class _Status(msgspec.Struct):
    init_state: int = 0
    async_error: int = 0
    finalize_called: bool = False
    destroy_flag: bool = False
    abort_flag: bool = False
    unresponsive: bool = False
    considered_dead: bool = False


class _Rank(msgspec.Struct):
    rank: int
    host: str = ""
    pid: int = -1
    nvml_dev: int = -1
    status: _Status = msgspec.field(default_factory=_Status)
    collective_counts: dict[str, int] = {}


class _Communicator(msgspec.Struct):
    hash: str
    size: int
    secondary_hash: str = ""
    ranks: list[_Rank] = []
    missing_ranks: list[_Rank] = []


class _Ras(msgspec.Struct):
    collection_time_sec: float | None = None
    timeouts_count: int = 0


class _Document(msgspec.Struct):
    communicators: list[_Communicator]
    nccl_version: str = ""
    ras: _Ras = msgspec.field(default_factory=_Ras)


_documents = msgspec.json.Decoder(_Document)


def parse_json(body: bytes) -> RasAnswer:
    """Give the answer in a JSON document; raise SourceFailed for what is none."""
    try:
        document = _documents.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceFailed(f"The JSON of NCCL RAS could not be understood ({error}).") from error
    found = sorted(document.communicators, key=lambda one: (-one.size, one.hash, one.secondary_hash))
    communicators = tuple(map(_communicator, found))
    return RasAnswer(
        nccl_version=document.nccl_version[:32],
        communicators_by_state=dict(Counter(one.state for one in communicators)),
        communicators=communicators,
        troubles=tuple(trouble for one in found for trouble in _troubles(one)),
        lags=tuple(lag for one in found for lag in _lags(one)),
        collection_seconds=document.ras.collection_time_sec,
        timeouts=document.ras.timeouts_count,
    )


def _name(one: _Communicator) -> str:
    return one.hash.removeprefix("0x")[:16].rjust(16, "0")


def _place(rank: _Rank) -> Place:
    host = "" if rank.host == "unknown" else rank.host[:64]
    return Place(rank.rank, host, rank.nvml_dev, rank.pid)


def _communicator(one: _Communicator) -> Communicator:
    states = Counter(_state(rank.status) for rank in one.ranks)
    states.update("nocomm" for rank in one.missing_ranks if _has_left(rank.status))
    reporter = min(one.ranks, key=lambda rank: rank.rank, default=None)
    return Communicator(
        hash=_name(one),
        size=one.size,
        state=next((state for state in _STATES if states[state]), "unknown"),
        states=dict(states),
        missing=len(one.missing_ranks) - states["nocomm"],
        launches=_launches(one),
        reporter=_place(reporter).host if reporter is not None else "",
    )


def _state(status: _Status) -> str:
    if status.abort_flag:
        return "abort"
    if status.finalize_called or status.destroy_flag:
        return "finalize"
    return "running" if status.init_state == 0 else "init"


def _has_left(status: _Status) -> bool:
    """Its process answered, but knows nothing of the communicator: destroyed there already, or not yet made."""
    return not (status.unresponsive or status.considered_dead)


def _launches(one: _Communicator) -> dict[str, tuple[int, int]]:
    ops = sorted({op for rank in one.ranks for op, count in rank.collective_counts.items() if count})
    counts = {op: [rank.collective_counts.get(op, 0) for rank in one.ranks] for op in ops}
    return {op: (min(of_ranks), max(of_ranks)) for op, of_ranks in counts.items()}


def _troubles(one: _Communicator) -> Iterator[Trouble]:
    for rank in one.missing_ranks:
        status = rank.status
        kind = "dead" if status.considered_dead else "unresponsive" if status.unresponsive else "left"
        yield Trouble(kind, _name(one), _place(rank))
    for rank in one.ranks:
        for code in (rank.status.async_error, rank.status.init_state):
            if code not in (0, _IN_PROGRESS):
                yield Trouble("error", _name(one), _place(rank), _ERRORS.get(code, f"ncclResult {code}"))
                break


def _lags(one: _Communicator) -> Iterator[Lag]:
    for op, (low, high) in _launches(one).items():
        if low == high:
            continue
        counts = sorted((rank.collective_counts.get(op, 0), rank.rank) for rank in one.ranks)
        places = {rank.rank: _place(rank) for rank in one.ranks}
        behind = [places[number] for count, number in counts if count < high]
        yield Lag(_name(one), op, low, high, tuple(behind[:RANKS_NAMED_MAX]), len(behind))
