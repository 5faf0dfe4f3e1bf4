"""Reads the text of NCCL RAS, as it stands since NCCL 2.24: all that an older service can give."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from instep_agent.errors import SourceFailed
from instep_agent.nccl.ras_answer import RANKS_NAMED_MAX, Lag, Place, RasAnswer, Trouble

_VERSION = re.compile(r"NCCL version (\S{1,32})")
_GROUP = re.compile(r" *\d+ +(\d+) +\d+ +[\d-]+ +\d+ +\d+ +([A-Z]+) +[A-Z,]+")
_COLLECTED = re.compile(r".{0,200}\((\d+\.\d+)s\)")
_TIMEOUTS = re.compile(r" +Encountered (\d+) communication timeout")
_SECTION = re.compile(r"(?:#\d+-\d+ \(([0-9a-f]{1,16})\) )?(INCOMPLETE|DEAD|ERROR|MISMATCH|TIMEOUT)$")
_PROCESS = re.compile(r" +Process (\d+) on node (\S+) managing GPUs? (\d+)(?:[,\d]* \(NVML (\d+))?")
_RANK = re.compile(
    r" +Rank (\d+)(?: ([a-z][^-\[]{0,80}?))? -- "
    r"(?:GPU (\d+)(?: \(NVML (\d+)\))? managed by process (\d+) on node (\S+))?"
)
_DIFFERENT = re.compile(r" +Communicator ranks have different (\w+)(?: operation counts)?$")
_MANY = re.compile(r" +\d+ ranks (.+)")
_LAUNCHED = re.compile(r"ha(?:s|ve) launched up to operation (\d+)")


@dataclass(slots=True)
class _Text:
    """Where the reader of a text answer is, and what it found."""

    version: str = ""
    by_state: Counter[str] = field(default_factory=Counter)
    troubles: list[Trouble] = field(default_factory=list)
    collection_seconds: float | None = None
    timeouts: int = 0
    communicator: str = ""
    section: str = ""
    op: str = ""
    said: str = ""
    """What the line above said of all ranks that follow."""
    launched: dict[tuple[str, str], list[tuple[int, Place | None]]] = field(default_factory=dict)


def parse_text(body: bytes) -> RasAnswer:
    """Give the answer in NCCL's text, as it stands since 2.24; raise SourceFailed for what is none.

    It says less than JSON: communicators without trouble are only counted, and of many lagging ranks none is named.
    """
    text = _Text()
    for line in body.decode("utf-8", "replace").splitlines():
        _read_line(text, line[:400])
    if not text.version:
        raise SourceFailed("The text of NCCL RAS could not be understood (it names no NCCL version).")
    return RasAnswer(
        nccl_version=text.version,
        communicators_by_state=dict(text.by_state),
        troubles=tuple(text.troubles),
        lags=tuple(_lags_of_text(text)),
        collection_seconds=text.collection_seconds,
        timeouts=text.timeouts,
    )


def _read_line(text: _Text, line: str) -> None:
    if found := _VERSION.match(line):
        text.version = text.version or found[1]
    elif found := _SECTION.match(line):
        text.communicator, text.section, text.op, text.said = found[1] or "", found[2], "", ""
        text.communicator = text.communicator.rjust(16, "0") if text.communicator else ""
    elif found := _GROUP.fullmatch(line.rstrip()):
        text.by_state[found[2].lower()] += int(found[1])
    elif text.section:
        _read_detail(text, line)
    elif text.collection_seconds is None and (found := _COLLECTED.match(line)):
        text.collection_seconds = float(found[1])


def _read_detail(text: _Text, line: str) -> None:
    if found := _TIMEOUTS.match(line):
        text.timeouts = int(found[1])
    elif found := _PROCESS.match(line):
        kind = "dead" if text.section == "DEAD" else "unresponsive"
        place = Place(-1, found[2][:64], int(found[4] or found[3]), int(found[1]))
        text.troubles.append(Trouble(kind, "", place))
    elif found := _DIFFERENT.match(line):
        text.op, text.said = found[1], ""
    elif found := _RANK.match(line):
        gpu = int(found[4] or found[3] or -1)
        _read_rank(text, found[2] or text.said, Place(int(found[1]), (found[6] or "")[:64], gpu, int(found[5] or -1)))
    elif found := _MANY.match(line):
        text.said = found[1]
        if text.section == "MISMATCH" and text.op != "status":
            _note_launched(text, found[1], None)


def _read_rank(text: _Text, said: str, place: Place) -> None:
    if text.section == "INCOMPLETE":
        text.troubles.append(Trouble("unresponsive", text.communicator, place))
    elif text.section == "ERROR":
        text.troubles.append(Trouble("error", text.communicator, place, said.removeprefix("reported ").lower()))
    elif text.section == "MISMATCH" and text.op == "status":
        if said.endswith("NOCOMM"):
            text.troubles.append(Trouble("left", text.communicator, place))
    elif text.section == "MISMATCH":
        _note_launched(text, said, place)


def _note_launched(text: _Text, said: str, place: Place | None) -> None:
    found = _LAUNCHED.match(said)
    if found or "not launched any" in said:
        count = int(found[1]) if found else 0
        text.launched.setdefault((text.communicator, text.op), []).append((count, place))


def _lags_of_text(text: _Text) -> Iterator[Lag]:
    for (communicator, op), said in text.launched.items():
        counts = [count for count, _ in said]
        low, high = min(counts), max(counts)
        behind = [place for count, place in sorted(said, key=lambda one: one[0]) if place is not None and count < high]
        if low < high:
            yield Lag(communicator, op, low, high, tuple(behind[:RANKS_NAMED_MAX]), len(behind))
