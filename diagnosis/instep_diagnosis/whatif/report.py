"""An analysis as a document for programs and as text for people."""

from __future__ import annotations

import math
from collections.abc import Iterable

from instep_diagnosis.whatif.analysis import Analysis, Blame
from instep_diagnosis.whatif.trace import Array

STRAGGLING_MIN = 1.1
"""Published practice calls a job straggling from a slowdown of 1.1 on."""
MODEL_ERROR_MAX = 0.05
"""Published practice discards a trace that the model misses by more."""
WORKERS_SHOWN = 5

Document = dict[str, object]


def document(result: Analysis) -> Document:
    """Everything, as JSON holds it; a number that has no meaning is null."""
    slowdown = result.slowdown
    return {
        "trace": result.layout.name,
        "layout": {"pp_size": result.layout.pp, "dp_size": result.layout.dp, "vpp_size": result.layout.vpp},
        "steps": len(result.steps_T),
        "dropped_steps": list(result.dropped_steps),
        "slowdown": slowdown,
        "launch_slowdown": result.launch_slowdown,
        "wasted_ratio": 1.0 - 1.0 / slowdown,
        "m_w": _number(result.worst_workers.removed),
        "m_s": _number(result.last_stage.removed),
        "slowdown_by_stage": _ratios(result, enumerate(result.stage_seconds_PT)),
        "slowdown_by_dp_rank": _ratios(result, enumerate(result.dp_seconds_DT)),
        "slowdown_by_optype": _ratios(result, result.optype_seconds_T.items()),
        "slowdown_by_worker": result.slowdown_by_worker_PD.tolist(),
        "worst_workers": _blame(result.worst_workers),
        "last_stage": _blame(result.last_stage),
        "recovered": [{"workers": count, "loss_ratio": _number(share)} for count, share in result.recovered],
        "step_seconds_mean": {
            "recorded": float(result.recorded_seconds_T.mean()),
            "simulated": float(result.simulated_seconds_T.mean()),
            "ideal": result.ideal_seconds,
        },
        "replay_error_ratio": result.replay_error_ratio,
        "by_step": _by_step(result),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ratios(result: Analysis, rows: Iterable[tuple[object, Array]]) -> dict[str, float]:
    return {str(name): result.ratio(seconds_T) for name, seconds_T in rows}


def _blame(blame: Blame) -> Document:
    return {
        "workers": [{"stage": stage, "dp_rank": dp} for stage, dp in blame.workers],
        "step_seconds_without": blame.seconds_without,
        "step_seconds_alone": blame.seconds_alone,
        "removed": _number(blame.removed),
        "added": _number(blame.added),
    }


def _by_step(result: Analysis) -> Document:
    ideal = result.ideal_seconds
    groups: dict[str, dict[str, list[float]]] = {
        "slowdown_by_stage": {str(s): (each / ideal).tolist() for s, each in enumerate(result.stage_seconds_PT)},
        "slowdown_by_dp_rank": {str(d): (each / ideal).tolist() for d, each in enumerate(result.dp_seconds_DT)},
        "slowdown_by_optype": {name: (each / ideal).tolist() for name, each in result.optype_seconds_T.items()},
    }
    recorded, simulated = result.recorded_seconds_T.tolist(), result.simulated_seconds_T.tolist()
    return {
        str(step): {
            "recorded_seconds": recorded[place],
            "simulated_seconds": simulated[place],
            "ideal_seconds": ideal,
            "slowdown": simulated[place] / ideal,
            "launch_slowdown": recorded[place] / simulated[place],
            **{group: {name: values[place] for name, values in rows.items()} for group, rows in groups.items()},
        }
        for place, step in enumerate(result.steps_T.tolist())
    }


def text(result: Analysis) -> str:
    """A page for a person: how slow, because of what, and how far to trust it."""
    seconds = (result.recorded_seconds_T.mean(), result.simulated_seconds_T.mean(), result.ideal_seconds)
    lines = [
        f"{result.layout.name or 'The trace'}: {len(result.steps_T)} steps, {result.layout.pp} stages x "
        f"{result.layout.dp} DP ranks.",
        f"Slowdown {result.slowdown:.5f}: a step takes {seconds[1]:.4f} s, and {seconds[2]:.4f} s if all ranks were "
        f"average; {_verdict(result)}",
        f"Recorded: {seconds[0]:.4f} s a step; delays outside the model make {result.launch_slowdown:.5f} of it.",
        *_trust(result),
        "",
        f"M_W {_shown(result.worst_workers.removed)} of the loss goes when the worst "
        f"{len(result.worst_workers.workers)} of {result.layout.pp * result.layout.dp} workers are average; "
        f"M_S {_shown(result.last_stage.removed)} when the last stage is.",
        "Loss gone with the slowest workers average: "
        + ", ".join(f"{count}: {_shown(share)}" for count, share in result.recovered)
        + ".",
        "",
        *_table("stage", ((f"{s}", result.ratio(each)) for s, each in enumerate(result.stage_seconds_PT))),
        *_table("DP rank", _largest((f"{d}", result.ratio(each)) for d, each in enumerate(result.dp_seconds_DT))),
        *_table("operation", _largest((name, result.ratio(each)) for name, each in result.optype_seconds_T.items())),
        *_table("worker", _workers(result)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _verdict(result: Analysis) -> str:
    if result.slowdown < STRAGGLING_MIN:
        return f"below {STRAGGLING_MIN}, no straggling job."
    return f"{100 * (1 - 1 / result.slowdown):.1f} % of the GPU time is lost to slowness that not all share."


def _trust(result: Analysis) -> list[str]:
    lines = []
    if abs(result.launch_slowdown - 1.0) > MODEL_ERROR_MAX:
        percent = 100 * abs(result.launch_slowdown - 1.0)
        lines.append(f"Do not trust this: the model misses the recorded steps by {percent:.1f} %.")
    if result.replay_error_ratio > MODEL_ERROR_MAX:
        percent = 100 * result.replay_error_ratio
        lines.append(f"Do not trust this: operations are recorded up to {percent:.1f} % of a step before their causes.")
    if result.dropped_steps:
        lines.append(f"Left out, because operations are missing: {len(result.dropped_steps)} steps.")
    return lines


def _shown(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "unknown"


def _largest(rows: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(rows, key=lambda row: -row[1])[:WORKERS_SHOWN]


def _workers(result: Analysis) -> list[tuple[str, float]]:
    values = result.slowdown_by_worker_PD
    return _largest(
        (f"stage {stage}, DP rank {dp}", float(values[stage, dp]))
        for stage in range(values.shape[0])
        for dp in range(values.shape[1])
    )


def _table(title: str, rows: Iterable[tuple[str, float]]) -> list[str]:
    return [f"Slowdown by {title}, only it as recorded:", *(f"  {value:.5f}  {name}" for name, value in rows)]
