"""What the ranks of this node say about themselves: every record of the newest attempt of every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from instep_agent.errors import Absent, RankRecordError
from instep_agent.folders import ENTRIES_MAX, FOLDER_FLAGS, Folder, inode, names, newest_names
from instep_agent.metric import gauge
from instep_agent.node import Node
from instep_agent.rank_record.reader import RecordReader
from instep_agent.rank_record.report import STALLED_AFTER_SECONDS, report
from instep_agent.wire import RankReport, Sample

RUNS_MAX = 64
RANKS_MAX = 256
GONE_REPORTED_SECONDS = 120.0
"""So long after its last sign of life a rank whose process is gone is still reported."""


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
    is_silent: bool = False


class RankRecords:
    """Rank records beneath `<record root>/<node>/<run>/<attempt>/<rank>` (docs/reference/rank-record.md).

    New records are looked for at their own, slower interval. Folders are opened one below the other without following
    links; what is not a sound record is counted, not read.
    """

    name = "rank_records"
    interval_seconds = 0.5
    deadline_seconds = 1.0
    child = ""
    rights = "reads rank records of other users: runs as root or as the owner of the records (they are mode 0600)"
    metrics = (
        gauge("instep_rank_records", "Rank records that are read."),
        gauge("instep_rank_records_invalid", "Files beneath the record root that are no sound rank record."),
    )
    discovery_interval_seconds = 1.0

    def __init__(
        self, interval_seconds: float = interval_seconds, discovery_interval_seconds: float = discovery_interval_seconds
    ) -> None:
        self.interval_seconds = interval_seconds
        self.discovery_interval_seconds = discovery_interval_seconds
        self._watched: dict[_Place, _Watched] = {}
        self._ended: set[_Place] = set()
        self._invalid = 0
        self._next_discovery_ns = 0

    def collect(self, node: Node) -> Iterator[RankReport | Sample]:
        """Yield a report for each rank, then how many there are. Raise `Absent` when no rank has a record here."""
        now_ns = node.monotonic_ns()
        if now_ns >= self._next_discovery_ns:
            self._next_discovery_ns = now_ns + int(self.discovery_interval_seconds * 1e9)
            self._discover(node)
        for place in sorted(self._watched):
            said = self._read(place, node)
            if said is not None:
                yield said
        yield Sample(name="instep_rank_records", labels=(), value=float(len(self._watched)))
        yield Sample(name="instep_rank_records_invalid", labels=(), value=float(self._invalid))

    def close(self) -> None:
        """Close every record."""
        for place in tuple(self._watched):
            self._forget(place)

    def _read(self, place: _Place, node: Node) -> RankReport | None:
        """Give the rank's report; its collectives are read only while it has been silent for a while."""
        watched = self._watched[place]
        try:
            record = watched.reader.read(with_collectives=watched.is_silent)
            said = report(record, now_monotonic_ns=node.monotonic_ns(), boot_id=node.boot_id, proc=node.proc)
        except RankRecordError:
            self._forget(place)
            self._ended.add(place)
            return None
        watched.is_silent = said.heartbeat_age_seconds > STALLED_AFTER_SECONDS - self.interval_seconds
        if said.process_state == "gone" and said.heartbeat_age_seconds > GONE_REPORTED_SECONDS:
            self._forget(place)
            self._ended.add(place)
        return said

    def _forget(self, place: _Place) -> None:
        self._watched.pop(place).reader.close()

    def _discover(self, node: Node) -> None:
        root = node.record_root / node.name
        try:
            descriptor = os.open(root, FOLDER_FLAGS)
        except OSError as error:
            self.close()
            raise Absent(f"{root} does not exist: no rank has written a record on this node.") from error
        self._invalid = 0
        try:
            found = set(self._walk(descriptor, node))
        finally:
            os.close(descriptor)
        for place in set(self._watched) - found:
            self._forget(place)
        self._ended &= found

    def _walk(self, root: int, node: Node) -> Iterator[_Place]:
        """Yield the place of every sound record, and open those that are new."""
        for run in newest_names(root, RUNS_MAX):
            with Folder(run, root) as run_folder:
                attempts = [name for name in names(run_folder, ENTRIES_MAX) if name.isdecimal()]
                if not attempts:
                    continue
                newest = max(attempts, key=int)
                with Folder(newest, run_folder) as folder:
                    for rank in sorted(filter(str.isdecimal, names(folder, RANKS_MAX))):
                        place = _Place(run, int(newest), int(rank), inode(rank, folder))
                        if self._is_open(place, rank, folder):
                            yield place

    def _is_open(self, place: _Place, name: str, folder: int) -> bool:
        if place in self._watched or place in self._ended:
            return True
        try:
            self._watched[place] = _Watched(RecordReader(name, dir_fd=folder))
        except RankRecordError:
            self._invalid += 1
            return False
        return True
