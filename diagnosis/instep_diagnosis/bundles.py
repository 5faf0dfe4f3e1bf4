"""The evidence behind one verdict, complete enough to come to the same verdict again, elsewhere and later."""

from __future__ import annotations

from dataclasses import dataclass, field

from instep_diagnosis.detectors.crash import judge_crash
from instep_diagnosis.detectors.gpu_fault import detect_gpu_faults
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import Stall
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.evidence import JobState, JobSteps, NodeFact
from instep_diagnosis.node_readings import NodeReadings, with_readings
from instep_diagnosis.settings import CrashSettings, HangSettings, StragglerSettings
from instep_diagnosis.verdict import Verdict

FORMAT_VERSION = 1
"""Of the files in a bundle; a reader takes this version and older ones."""


@dataclass(frozen=True, slots=True)
class EvidenceBundle:
    """What a detector looked at, with its settings. Exactly one of the three questions is asked by what is
    present."""

    stall: Stall | None = None
    """Present for a hang, with `job` as it was when the verdict was made."""
    job: JobState | None = None
    """For a hang, and for a crash (without `stall`)."""
    steps: JobSteps | None = None
    """For stragglers."""
    readings: dict[int, NodeReadings] = field(default_factory=dict)
    """Slow rank → what its node said of itself meanwhile."""
    facts: tuple[NodeFact, ...] = ()
    """For a fault of a GPU that no job is part of."""
    hang: HangSettings = field(default_factory=HangSettings)
    crash: CrashSettings = field(default_factory=CrashSettings)
    straggler: StragglerSettings = field(default_factory=StragglerSettings)
    version: int = FORMAT_VERSION


def diagnose(bundle: EvidenceBundle) -> tuple[Verdict, ...]:
    """The verdicts that follow from a bundle's evidence: the same as when it was packed."""
    if bundle.job is not None and bundle.stall is not None:
        return (localise_hang(bundle.job, bundle.stall, bundle.hang),)
    if bundle.job is not None:
        crash = judge_crash(bundle.job, bundle.crash)
        return () if crash is None else (crash,)
    if bundle.steps is not None:
        found = detect_stragglers(bundle.steps, bundle.straggler)
        return tuple(with_readings(verdict, bundle.readings) for verdict in found)
    return tuple(detect_gpu_faults(bundle.facts))
