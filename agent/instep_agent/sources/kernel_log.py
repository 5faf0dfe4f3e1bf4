"""Lines of the kernel log that may matter to a job, as they are: what they mean is diagnosis's business."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instep_agent.errors import Absent, SourceFailed
from instep_agent.metric import Metric
from instep_agent.node import Fact, Node

INTERESTING = re.compile(
    r"NVRM|\bS?Xid\b|fallen off the bus|nvidia-nvswitch|mlx5|pcieport.*(?:AER|error)|AER: |Out of memory|oom-kill"
    r"|blocked for more than|hung_task|soft lockup|hard LOCKUP|instep-drill"
)
"""Cheap on purpose: a line that passes and means nothing costs a few bytes, one that is held back is lost."""
DRILL_MARK = "instep-drill"
HISTORY_SECONDS = 300.0
"""At its start the agent reports lines of the last five minutes, where the log tells their time."""
REPEAT_TTL_SECONDS = 60.0
"""Equal lines within this time are counted, not sent: a broken link has written 800,000 lines for 29 faults."""
REPEATS_MAX = 256
RECORDS_PER_COLLECT_MAX = 1000
LINE_BYTES_MAX = 8192
_RECORD = re.compile(r"(\d+),(\d+),(\d+),[^;]*;(.*)")


@dataclass(slots=True)
class _Repeat:
    """A line that was sent, and how often it came again since."""

    until_ns: int
    fact: Fact
    count: int = 0


class KernelLog:
    """Kernel log lines that match `INTERESTING`, from `/dev/kmsg` beneath the root.

    Real device: one record a read, `priority,sequence,microseconds,flags;text` as in the kernel's
    Documentation/ABI/testing/dev-kmsg. A regular file or FIFO in its place is read as it grows, record by record or
    plain line by plain line; plain lines carry no time, so those that were there before the agent are not reported.
    """

    name = "kernel_log"
    interval_seconds = 0.1
    deadline_seconds = 1.0
    child = ""
    rights = "reads /dev/kmsg: CAP_SYSLOG where kernel.dmesg_restrict is 1, and the device in a container"
    metrics: tuple[Metric, ...] = ()

    def __init__(self) -> None:
        self._descriptor = -1
        self._is_device = False
        self._is_history = False
        self._rest = b""
        self._last_sequence: int | None = None
        self._was_absent = False
        self._repeats: OrderedDict[str, _Repeat] = OrderedDict()

    def collect(self, node: Node) -> Iterator[Fact]:
        """Yield what was logged since last time. Raise `Absent` without a log, `SourceFailed` if unreadable."""
        if self._descriptor < 0:
            self._open(node.root / "dev/kmsg")
        now_ns = node.monotonic_ns()
        for line in self._read_lines():
            yield from self._facts(line, node, now_ns)
        self._is_history = False
        yield from self._expired(now_ns)

    def wake_descriptor(self) -> int:
        """Give the open device, which can be waited for; a file in its place is always ready, and so cannot."""
        return self._descriptor if self._is_device else -1

    def close(self) -> None:
        """Let go of the log; the next `collect` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

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
        self._is_device = stat.S_ISCHR(os.fstat(self._descriptor).st_mode)
        self._is_history = not self._was_absent  # what appears after the agent's start is all new
        self._rest = b""

    def _read_lines(self) -> Iterator[str]:
        for _ in range(RECORDS_PER_COLLECT_MAX):
            try:
                data = os.read(self._descriptor, LINE_BYTES_MAX)
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten before it was read: the next read goes on after the gap
                    continue
                if error.errno in (errno.EAGAIN, errno.EINTR):
                    return
                self.close()
                raise SourceFailed(f"Cannot read the kernel log ({error.strerror}).") from error
            if not data:
                self._notice_truncation()
                return
            yield from self._split(data)

    def _split(self, data: bytes) -> Iterator[str]:
        if self._is_device:  # one record, whose further lines hold its key=value dictionary
            yield data.split(b"\n", 1)[0].decode("utf-8", "replace")
            return
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LINE_BYTES_MAX:]
        for line in lines:
            yield line.decode("utf-8", "replace")

    def _notice_truncation(self) -> None:
        """A regular file that was cut short is read again from its beginning."""
        status = os.fstat(self._descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR):
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._rest = b""

    def _facts(self, line: str, node: Node, now_ns: int) -> Iterator[Fact]:
        record = _RECORD.match(line)
        fields, text, at_ns = {}, line, now_ns
        if record is not None:
            priority, sequence, microseconds, text = record.groups()
            fields = {"priority": str(int(priority) & 7), "sequence": sequence}
            at_ns = min(int(microseconds) * 1000, now_ns)
            yield from self._gap(int(sequence), node, now_ns)
        if not text or not INTERESTING.search(text):
            return
        if self._is_history and (record is None or now_ns - at_ns > HISTORY_SECONDS * 1e9):
            return
        fact = Fact(
            "kernel_line",
            text,
            at_ns,
            node.realtime_ns() - (now_ns - at_ns),
            fields,
            DRILL_MARK in text,
            identity=f"kmsg-{fields['sequence']}" if self._is_device and record else "",
        )
        if not self._is_repeat(fact, now_ns):
            yield fact

    def _gap(self, sequence: int, node: Node, now_ns: int) -> Iterator[Fact]:
        last, self._last_sequence = self._last_sequence, sequence
        if last is not None and sequence > last + 1:
            lost = sequence - last - 1
            yield Fact(
                "kernel_lines_lost",
                f"{lost} lines of the kernel log were overwritten before they could be read.",
                now_ns,
                node.realtime_ns(),
                {"count": str(lost)},
            )

    def _is_repeat(self, fact: Fact, now_ns: int) -> bool:
        repeat = self._repeats.get(fact.text)
        if repeat is not None and now_ns < repeat.until_ns:
            repeat.fact, repeat.count = fact, repeat.count + 1
            return True
        if len(self._repeats) < REPEATS_MAX:  # beyond it lines are sent unfolded: better too much than held back
            self._repeats[fact.text] = _Repeat(now_ns + int(REPEAT_TTL_SECONDS * 1e9), fact)
        return False

    def _expired(self, now_ns: int) -> Iterator[Fact]:
        """Yield one line for those that were counted, with their number; its time is the last one's."""
        while self._repeats and next(iter(self._repeats.values())).until_ns <= now_ns:
            _text, repeat = self._repeats.popitem(last=False)
            if repeat.count:
                fact = repeat.fact
                yield Fact(
                    fact.kind,
                    fact.text,
                    fact.monotonic_ns,
                    fact.realtime_ns,
                    fact.fields | {"repeats": str(repeat.count)},
                    fact.is_drill,
                    fact.identity,
                )
