"""How late this machine wakes a process that does nothing: what a busy machine adds to every time that is measured."""

from __future__ import annotations

import select
import subprocess
import sys
import time

SLEEP_SECONDS = 0.02


class Lateness:
    """Watches in a process of its own from `with` on; `seconds` is known when the block has ended."""

    def __enter__(self) -> Lateness:
        command = [sys.executable, "-m", "instep_agent.benchmarks.lateness"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = float(self._process.communicate()[0] or 0.0)


def main() -> int:
    """Sleep until standard input ends; print by how many seconds the latest waking was late."""
    late_seconds, slept_until = 0.0, time.monotonic() + SLEEP_SECONDS
    while not select.select([sys.stdin], [], [], max(0.0, slept_until - time.monotonic()))[0]:
        late_seconds = max(late_seconds, time.monotonic() - slept_until)
        slept_until = time.monotonic() + SLEEP_SECONDS
    sys.stdout.write(f"{late_seconds:.6f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
