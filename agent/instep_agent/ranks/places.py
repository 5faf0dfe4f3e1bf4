"""The table of this node's ranks: rank, process, GPU, HCA, container. `rank_records` keeps it, others read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from instep_agent.gpu.files import gpus_of
from instep_agent.host.pci import nearest_rdma
from instep_agent.host.processes import ids_by_start, is_known_as, look_at, owner_of, start_ticks
from instep_agent.node import Node
from instep_agent.rank_record.decode import RecordHeader
from instep_agent.rank_record.reader import RankRecord
from instep_agent.wire import RankPlace, RankReport

LOOK_SECONDS = 60.0
"""A place is looked at and told again after so long; a new rank's at once."""
SCAN_SECONDS = 15.0
"""Processes of other pid namespaces are looked for no more often: one pass over 2,000 processes takes 30 ms."""
_ENVIRONMENT_BYTES_MAX = 1 << 17
_CGROUP_BYTES_MAX = 1 << 14
_TEXT_MAX = 255
_UID = r"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}"
_POD = re.compile(rf"\bpod({_UID})\b|[-_]pod({_UID})\.slice")
_CONTAINER = re.compile(r"(?:/|-|:)([0-9a-f]{64})(?:\.scope)?(?:/|$)", re.MULTILINE)
_SLURM_JOB = re.compile(r"/job_(\d+)(?:/|$)", re.MULTILINE)

Key = tuple[str, int, int]
"""Run, attempt, rank."""


@dataclass(slots=True)
class _Entry:
    """One rank, and when it is looked at again."""

    job: str
    started_ticks: int
    place: RankPlace = field(default_factory=RankPlace)
    next_look_ns: int = 0


@dataclass(frozen=True, slots=True)
class RankProcess:
    """The process of a rank, by its number on the node."""

    job: str
    run: str
    attempt: int
    rank: int
    pid: int
    started_ticks: int


class RankTable:
    """Every rank that has a record on this node, of all jobs, with where it runs."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._by_start: dict[int, list[int]] = {}
        self._scanned_ns = 0

    def placed(self, said: RankReport, record: RankRecord, owner: int, node: Node) -> RankReport:
        """Give the report with the rank's place where that is due, and its process's state where only the node sees it.

        `owner` is the user who owns the record: a process of somebody else is not believed to be the rank.
        """
        key = (said.run, said.attempt, said.rank)
        entry = self._entries.get(key)
        if entry is None or entry.started_ticks != record.header.pid_start_ticks:
            entry = self._entries[key] = _Entry(said.job, record.header.pid_start_ticks)
        place: RankPlace | None = None
        now_ns = node.monotonic_ns()
        if now_ns >= entry.next_look_ns:
            place = self._look(record, owner, node)
            entry.next_look_ns = now_ns + int((LOOK_SECONDS if place.pid else SCAN_SECONDS) * 1e9)
            if place.pid or not entry.place.pid:  # of one that has ended, where it ran stays known
                entry.place = place
            else:
                place = None
        if said.process_state == "unknown" and entry.place.pid:
            look = look_at(entry.place.pid, entry.started_ticks, proc=node.proc)
            said = msgspec.structs.replace(said, process_state=look.state, cpu_seconds=look.cpu_seconds)
        return said if place is None else msgspec.structs.replace(said, place=place)

    def forget(self, key: Key) -> None:
        """A rank's record is gone."""
        self._entries.pop(key, None)

    def processes(self) -> Iterator[RankProcess]:
        """Yield the ranks whose process on the node is known."""
        for (run, attempt, rank), entry in sorted(self._entries.items()):
            if entry.place.pid:
                yield RankProcess(entry.job, run, attempt, rank, entry.place.pid, entry.started_ticks)

    def rank_of(self, pid: int) -> dict[str, str]:
        """Give who the process with this number is, as fields of an event; empty when it is no rank."""
        for one in self.processes():
            if one.pid == pid:
                return {"job": one.job, "run": one.run, "attempt": str(one.attempt), "rank": str(one.rank)}
        return {}

    def _look(self, record: RankRecord, owner: int, node: Node) -> RankPlace:
        identity = record.identity
        pid, missing = self._pid_of(record.header, owner, node)
        gpu_pci = next((gpu.pci for gpu in gpus_of(node) if identity.gpu in (gpu.uuid, str(gpu.index))), "")
        place = RankPlace(
            pid=pid,
            pid_namespace=record.header.pid_namespace,
            gpu_pci=gpu_pci if identity.gpu else "",
            hcas=nearest_rdma(str(node.root), gpu_pci) if identity.gpu else (),
            namespace=identity.namespace,
            pod_uid=identity.pod_uid,
            container=identity.container,
            scheduler_job_id=identity.scheduler_job_id,
            missing=missing,
        )
        return _with_process(place, node.proc / str(pid)) if pid else place

    def _pid_of(self, header: RecordHeader, owner: int, node: Node) -> tuple[int, tuple[str, ...]]:
        """Give the number of the process on the node, 0 with the reason when it is not known."""
        pid = header.pid
        if start_ticks(pid, node.proc) != header.pid_start_ticks:  # another pid namespace's number, or it is gone
            pid = self._found_pid(header, node)
        if not pid:
            return 0, ("process",)
        return (pid, ()) if owner_of(pid, node.proc) == owner else (0, ("owner",))

    def _found_pid(self, header: RecordHeader, node: Node) -> int:
        now_ns = node.monotonic_ns()
        if now_ns >= self._scanned_ns:
            self._scanned_ns = now_ns + int(SCAN_SECONDS * 1e9)
            self._by_start = ids_by_start(node.proc)
        for pid in self._by_start.get(header.pid_start_ticks, ()):
            if is_known_as(pid, header.pid, header.pid_namespace, node.proc):
                return pid
        return 0


def container_of(cgroup: str) -> dict[str, str]:
    """Give what the lines of `/proc/<pid>/cgroup` tell: pod, container, job of the scheduler.

    >>> container_of("0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0")
    {'scheduler_job_id': '17'}
    """
    found = {}
    if pod := _POD.search(cgroup):
        found["pod_uid"] = (pod[1] or pod[2]).replace("_", "-")
    if container := _CONTAINER.search(cgroup):
        found["container"] = container[1]
    if job := _SLURM_JOB.search(cgroup):
        found["scheduler_job_id"] = job[1]
    return found


def visible_gpus(environment: bytes) -> str:
    r"""Give `CUDA_VISIBLE_DEVICES` from `/proc/<pid>/environ`, empty when it is not set.

    >>> visible_gpus(b"HOME=/\0CUDA_VISIBLE_DEVICES=4,5\0")
    '4,5'
    """
    prefix = b"CUDA_VISIBLE_DEVICES="
    value = next((one for one in environment.split(b"\0") if one.startswith(prefix)), prefix)[len(prefix) :]
    return value.decode("ascii", "replace")[:_TEXT_MAX]


def _with_process(place: RankPlace, folder: Path) -> RankPlace:
    """Give the place with what the kernel tells of its process; of pod and container the kernel's word counts."""
    missing = list(place.missing)
    told: dict[str, str] = {}
    try:
        told |= container_of(_read(folder / "cgroup", _CGROUP_BYTES_MAX).decode("utf-8", "replace"))
    except OSError:
        missing.append("cgroup")
    try:
        told["gpus_visible"] = visible_gpus(_read(folder / "environ", _ENVIRONMENT_BYTES_MAX))
    except OSError:
        missing.append("environment")
    return msgspec.structs.replace(place, **told, missing=tuple(missing))


def _read(path: Path, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        return file.read(bytes_max)
