"""One step as it was recorded and as it would have been, side by side, in the JSON form that Perfetto and Chrome show.

Each worker is a process with one thread for each stream; the ideal worker of a stage stands above its recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif.replay import Model, starts_of_ideal
from instep_diagnosis.whatif.trace import Array, Lanes
from instep_diagnosis.whatif.weights import step_starts

EVENTS_MAX = 1_000_000
"""More than a browser shows."""
MICROSECONDS = 1e6
OVERLAP_MAX = 1000.0
"""Microseconds by which one operation may seem to run into the next of its stream (56 in the published traces)."""

STREAMS = ("compute", o.FORWARD_SEND, o.FORWARD_RECV, o.BACKWARD_SEND, o.BACKWARD_RECV, "parameters and gradients")
_PARAMETERS = {o.ALL_GATHER, o.REDUCE_SCATTER, o.LAYERNORM, o.EMBEDDING, o.SEPARATE}

Event = dict[str, Any]


def timeline(lanes: Lanes, model: Model, step: int) -> dict[str, object]:
    """The document of one step. Raises `EvidenceError` for a step that the trace does not hold, or one too large."""
    places = np.flatnonzero(lanes.steps_T == step)
    if not len(places):
        first, last = int(lanes.steps_T[0]), int(lanes.steps_T[-1])
        raise EvidenceError(f"The trace has no complete step {step}: its complete steps lie from {first} to {last}.")
    events = len(lanes.optype_O) * (lanes.layout.dp + 1)
    if events > EVENTS_MAX:
        raise EvidenceError(f"The timeline of step {step} has {events} events: at most {EVENTS_MAX} can be shown.")
    spans = _side_by_side([*_ideal(lanes, model), *_recorded(lanes, int(places[0]))])
    return {
        "displayTimeUnit": "ms",
        "otherData": {"trace": lanes.layout.name, "step": step},
        "traceEvents": [*_names(lanes, spans), *spans],
    }


def _process(lanes: Lanes, stage: int, dp: int) -> int:
    """The process of a worker; DP rank -1 is the ideal one."""
    return stage * (lanes.layout.dp + 1) + dp + 2


def _names(lanes: Lanes, spans: list[Event]) -> Iterator[Event]:
    rows: dict[int, set[int]] = {}
    for span in spans:
        rows.setdefault(span["pid"], set()).add(span["tid"])
    for stage in range(lanes.layout.pp):
        for dp in range(-1, lanes.layout.dp):
            process = _process(lanes, stage, dp)
            name = f"stage {stage}, ideal" if dp < 0 else f"stage {stage}, DP rank {dp}"
            yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
            yield {"ph": "M", "pid": process, "name": "process_sort_index", "args": {"sort_index": process}}
            for thread in sorted(rows.get(process, set()) | set(range(len(STREAMS)))):
                more = "" if thread < len(STREAMS) else f", beside {thread // len(STREAMS)}"
                args = {"name": STREAMS[thread % len(STREAMS)] + more}
                yield {"ph": "M", "pid": process, "tid": thread, "name": "thread_name", "args": args}


def _ideal(lanes: Lanes, model: Model) -> Iterator[Event]:
    start_O = starts_of_ideal(model.graph, model.weights.ideal_O)
    yield from _events(lanes, -1, start_O, model.ideal_end_O)


def _recorded(lanes: Lanes, place: int) -> Iterator[Event]:
    first = step_starts(lanes)[place]
    for dp in range(lanes.layout.dp):
        start_O, end_O = lanes.start_seconds_ODT[:, dp, place], lanes.end_seconds_ODT[:, dp, place]
        yield from _events(lanes, dp, start_O - first, end_O - first)


def _side_by_side(spans: list[Event]) -> list[Event]:
    """The spans without any two of one row that cross, of which Perfetto would drop one: what clocks and rounding make
    of an end and the next start is cut off, and what truly overlaps gets a row of its own."""
    rows: dict[tuple[int, int], list[Event]] = {}
    for span in sorted(spans, key=lambda span: span["ts"]):
        newest = rows.setdefault((span["pid"], span["tid"]), [])
        row = next((n for n, last in enumerate(newest) if last["ts"] + last["dur"] <= span["ts"] + OVERLAP_MAX), None)
        if row is None:
            row = len(newest)
            newest.append(span)
        else:
            newest[row]["dur"] = min(newest[row]["dur"], span["ts"] - newest[row]["ts"])
            newest[row] = span
        span["tid"] += row * len(STREAMS)
    return spans


def _events(lanes: Lanes, dp: int, start_O: Array, end_O: Array) -> Iterator[Event]:
    rows = zip(
        *(lanes.optype_O.tolist(), lanes.stage_O.tolist(), lanes.seq_O.tolist(), start_O.tolist(), end_O.tolist()),
        strict=True,
    )
    for code, stage, seq, start, end in rows:
        name = o.OPTYPES[code]
        yield {
            "ph": "X",
            "pid": _process(lanes, stage, dp),
            "tid": _thread(name),
            "name": name,
            "cat": "ideal" if dp < 0 else "recorded",
            "ts": start * MICROSECONDS,
            "dur": max(0.0, end - start) * MICROSECONDS,
            "args": {"seq_id": seq},
        }


def _thread(name: str) -> int:
    if name in o.TRANSFERS:
        return STREAMS.index(name)
    return len(STREAMS) - 1 if name in _PARAMETERS else 0
