"""Jobs with one known cause of slow steps, simulated micro-batch by micro-batch, and the sums their ranks would report.

An event simulation of its own: it knows durations of single micro-batches and transfers, and waits come out of it. What
is under test sees sums only. Shapes: `T` steps, `P` stages, `D` data-parallel ranks, `M` micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

CAUSES = (
    "healthy", "slow_worker", "stage_imbalance", "seq_imbalance", "slow_link", "slow_dp_group", "gc_pause", "data_wait",
)  # fmt: skip
SHAPES = ((1, 8, 8), (2, 4, 8), (2, 16, 16), (4, 2, 8), (4, 4, 16), (4, 8, 8), (8, 2, 16), (8, 4, 12))
"""Stages, data-parallel ranks, micro-batches."""
BY_DESIGN = {"stage_imbalance", "seq_imbalance", "gc_pause"}
"""Causes that a job has from its first step, so that its early steps show them too."""


@dataclass
class Fault:
    cause: str = "healthy"
    stage: int | None = None
    dp: int | None = None
    severity: float = 0.0
    share: float = 1.0
    """Of the steps in which it acts."""


@dataclass
class Case:
    """One job, its faults, and what came out."""

    id: str
    shape: tuple[int, int, int]
    faults: list[Fault]
    noise: float
    agg: dict[str, np.ndarray] = field(default_factory=dict)
    ref: dict[str, np.ndarray] = field(default_factory=dict)
    slowdown: float = 1.0
    slowdowns: list[float] = field(default_factory=list)
    """Of each fault: what the job would gain without it."""
    forward_seconds: list[np.ndarray] = field(default_factory=list)
    """Of each fault: forward compute that it added, [T, P, D]."""

    def line(self) -> dict:
        """As the file format has it."""
        stages, ranks, micro_batches = self.shape
        numbers = np.arange(stages * ranks).reshape(stages, ranks)
        return {
            "id": self.id,
            "pp": stages,
            "dp": ranks,
            "mb": micro_batches,
            "ranks": numbers.tolist(),
            "steps": list(range(len(self.agg["fwd"]))),
            "agg": {name: _listed(values) for name, values in self.agg.items()},
            "ref": {name: _listed(values) for name, values in self.ref.items()},
        }


def _listed(values):
    return np.where(np.isfinite(values), np.round(values, 6), None).tolist()


def random_case(seed: int, *, cause: str | None = None, hard: str | None = None, steps: int = 20) -> Case:
    """A case from one seed: shape, noise, culprit, severity; `hard` is `second`, `intermittent` or `missing`."""
    dice = np.random.default_rng(seed)
    cause = cause or str(dice.choice(CAUSES))
    usable = [shape for shape in SHAPES if shape[0] > 1 or cause not in ("stage_imbalance", "slow_link")]
    shape = usable[dice.integers(len(usable))]
    faults = [_fault(cause, shape, dice, float(dice.choice([0.05, 0.1, 0.2, 0.4, 0.8])))]
    if hard == "intermittent":
        faults[0].share = 0.4
    if hard == "second" and cause != "healthy" and (shape[0] > 1 or cause != "data_wait"):
        others = [c for c in CAUSES if c not in ("healthy", cause) and (shape[0] > 1 or c == "data_wait")]
        faults.append(_fault(str(dice.choice(others)), shape, dice, 0.05))
    case = Case(f"{seed}", shape, faults, float(dice.choice([0.003, 0.006, 0.012, 0.025])))
    _simulate(case, dice, steps)
    if hard == "missing":
        s, d = dice.integers(shape[0]), dice.integers(shape[1])
        for values in case.agg.values():
            values[:, s, d] = np.nan
    return case


def case_of(seed: int, shape: tuple[int, int, int], faults: list[Fault], *, noise: float = 0.006) -> Case:
    """A case of given faults."""
    case = Case(f"{seed}", shape, faults, noise)
    _simulate(case, np.random.default_rng(seed), 20)
    return case


def _fault(cause, shape, dice, severity):
    stages, ranks, _ = shape
    stage = dp = None
    if cause in ("slow_worker", "stage_imbalance", "slow_dp_group"):
        stage = int(dice.integers(stages))
    if cause == "slow_link":
        stage = int(dice.integers(stages - 1))
    if cause == "data_wait":
        stage = 0
    if cause in ("slow_worker", "slow_link", "data_wait"):
        dp = int(dice.integers(ranks))
    return Fault(cause, stage, dp, severity)


def _simulate(case: Case, dice, steps: int) -> None:
    seed, early = int(dice.integers(2**31)), 10
    acts = [dice.random(early + steps) < fault.share for fault in case.faults]

    def run(faults, *, is_early_faulty):
        masks = [on.copy() for fault, on in zip(case.faults, acts, strict=True) if fault in faults]
        for fault, mask in zip(faults, masks, strict=True):
            if fault.cause not in BY_DESIGN and not is_early_faulty:
                mask[:early] = False
        return _steps(case, faults, masks, np.random.default_rng(seed), early + steps)

    whole = run(case.faults, is_early_faulty=False)
    healthy = run([], is_early_faulty=False)
    case.agg = {name: values[early:] for name, values in whole.items()}
    case.ref = {name: np.median(values[:early], axis=0) for name, values in whole.items()}
    case.slowdown = float(whole["step"][early:].mean() / healthy["step"][early:].mean())
    for fault in case.faults:
        without = run([other for other in case.faults if other is not fault], is_early_faulty=False)
        case.slowdowns.append(float(whole["step"][early:].mean() / without["step"][early:].mean()))
        case.forward_seconds.append((whole["fwd"] - without["fwd"])[early:])


def _steps(case: Case, faults, masks, dice, steps):
    """Every name → [T, P, D]. The same dice give the same job, with or without faults."""
    stages, ranks, count = case.shape
    wide = (steps, stages, ranks)
    forward = 0.03 * dice.lognormal(0.0, 0.01, (*wide, count)) * np.exp(case.noise * dice.standard_normal((*wide, 1)))
    backward = forward * 2.0 * dice.lognormal(0.0, 0.01, (*wide, count))
    backward *= np.exp(case.noise * dice.standard_normal((*wide, 1)))
    link = 0.0004 * dice.lognormal(0.0, 0.05, (*wide, 2, count))
    gather = 0.012 * np.linspace(1.5, 1.0, stages)[:, None] * dice.lognormal(0.0, 0.02, (steps, stages, 1))
    scatter = 2.0 * gather * dice.lognormal(0.0, 0.02, (steps, stages, 1))
    late = 0.003 * dice.lognormal(0.0, 0.1, (steps, ranks))
    typical = 0.09 * count
    uneven = dice.standard_normal((steps, 1, ranks, count))
    pauses, places = dice.random(wide), dice.integers(count, size=wide)
    for fault, mask in zip(faults, masks, strict=True):
        on, size = mask[:, None], fault.severity
        if fault.cause == "slow_worker":
            forward[mask, fault.stage, fault.dp] *= 1 + size
            backward[mask, fault.stage, fault.dp] *= 1 + size
        elif fault.cause == "stage_imbalance":
            forward[mask, fault.stage] *= 1 + size
            backward[mask, fault.stage] *= 1 + size
        elif fault.cause == "seq_imbalance":
            factor = np.where(mask[:, None, None, None], np.exp(1.2 * size * uneven), 1.0)
            forward, backward = forward * factor, backward * factor
        elif fault.cause == "slow_link":
            link[mask, fault.stage, fault.dp] += size * 0.04
        elif fault.cause == "slow_dp_group":
            gather[mask, fault.stage] += size * typical * 0.5
            scatter[mask, fault.stage] += size * typical * 0.5
        elif fault.cause == "data_wait":
            late[:, fault.dp] += on[:, 0] * size * typical
        elif fault.cause == "gc_pause":
            t, s, d = np.nonzero((pauses < 0.25) & mask[:, None, None])
            forward[t, s, d, places[t, s, d]] += size * typical * (0.75 + pauses[t, s, d])
    return _run_steps(forward, backward, link, gather, scatter, late, dice)


def _run_steps(forward, backward, link, gather, scatter, late, dice):
    steps, stages, ranks, count = forward.shape
    wide = (steps, stages, ranks)
    ready = np.broadcast_to(gather, wide) + dice.uniform(0, 1e-4, wide)
    free = ready.copy()
    free[:, 0] += late
    ended = {0: np.zeros((*wide, count)), 1: np.zeros((*wide, count))}
    spent = {name: np.full((*wide, count), np.nan) for name in ("fwd_send", "fwd_recv", "bwd_send", "bwd_recv")}
    started = {}
    stream = {0: np.zeros(wide), 1: np.zeros(wide)}
    plan = [[] for _ in range(stages)]
    for s in range(stages):
        warm = min(count, stages - 1 - s)
        plan[s] = [(0, m) for m in range(warm)]
        for m in range(warm, count):
            plan[s] += [(0, m), (1, m - warm)]
        plan[s] += [(1, m) for m in range(count - warm, count)]
    done = set()
    while any(plan):
        for s in range(stages):
            if not plan[s]:
                continue
            way, m = plan[s][0]
            source = s - 1 if way == 0 else s + 1
            if 0 <= source < stages and (source, way, m) not in done:
                continue
            plan[s].pop(0)
            start = free[:, s]
            if 0 <= source < stages:
                computed = ended[way][:, source, :, m]
                posted = ended[way][:, s, :, m - 1] if m else ready[:, s]
                begin = np.maximum(np.maximum(computed, posted), stream[way][:, source])
                arrived = begin + link[:, min(s, source), :, way, m]
                name = ("fwd", "bwd")[way]
                spent[f"{name}_send"][:, source, :, m] = arrived - np.maximum(computed, stream[way][:, source])
                spent[f"{name}_recv"][:, s, :, m] = arrived - posted
                stream[way][:, source] = arrived
                start = np.maximum(start, arrived)
            if way == 0 and m == 0:
                started[s] = start.copy()
            free[:, s] = start + (forward, backward)[way][:, s, :, m]
            ended[way][:, s, :, m] = free[:, s]
            done.add((s, way, m))
    names = {"fwd": forward.sum(-1), "bwd": backward.sum(-1), "fwd_max": forward.max(-1), "bwd_max": backward.max(-1)}
    for name, values in spent.items():
        names[name] = np.where(np.isfinite(values).any(-1), np.nansum(values, -1), 0.0)
        names[f"{name}_min"] = np.where(np.isfinite(values), values, np.inf).min(-1)
        names[f"{name}_min"][np.isinf(names[f"{name}_min"])] = np.nan
    names["first_fwd_at"] = np.stack([started[s] for s in range(stages)], axis=1)
    return names | _ending(free, gather, scatter, wide)


def _ending(free, gather, scatter, wide):
    end = free + 1e-4
    tied = np.zeros(wide)
    if wide[1] > 1:
        both = np.maximum(end[:, 0], end[:, -1]) + 0.002
        tied[:, 0], tied[:, -1] = both - end[:, 0], both - end[:, -1]
        end = end + tied
    group = np.max(end, axis=2, keepdims=True) + scatter
    waited = group - end
    end = np.broadcast_to(group, wide)
    clipped = end.max(axis=(1, 2), keepdims=True) + 0.001
    step = np.broadcast_to(clipped + 0.005, wide)
    return {
        "param_ag": np.broadcast_to(gather, wide).copy(), "grad_rs": waited, "emb_ar": tied,
        "ln_ar": np.full(wide, 1e-4), "clip": clipped - end, "opt": np.full(wide, 0.005), "step": step.copy(),
    }  # fmt: skip
