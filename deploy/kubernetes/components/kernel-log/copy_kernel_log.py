"""Copies new records of the kernel log into a named pipe, for an agent whose container runtime denies it the device.

The one program that needs the privilege: it reads nothing but the log, and listens to nobody. It begins at the log's
end, since whoever reads a pipe cannot tell old records from new ones.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

RECORD_BYTES_MAX = 8192
LOOK_SECONDS = 0.1


def main(log: Path, pipe: Path) -> None:
    """Copy for ever. The agent may end and come back: what is logged meanwhile waits in the kernel."""
    source = os.open(log, os.O_RDONLY)
    os.lseek(source, 0, os.SEEK_END)
    if not pipe.is_fifo():
        os.mkfifo(pipe, 0o600)
    record = next_record(source)
    while True:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as target:
            while target.write(record):
                record = next_record(source)


def next_record(source: int) -> bytes:
    """Return the next record once there is one; records that were overwritten before they were read are passed over."""
    while True:
        try:
            record = os.read(source, RECORD_BYTES_MAX)
        except BrokenPipeError:  # the kernel's way to say so; the numbers of the records tell the agent
            continue
        if record:
            return record
        time.sleep(LOOK_SECONDS)  # a file in the device's place, as in a drill, has an end


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
