"""Lines of the jobs' own logs that may matter, as they are: what they mean is diagnosis's business."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from instep_agent.announce import announce
from instep_agent.errors import Absent, SourceFailed
from instep_agent.lines.log_patterns import LINE_BYTES_MAX, log_patterns
from instep_agent.lines.tail import NotALog, Tail
from instep_agent.metric import counter, gauge
from instep_agent.node import Fact, Node
from instep_agent.wire import Sample

FILES_MAX = 256
"""Read at once: the ones changed last."""
NAMES_MAX = 4096
"""Looked at for one pattern of names."""
DISCOVERY_SECONDS = 5.0
BYTES_PER_TURN_MAX = 4 << 20
"""Of all files together; what is left comes with the next turn."""
FILE_BYTES_PER_TURN_MAX = 1 << 20
UNCONFIGURED_REST_SECONDS = 60.0
"""Nothing comes of asking while no log files are named."""
WINDOW_SECONDS = 60.0
"""Lines that differ in numbers only are sent once in so long, for each file; the window's end tells how many came."""
SENT_MAX = 500
"""Lines in one window; further ones are counted."""
REPEATS_MAX = 2000
DRILL_MARK = b"instep-drill"
_BREAK = re.compile(rb"[\r\n]+")
_NUMBER = re.compile(rb"0x[0-9a-fA-F]+|\d+")


@dataclass(slots=True)
class _Open:
    """A file that is read, and the beginning of its unfinished line."""

    tail: Tail
    rest: bytes = b""
    is_cut: bool = False
    """The unfinished line is too long: its end is thrown away."""


@dataclass(slots=True)
class _Window:
    """What was sent since it began."""

    until_ns: int = 0
    sent: int = 0
    repeats: OrderedDict[tuple[str, bytes], int] = field(default_factory=OrderedDict)
    lines: dict[tuple[str, bytes], Fact] = field(default_factory=dict)


