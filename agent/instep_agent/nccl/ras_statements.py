"""What NCCL RAS answers say is amiss, as sentences and fields: raw facts about ranks of communicators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from instep_agent.nccl.ras_answer import Lag, RasAnswer, Trouble

_KIND = {
    "dead": "nccl_rank_dead",
    "unresponsive": "nccl_rank_unresponsive",
    "error": "nccl_rank_error",
    "left": "nccl_rank_left",
}
_SENTENCE = {
    "dead": "NCCL RAS considers {who} dead.",
    "unresponsive": "{who} did not answer NCCL RAS.",
    "error": "NCCL reports an error on {who}: {error}.",
    "left": "{who} is not in the communicator any more, or not yet, while others are.",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One claim of an answer."""

    key: tuple[object, ...]
    """Stays while it is so: its sort, the communicator, the rank, and what else tells it from others."""
    kind: str
    text: str
    fields: dict[str, str]
    is_confirmed_later: bool = False
    """Normal for a moment on a running job: it counts when the next answer about the communicator says it again."""


def statements_of(answers: Sequence[RasAnswer]) -> Iterator[Statement]:
    """Yield everything that answers say is amiss."""
    for answer in answers:
        yield from map(_of_trouble, answer.troubles)
        yield from map(_of_lag, answer.lags)


def _of_trouble(one: Trouble) -> Statement:
    place = one.place
    key = (one.kind, one.communicator, place.rank, place.host, place.gpu, place.pid, one.error)
    return Statement(key, _KIND[one.kind], _text(one), _fields(one), one.kind == "left")


def _of_lag(one: Lag) -> Statement:
    behind = tuple(place.rank for place in one.behind)
    key = ("differ", one.communicator, one.op, one.launches_min, one.launches_max, behind)
    return Statement(key, "nccl_launches_differ", _lag_text(one), _lag_fields(one), is_confirmed_later=True)


def _text(trouble: Trouble) -> str:
    place = trouble.place
    who = f"Rank {place.rank} of communicator {trouble.communicator}" if place.rank >= 0 else f"Process {place.pid}"
    where = f" on {place.host or 'an unknown host'}, GPU {place.gpu}" if place.gpu >= 0 else ""
    text = _SENTENCE[trouble.kind].format(who=who + where, error=trouble.error)
    return text[0].upper() + text[1:]


def _fields(trouble: Trouble) -> dict[str, str]:
    place = trouble.place
    fields = {
        "communicator": trouble.communicator,
        "communicator_rank": str(place.rank) if place.rank >= 0 else "",
        "host": place.host,
        "gpu": str(place.gpu) if place.gpu >= 0 else "",
        "pid": str(place.pid) if place.pid >= 0 else "",
        "error": trouble.error,
    }
    return {name: value for name, value in fields.items() if value}


def _lag_text(lag: Lag) -> str:
    return (
        f"Ranks of communicator {lag.communicator} have launched {lag.launches_min} to {lag.launches_max} times "
        f"{lag.op}, unchanged over two answers."
    )


def _lag_fields(lag: Lag) -> dict[str, str]:
    return {
        "communicator": lag.communicator,
        "op": lag.op,
        "launches_min": str(lag.launches_min),
        "launches_max": str(lag.launches_max),
        "behind_count": str(lag.behind_count),
        "communicator_ranks": ",".join(str(place.rank) for place in lag.behind),
        "places": ",".join(f"{place.host}/{place.gpu}" for place in lag.behind),
    }
