"""Training jobs with a slow rank, or with something that only looks like one, made up from a seed: the steps that their
ranks would report. The truth is known.

All ranks work, then wait for the slowest. Noise is drawn from what was recorded (`simulation.jitter`).
Shapes: `T` steps, `R` ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from instep_agent.wire import StepReport

from instep_diagnosis.detectors.work import StepArrays
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.simulation.jitter import noise, scaled_noise
from instep_diagnosis.verdict import Owner

Array = npt.NDArray[np.float64]

LAYOUTS = ("ddp", "fsdp", "tp", "tp-dp", "pp", "pp-dp-tp", "ep")
"""All end a step together. In a pipeline the waits stand between the work of a step, and their sum is the same."""


class StepFault(StrEnum):
    """What is done to the job; the second half is no fault of one rank."""

    SLOW = "slow-compute"
    """One rank computes longer."""
    STALLS = "slow-stall"
    """One rank sleeps inside its own work."""
    STARVED = "starved"
    """One rank waits for a core."""
    DATA = "data"
    """One rank waits for its data."""
    NOW_AND_THEN = "now-and-then"
    """One rank is slow in some steps."""
    HEALTHY = "healthy"
    UNIFORM = "uniform"
    """All ranks become slower alike."""
    CHECKPOINT = "checkpoint"
    """One rank saves now and then."""
    EVALUATION = "evaluation"
    LOADER_JITTER = "loader-jitter"
    """Loaders of all ranks are late at times."""
    BURST = "burst"
    """A neighbour takes a node's cores for a few steps."""
    COMPILE = "compile"
    """Single long steps, each on another rank."""
    SEQUENCES = "sequences"
    """Ranks have unlike numbers of tokens in each step."""


FAULTS = tuple(StepFault)[: tuple(StepFault).index(StepFault.HEALTHY)]
BENIGN = tuple(StepFault)[len(FAULTS) :]

OWNERS = {
    StepFault.SLOW: Owner.NODE,
    StepFault.STALLS: Owner.JOB,
    StepFault.STARVED: Owner.NODE,
    StepFault.DATA: Owner.JOB,
    StepFault.NOW_AND_THEN: Owner.NODE,
}
HEALTHY_STEPS = 48
FAULTY_STEPS = 48
STEP_SECONDS = (0.05, 2.0)
QUIET_SIGMAS = (0.004, 0.008)
"""Noise of steps on machines of their own; at 2 and 3 % nothing shows in a louder job."""
SIGMAS = (0.004, 0.008, 0.012, 0.02)
NOW_AND_THEN_SHARE = 0.3
"""Of the steps of a fault that comes and goes are slow, each by itself: three or more of the first twenty in 98.96 % of
such faults, so no method that asks for three finds more within twenty steps."""


@dataclass(frozen=True, slots=True)
class StepCase:
    """The steps of one job, and who is slow."""

    seed: int
    layout: str
    fault: StepFault
    rank: int | None
    ratio: float
    """The slow rank's work over that of its peers."""
    sigma: float
    onset: int
    """First step with the fault."""
    own_TR: Array
    cpu_TR: Array
    starved_TR: Array
    data_TR: Array
    checkpoint_TR: Array
    evaluation_TR: Array
    tokens_TR: npt.NDArray[np.int64]

    @property
    def owner(self) -> Owner:
        """Who has to mend it."""
        return OWNERS.get(self.fault, Owner.UNKNOWN)

    @property
    def busy_TR(self) -> Array:
        """Until a rank waits for its peers."""
        return np.asarray(self.own_TR + self.starved_TR + self.data_TR + self.checkpoint_TR + self.evaluation_TR)

    @property
    def wall_TR(self) -> Array:
        """What each rank's clock says of a step."""
        busy_TR = self.busy_TR
        return np.broadcast_to(busy_TR.max(axis=1, keepdims=True) * 1.01, busy_TR.shape)

    def reports(self, end: int, *, window_steps: int) -> JobSteps:
        """What the job's ranks have reported when `end` steps are finished."""
        begin = max(0, end - window_steps)
        columns = [
            values_TR[begin:end].T.tolist()
            for values_TR in (
                self.wall_TR, self.wall_TR - self.busy_TR, self.data_TR, self.checkpoint_TR, self.evaluation_TR,
                self.cpu_TR, self.starved_TR, self.tokens_TR,
            )
        ]  # fmt: skip
        rows = {r: tuple(map(_report, range(begin, end), *parts)) for r, parts in enumerate(zip(*columns, strict=True))}
        return JobSteps("simulated", f"seed-{self.seed}", 1, rows, {r: f"node-{r // 8}" for r in rows})


def _report(
    step: int,
    wall: float,
    wait: float,
    data: float,
    checkpoint: float,
    evaluation: float,
    cpu: float,
    starved: float,
    tokens: int,
) -> StepReport:
    return StepReport(
        step=step,
        wall_seconds=wall,
        wait_seconds=wait,
        data_seconds=data,
        checkpoint_seconds=checkpoint,
        evaluation_seconds=evaluation,
        cpu_seconds=cpu,
        starved_seconds=starved,
        tokens=tokens,
    )


