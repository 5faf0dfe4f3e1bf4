"""What diagnosis says: findings, suspects, evidence, and the incident they make.

An incident is one cause, not one symptom. Its id and its alert's labels never change; its suspects may.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """What is wrong, and the name of its runbook page."""

    HANG = "hang"
    CRASH = "crash"
    STRAGGLER = "straggler"
    MISMATCH = "mismatch"
    GPU_FAULT = "gpu-fault"


class Cause(StrEnum):
    """Why a suspect is blamed."""

    STOPPED = "stopped"
    """The process is stopped (SIGSTOP, a debugger): no evidence against its node."""
    GIL_HELD = "gil-held"
    USER_CODE = "user-code"
    """The rank runs or sleeps in the script's own code while its peers wait."""
    UNINTERRUPTIBLE = "uninterruptible"
    """In the kernel's D state: storage or a driver."""
    DEAD = "dead"
    SKIPPED_COLLECTIVE = "skipped-collective"
    """The rank went past a collective that its peers entered: a bug in the script."""
    MISMATCHED_COLLECTIVE = "mismatched-collective"
    """Another operation or size at the same sequence number."""
    DEVICE = "device"
    """All entered, none completed: the device or the network."""
    GPU_FAULT = "gpu-fault"
    SLOW_COMPUTE = "slow-compute"
    """More CPU or device time for the same work."""
    SLOW_STALL = "slow-stall"
    """More time for the same work without computing: waiting inside its own work."""
    STARVED = "starved"
    """Runnable, but without a core."""
    DATA = "data"
    THERMAL = "thermal"
    """The GPU's clocks are held for heat, and its peers' are not."""
    POWER_CAP = "power-cap"
    """The GPU's clocks are held for power, and its peers' are not."""
    UNKNOWN = "unknown"


class Owner(StrEnum):
    """Who has to mend it."""

    NODE = "node"
    NETWORK = "network"
    JOB = "job"
    STORAGE = "storage"
    UNKNOWN = "unknown"


class Certainty(StrEnum):
    """Whether anything may be done yet."""

    SUSPECT = "suspect"
    """No positive evidence: shown, never acted upon."""
    CONFIRMED = "confirmed"


class StuckAt(StrEnum):
    """On which side of the launch a hang sits."""

    HOST = "host"
    """A process does not call the collective that its peers wait in."""
    DEVICE = "device"
    """Every process called it, and it does not complete: the device or the network."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Suspect:
    """One rank or node that is blamed, and how surely."""

    rank: int | None
    node: str
    gpu: str = ""
    cause: Cause = Cause.UNKNOWN
    confidence: float = 0.0
    """Between 0 and 1."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One fact behind a verdict, in words and as data."""

    text: str
    """One plain sentence."""
    node: str = ""
    rank: int | None = None
    source: str = ""
    """Where it was seen: `rank-record`, `process-state`, `stack`, `flight-recorder`, `kernel-log`, `nvml`, `job-log`,
    `nccl-ras`, `supervisor`, `node-readings`."""
    age_seconds: float | None = None
    """Before the moment of the verdict."""
    fields: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One finding about a job or a node, with its reasons."""

    kind: Kind
    certainty: Certainty
    summary: str
    """One sentence an on-call engineer can act on."""
    suspects: tuple[Suspect, ...]
    """Most certain first; empty when the truth is unknown."""
    owner: Owner
    evidence: tuple[Evidence, ...]
    job: str = ""
    run: str = ""
    attempt: int = 0
    onset_step: int | None = None
    onset_age_seconds: float = 0.0
    """Before the moment of the verdict."""
    waiting_ranks: tuple[int, ...] = ()
    group: str = ""
    """Description and key of the process group in which the others wait."""
    seq: int | None = None
    op: str = ""
    cost_gpu_seconds: float = 0.0
    """Rank-seconds lost so far."""
    is_node_at_fault: bool = False
    """There is evidence against the node itself, so a restart had better leave it out."""
    is_drill: bool = False
    cause: Cause = Cause.UNKNOWN
    """Of the finding as a whole; known even when nobody is blamed (all entered, none completed)."""
    stuck_at: StuckAt = StuckAt.UNKNOWN
    """For a hang: host or device."""
    is_ongoing: bool = True
    """False for a straggler that has recovered; such a verdict ends a finding and never opens one."""
    fault_class: str = ""
    """Of a fault of a device, such as `xid-79`; with node, GPU and boot id it identifies the fault."""
    boot_id: str = ""
    """Boot of the node in which the fault was seen, where it is known."""
    clears: tuple[str, ...] = ()
    """What ends the fault: of `catalogues.CLEARS`, or a code such as `xid-162`. Time never does."""

    @property
    def confidence(self) -> float:
        """That of the first suspect; 0 when nobody is blamed."""
        return self.suspects[0].confidence if self.suspects else 0.0
