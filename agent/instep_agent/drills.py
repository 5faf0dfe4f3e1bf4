"""Drills: faults that are laid over what the sources read, and the mark on everything that comes of one.

`instep inject` writes `<drills>/<name>.json` before it changes anything, and the agent looks there before it takes in
what a source said: nothing that comes of a drill passes unmarked. A drill ends by itself at its `until_monotonic_ns`,
whatever became of the command that wrote it. A value that a drill changes shows under a series of its own, with the
label `drill="true"`, and the real one pauses meanwhile, so that no reader can take one for the other; facts say
`is_drill`. Only files of the agent's own user or of root, which nobody else may write, count.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from instep_agent.folders import ENTRIES_MAX, names
from instep_agent.node import Fact, Node
from instep_agent.turn import Turn
from instep_agent.wire import Sample

DRILLS_FOLDER = "/run/instep/drills"
DRILL_LABEL = ("drill", "true")
LOOK_SECONDS = 1.0
"""The files are read again this often; whenever the folder has changed, they are at once."""
DRILLS_MAX = 32
FILE_BYTES_MAX = 1 << 16

log = logging.getLogger("instep.agent.drills")


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What happens to the samples of one metric that have all of these labels."""

    metric: str
    labels: dict[str, str] = {}
    set: float | None = None
    """The value in place of the real one; without it the real one is kept, plus `add`, and only marked."""
    add: float = 0.0

    def fits(self, sample: Sample) -> bool:
        """Whether it is about this sample.

        >>> change = Change(metric="m", labels={"gpu": "3"})
        >>> change.fits(Sample(name="m", labels=(("gpu", "3"), ("uuid", "x")), value=1.0))
        True
        """
        return sample.name == self.metric and self.labels.items() <= dict(sample.labels).items()

    def of(self, sample: Sample) -> Sample:
        """Give the sample that takes its place, under a series of its own."""
        value = sample.value + self.add if self.set is None else self.set
        return Sample(name=sample.name, labels=tuple(sorted((*sample.labels, DRILL_LABEL))), value=value)


class Mark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which facts come of a drill, although they arise as real ones do: of this kind, with all of these fields."""

    kind: str
    fields: dict[str, str] = {}

    def fits(self, kind: str, fields: dict[str, str]) -> bool:
        """Whether a fact is one of them."""
        return kind == self.kind and self.fields.items() <= fields.items()


class Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A fact that the drill says itself, once, at its beginning."""

    kind: str
    text: str
    fields: dict[str, str] = {}


