"""Where a fault is put, and how each place is put back: kernel log, NVML stand-in, tree of a simulated node, drill."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from instep_agent.drills import Drill
from instep_agent.errors import DrillImpossible
from instep_agent.inject.injection import ScenarioChange, TreeChange

AFTER_SECONDS = 15.0
"""So long after a drill its announced facts are marked: a link that is there again is told at the next look."""
_XID_EVENT = 8
"""NVML's number of the type of event that an Xid is."""


def write_kernel_log(path: Path, lines: Sequence[str]) -> None:
    """Write each line in one call, as one record. Raise `DrillImpossible` when that cannot be."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        try:
            for line in lines:
                os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DrillImpossible(
            f"Cannot write {path} ({(error.strerror or '').lower()}): run as root, or give --kernel-log."
        ) from error


class StandIn:
    """The scenario file of the NVML stand-in; `undo` takes out the lines that were put in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._added: list[str] = []

    def put(self, changes: Sequence[ScenarioChange]) -> None:
        """Add a line for each change. Raise `DrillImpossible` when the file cannot be read or written."""
        lines = self._lines()
        for change in changes:
            line = _scenario_line(change, lines)
            lines.append(line)
            self._added.append(line)
        self._write(lines)

    def undo(self) -> None:
        """Take the lines out again."""
        if not self._added:
            return
        lines = self._lines()
        for line in self._added:
            if line in lines:
                del lines[len(lines) - 1 - lines[::-1].index(line)]
        self._write(lines)
        self._added.clear()

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DrillImpossible(f"Cannot read the scenario {self._path} ({error.strerror}).") from error

    def _write(self, lines: Sequence[str]) -> None:
        _replace(self._path, "\n".join(lines) + "\n")


def _scenario_line(change: ScenarioChange, lines: Sequence[str]) -> str:
    """Give the line that makes the change; the last line with a key counts, one for this GPU like one for all."""
    split = [line.split(maxsplit=1) for line in lines]
    if change.key == "event":
        numbers = [int(words[1].split()[0]) for words in split if len(words) == 2 and words[0] == "event"]
        return f"event {max(numbers, default=0) + 1} {change.text} {_XID_EVENT}"
    if not change.add:
        return f"{change.key} {change.text}"
    keys = (change.key, "*." + change.key.partition(".")[2])
    before = next((words[1] for words in reversed(split) if len(words) == 2 and words[0] in keys), "0")
    kind, colon, number = before.rpartition(":")
    return f"{change.key} {kind}{colon}{int(number) + change.add}"


class Tree:
    """Files of a simulated node, written in place as the kernel's are; `undo` puts back what they held.

    What was counted up stays: a counter of the real thing does not fall either.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._before: dict[Path, str] = {}

    def put(self, changes: Sequence[TreeChange]) -> None:
        """Change each file. Raise `DrillImpossible` when one is not there."""
        for change in changes:
            path = self._root / change.path.lstrip("/")
            try:
                now = path.read_text(encoding="utf-8")
            except OSError as error:
                raise DrillImpossible(
                    f"Cannot read {path} ({(error.strerror or '').lower()}): the simulated node has no such thing."
                ) from error
            if not change.add:
                self._before.setdefault(path, now)
            path.write_text(f"{int(now) + change.add}\n" if change.add else change.text + "\n", encoding="utf-8")

    def undo(self) -> None:
        """Put everything back."""
        for path, text in self._before.items():
            path.write_text(text, encoding="utf-8")
        self._before.clear()


class DrillFile:
    """What the agent is told; it counts until its own end, or until `undo` takes it away."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name

    def put(self, drill: Drill) -> None:
        """Write it. Raise `DrillImpossible` when the folder cannot be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._remove_ended()
            new = self._folder / f".{self._name}.new"
            new.touch(mode=0o644)
            new.chmod(0o644)
            new.write_bytes(msgspec.json.encode(drill))
            new.replace(self._path)
        except OSError as error:
            raise DrillImpossible(
                f"Cannot write {self._path} ({(error.strerror or '').lower()}): run as root or as the agent's user, or "
                "give --drills, the same for agent and inject."
            ) from error

    def undo(self, drill: Drill) -> None:
        """Take it away; one that announced facts goes on marking them, since some come of its end."""
        if drill.marks:
            until_ns = time.monotonic_ns() + int(AFTER_SECONDS * 1e9)
            self.put(msgspec.structs.replace(drill, changes=(), said=(), stopped_child="", until_monotonic_ns=until_ns))
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _remove_ended(self) -> None:
        """Take away what earlier commands left: drills that are over."""
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):  # somebody else's: the agent says what is wrong
                if msgspec.json.decode(path.read_bytes(), type=Drill).until_monotonic_ns < time.monotonic_ns():
                    path.unlink()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}.json"


def drill_name(fault: str) -> str:
    """Give a name that no other drill of this node has."""
    return f"{fault}-{time.time_ns()}"


def _replace(path: Path, text: str) -> None:
    """Put a whole new file in the old one's place."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise DrillImpossible(f"Cannot write {path} ({(error.strerror or '').lower()}).") from error
