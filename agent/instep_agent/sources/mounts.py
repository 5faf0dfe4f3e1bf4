"""How full the node's file systems are, and which of them do not answer or have become read-only."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from instep_agent.announce import announce
from instep_agent.errors import Absent, SourceFailed
from instep_agent.host.mounts import Mount, parse_mounts
from instep_agent.metric import gauge
from instep_agent.node import Fact, Node
from instep_agent.wire import Sample

ANSWER_SECONDS_MAX = 2.0
"""All file systems are asked at the same time; one that has not answered by then is stuck until it does."""

_memory = msgspec.msgpack.Decoder(tuple[set[str], dict[str, bool]])


@dataclass(slots=True)
class _Question:
    """A call of statvfs in a thread of its own: one that hangs for ever costs that thread, and no other mount."""

    is_answered: threading.Event = field(default_factory=threading.Event)
    answer: os.statvfs_result | None = None
    error: OSError | None = None


class Mounts:
    """Fill level of every file system that holds data, and of `/dev/shm`, from `/proc/1/mountinfo` and statvfs.

    In a child, because statvfs on a dead network file system never comes back; each mount is asked in a thread of its
    own, so that one that is stuck is named and the others are still measured. Labels: the mount's `path` and `fstype`.
    """

    name = "mounts"
    interval_seconds = 60.0
    deadline_seconds = 5.0
    child = "slow"
    rights = "sees the node's mounts: in a container the node's /proc, and its file systems beneath `root`"
    metrics = (
        gauge("instep_mount_size_bytes", "Size of the file system, from statvfs."),
        gauge("instep_mount_available_bytes", "Room for users without special rights, from statvfs."),
        gauge("instep_mount_used_ratio", "Share in use of what users without special rights may use, from statvfs."),
        gauge("instep_mount_inodes_used_ratio", "Share of inodes in use; none where the file system has no limit."),
        gauge("instep_mount_is_read_only", "1 when the file system takes no writes, from mountinfo."),
        gauge("instep_mount_is_stuck", "1 when statvfs has not answered within 2 s, and has not since."),
    )

    def __init__(
        self,
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
    ) -> None:
        self._statvfs = statvfs
        self._answer_seconds_max = answer_seconds_max
        self._questions: dict[Mount, _Question] = {}
        self._told_stuck: set[str] = set()
        self._was_read_only: dict[str, bool] = {}

    def collect(self, node: Node) -> Iterator[Sample | Fact]:
        """Yield what each mount says. Raise `SourceFailed` when the mounts, or one of them, cannot be looked at."""
        mounts = _mounts(node)
        self._ask(mounts, node)
        for mount in mounts:
            labels = (("fstype", mount.kind), ("path", mount.path))
            yield Sample(name="instep_mount_is_read_only", labels=labels, value=float(mount.is_read_only))
            yield from self._read_only(mount, node)
        for mount, question in self._questions.items():
            yield from self._told(mount, question, node)
        self._check(node)

    def memory(self) -> bytes | None:
        """Give what was told of which file system; None while one has not answered: its thread is this process's."""
        if not all(one.is_answered.is_set() for one in self._questions.values()):
            return None
        return msgspec.msgpack.encode((self._told_stuck, self._was_read_only))

    def recall(self, memory: bytes) -> None:
        """Know what an earlier process has told."""
        self._told_stuck, self._was_read_only = _memory.decode(memory)

    def _check(self, node: Node) -> None:
        """Raise `Absent` where the root holds none of the node's mounts, `SourceFailed` where one is not to be seen."""
        errors = {mount.path: one.error for mount, one in self._questions.items() if one.error is not None}
        below = {mount.path for mount in self._questions} - {"/"}
        if below and below <= errors.keys() and all(isinstance(one, FileNotFoundError) for one in errors.values()):
            raise Absent(f"None of the node's file systems is mounted beneath {node.root}.")
        failed = [f"{path} ({(error.strerror or '').lower()})" for path, error in errors.items()]
        if failed:
            raise SourceFailed(
                f"Cannot look at the file systems at {', '.join(failed[:8])}: give the agent the right to pass the "
                "folders above them."
            )

    def _ask(self, mounts: list[Mount], node: Node) -> None:
        """Ask every mount that is not stuck, and wait for all answers together."""
        stuck = {mount.device: (mount, one) for mount, one in self._questions.items() if not one.is_answered.is_set()}
        self._questions = dict(stuck.values())
        for mount in mounts:
            if mount.device not in stuck:
                question = self._questions[mount] = _Question()
                path = str(node.root) + mount.path if str(node.root) != "/" else mount.path
                threading.Thread(target=self._answer, args=(path, question), daemon=True).start()
        until_seconds = time.monotonic() + self._answer_seconds_max
        for mount, question in self._questions.items():
            announce(f"statvfs {mount.path}")
            question.is_answered.wait(max(0.0, until_seconds - time.monotonic()))

    def _answer(self, path: str, question: _Question) -> None:
        try:
            question.answer = self._statvfs(path)
        except OSError as error:
            question.error = error
        question.is_answered.set()

    def _told(self, mount: Mount, question: _Question, node: Node) -> Iterator[Sample | Fact]:
        labels = (("fstype", mount.kind), ("path", mount.path))
        is_stuck = not question.is_answered.is_set()
        yield Sample(name="instep_mount_is_stuck", labels=labels, value=float(is_stuck))
        if is_stuck and mount.device not in self._told_stuck:
            self._told_stuck.add(mount.device)
            text = f"The file system at {mount.path} ({mount.kind}) does not answer: whoever reads or writes it waits."
            yield _fact("mount_stuck", text, mount, node)
        elif not is_stuck and mount.device in self._told_stuck:
            self._told_stuck.remove(mount.device)
            yield _fact("mount_answers", f"The file system at {mount.path} answers again.", mount, node)
        if question.answer is not None and not is_stuck:
            yield from _samples(question.answer, labels)

    def _read_only(self, mount: Mount, node: Node) -> Iterator[Fact]:
        before = self._was_read_only.get(mount.device)
        self._was_read_only[mount.device] = mount.is_read_only
        if before is False and mount.is_read_only:
            text = f"The file system at {mount.path} ({mount.kind}) has become read-only."
            yield _fact("mount_read_only", text, mount, node)


