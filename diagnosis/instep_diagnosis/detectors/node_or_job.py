"""Is it the node or the job? A slow rank and what its node says of itself, joined to an owner and a way to mend it.

Pure: the facts are arguments. What a node reports outweighs what a rank's own clock suggests, since a throttled device
and a heavy script look alike from the rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from instep_diagnosis.verdict import Cause, Owner, Verdict

SHARE_MIN = 0.5
"""A pause explains a slowdown when it makes up at least this share of the time lost."""
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class RankNodeFacts:
    """What was seen on a slow rank's node and in its own steps, over the slow stretch. None is *not observed*."""

    is_thermally_throttled: bool | None = None
    """The GPU lowers its clocks for heat, or the node's hardware told it to."""
    is_power_capped: bool | None = None
    """… for a power limit below the one it was sold with."""
    pcie_lanes: int | None = None
    pcie_lanes_max: int | None = None
    """Lanes that the link uses, and that device and slot have."""
    lost_seconds: float | None = None
    """A step longer than its peers'."""
    starved_seconds: float | None = None
    """A step, runnable without a core; the next four likewise."""
    data_seconds: float | None = None
    collector_seconds: float | None = None
    checkpoint_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Who has to mend a slow rank, how, and what it has cost."""

    owner: Owner
    reason: str
    """One sentence: what was seen."""
    fix: str
    """One sentence: what to do."""
    cost_gpu_hours: float
    is_node_at_fault: bool


def attribute(verdict: Verdict, facts: RankNodeFacts) -> Attribution:
    """The owner of a straggler: first what the device and the link say, then pauses that explain it, then the rank's
    own cause; `unknown` where nothing was observed."""
    owner, reason, fix, is_node = _device(facts) or _pause(facts) or _own_cause(verdict)
    return Attribution(owner, reason, fix, round(verdict.cost_gpu_seconds / _SECONDS_PER_HOUR, 4), is_node)


_Answer = tuple[Owner, str, str, bool]


def _device(facts: RankNodeFacts) -> _Answer | None:
    if facts.is_thermally_throttled:
        fix = "Check fans, inlet temperature and the heat sink, and take the node out until it is cool."
        return Owner.NODE, "The GPU lowers its clocks for heat.", fix, True
    if facts.is_power_capped:
        fix = "Compare the power limit with that of its peers and set it back, or check the node's power supplies."
        return Owner.NODE, "The GPU lowers its clocks for a power limit.", fix, True
    if facts.pcie_lanes is not None and facts.pcie_lanes_max is not None and facts.pcie_lanes < facts.pcie_lanes_max:
        reason = f"The GPU's link uses {facts.pcie_lanes} of {facts.pcie_lanes_max} lanes."
        return Owner.NODE, reason, "Reseat the device, or have the slot or riser replaced.", True
    return None


def _pause(facts: RankNodeFacts) -> _Answer | None:
    """The largest pause, where it explains most of what is lost."""
    pauses: list[tuple[float, Owner, str, str]] = [
        (facts.starved_seconds or 0.0, Owner.NODE, "It waits for a core",
         "Find who else runs on the node's cores, and pin or move them."),
        (facts.data_seconds or 0.0, Owner.JOB, "It waits for its data",
         "Give its loader more workers, or look at the storage that its shard lies on."),
        (facts.collector_seconds or 0.0, Owner.JOB, "Its garbage collector runs",
         "Collect on all ranks at the same step, and freeze what lives long."),
        (facts.checkpoint_seconds or 0.0, Owner.JOB, "It writes a checkpoint",
         "Write checkpoints beside the step, or spread them over the ranks."),
    ]  # fmt: skip
    seconds, owner, what, fix = max(pauses, key=lambda pause: pause[0])
    if facts.lost_seconds is None or facts.lost_seconds <= 0 or seconds < SHARE_MIN * facts.lost_seconds:
        return None
    return owner, f"{what} for {seconds:.3g} s of the {facts.lost_seconds:.3g} s that it loses a step.", fix, False


_OWN: dict[Cause, _Answer] = {
    Cause.SLOW_COMPUTE: (
        Owner.NODE, "It computes longer for the same work, and nothing it was given explains it.",
        "Swap the node for a spare and test its device alone.", False,
    ),
    Cause.SLOW_STALL: (
        Owner.JOB, "It sleeps inside its own work.", "Look at its stacks for locks, files and calls to others.", False,
    ),
    Cause.STARVED: (
        Owner.NODE, "It waits for a core.", "Find who else runs on the node's cores, and pin or move them.", False,
    ),
    Cause.DATA: (
        Owner.JOB, "It waits for its data.",
        "Give its loader more workers, or look at the storage that its shard lies on.", False,
    ),
}  # fmt: skip


def _own_cause(verdict: Verdict) -> _Answer:
    unknown = (Owner.UNKNOWN, "Nothing observed explains it.", "Run the agent on its node and look again.", False)
    return _OWN.get(verdict.cause, unknown)
