"""The ranks that records on this node name, read anew: for sources in a child, which do not have the agent's table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from instep_agent.errors import RankRecordError
from instep_agent.folders import FOLDER_FLAGS, newest_names
from instep_agent.host.processes import is_known_as, owner_of, start_ticks
from instep_agent.node import Node
from instep_agent.rank_record.decode import RecordHeader
from instep_agent.rank_record.identity import RankIdentity
from instep_agent.rank_record.reader import RecordReader
from instep_agent.ranks.walk import RUNS_MAX, attempts

RECORDS_MAX = 1024
"""Of all runs together."""


@dataclass(frozen=True, slots=True)
class RecordedRank:
    """One rank as its record says, and who owns that."""

    identity: RankIdentity
    header: RecordHeader
    owner: int

    def is_process(self, pid: int, node: Node) -> bool:
        """Whether the process with this number on the node is the rank: it began then, has that number where the rank
        lives, and belongs to the record's owner."""
        if start_ticks(pid, node.proc) != self.header.pid_start_ticks:
            return False
        is_it = pid == self.header.pid or is_known_as(pid, self.header.pid, self.header.pid_namespace, node.proc)
        return is_it and owner_of(pid, node.proc) == self.owner


def recorded_ranks(node: Node) -> Iterator[RecordedRank]:
    """Yield the ranks of each run's newest attempt with any. What is no sound record its own source counts."""
    try:
        root = os.open(node.record_root / node.name, FOLDER_FLAGS)
    except OSError:  # none, or not to be looked into: that too the source of rank records tells
        return
    try:
        yield from islice(_recorded(root), RECORDS_MAX)
    finally:
        os.close(root)


def _recorded(root: int) -> Iterator[RecordedRank]:
    for attempt in attempts(root, newest_names(root, RUNS_MAX)):
        for name in attempt.ranks:
            found = _read(name, attempt.folder)
            if found is not None:
                yield found


def _read(name: str, folder: int) -> RecordedRank | None:
    try:
        with RecordReader(name, dir_fd=folder) as reader:
            return RecordedRank(reader.identity, reader.header, reader.owner)
    except (RankRecordError, OSError):  # counted by the source of rank records, as is said above
        return None
