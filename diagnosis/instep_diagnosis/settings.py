"""What a person may change about the detectors: thresholds, patience, windows. Every default says where it comes
from."""

from __future__ import annotations

from dataclasses import dataclass, field


def _benign_patience_seconds() -> dict[str, float]:
    phases = ("startup", "compile", "data", "checkpoint", "evaluation", "finished", "teardown")
    return dict.fromkeys(phases, 1800.0)


@dataclass(frozen=True, slots=True)
class HangSettings:
    """When a job counts as stalled. Durations in seconds; factors multiply the job's own median step time."""

    stall_floor_seconds: float = 2.0
    """No wait shorter than this is a stall, however fast the steps: collector pauses and scheduling reach a
    second."""
    stall_step_factor: float = 8.0
    """Peers must have waited this many median steps; in a healthy job a wait is shorter than one step."""
    stall_p95_factor: float = 3.0
    """… and this many 95th percentiles, so that a job with long steps now and then gets the patience it needs."""
    running_patience_factor: float = 1.25
    """A process that is runnable may only lack a core, so it gets this much more patience than one that sleeps."""
    stopped_seconds: float = 0.5
    """Least wait on a process that is stopped or dead; longer than a stack sampler stops a process for."""
    stopped_step_factor: float = 1.5
    """The same in median steps: a stopped process needs no more evidence than that somebody waits for it."""
    report_age_seconds_max: float = 3.0
    """A rank whose report is older is unknown: its agent may be what stopped."""
    unknown_phase_patience_seconds: float = 60.0
    """A rank outside every known phase stays a suspect this long, since it may save, evaluate or compile
    unannounced."""
    benign_patience_seconds: dict[str, float] = field(default_factory=_benign_patience_seconds)
    """phase → how long a rank may stay in it before it is a *suspect*; it is never more than that without other
    evidence."""
    finished_steps_min: int = 5
    """Fewer finished steps make no distribution, and peers that wait prove nothing yet (first steps compile and
    connect)."""
    fact_window_seconds: float = 30.0
    """A node's fault explains a stall when it lies within this window around the onset (clock bounds included)."""


@dataclass(frozen=True, slots=True)
class CrashSettings:
    """How a crash is joined with facts about its node."""

    fact_window_seconds: float = 30.0
    """A fatal kernel line explains a death within this window: drivers log before and after the process dies."""


@dataclass(frozen=True, slots=True)
class StragglerSettings:
    """The sequential test for slow ranks."""

    slowdown_ratio_min: float = 1.05
    """Smaller slowdowns accuse nobody."""
    offset_share: float = 0.6
    """Share of the smallest slowdown that a healthy rank may show for ever (logging on rank 0): the test's null is
    this."""
    z_min: float = 4.25
    """How many standard errors above the null. Chosen by simulation (tests/diagnosis/test_straggler_simulation.py):
    four ranks of 15 % noise with autocorrelation 0.3 raise nothing in 16,000 steps; at 0.6, where noise itself looks
    like slow minutes, about one window in 300 does. 30 % is found after a median of 9 steps at 10 % noise, 16 at 15
    %."""
    noise_ratio_min: float = 0.01
    """Floor of the noise scale (log ratio), so that perfectly even data does not make a microsecond significant."""
    steps_min: int = 8
    """Fewer compared steps say nothing."""
    run_steps_min: int = 8
    """The slow stretch must be this long."""
    lost_work_min: float = 0.6
    """So much of one step's work must have been lost in the stretch (its steps times the log ratio): 5 % then takes 12
    steps, 30 % no more than the shortest stretch. A passing disturbance of a few steps is none."""
    window_steps: int = 64
    """Only the newest steps are looked at."""
    slowest_share_min: float = 0.6
    """In this share of the stretch the rank was slower than the median of its peers by more than the null."""
    starved_ratio_min: float = 1.25
    """Starvation comes and goes with neighbours; only a large and lasting one is worth a name."""
    data_ratio_min: float = 1.15
    """Loaders jitter more than compute does."""
    quiet_ratio_min: float = 1.02
    """Smallest slowdown named in a quiet job, where it began within the window: on even work 2 % shows."""
    quiet_noise_ratio_max: float = 0.02
    """Long-run noise of one step (log ratio) up to which a job is quiet: even kernels on machines of their own."""
    quiet_noise_ratio_min: float = 0.003
    """Floor of the noise in a quiet job."""
    hit_ratio_min: float = 1.1
    """A single step slower by less than this is no vote for a fault that comes and goes."""
    hit_sigmas: float = 4.0
    """… nor is one within so much noise."""
    hits_min: int = 6
    """So many single steps in the window make a fault that comes and goes."""
    hit_runs_min: int = 5
    """… in so many runs apart from one another: neighbours disturb in a few long ones."""
    hit_run_steps_max: float = 3.0
    """… and runs are no longer than this on average."""
    hit_peers_share: float = 0.25
    """… while its peers have on average no more than this share of them."""
    findings_max: int = 4
    """At most this many ranks are named at once; more slow ranks than peers are no stragglers."""
