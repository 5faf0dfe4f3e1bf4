"""What a NCCL RAS answer says, in one form for both its formats: communicators, and what is amiss with their ranks.

Counts of operations are launches, not completions: a rank that launched waits for its peers like all the others. The
rank here is the one within its communicator; `host` and `gpu` (NVML index) join it with a node.
"""

from __future__ import annotations

from dataclasses import dataclass

RANKS_NAMED_MAX = 16
"""Of those that lag, so many are named."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank of a communicator runs; -1 and empty are *not known*. The pid is of its own pid namespace."""

    rank: int = -1
    host: str = ""
    gpu: int = -1
    pid: int = -1


@dataclass(frozen=True, slots=True)
class Trouble:
    """One rank, or one process, of which RAS says that something is wrong."""

    kind: str
    """`dead` (given up for good), `unresponsive` (no answer to this query), `error`, `left` (not in it any more)."""
    communicator: str
    """Its hash; empty where a whole process is meant."""
    place: Place
    error: str = ""


@dataclass(frozen=True, slots=True)
class Lag:
    """Ranks of one communicator have launched different numbers of one operation."""

    communicator: str
    op: str
    launches_min: int
    launches_max: int
    behind: tuple[Place, ...]
    """Those below the maximum, the furthest behind first, at most `RANKS_NAMED_MAX`."""
    behind_count: int


@dataclass(frozen=True, slots=True)
class Communicator:
    """One communicator, as far as the answer tells."""

    hash: str
    size: int
    state: str
    states: dict[str, int]
    missing: int
    launches: dict[str, tuple[int, int]]
    """Smallest and largest number of launches over its ranks, for each operation that was launched."""
    reporter: str = ""
    """Host of its lowest rank that answered."""


@dataclass(frozen=True, slots=True)
class RasAnswer:
    """One answer. A text one names only communicators in trouble; `communicators_by_state` counts all."""

    nccl_version: str
    communicators_by_state: dict[str, int]
    communicators: tuple[Communicator, ...] = ()
    """Largest first; empty in a text answer."""
    troubles: tuple[Trouble, ...] = ()
    lags: tuple[Lag, ...] = ()
    collection_seconds: float | None = None
    timeouts: int = 0

    @property
    def reporter(self) -> str:
        """Host whose agent speaks for this job: that of the lowest answering rank of the largest communicator."""
        return next((one.reporter for one in self.communicators if one.reporter), "")
