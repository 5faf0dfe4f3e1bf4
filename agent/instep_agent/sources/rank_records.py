"""What the ranks of this node say about themselves: every record of the newest attempt of every run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from instep_agent.errors import Absent, RankRecordError, RecordInvalid, SourceFailed
from instep_agent.folders import FOLDER_FLAGS, NO_FOLDER, inode, newest_names
from instep_agent.host.processes import Process
from instep_agent.metric import gauge
from instep_agent.node import Node
from instep_agent.rank_record.identity import RankIdentity
from instep_agent.rank_record.reader import RecordReader
from instep_agent.rank_record.report import STALLED_AFTER_SECONDS, report
from instep_agent.ranks.places import RankTable
from instep_agent.ranks.walk import RUNS_MAX, attempts
from instep_agent.wire import RankReport, Sample

GONE_REPORTED_SECONDS = 120.0
"""So long after its last sign of life a rank whose process is gone is still reported."""
TURN_SECONDS_MAX = 0.25
"""Records that are not reached within a turn are the first of the next one: reading 8 takes 2 ms."""
REFUSED_RETRY_SECONDS_MAX = 60.0
"""What is no sound record is looked at again after a while, ever more rarely: it may be one that is being created."""
LIVELY_SECONDS = 0.4
"""While every rank has given a sign of life within this time, and runs or sleeps, they are looked at more rarely. An
alarm needs a silence of more than this and the calm interval's first half, so that none comes later for it."""
_UNTROUBLED = frozenset(("running", "sleeping"))
UNCHANGED_SECONDS = 1.0
"""A folder that was changed later than this before it was listed may change again without another time of change."""
RELIST_SECONDS = 10.0
"""So often folders are listed although none of them shows a change."""
PROCESSES_HELD_MAX = 64
"""With more ranks than this their processes are opened at each look: descriptors are limited."""
MEMBERS_HELD_MAX = 1 << 20
"""Of all records together; one that goes beyond it is not read any more."""


class _Place(NamedTuple):
    """Where a record is: a file that took another's place at the same path is another record."""

    run: str
    attempt: int
    rank: int
    inode: int


@dataclass(slots=True)
class _Watched:
    """One open record."""

    reader: RecordReader
    owner: int
    process: Process
    is_silent: bool = False
    members_held: int = 0


@dataclass(slots=True)
class _Refused:
    """Something that is no sound record, and when it is looked at again."""

    retry_ns: int
    wait_seconds: float
    is_forbidden: bool
    """It may be sound; the rights to read it are lacking."""


