"""What a rank is doing, told to whoever listens: the seam between a training loop and the recorder.

The loop calls these functions; the launcher's hooks install a `Recorder`. Without one every call does nothing, so a
script that marks its phases runs the same outside the launcher.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PHASES = ("data", "forward", "backward", "optimizer", "checkpoint", "evaluation")
"""The phases a script may mark."""


class Recorder(Protocol):
    """What the launcher's hooks implement; methods are called on the rank's main thread."""

    def annotate(self) -> None:
        """Learn that the script marks its own phases and finishes its own steps."""

    def enter_phase(self, phase: str) -> str:
        """Begin a phase and give the one that it interrupts."""

    def leave_phase(self, previous: str) -> None:
        """End the phase; `previous` is what `enter_phase` gave."""

    def finish_step(self, step: int, tokens: int, tokens_squared: int, is_skipped: bool) -> None:
        """Learn that `step` steps of the run are finished; tokens are this rank's, squared per sequence and summed."""

    def fault_point(self, name: str) -> bool:
        """Be where a drill may strike; true asks the caller to skip what follows, where skipping is possible."""


class NoRecorder:
    """Listens to nothing: the default."""

    def annotate(self) -> None:
        """Do nothing."""

    def enter_phase(self, phase: str) -> str:
        """Give an empty name."""
        return ""

    def leave_phase(self, previous: str) -> None:
        """Do nothing."""

    def finish_step(self, step: int, tokens: int, tokens_squared: int, is_skipped: bool) -> None:
        """Do nothing."""

    def fault_point(self, name: str) -> bool:
        """Skip nothing."""
        return False


_recorder: Recorder = NoRecorder()


def install(recorder: Recorder) -> None:
    """Have all later calls go to `recorder`."""
    global _recorder
    _recorder = recorder


def recorder() -> Recorder:
    """Give the installed recorder, or one that does nothing."""
    return _recorder


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark what the rank does inside the block; blocks nest. Raises ValueError on a name outside `PHASES`."""
    if name not in PHASES:
        raise ValueError(f"{name!r} is not a phase that a script can mark; there are {', '.join(PHASES)}.")
    listener = _recorder
    previous = listener.enter_phase(name)
    try:
        yield
    finally:
        listener.leave_phase(previous)


def finish_step(step: int, *, tokens: int = 0, tokens_squared: int = 0, is_skipped: bool = False) -> None:
    """Say that `step` steps of the run are finished, counted over all attempts."""
    _recorder.finish_step(step, tokens, tokens_squared, is_skipped)