class Drill(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One drill, as its file holds it."""

    fault: str
    """Name of the fault, for people."""
    node: str
    boot_id: str
    """The drill ends with the boot that it was begun in."""
    until_monotonic_ns: int
    changes: tuple[Change, ...] = ()
    marks: tuple[Mark, ...] = ()
    said: tuple[Said, ...] = ()
    stopped_child: str = ""
    """The child process of this name is stopped (SIGSTOP) whenever it runs: to the agent it hangs."""


class Drills:
    """The drills of one node that last now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = str(folder)
        self._files: dict[str, tuple[int, Drill]] = {}
        """By file name: when it was written, and what it says."""
        self._complained: set[tuple[str, int]] = set()
        self._changed: dict[str, int] = {}
        """By file name: how many readings it has changed or marked so far."""
        self._next_look_ns = 0
        self._folder_ns = 0

    @property
    def is_active(self) -> bool:
        """Whether there is any."""
        return bool(self._files)

    @property
    def metrics(self) -> set[str]:
        """The metrics that are changed now."""
        return {change.metric for _, drill in self._files.values() for change in drill.changes}

    @property
    def stopped_children(self) -> set[str]:
        """The children that do not answer now."""
        return {drill.stopped_child for _, drill in self._files.values()} - {""}

    def is_drill(self, kind: str, fields: dict[str, str]) -> bool:
        """Whether a fact comes of a drill that lasts now."""
        return any(mark.fits(kind, fields) for _, drill in self._files.values() for mark in drill.marks)

    def look(self, node: Node) -> list[Fact]:
        """Read what is there now; give what began and what ended as facts, and what the new ones say."""
        now_ns = node.monotonic_ns()
        folder_ns = self._written_ns()
        if folder_ns == self._folder_ns and (now_ns < self._next_look_ns or not folder_ns):
            return []
        self._folder_ns = folder_ns
        self._next_look_ns = now_ns + int(LOOK_SECONDS * 1e9)
        before, self._files = self._files, dict(self._read(node, now_ns))
        facts: list[Fact] = []
        for name in before.keys() - self._files.keys():
            facts.append(self._ended(name, before[name][1], node))
        for name, (_, drill) in self._files.items():
            if name not in before:
                self._changed[name] = 0
                facts += _began(name, drill, node)
        return facts

    def overlay(self, turn: Turn) -> Turn:
        """Give what a source said with the drills laid over it."""
        if not self._files:
            return turn
        samples = tuple(map(self._sample, turn.samples))
        return msgspec.structs.replace(turn, samples=samples, facts=tuple(map(self._fact, turn.facts)))

    def _sample(self, sample: Sample) -> Sample:
        for name, (_, drill) in self._files.items():
            for change in drill.changes:
                if change.fits(sample):
                    self._changed[name] += 1
                    return change.of(sample)
        return sample

    def _fact(self, fact: Fact) -> Fact:
        if fact.is_drill or not self.is_drill(fact.kind, fact.fields):
            return fact
        return Fact(fact.kind, fact.text, fact.monotonic_ns, fact.realtime_ns, fact.fields, True, fact.identity)

    def _ended(self, name: str, drill: Drill, node: Node) -> Fact:
        count = self._changed.pop(name, 0)
        text = f"Drill {drill.fault} ended; {count} readings were changed or marked."
        return _fact("drill_ended", text, {"drill": name, "fault": drill.fault, "readings": str(count)}, node)

    def _written_ns(self) -> int:
        """Give when the folder was last changed, 0 when there is none: nobody has ever drilled here."""
        if not os.access(self._path, os.F_OK):  # as it mostly is: an exception costs three times as much
            return 0
        try:
            return os.stat(self._path).st_mtime_ns  # noqa: PTH116  before each turn: as cheap as it can be
        except OSError:
            return 0

    def _read(self, node: Node, now_ns: int) -> Iterator[tuple[str, tuple[int, Drill]]]:
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # it was taken away, and every drill with it
            return
        try:
            found_names = [entry for entry in names(folder, ENTRIES_MAX) if entry.endswith(".json")]
            for name in sorted(found_names)[:DRILLS_MAX]:
                found = self._read_file(name, folder)
                if found is not None and _lasts(found[1], node, now_ns):
                    yield name.removesuffix(".json"), found
        finally:
            os.close(folder)

    def _read_file(self, name: str, folder: int) -> tuple[int, Drill] | None:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError:  # it was taken back meanwhile
            return None
        try:
            status = os.fstat(descriptor)
            known = self._files.get(name.removesuffix(".json"))
            if known is not None and known[0] == status.st_mtime_ns:
                return known
            if not _is_trusted(status):
                self._complain(name, status, "it must be a file of root or the agent's user that nobody else may write")
                return None
            return status.st_mtime_ns, msgspec.json.decode(os.read(descriptor, FILE_BYTES_MAX), type=Drill)
        except msgspec.DecodeError as error:
            self._complain(name, status, str(error))
            return None
        finally:
            os.close(descriptor)

    def _complain(self, name: str, status: os.stat_result, why: str) -> None:
        if (name, status.st_mtime_ns) not in self._complained and len(self._complained) < DRILLS_MAX:
            self._complained.add((name, status.st_mtime_ns))
            log.warning("The drill %s is not carried out: %s.", self._folder / name, why.rstrip("."))


def _lasts(drill: Drill, node: Node, now_ns: int) -> bool:
    return drill.node == node.name and drill.boot_id == node.boot_id and now_ns < drill.until_monotonic_ns


def _is_trusted(status: os.stat_result) -> bool:
    is_ours = status.st_uid in (0, os.geteuid())
    return stat.S_ISREG(status.st_mode) and is_ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _began(name: str, drill: Drill, node: Node) -> Iterator[Fact]:
    seconds = (drill.until_monotonic_ns - node.monotonic_ns()) / 1e9
    text = f"Drill {drill.fault} began; it ends in {seconds:.0f} s at the latest."
    yield _fact("drill_began", text, {"drill": name, "fault": drill.fault}, node)
    for said in drill.said:
        yield _fact(said.kind, said.text, said.fields, node)


def _fact(kind: str, text: str, fields: dict[str, str], node: Node) -> Fact:
    return Fact(kind, text, node.monotonic_ns(), node.realtime_ns(), fields, is_drill=True)
