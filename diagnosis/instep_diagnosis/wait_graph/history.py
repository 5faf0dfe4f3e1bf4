"""What is known of a job's collectives: which rank entered what, how far it came, and who is silent.

The one form that every source on file is read into. A transfer (send and receive) is a group of its two ends for each
direction, numbered like any other, so that one rule holds: whoever has not entered is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

Signature = tuple[str, str, str]
"""Operation, sizes and dtypes that all ranks of a group must agree on; an empty word is *not known*."""


class Progress(IntEnum):
    """How far one rank has come with one operation."""

    ENTERED = 0
    """Enqueued by the host; with timing off this is all there is until it completes."""
    STARTED = 1
    """Running on the device."""
    COMPLETED = 2


@dataclass(frozen=True, slots=True)
class Group:
    """One process group, the same for all its members whatever they call it."""

    key: str
    description: str
    members: tuple[int, ...]
    """Global ranks, in the group's own order."""
    is_transfer: bool = False
    """One direction between two ranks, sender first."""
    is_listed: bool = True
    """False where no dump lists the members: then they are those seen, and a silent rank may be one too."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operation that a rank entered."""

    group: str
    seq: int
    op: str
    progress: Progress
    signature: Signature = ("", "", "")
    created_ns: int = 0
    """When the rank entered it, by its own clock; 0 is *not known*."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a rank has got in a group, as numbers of its operations; None is *not known*."""

    entered: int | None = None
    started: int | None = None
    completed: int | None = None


@dataclass(frozen=True, slots=True)
class RankHistory:
    """Everything on file about one rank."""

    rank: int
    calls: tuple[Call, ...] = ()
    """In the order in which the rank entered them; old ones may be gone."""
    standings: Mapping[str, Standing] = field(default_factory=dict)
    """By group key; for groups of which no call is on record, and beside those that are."""
    is_ordered: bool = True
    """Whether the order of the calls is that in which they were entered; counters have none."""
    has_device: bool = True
    """False for gloo, which completes on the host and whose completion marks lag."""
    may_transfer: bool = False
    """It called transfers, which its recorder does not show, after the last operation on record."""
    has_hidden_transfers: bool = False
    """Its job calls transfers that are not on record: a rank with nothing outstanding may sit in one."""
    has_timing: bool = False
    """When its device begins an operation is on record, also of those that are over."""
    has_idle_groups: bool = False
    """It has a group in which nothing is on record: there may be transfers in it, which gloo does not show."""
    process: str = ""
    """What its process is seen doing (`stopped`, `dead`, `in data loader`), where the evidence says so."""


@dataclass(frozen=True, slots=True)
class History:
    """A job's evidence, complete or not."""

    world: tuple[int, ...]
    groups: Mapping[str, Group]
    ranks: Mapping[int, RankHistory]
    """Those heard of."""
    silent: Mapping[int, str] = field(default_factory=dict)
    """Ranks without readable evidence, and why: `no dump`, `its dump is damaged`."""
    notes: tuple[str, ...] = ()
    """One sentence for each thing about the evidence that a reader should know."""
    source: str = "flight-recorder"
    trust: float = 1.0
    """Less than 1 for a source whose picture of one moment may pass by itself."""
