"""Lines of the kernel log that may matter to a job, as they are: what they mean is diagnosis's business."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from instep_agent.errors import Absent, SourceFailed
from instep_agent.lines.folding import WINDOW_SECONDS, Fold
from instep_agent.lines.kernel import is_interesting, pid_of, unescaped
from instep_agent.metric import counter
from instep_agent.node import Fact, Node
from instep_agent.running.file_watch import FileWatch
from instep_agent.wire import Sample

DRILL_MARK = b"instep-drill"
HISTORY_SECONDS = 300.0
"""At its start the agent reports lines of the last five minutes, where the log tells their time."""
TURN_SECONDS_MAX = 0.2
"""A turn ends after so long although there is more: the next one, at once, goes on. The other sources come between."""
RECORD_BYTES_MAX = 8192
FILE_CHUNK_BYTES = 1 << 15
"""As much as the C library has at hand: for more it asks the kernel at each look."""
_RECORD = re.compile(rb"(\d+),(\d+),(\d+),[^;]*;(.*)")
_DICTIONARY_LINE = re.compile(rb" [A-Z_]+=")
"""Where a record's key=value lines stand in a file: they describe the line before, and are none."""


def _no_rank(_pid: int) -> dict[str, str]:
    return {}


class KernelLog:
    """Kernel log lines that may matter (`instep_agent.lines.kernel`), from `/dev/kmsg` beneath the root.

    Real device: one record a read, `priority,sequence,microseconds,flags;text` as in the kernel's
    Documentation/ABI/testing/dev-kmsg. A regular file or FIFO in its place is read as it grows, record by record or
    plain line by plain line; plain lines carry no time, so those that were there before the agent are not reported.
    A line is sent at once; what says the same within 60 s is counted (`instep_agent.lines.folding`), and numbers that
    the log has skipped are reported as lost.
    """

    name = "kernel_log"
    interval_seconds = 0.1
    deadline_seconds = 1.0
    child = ""
    rights = "reads /dev/kmsg: CAP_SYSLOG where kernel.dmesg_restrict is 1, and the device in a container"
    metrics = (
        counter("instep_kernel_log_lines_total", "Lines of the kernel log that were read, since the agent's start."),
        counter("instep_kernel_log_lines_lost_total", "Lines overwritten before they could be read, by their numbers."),
    )

    def __init__(self, rank_of: Callable[[int], dict[str, str]] = _no_rank) -> None:
        """`rank_of` gives, as fields of an event, the rank that a process of the node is."""
        self._rank_of = rank_of
        self._descriptor = -1
        self._path = Path()
        self._is_device = False
        self._watch: FileWatch | None = None
        self._has_more = False
        self._is_history = False
        self._rest = b""
        self._last_sequence: int | None = None
        self._was_absent = False
        self._fold = Fold()
        self._lines_total = 0
        self._lost_total = 0
        self._lost_unsaid = 0
        self._lost_until_ns = 0
        """Before then lost lines are counted, and said afterwards."""

    def collect(self, node: Node) -> Iterator[Fact | Sample]:
        """Yield what was logged since last time. Raise `Absent` without a log, `SourceFailed` if unreadable."""
        if self._descriptor < 0:
            self._open(node.root / "dev/kmsg")
        if self._watch is not None:
            self._watch.forget()
        now_ns = node.monotonic_ns()
        for lines in self._read_chunks():
            self._lines_total += len(lines)
            for line in lines:
                yield from self._facts(line, node, now_ns)
        self._is_history = False
        if self._fold.is_over(now_ns):
            yield from self._repeated(node)
        if self._lost_unsaid and now_ns >= self._lost_until_ns:
            yield self._lost(node)
        yield Sample(name="instep_kernel_log_lines_total", labels=(), value=float(self._lines_total))
        yield Sample(name="instep_kernel_log_lines_lost_total", labels=(), value=float(self._lost_total))

    def last_words(self, node: Node) -> Iterator[Fact]:
        """Yield what was counted and not said yet, when the agent stops."""
        yield from self._repeated(node)
        if self._lost_unsaid:
            yield self._lost(node)

    def wake_descriptor(self) -> int:
        """Give the open device, or the watch on a file in its place, which itself is always ready; -1 without one."""
        if self._is_device or self._has_more:
            return self._descriptor
        return -1 if self._watch is None else self._watch.descriptor

    def close(self) -> None:
        """Let go of the log; the next `collect` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _open(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            self._was_absent = True
            raise Absent(f"{path} does not exist: this node shows no kernel log.") from error
        except OSError as error:
            raise SourceFailed(
                f"Cannot read {path} ({(error.strerror or '').lower()}): give the agent CAP_SYSLOG and the device."
            ) from error
        self._path = path
        self._is_device = stat.S_ISCHR(os.fstat(self._descriptor).st_mode)
        self._watch = None if self._is_device else FileWatch(Path(f"/proc/self/fd/{self._descriptor}"))
        self._is_history = not self._was_absent  # what appears after the agent's start is all new
        self._rest = b""

    def _read_chunks(self) -> Iterator[list[bytes]]:
        size = RECORD_BYTES_MAX if self._is_device else FILE_CHUNK_BYTES
        until_seconds = time.monotonic() + TURN_SECONDS_MAX
        self._has_more = False
        while time.monotonic() < until_seconds:
            try:
                data = os.read(self._descriptor, size)
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten before it was read: the next read goes on after the gap
                    continue
                if error.errno in (errno.EAGAIN, errno.EINTR):
                    return
                self.close()
                raise SourceFailed(f"Cannot read the kernel log ({error.strerror}).") from error
            if not data:
                self._notice_another_file()
                return
            yield self._split(data)
        self._has_more = True

    def _split(self, data: bytes) -> list[bytes]:
        if self._is_device:  # one record, whose further lines hold its key=value dictionary
            return [data.split(b"\n", 1)[0]]
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-RECORD_BYTES_MAX:]
        return lines

    def _notice_another_file(self) -> None:
        """A regular file that was cut short is read again from its beginning, and one that took its place instead."""
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            return
        if status.st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR):
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._rest, self._last_sequence = b"", None
        elif not _is_at(self._path, status):
            self.close()
            self._last_sequence, self._was_absent = None, True

    def _facts(self, line: bytes, node: Node, now_ns: int) -> Iterator[Fact]:
        record = _RECORD.match(line)
        text, at_ns = line, now_ns
        if record is not None:
            text = record[4]
            at_ns = min(int(record[3]) * 1000, now_ns)
            self._count_skipped(int(record[2]))
            if self._lost_unsaid and now_ns >= self._lost_until_ns:
                yield self._lost(node)
        if not is_interesting(text) or _DICTIONARY_LINE.match(text):
            return
        if self._is_history and (record is None or now_ns - at_ns > HISTORY_SECONDS * 1e9):
            return
        if self._fold.is_sent(text, now_ns):
            yield self._fact(unescaped(text), record, at_ns, node)

    def _fact(self, text: bytes, record: re.Match[bytes] | None, at_ns: int, node: Node) -> Fact:
        fields = {}
        if record is not None:
            fields = {"priority": str(int(record[1]) & 7), "sequence": record[2].decode()}
        if pid := pid_of(text):
            fields |= {"pid": str(pid)} | self._rank_of(pid)
        return Fact(
            "kernel_line",
            text[:RECORD_BYTES_MAX].decode("utf-8", "replace"),
            at_ns,
            node.realtime_ns() - (node.monotonic_ns() - at_ns),
            fields,
            DRILL_MARK in text,
            identity=f"kmsg-{fields['sequence']}" if self._is_device and record else "",
        )

    def _repeated(self, node: Node) -> Iterator[Fact]:
        fields = self._fold.fields_at_end()
        if fields:
            text = f"{fields['count']} lines of the kernel log said again what others had said within the last minute."
            yield Fact("kernel_lines_repeated", text, node.monotonic_ns(), node.realtime_ns(), fields)

    def _count_skipped(self, sequence: int) -> None:
        last, self._last_sequence = self._last_sequence, sequence
        if last is not None and sequence > last + 1:
            self._lost_total += sequence - last - 1
            self._lost_unsaid += sequence - last - 1

    def _lost(self, node: Node) -> Fact:
        """Say at once that lines were lost; in a storm each read skips some, and these are said once a minute."""
        count, self._lost_unsaid = self._lost_unsaid, 0
        self._lost_until_ns = node.monotonic_ns() + int(WINDOW_SECONDS * 1e9)
        text = f"{count} lines of the kernel log were overwritten before they could be read."
        return Fact("kernel_lines_lost", text, node.monotonic_ns(), node.realtime_ns(), {"count": str(count)})


def _is_at(path: Path, status: os.stat_result) -> bool:
    """Whether this file is still the one at `path`; a path that cannot be looked at has not changed."""
    try:
        now = path.stat()
    except OSError:
        return True
    return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)
