"""What a supervisor can see of its own ranks: their records all the time, their stacks when asked."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from instep_agent.errors import AgentError, RankRecordError
from instep_agent.rank_record import RecordReader, report
from instep_agent.rank_record.report import COLLECTIVES_MAX
from instep_agent.ranks.stacks import stacks_of
from instep_agent.wire import RankDump, RankReport, ThreadStack

from instep_trainer.observe.worker_server import ask_worker, worker_socket

log = logging.getLogger("instep.run")
STACK_SECONDS_MAX = 2.0
ANSWER_SECONDS_MAX = 0.5
STACKS_AT_ONCE = 4
COLLECTIVES_OF_A_RANK_MAX = 512
"""Some steps of a large model: what a rank always does tells what it left out."""
COLLECTIVES_OF_A_JOB_MAX = 32_768
"""So that all dumps of a large job together still make one report of a few megabytes."""


class NodeRecords:
    """Readers over the records of one attempt on this node."""

    def __init__(self, root: Path, node: str, run: str) -> None:
        self.root, self.node, self.run = root, node, run
        self._readers: dict[int, RecordReader] = {}
        self.begin(-1)

    def begin(self, attempt: int) -> None:
        """Forget the attempt before."""
        self.close()
        self.attempt = attempt

    def close(self) -> None:
        """Let go of every record."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}

    @property
    def folder(self) -> Path:
        """Where this attempt's records are."""
        return self.root / self.node / self.run / str(self.attempt)

    def read(self, *, with_collectives: bool = False) -> list[RankReport]:
        """Return a report for every record that can be read now."""
        self._look_for_more()
        reports = []
        for rank, reader in list(self._readers.items()):
            try:
                record = reader.read(with_collectives=True) if with_collectives else reader.read(with_collectives=False)
                most = _collectives_max(record.identity.world_size)
                reports.append(report(record, now_monotonic_ns=time.monotonic_ns(), collectives_max=most))
            except (RankRecordError, OSError) as error:
                log.debug("record of rank %s: %s", rank, error)
                self._readers.pop(rank).close()
        return reports

    def _look_for_more(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder):  # noqa: PTH208  four times a second
                if name.isdigit() and int(name) not in self._readers:
                    with contextlib.suppress(RankRecordError, OSError):  # not complete yet: next time
                        self._readers[int(name)] = RecordReader(self.folder / name)


def _collectives_max(world_size: int) -> int:
    return min(COLLECTIVES_OF_A_RANK_MAX, max(COLLECTIVES_MAX, COLLECTIVES_OF_A_JOB_MAX // max(1, world_size)))


def take_dumps(records: NodeRecords, pids: dict[int, int]) -> list[RankDump]:
    """Return evidence about every rank of this node: record with its collectives, stacks, whether its Python
    answers."""
    fresh = NodeRecords(records.root, records.node, records.run)
    fresh.begin(records.attempt)
    reports = fresh.read(with_collectives=True)
    with ThreadPoolExecutor(STACKS_AT_ONCE) as pool:
        dumps = list(pool.map(lambda one: _take_dump(one, pids.get(one.rank), records.folder), reports))
    fresh.close()
    return dumps


def _take_dump(one: RankReport, pid: int | None, folder: Path) -> RankDump:
    missing: list[str] = []
    stacks: tuple[ThreadStack, ...] = ()
    if pid is None:
        missing.append(f"Rank {one.rank} has no process any more.")
        return RankDump(report=one, missing=tuple(missing))
    try:
        stacks = stacks_of(pid, timeout_seconds=STACK_SECONDS_MAX)
    except AgentError as error:
        missing.append(str(error))
    if one.process_state == "stopped":
        missing.append(f"Rank {one.rank} is stopped, so neither its Python nor its flight recorder was asked.")
        return RankDump(report=one, stacks=stacks, missing=tuple(missing))
    socket_path = worker_socket(folder, one.rank)
    answers = _answers(socket_path)
    recorder = _flight_recorder(socket_path, missing)
    return RankDump(report=one, stacks=stacks, answers=answers, flight_recorder=recorder, missing=tuple(missing))


def _answers(socket_path: Path) -> bool | None:
    """Whether the rank's Python answers; None where it has no evidence server to ask."""
    if not socket_path.exists():
        return None
    try:
        ask_worker(socket_path, "dump_traceback", ANSWER_SECONDS_MAX)
    except (OSError, HTTPException):
        return False
    return True


def _flight_recorder(socket_path: Path, missing: list[str]) -> str:
    if not socket_path.exists():
        missing.append("There is no evidence server in this rank, so no flight recorder.")
        return ""
    try:
        return ask_worker(socket_path, "fr_trace_json", ANSWER_SECONDS_MAX)
    except (OSError, HTTPException) as error:
        missing.append(f"The flight recorder did not answer ({error}).")
        return ""
