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
    z_min: float = 4.4
    """How many standard errors above the null, for a job of four ranks; more ranks need more, since one of many strays
    farther by chance. Chosen on recorded real jobs, healthy but for the noise of a crowded machine."""
    pair_z_min: float = 2.5
    """Of two ranks, the slow one must also have risen over its own past by so many standard errors."""
    pair_rise_z_min: float = 5.0
    """… and by so many, …"""
    pair_rise_ratio_min: float = 1.018
    """… and by this much, where that rise is all there is: what moves a single peer is averaged with nobody's."""
    noise_ratio_min: float = 0.003
    """Floor of the noise of one step (log ratio), so that perfectly even data does not make a microsecond
    significant."""
    steps_min: int = 8
    """Fewer compared steps say nothing."""
    run_steps_min: int = 8
    """The slow stretch must be this long."""
    lost_work_min: float = 0.6
    """So much of one step's work must have been lost in the stretch (its steps times the log ratio): 5 % then takes 12
    steps, 30 % no more than the shortest stretch. A passing disturbance of a few steps is none."""
    window_steps: int = 128
    """Only the newest steps are looked at, …"""
    window_steps_min: int = 64
    """… and at least so many, where …"""
    window_rank_steps_max: int = 1 << 19
    """… more than so many steps of all ranks together would take too long."""
    fast_share_max: float = 0.4
    """No more than this share of the stretch may look healthy: a slow rank is slow in all its steps, a burst is not."""
    rise_fast_share_max: float = 0.25
    """… and no more than this of a rise, or where neighbours disturb."""
    rise_ratio_min: float = 1.015
    """Smallest rise over a rank's own past that is named: on even work 2 % shows, also where a few per cent of a step
    are calls that do not become slower."""
    wander_share: float = 0.27
    """Share of that rise by which a healthy rank's level may wander."""
    rise_steps_min: int = 12
    """A rise must last so long."""
    disturbed_offset_ratio: float = 0.04
    """Ranks that compute on cores that others want too come apart by so much for seconds: the clock of their CPU time
    runs on while a neighbour slows the core. It is allowed for in proportion to the CPU time in their work and …"""
    disturbed_starved_share: float = 0.02
    """… in full from this share of their work on that they waited for a core."""
    disturbance_min: float = 0.5
    """Where this is less than so much of the work, what neighbours do is part of its measured noise. From there on
    stretches must be longer, and single slow steps say nothing."""
    disturbed_steps_min: int = 16
    """So long: bursts of eight steps at 1.2 to 1.5 times the work were seen on healthy ranks."""
    disturbed_ratio_min: float = 1.15
    """Smallest slowdown named there."""
    slow_core_share: float = 0.75
    """Where the rank's core explains this share of its slowdown (as a logarithm), nobody is named, …: of 20 % it is
    three standard deviations of the yardstick over 20 steps on sound cores."""
    slow_core_seconds_min: float = 60.0
    """… before it lasted so long: neighbours that come and go were seen to make a core 1.6 times as slow for seconds.
    A core that stays slow is its node's fault."""
    starved_ratio_min: float = 1.25
    """Starvation comes and goes with neighbours; only a large and lasting one is worth a name."""
    waits_beyond_usual: float = 2.0
    """Waiting for a core or for data is the cause where it is so many times …"""
    waits_usual_quantile: float = 0.9
    """… this quantile of what all other rank-steps waited."""
    data_ratio_min: float = 1.15
    """Loaders jitter more than compute does."""
    hit_ratio_min: float = 1.1
    """A single step slower by less than this is no vote for a fault that comes and goes."""
    hit_sigmas: float = 4.0
    """… nor is one within so much noise."""
    hits_min: int = 3
    """So many single steps in the window make a fault that comes and goes, …"""
    hit_rate_min: float = 0.15
    """… if they are this share of the steps since the first; more of them may be rarer. Single long steps of one rank
    and another are compiling."""
    hit_evidence_min: float = 7.2
    """… and if the logarithm of the likelihood ratio, of the rank's own rate against that of all other rank-steps, is
    this large: with three of twenty steps and none elsewhere it just is."""
    hit_run_steps_max: float = 3.0
    """… and runs are no longer than this on average: neighbours disturb in a few long ones."""
    hit_peers_share: float = 0.25
    """… while its peers have on average no more than this share of them."""
    findings_max: int = 4
    """At most this many ranks are named at once; more slow ranks than peers are no stragglers."""