def step_case(
    seed: int,
    *,
    ranks: int | None = None,
    fault: StepFault | None = None,
    ratio: float | None = None,
    sigma: float | None = None,
    layout: str | None = None,
    steps: int = FAULTY_STEPS,
    noise_kind: str = "paced",
) -> StepCase:
    """One job; the same for the same arguments. Faults are 3 to 50 % where `ratio` leaves them open. `steps` follow the
    onset; the noise is that of one kind of recorded work."""
    random = np.random.default_rng([seed, 5])
    layout = layout or str(random.choice(LAYOUTS))
    count = ranks or int(random.choice([4, 8, 16, 32, 64]))
    kind = fault or (StepFault(random.choice(FAULTS)) if random.random() < 0.5 else StepFault(random.choice(BENIGN)))
    drawn = float(random.choice([1.03, 1.05, 1.07, 1.1, 1.2, 1.3, 1.5]))
    size = (drawn if ratio is None else ratio) if kind in FAULTS else 1.0
    size = max(size, _least(kind)) if ratio is None and kind in FAULTS else size
    spread = float(random.choice(QUIET_SIGMAS if size < 1.05 else SIGMAS)) if sigma is None else sigma
    rank = int(random.integers(count)) if kind in FAULTS else None
    onset = HEALTHY_STEPS + int(random.integers(16))
    seconds = float(random.uniform(*STEP_SECONDS))
    drawn_TR = scaled_noise(random, onset + steps, count, sigma=spread, kind=noise_kind)
    parts = _healthy(random, seconds, drawn_TR)
    _put(random, kind, parts, rank, size, onset, seconds)
    tokens_TR = np.rint(parts.pop("tokens_TR")).astype(np.int64)
    return StepCase(seed, layout, kind, rank, size, spread, onset, **parts, tokens_TR=tokens_TR)


def _least(kind: StepFault) -> float:
    """Smallest ratio that the detector promises to name for this kind."""
    return {StepFault.STARVED: 1.4, StepFault.DATA: 1.3, StepFault.NOW_AND_THEN: 1.3}.get(kind, 1.0)


def _healthy(random: np.random.Generator, seconds: float, noise_TR: Array) -> dict[str, Array]:
    own_TR = seconds * np.exp(noise_TR)
    zero_TR = np.zeros_like(own_TR)
    data_TR = 0.01 * seconds * np.exp(0.3 * random.standard_normal(own_TR.shape))
    return {
        "own_TR": own_TR, "cpu_TR": 0.97 * own_TR, "starved_TR": zero_TR.copy(), "data_TR": data_TR,
        "checkpoint_TR": zero_TR.copy(), "evaluation_TR": zero_TR.copy(),
        "tokens_TR": np.full(own_TR.shape, 4_096.0),
    }  # fmt: skip


def _put(
    random: np.random.Generator,
    kind: StepFault,
    parts: dict[str, Array],
    rank: int | None,
    ratio: float,
    onset: int,
    seconds: float,
) -> None:
    """What happens to the job, into its parts."""
    own_TR = parts["own_TR"]
    steps, ranks = own_TR.shape
    late = slice(onset, steps)
    if kind in (StepFault.SLOW, StepFault.STALLS, StepFault.NOW_AND_THEN):
        acts = random.random(steps - onset) < (NOW_AND_THEN_SHARE if kind is StepFault.NOW_AND_THEN else 1.0)
        acts[0] = True  # A fault begins with the first step that it slows: before, there is nothing to find.
        own_TR[late, rank] *= np.where(acts, ratio, 1.0)
        if kind is not StepFault.STALLS:
            parts["cpu_TR"][late, rank] *= np.where(acts, ratio, 1.0)
    elif kind is StepFault.STARVED:
        parts["starved_TR"][late, rank] += (ratio - 1.0) * seconds * random.uniform(0.8, 1.2, steps - onset)
    elif kind is StepFault.DATA:
        parts["data_TR"][late, rank] += (ratio - 1.0) * seconds * random.uniform(0.8, 1.2, steps - onset)
    elif kind is StepFault.UNIFORM:
        own_TR[late] *= random.uniform(1.1, 2.0)
        parts["cpu_TR"][late] *= 1.5
    elif kind is StepFault.CHECKPOINT:
        parts["checkpoint_TR"][9::10, 0] = 3.0 * seconds
    elif kind is StepFault.EVALUATION:
        parts["evaluation_TR"][onset::20, :] = 5.0 * seconds
    elif kind is StepFault.LOADER_JITTER:
        parts["data_TR"] += seconds * (random.random(own_TR.shape) < 0.1) * random.uniform(0.1, 1.0, own_TR.shape)
    elif kind is StepFault.BURST:
        length, node = int(random.integers(2, 6)), int(random.integers(ranks)) // 8 * 8
        share = 0.4 * np.abs(noise(random, length, 8, kind="cpu")) + random.uniform(0.1, 0.6, (length, 8))
        part = parts["starved_TR"][onset : onset + length, node : node + 8]
        part += seconds * share[:, : part.shape[1]]
    elif kind is StepFault.COMPILE:
        for t in range(onset, steps, 12):
            own_TR[t, random.integers(ranks)] *= 5.0
    elif kind is StepFault.SEQUENCES:
        tokens_TR = random.integers(1_024, 8_192, own_TR.shape)
        parts["tokens_TR"][...] = tokens_TR
        own_TR *= 0.1 + 0.9 * tokens_TR / 4_608
        parts["cpu_TR"][...] = 0.97 * own_TR


def arrays_of(case: StepCase, end: int, *, window_steps: int) -> StepArrays:
    """The same as the detectors' arrays, for jobs whose reports would be half a million objects. Tokens are equal."""
    rows = slice(max(0, end - window_steps), end)
    wait_TR = case.wall_TR[rows] - case.busy_TR[rows]
    return StepArrays(
        ranks=tuple(range(case.own_TR.shape[1])),
        steps=tuple(range(*rows.indices(len(case.own_TR)))),
        own_seconds_TR=case.own_TR[rows],
        wait_seconds_TR=wait_TR,
        cpu_seconds_TR=case.cpu_TR[rows],
        starved_seconds_TR=case.starved_TR[rows],
        data_seconds_TR=case.data_TR[rows],
        tokens_seconds_TR=np.zeros_like(wait_TR),
    )