def _mounts(node: Node) -> list[Mount]:
    for owner in ("1", "self"):  # the first process sees all of the node's mounts, but may not be looked at
        path = node.proc / owner / "mountinfo"
        try:
            mounts = parse_mounts(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            failure = error
            continue
        if mounts:
            return mounts
        raise Absent(f"{path} names no file system that holds data.")
    raise SourceFailed(
        f"Cannot read {failure.filename} ({(failure.strerror or '').lower()}): mount the node's /proc read-only into "
        "the agent's pod."
    ) from failure


def _samples(answer: os.statvfs_result, labels: tuple[tuple[str, str], ...]) -> Iterator[Sample]:
    used = answer.f_blocks - answer.f_bfree
    usable = used + answer.f_bavail
    yield Sample(name="instep_mount_size_bytes", labels=labels, value=float(answer.f_blocks * answer.f_frsize))
    yield Sample(name="instep_mount_available_bytes", labels=labels, value=float(answer.f_bavail * answer.f_frsize))
    if usable > 0:
        yield Sample(name="instep_mount_used_ratio", labels=labels, value=used / usable)
    if answer.f_files > 0:
        ratio = (answer.f_files - answer.f_ffree) / answer.f_files
        yield Sample(name="instep_mount_inodes_used_ratio", labels=labels, value=ratio)


def _fact(kind: str, text: str, mount: Mount, node: Node) -> Fact:
    fields = {"path": mount.path, "fstype": mount.kind}
    return Fact(kind, text, node.monotonic_ns(), node.realtime_ns(), fields)
