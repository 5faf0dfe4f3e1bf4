"""Counter files and answers of NCCL's RAS: JSON, one job in one file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.wait_graph.counters import read_counters
from instep_diagnosis.wait_graph.history import History

FILE_BYTES_MAX = 256 << 20
"""A hundred groups of 8,192 ranks take about 80 MB."""


def read_counter_file(path: Path) -> History:
    """The counters in a file. Raises `EvidenceError` where it cannot be read or holds none."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= FILE_BYTES_MAX else b""
    except OSError as error:
        raise EvidenceError(f"Cannot read {path} ({error.strerror}): give a JSON file of counters.") from error
    if size > FILE_BYTES_MAX:
        raise EvidenceError(f"{path} has {size} bytes: at most {FILE_BYTES_MAX} are read.")
    try:
        history = read_counters(msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise EvidenceError(f"{path} is no whole JSON text ({error}): give a JSON file of counters.") from error
    if history is None:
        raise EvidenceError(
            f"{path} holds no counters: give {{rank: {{group: {{enqueued, started, completed}}}}}}, "
            f"as docs/reference/hang-evidence.md describes."
        )
    return history