class RankRecords:
    """Rank records beneath `<record root>/<node>/<run>/<attempt>/<rank>` (docs/reference/rank-record.md).

    New records are looked for at their own, slower interval. Folders are opened one below the other without following
    links; what is not a sound record, or is not the record of the place it stands at, is counted and not read. Where
    each rank runs is told when it is new or changed, and every minute (`instep_agent.ranks.places`).
    """

    name = "rank_records"
    interval_seconds = 0.5
    deadline_seconds = 1.0
    child = ""
    rights = "reads rank records of other users: runs as root or as the owner of the records (they are mode 0600)"
    metrics = (
        gauge("instep_rank_records", "Rank records that are read."),
        gauge("instep_rank_records_invalid", "Files beneath the record root that are no sound rank record."),
        gauge("instep_rank_records_late", "Rank records that a turn had no time for: the next one begins with them."),
    )
    calm_interval_seconds = 1.0
    discovery_interval_seconds = 1.0
    rest_seconds = 0.0

    def __init__(
        self,
        interval_seconds: float = interval_seconds,
        discovery_interval_seconds: float = discovery_interval_seconds,
        *,
        calm_interval_seconds: float = calm_interval_seconds,
        table: RankTable | None = None,
        turn_seconds_max: float = TURN_SECONDS_MAX,
    ) -> None:
        """`calm_interval_seconds` counts while all ranks are lively; `table` is told of every rank, for others."""
        self._turn_seconds_max = turn_seconds_max
        self.interval_seconds = interval_seconds
        self.calm_interval_seconds = calm_interval_seconds
        self.discovery_interval_seconds = discovery_interval_seconds
        self._watched: dict[_Place, _Watched] = {}
        self._ended: set[_Place] = set()
        self._table = RankTable() if table is None else table
        self._refused: dict[_Place, _Refused] = {}
        self._late: list[_Place] = []
        self._invalid = 0
        self._next_discovery_ns = 0
        self._next_listing_ns = 0
        self._listed: dict[str, int] = {}
        """The folders that the last discovery listed, and when each was changed."""
        self._closed: dict[str, str] = {}
        """Runs with a folder that could not be looked into: which, and why; "" stands for the folder of all runs. What
        is open already stays open."""

    def collect(self, node: Node) -> Iterator[RankReport | Sample]:
        """Yield a report for each rank, then how many there are.

        Raise `Absent` when no rank has a record here, `SourceFailed` when the rights are lacking to read them all.
        """
        now_ns = node.monotonic_ns()
        if now_ns >= self._next_discovery_ns:
            self._next_discovery_ns = now_ns + int(self.discovery_interval_seconds * 1e9)
            self._discover(node)
        if "" in self._closed and not self._watched:
            raise self._cannot_look()
        self.rest_seconds = self.calm_interval_seconds
        for said in self._read_all(node):
            if said.heartbeat_age_seconds > LIVELY_SECONDS or said.process_state not in _UNTROUBLED:
                self.rest_seconds = 0.0
            yield said
        if self._late:
            self.rest_seconds = 0.0
        yield Sample(name="instep_rank_records", labels=(), value=float(len(self._watched)))
        yield Sample(name="instep_rank_records_invalid", labels=(), value=float(self._invalid))
        yield Sample(name="instep_rank_records_late", labels=(), value=float(len(self._late)))
        forbidden = sum(refused.is_forbidden for refused in self._refused.values())
        if forbidden:
            raise SourceFailed(f"{forbidden} rank records may not be read: run the agent as root, or as their owner.")
        if self._closed:
            raise self._cannot_look()

    def _cannot_look(self) -> SourceFailed:
        first, *others = self._closed.values()
        more = f", nor into {len(others)} more" if others else ""
        return SourceFailed(f"Cannot look into {first}{more}: run the agent as root, or as their owner.")

    def close(self) -> None:
        """Close every record."""
        for place in tuple(self._watched):
            self._forget(place)

    def _read_all(self, node: Node) -> Iterator[RankReport]:
        late = [place for place in self._late if place in self._watched]
        order = [*late, *sorted(self._watched.keys() - set(late))]
        until_seconds = time.monotonic() + self._turn_seconds_max
        for at, place in enumerate(order):
            if at and time.monotonic() > until_seconds:
                self._late = order[at:]
                return
            said = self._read(place, node)
            if said is not None:
                yield said
        self._late = []

    def _read(self, place: _Place, node: Node) -> RankReport | None:
        """Give the rank's report; its collectives are read only while it has been silent for a while."""
        watched = self._watched[place]
        try:
            record = watched.reader.read(with_collectives=watched.is_silent)
            _check_place(place, record.identity, node)
            said = report(record, now_monotonic_ns=node.monotonic_ns(), boot_id=node.boot_id, process=watched.process)
            if len(self._watched) > PROCESSES_HELD_MAX:
                watched.process.close()
            said = self._table.placed(said, record, watched.owner, node)
        except RankRecordError:
            self._end(place)
            return None
        if watched.members_held != watched.reader.members_held:
            watched.members_held = watched.reader.members_held
            if sum(each.members_held for each in self._watched.values()) > MEMBERS_HELD_MAX:
                self._end(place)
                return None
        watched.is_silent = said.heartbeat_age_seconds > STALLED_AFTER_SECONDS - self.interval_seconds
        if said.process_state == "gone" and said.heartbeat_age_seconds > GONE_REPORTED_SECONDS:
            self._end(place)
        return said

    def _end(self, place: _Place) -> None:
        """Read this record no more, as long as it stands there."""
        self._forget(place)
        self._ended.add(place)

    def _forget(self, place: _Place) -> None:
        watched = self._watched.pop(place)
        watched.reader.close()
        watched.process.close()
        self._table.forget((place.run, place.attempt, place.rank))

    def _discover(self, node: Node) -> None:
        """Look for records that are new or gone; in folders that have not changed since there are none."""
        now_ns = node.monotonic_ns()
        if now_ns < self._next_listing_ns and not (self._refused or self._closed) and self._are_unchanged():
            return
        self._listed.clear()
        self._list(node)
        newest_ns = max(self._listed.values(), default=0)
        is_settled = newest_ns < node.realtime_ns() - int(UNCHANGED_SECONDS * 1e9)
        self._next_listing_ns = now_ns + int(RELIST_SECONDS * 1e9) if is_settled else 0

    def _are_unchanged(self) -> bool:
        try:
            return bool(self._listed) and all(
                os.lstat(path).st_mtime_ns == changed_ns for path, changed_ns in self._listed.items()
            )
        except OSError:  # one is gone: listing them tells
            return False

    def _list(self, node: Node) -> None:
        root = node.record_root / node.name
        self._closed = {}
        try:
            descriptor = os.open(root, FOLDER_FLAGS)
        except OSError as error:
            if error.errno not in NO_FOLDER:
                self._closed = {"": f"{root} ({(error.strerror or '').lower()})"}
                return
            self.close()
            raise Absent(f"{root} does not exist: no rank has written a record on this node.") from error
        try:
            self._listed[str(root)] = os.fstat(descriptor).st_mtime_ns
            found = set(self._walk(descriptor, node))
        finally:
            os.close(descriptor)
        for place in set(self._watched) - found:
            if place.run not in self._closed:
                self._forget(place)
        self._ended = {place for place in self._ended if place in found or place.run in self._closed}

    def _walk(self, root: int, node: Node) -> Iterator[_Place]:
        """Yield the place of every sound record, and open those that are new."""
        seen: set[_Place] = set()
        watched = {place.run for place in self._watched}  # what newer folders there are hides none of them
        base = f"{node.record_root}/{node.name}"

        def note(run: str, attempt: str, folder: int, problem: str) -> None:
            self._note_listed(f"{base}/{run}/{attempt}" if attempt else f"{base}/{run}", folder, run, problem)

        for run, attempt, folder, ranks in attempts(root, sorted(watched.union(newest_names(root, RUNS_MAX))), note):
            for rank in ranks:
                place = _Place(run, int(attempt), int(rank), inode(rank, folder))
                seen.add(place)
                if self._is_open(place, rank, folder, node):
                    yield place
        self._refused = {
            place: refused for place, refused in self._refused.items() if place in seen or place.run in self._closed
        }
        self._invalid = len(self._refused)

    def _note_listed(self, path: str, folder: int, run: str, problem: str) -> None:
        if folder >= 0:
            self._listed[path] = os.fstat(folder).st_mtime_ns
        if problem:
            self._closed[run] = f"{path} ({problem})"

    def _is_open(self, place: _Place, name: str, folder: int, node: Node) -> bool:
        if place in self._watched or place in self._ended:
            return True
        now_ns = node.monotonic_ns()
        refused = self._refused.get(place)
        if refused is not None and now_ns < refused.retry_ns:
            return False
        try:
            reader = _opened(place, name, folder, node)
        except RankRecordError as error:
            wait_seconds = refused.wait_seconds * 2 if refused else self.discovery_interval_seconds
            wait_seconds = min(wait_seconds, REFUSED_RETRY_SECONDS_MAX)
            self._refused[place] = _Refused(
                now_ns + int(wait_seconds * 1e9), wait_seconds, isinstance(error.__cause__, PermissionError)
            )
            return False
        self._refused.pop(place, None)
        header = reader.header
        process = Process(header.pid, header.pid_start_ticks, namespace=header.pid_namespace, proc=node.proc)
        self._watched[place] = _Watched(reader, reader.owner, process)
        return True


def _opened(place: _Place, name: str, folder: int, node: Node) -> RecordReader:
    reader = RecordReader(name, dir_fd=folder)
    try:
        _check_place(place, reader.identity, node)
    except RankRecordError:
        reader.close()
        raise
    return reader


def _check_place(place: _Place, identity: RankIdentity, node: Node) -> None:
    """Raise `RecordInvalid` for a record that says it is another rank's than that of the place where it stands."""
    if (identity.node, *place[:3]) != (node.name, identity.run, identity.attempt, identity.rank):
        raise RecordInvalid(
            f"The rank record {node.name}/{place.run}/{place.attempt}/{place.rank} says that it is that of "
            f"{identity.node}/{identity.run}/{identity.attempt}/{identity.rank}: it is not believed."
        )
