"""Follows the loss log of a training run: which step was made when, in which attempt."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Made:
    """One step as it was logged."""

    step: int
    attempt: int
    at: float
    """Realtime at which it was seen."""


class LossTail:
    """Reads what is new, each time it is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0
        self.made: list[Made] = []

    def read(self) -> list[Made]:
        """Return the steps logged since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        now = time.time()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        fresh = []
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                fresh.append(Made(int(row["step"]), int(row["attempt"]), now))
            except (ValueError, KeyError):
                continue  # torn by a kill; that step is logged again
        self.made += fresh
        return fresh

    @property
    def step(self) -> int:
        """The newest step."""
        return self.made[-1].step if self.made else 0

    @property
    def attempt(self) -> int:
        """The attempt that made it."""
        return self.made[-1].attempt if self.made else -1