class LogLines:
    """Lines of NCCL, torch and CUDA in log files that the configuration names (`log_files`, glob patterns).

    Made for what `NCCL_DEBUG_FILE`, `torchrun --log-dir` and `instep run --log-dir` write. Files that are there at the
    start are read from their end, later ones from their beginning, through rotation and truncation. Which lines leave
    the node stands in `log_patterns.toml`. With files to read it runs in the child process `logs`: a file system may
    hang.
    """

    name = "log_lines"
    interval_seconds = 1.0
    deadline_seconds = 5.0
    child = "logs"
    rights = "reads the files that `log_files` names: as their owner or group, or with CAP_DAC_READ_SEARCH"
    metrics = (
        gauge("instep_log_files", "Log files that are read."),
        gauge("instep_log_files_unreadable", "Files that `log_files` names and that cannot be read."),
        counter("instep_log_lines_total", "Lines that matched, by `pattern`; repeats count too."),
        counter("instep_log_read_bytes_total", "Bytes of log files that were read."),
        counter("instep_log_skipped_bytes_total", "Bytes of log files that came too fast to be read."),
        counter("instep_log_lines_unsent_total", "Lines that matched and were only counted: repeats, and too many."),
    )

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._globs = tuple(patterns)
        if not self._globs:
            self.child = ""  # nothing to read, so no process is needed that a slow file system may hold up
        self._open: dict[Path, _Open] = {}
        self._is_begun = False
        self._next_discovery_ns = 0
        self._unreadable: dict[Path, str] = {}
        self._window = _Window()
        self._matched: Counter[str] = Counter()
        self._read_bytes = self._skipped_bytes = self._unsent = 0
        self._first = 0
        self.rest_seconds = 0.0 if self._globs else UNCONFIGURED_REST_SECONDS

    def collect(self, node: Node) -> Iterator[Fact | Sample]:
        """Yield what came since last time. Raise `Absent` when nothing is configured or there, `SourceFailed` when
        none of the files can be read.
        """
        if not self._globs:
            raise Absent("No log files are named: set log_files in the agent's configuration.")
        now_ns = node.monotonic_ns()
        if now_ns >= self._next_discovery_ns:
            self._next_discovery_ns = now_ns + int(DISCOVERY_SECONDS * 1e9)
            self._discover(node.root)
        if not self._open and self._unreadable:
            raise SourceFailed(next(iter(self._unreadable.values())))
        if not self._open:
            raise Absent(f"There is no file {' or '.join(self._globs[:3])} on this node.")
        yield from self._ended(now_ns)
        yield from self._new_lines(node, now_ns)
        yield from self._samples()

    def close(self) -> None:
        """Let go of every file."""
        for one in self._open.values():
            one.tail.close()
        self._open = {}

    def _discover(self, root: Path) -> None:
        self._unreadable = {}
        for path in _newest(root, self._globs):
            announce(f"open {path}")
            if path not in self._open and len(self._open) < FILES_MAX:
                self._add(path, from_end=not self._is_begun)
        self._is_begun = True

    def _add(self, path: Path, *, from_end: bool) -> None:
        try:
            self._open[path] = _Open(Tail(path, from_end=from_end))
        except FileNotFoundError:  # it was removed meanwhile
            return
        except NotALog:
            self._unreadable[path] = f"{path} is no regular file: let log_files name files themselves, not links."
        except OSError as error:
            self._unreadable[path] = (
                f"Cannot read the log file {path} ({(error.strerror or '').lower()}): let the agent's user read it."
            )

    def _new_lines(self, node: Node, now_ns: int) -> Iterator[Fact]:
        """Every file gets its share, whichever comes first changes from turn to turn."""
        paths = list(self._open)
        self._first = (self._first + 1) % len(paths)
        until_bytes = self._read_bytes + BYTES_PER_TURN_MAX
        for path in paths[self._first :] + paths[: self._first]:
            share_bytes = min(FILE_BYTES_PER_TURN_MAX, until_bytes - self._read_bytes)
            announce(f"read {path}")
            for line in self._lines_of(path, share_bytes):
                yield from self._fact(path, line, node, now_ns)

    def _lines_of(self, path: Path, share_bytes: int) -> Iterator[bytes]:
        one = self._open[path]
        try:
            while share_bytes > 0 and (data := one.tail.read(share_bytes)):
                share_bytes -= len(data)
                self._read_bytes += len(data)
                yield from _split(one, data)
            is_over = share_bytes > 0 and one.tail.is_replaced()
        except OSError:  # such as a stale file handle: what takes its place is found again
            is_over = True
        self._skipped_bytes += one.tail.skipped_bytes
        one.tail.skipped_bytes = 0
        if is_over:
            one.tail.close()
            del self._open[path]
            self._add(path, from_end=False)

    def _fact(self, path: Path, line: bytes, node: Node, now_ns: int) -> Iterator[Fact]:
        found = log_patterns().match(line)
        if found is None:
            return
        pattern, fields = found
        self._matched[pattern.name] += 1
        window = self._window
        window.until_ns = window.until_ns or now_ns + int(WINDOW_SECONDS * 1e9)
        key = (str(path), _NUMBER.sub(b"#", line))
        if key in window.repeats or window.sent >= SENT_MAX:
            self._unsent += 1
            if key in window.repeats or len(window.repeats) < REPEATS_MAX:
                window.repeats[key] = window.repeats.get(key, 0) + 1
            return
        window.repeats[key] = 0
        window.sent += 1
        shown = "/" + str(path.relative_to(node.root))
        fact = Fact(
            "log_line",
            line.decode("utf-8", "replace"),
            now_ns,
            node.realtime_ns(),
            {"pattern": pattern.name, "file": shown} | fields,
            DRILL_MARK in line,
        )
        window.lines[key] = fact
        yield fact

    def _ended(self, now_ns: int) -> Iterator[Fact]:
        """At the window's end, say of each line that was sent how often the like of it came again."""
        if not 0 < self._window.until_ns <= now_ns:
            return
        window, self._window = self._window, _Window()
        for key, fact in window.lines.items():
            if count := window.repeats[key]:
                fields = fact.fields | {"repeats": str(count)}
                yield Fact(fact.kind, fact.text, fact.monotonic_ns, fact.realtime_ns, fields, fact.is_drill)

    def _samples(self) -> Iterator[Sample]:
        values = {
            "instep_log_files": len(self._open),
            "instep_log_files_unreadable": len(self._unreadable),
            "instep_log_read_bytes_total": self._read_bytes,
            "instep_log_skipped_bytes_total": self._skipped_bytes,
            "instep_log_lines_unsent_total": self._unsent,
        }
        for name, value in values.items():
            yield Sample(name=name, labels=(), value=float(value))
        for pattern, count in sorted(self._matched.items()):
            yield Sample(name="instep_log_lines_total", labels=(("pattern", pattern),), value=float(count))


def _newest(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Give the files that the patterns name, those changed last, in the order of their names."""
    dated: dict[Path, int] = {}
    for pattern in patterns:
        for path in islice(root.glob(pattern.lstrip("/")), NAMES_MAX):
            with contextlib.suppress(OSError):  # it was removed meanwhile
                dated[path] = path.lstat().st_mtime_ns
    return sorted(sorted(dated, key=lambda path: -dated[path])[:FILES_MAX])


def _split(one: _Open, data: bytes) -> Iterator[bytes]:
    """Yield the whole lines that may matter; a progress bar's carriage return ends a line too."""
    *lines, rest = _BREAK.split(one.rest + data)
    if one.is_cut and lines:  # the end of a line that was already given
        lines.pop(0)
        one.is_cut = False
    if log_patterns().is_worth_a_look(one.rest + data):
        yield from (line[:LINE_BYTES_MAX] for line in lines if line)
        if len(rest) > LINE_BYTES_MAX and not one.is_cut:
            yield rest[:LINE_BYTES_MAX]
    if len(rest) > LINE_BYTES_MAX or one.is_cut:
        one.is_cut = True
        rest = b""
    one.rest = rest
