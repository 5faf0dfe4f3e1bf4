"""Where rank records are: the newest attempt of each run that holds one, folder by folder without following links."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from instep_agent.folders import ENTRIES_MAX, Folder, names

RUNS_MAX = 64
RANKS_MAX = 256
"""Of one run."""
ATTEMPTS_MAX = 8
"""Of the newest attempts, the first that holds a record is given: an empty folder hides no rank."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")

Note = Callable[[str, str, int, str], None]
"""Told of each folder: its run, its attempt ("" for the run's own folder), its descriptor, below 0 where it could not
be opened, and then why."""


class Attempt(NamedTuple):
    """An open folder with the records of one attempt."""

    run: str
    attempt: str
    folder: int
    """Its descriptor, until the next one is asked for."""
    ranks: list[str]
    """The names of the records, in the order of their numbers."""


def attempts(root: int, runs: Iterable[str], note: Note | None = None) -> Iterator[Attempt]:
    """Yield the newest attempt with a record of each of these runs, in an open folder; runs without one are left out.

    An older attempt says nothing of a newer one that cannot be looked into: then the run is left out too.
    """
    for run in runs:
        with (opening := Folder(run, root)) as run_folder:
            if note is not None:
                note(run, "", run_folder, opening.problem)
            for attempt in _numbers(run_folder)[: -ATTEMPTS_MAX - 1 : -1]:
                with (opening := Folder(attempt, run_folder)) as folder:
                    if note is not None:
                        note(run, attempt, folder, opening.problem)
                    ranks = _numbers(folder)[:RANKS_MAX]
                    if ranks:
                        yield Attempt(run, attempt, folder, ranks)
                if ranks or opening.problem:
                    break


def _numbers(folder: int) -> list[str]:
    """Give the names in an open folder that are numbers as they are written, in their order."""
    return sorted((name for name in names(folder, ENTRIES_MAX) if _NUMBER.fullmatch(name)), key=int)
