"""The three acts and when they happen, drawn from a seed; and how each is put where such a fault really arises."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum

NODES = ("node-a", "node-b", "node-c")
RANKS_PER_NODE = 2
WORLD_SIZE = 4
STEPS = 300
PCI = {
    ("node-a", 0): "0000:1b:00",
    ("node-a", 1): "0000:43:00",
    ("node-b", 0): "0000:52:00",
    ("node-b", 1): "0000:61:00",
    ("node-c", 0): "0000:9d:00",
    ("node-c", 1): "0000:c3:00",
}


class Fault(StrEnum):
    """What happens to the culprit."""

    SLOW = "slow"
    FROZEN = "frozen"
    KILLED = "killed"


@dataclass(slots=True)
class Act:
    """One act: the truth that verdicts are held against."""

    fault: Fault
    rank: int
    step: int
    node: str
    title: str
    began_at: float | None = None
    """Realtime at which the fault was put in place."""
    gone_from: list[str] = field(default_factory=list)
    """Nodes that must hold no rank afterwards."""


def draw_acts(seed: int) -> list[Act]:
    """Return the three acts of this seed.

    >>> [act.rank for act in draw_acts(7)] == [act.rank for act in draw_acts(7)]
    True
    """
    drawn = random.Random(seed)
    slow, frozen, killed = (drawn.randrange(WORLD_SIZE) for _ in range(3))
    acts = [
        Act(Fault.SLOW, slow, drawn.randrange(40, 56), node_of(slow), f"rank {slow} does its own work 30 % slower"),
        Act(Fault.FROZEN, frozen, drawn.randrange(150, 166), node_of(frozen), f"rank {frozen} is frozen (SIGSTOP)"),
        Act(
            Fault.KILLED,
            killed,
            drawn.randrange(230, 246),
            node_of(killed),
            f"rank {killed} is killed while its GPU reports Xid 79",
        ),
    ]
    acts[2].gone_from = [acts[2].node]
    return acts


def slow_until(act: Act) -> int:
    """The step before which the slow rank has its full speed again."""
    return act.step + 70


def node_of(rank: int) -> str:
    """Where the rank is at first."""
    return NODES[rank // RANKS_PER_NODE]


def pci_of(node: str, rank: int) -> str:
    """Address of the GPU that the rank uses: torchrun's convention, the local rank."""
    return PCI[node, rank % RANKS_PER_NODE]
