"""The rank's side of a drill: faults that must arise inside the process, read from a file that `instep inject` writes.

Off unless the run was started with `--allow-drills`. Nothing here is seen by a detector.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import msgspec

FAULT_SECONDS_DEFAULT = 3600.0


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of one rank."""

    kind: str
    """`slow`, `sleep`, `spin`, `gil` or `skip`."""
    from_step: int
    """It begins when this many steps are finished."""
    to_step: int | None = None
    """`slow` ends before this step; the others act once."""
    ratio: float = 1.3
    """`slow`: how long the rank's own work takes, as a multiple of what it takes without."""
    seconds: float = FAULT_SECONDS_DEFAULT


class Faults:
    """Asks at each fault point whether something is to happen there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_ns = -1
        self._faults: list[Fault] = []
        self._done: set[Fault] = set()
        self.slept_seconds = 0.0
        """Slept in this step on account of a `slow` fault; the recorder takes it back at the step's end."""

    def act(self, point: str, step: int, work_seconds: float) -> bool:
        """Carry out what is due at this point; True asks the script to leave out what follows.

        `work_seconds` is what the rank's own work took in its last step, without the time slept here.
        """
        self._reload()
        skip = False
        for fault in self._faults:
            if fault in self._done or step < fault.from_step or (fault.to_step is not None and step >= fault.to_step):
                continue
            skip |= self._carry_out(fault, point, work_seconds)
        return skip

    def _carry_out(self, fault: Fault, point: str, work_seconds: float) -> bool:
        if point != ("metrics" if fault.kind == "skip" else "forward"):
            return False
        if fault.kind == "slow":
            # Waiting inside its own work, in proportion: burning CPU would slow every rank of the node.
            self.slept_seconds = work_seconds * (fault.ratio - 1.0)
            time.sleep(self.slept_seconds)
            return False
        self._done.add(fault)
        if fault.kind != "skip":
            {"sleep": time.sleep, "spin": spin, "gil": hold_gil}[fault.kind](fault.seconds)
        return fault.kind == "skip"

    def _reload(self) -> None:
        try:
            changed_ns = os.stat(self._path).st_mtime_ns  # noqa: PTH116  once a step: as cheap as it can be
        except FileNotFoundError:
            return
        if changed_ns != self._read_ns:
            self._read_ns = changed_ns
            self._faults = msgspec.json.decode(self._path.read_bytes(), type=list[Fault])


def hold_gil(seconds: float) -> None:
    """Sleep in C without releasing the GIL, as a careless extension does."""
    ctypes.PyDLL(None).usleep(int(min(seconds, 4000.0) * 1e6))


def spin(seconds: float) -> None:
    """Compute in Python and get nowhere."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def fault_file(root: Path, node: str, run: str, attempt: int, rank: int) -> Path:
    """Return where a rank's faults of one attempt are written."""
    return root / node / run / "drills" / f"{attempt}-{rank}.json"


def faults_of_this_rank() -> Faults | None:
    """Return the faults of the rank that this process is; None unless drills are allowed."""
    environment = os.environ
    if environment.get("INSTEP_DRILLS") != "1":
        return None
    return Faults(
        fault_file(
            Path(environment["INSTEP_RECORD_ROOT"]),
            environment["INSTEP_NODE_NAME"],
            environment["INSTEP_RUN"],
            int(environment["INSTEP_ATTEMPT"]),
            int(environment["RANK"]),
        )
    )
