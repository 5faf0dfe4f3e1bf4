"""One turn of one source, wherever it runs: what it said, how it went, and how long it took."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Iterable
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from instep_agent.announce import current
from instep_agent.columns import Column, Series, column_of
from instep_agent.errors import Absent, AgentError
from instep_agent.node import Fact, Node, Reading, Source
from instep_agent.wire import GpuReport, RankReport, Sample

READINGS_MAX = 20_000
"""Of one turn; a source that says more is broken, and its turn a failure."""

log = logging.getLogger("instep.agent")


class Turn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of it; `outcome` is `ok`, `absent` or `failed`, with a sentence in `detail` unless it is `ok`."""

    source: str
    outcome: str = "ok"
    detail: str = ""
    duration_seconds: float = 0.0
    samples: tuple[Sample, ...] = ()
    ranks: tuple[RankReport, ...] = ()
    gpus: tuple[GpuReport, ...] = ()
    facts: tuple[Fact, ...] = ()
    series: tuple[Series, ...] | None = None
    """In place of `samples`, as children say them: of a turn with `values` and None they are those of the turn before.
    """
    values: bytes = b""
    """Their values, float64 in this machine's order."""
    rest_seconds: float = 0.0
    """So long after it was asked the source has nothing new to say; 0 where it does not tell."""
    is_push: bool = False
    """It comes from `watch`, between two turns: it adds to what the last turn said, and replaces nothing."""


def packed(turn: Turn, before: tuple[Series, ...]) -> tuple[Turn, tuple[Series, ...]]:
    """Give a turn with its samples as columns, without the series where they are those `before`; and the series."""
    column = column_of(turn.samples, before)
    series = None if column.series is before and before else column.series
    values = array("d", column.values).tobytes()
    return replace(turn, samples=(), series=series, values=values), column.series


def unpacked(turn: Turn, before: tuple[Series, ...]) -> Turn:
    """Give a packed turn with its series. Raise `ValueError` when it does not fit what was `before`."""
    if turn.series is None and turn.values:
        turn = replace(turn, series=before)
    if turn.series is not None and len(turn.values) != 8 * len(turn.series):
        raise ValueError(f"{len(turn.values)} bytes of values for {len(turn.series)} series")
    return turn


def samples_of(turn: Turn, before: tuple[Series, ...]) -> Column:
    """Give the samples of a turn, packed or not, with the tuple `before` where the series are the same."""
    if turn.series is None:
        return column_of(turn.samples, before)
    return Column(turn.series, array("d", turn.values))


def spelled_out(turn: Turn) -> Turn:
    """Give a turn with its samples one by one."""
    if turn.series is None:
        return turn
    return replace(turn, samples=tuple(samples_of(turn, ()).samples()), series=None, values=b"")


def take_turn(source: Source, node: Node) -> Turn:
    """Ask a source. The one place with a broad except: whatever a source does, the others go on."""
    started_seconds = time.perf_counter()
    outcome, detail = "ok", ""
    readings: list[Reading] = []
    current().begin(source.name)
    try:
        for reading in islice(source.collect(node), READINGS_MAX + 1):
            readings.append(reading)
        if len(readings) > READINGS_MAX:
            outcome, detail = "failed", f"Source {source.name} said more than {READINGS_MAX} things in one turn."
    except Absent as error:
        outcome, detail = "absent", str(error)
    except AgentError as error:
        outcome, detail = "failed", str(error)
    except Exception as error:
        outcome, detail = "failed", f"Source {source.name} failed ({type(error).__name__}: {error})."
        log.exception("source %s failed", source.name)
    current().begin("")
    turn = sorted_turn(source.name, readings, outcome, detail, time.perf_counter() - started_seconds)
    rest_seconds: float = getattr(source, "rest_seconds", 0.0)
    return replace(turn, rest_seconds=rest_seconds) if rest_seconds else turn


def sorted_turn(
    source: str, readings: Iterable[Reading], outcome: str = "ok", detail: str = "", duration_seconds: float = 0.0
) -> Turn:
    """Give a turn with its readings sorted by kind."""
    samples: list[Sample] = []
    ranks: list[RankReport] = []
    gpus: list[GpuReport] = []
    facts: list[Fact] = []
    for reading in readings:
        if isinstance(reading, Sample):
            samples.append(reading)
        elif isinstance(reading, Fact):
            facts.append(reading)
        elif isinstance(reading, RankReport):
            ranks.append(reading)
        else:
            gpus.append(reading)
    return Turn(
        source=source,
        outcome=outcome,
        detail=detail,
        duration_seconds=duration_seconds,
        samples=tuple(samples),
        ranks=tuple(ranks),
        gpus=tuple(gpus),
        facts=tuple(facts),
    )
