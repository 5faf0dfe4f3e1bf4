"""What torch's own analyser of flight-recorder dumps says, on the same dumps."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

_MISSING = re.compile(r"missing ranks: \{([\d, ]+)\}")
_CULPRIT = re.compile(r"[Cc]ulprit rank (\d+)")


def analyse(folder: Path) -> tuple[int, ...] | None:
    """The ranks that its first finding names; None where it gives up or finds nothing.

    Ranks without a dump are allowed for: without that option it says nothing at all.
    """
    from torch.distributed.flight_recorder import fr_trace
    from torch.distributed.flight_recorder.components.fr_logger import FlightRecorderLogger

    logger = FlightRecorderLogger()
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    with _taken_over(logger.logger, handler):
        try:
            fr_trace.main([str(folder), "-p", "rank_", "--allow-incomplete-ranks"])
        except (AssertionError, KeyError, ValueError, IndexError, TypeError, RuntimeError, AttributeError, SystemExit):
            return first_finding(said.getvalue())
    return first_finding(said.getvalue())


def first_finding(said: str) -> tuple[int, ...] | None:
    """The ranks that the first finding in its words names.

    >>> first_finding("missing ranks: {2, 3}\\nmissing ranks: {1}"), first_finding("Culprit rank 4;"), first_finding("")
    ((2, 3), (4,), None)
    """
    found = [match for pattern in (_MISSING, _CULPRIT) if (match := pattern.search(said))]
    if not found:
        return None
    first = min(found, key=lambda match: match.start())
    return tuple(sorted(int(word) for word in first[1].replace(" ", "").split(",") if word))


@contextlib.contextmanager
def _taken_over(target: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """Its words go to this handler, for a while."""
    before, level, passes_on = target.handlers[:], target.level, target.propagate
    target.handlers, target.propagate = [handler], False
    target.setLevel(logging.INFO)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            yield
    finally:
        target.handlers, target.propagate = before, passes_on
        target.setLevel(level)
