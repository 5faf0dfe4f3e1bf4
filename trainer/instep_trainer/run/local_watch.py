"""The hang detector inside the control plane, for as long as no server answers: the same functions, the same
evidence."""

from __future__ import annotations

from typing import Any

import msgspec
from instep_agent.wire import RankDump, RankReport, StepReport
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import HangSettings, Stall, detect_stall
from instep_diagnosis.evidence import JobState
from instep_diagnosis.jobs import job_state, step_seconds
from instep_diagnosis.verdict import Certainty

STEPS_KEPT = 128


class LocalWatch:
    """Latest reports of the running attempt; time is passed in."""

    def __init__(self, settings: HangSettings | None = None) -> None:
        self._settings = settings or HangSettings()
        self.begin(-1, 0)

    def begin(self, attempt: int, world_size: int) -> None:
        """Forget the attempt before."""
        self._attempt, self._world_size = attempt, world_size
        self._reports: dict[int, tuple[RankReport, float]] = {}
        self._steps: dict[int, list[StepReport]] = {}

    def observe(self, reports: list[RankReport], now: float) -> None:
        """Take what one node's records say."""
        for report in reports:
            if report.attempt == self._attempt:
                self._reports[report.rank] = (report, now)
                self._steps.setdefault(report.rank, []).extend(report.steps)
                del self._steps[report.rank][:-STEPS_KEPT]

    def step_of_all(self) -> int | None:
        """The step that every rank of this attempt has finished; None before there is one."""
        if len(self._steps) < self._world_size or not all(self._steps.values()) or not self._steps:
            return None
        return min(steps[-1].step for steps in self._steps.values())

    def finds_stall(self, job: str, run: str, attempt: int, now: float) -> bool:
        """Whether there is a hang with positive evidence."""
        if not self._reports:
            return False
        stall = self._stall(self._state(job, run, attempt, [], now))
        return stall is not None and stall.certainty is Certainty.CONFIRMED

    def judge(
        self, job: str, run: str, attempt: int, dumps: list[RankDump], now: float
    ) -> tuple[str, dict[str, Any]] | None:
        """Return the summary and the verdict as JSON, or None when the stall is over or not certain enough to act."""
        if not self._reports:
            return None  # the attempt has changed while the evidence was taken
        state = self._state(job, run, attempt, dumps, now)
        stall = self._stall(state)
        if stall is None:
            return None
        verdict = localise_hang(state, stall, self._settings)
        if verdict.certainty is not Certainty.CONFIRMED:
            return None
        return verdict.summary, msgspec.to_builtins(verdict)

    def _stall(self, state: JobState) -> Stall | None:
        return detect_stall(state, self._settings)

    def _state(self, job: str, run: str, attempt: int, dumps: list[RankDump], now: float) -> JobState:
        aged = [
            (report, now - at)
            for report, at in self._reports.values()
            if report.run == run and report.attempt == attempt
        ]
        return job_state(
            aged,
            dumps={dump.report.rank: dump for dump in dumps},
            exits={},
            step_seconds=step_seconds(self._steps),
            facts=(),
        )
