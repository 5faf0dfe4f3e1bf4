"""The loss of every step, appended by rank 0 to `losses.jsonl`: `{"step": 12, "loss": "0x1.3c…p+1", "attempt": 0}` a
line."""

from __future__ import annotations

import json
import os
from pathlib import Path


class LossLog:
    """Appends one line per step, each in one write, so that a killed rank tears at most the last line."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; a torn last line is closed first, so that it spoils no other."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def append(self, step: int, loss: float, attempt: int) -> None:
        """Write the loss of a step, exactly: a hexadecimal float."""
        line = json.dumps({"step": step, "loss": loss.hex(), "attempt": attempt}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def read_losses(path: Path) -> dict[int, float]:
    """Give the loss of each step, of the last attempt that made it; lines that are torn are passed over, a missing file
    is empty."""
    losses: dict[int, float] = {}
    if not path.exists():
        return losses
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            losses[int(record["step"])] = float.fromhex(record["loss"])
        except (ValueError, KeyError, TypeError):
            continue
    return losses
