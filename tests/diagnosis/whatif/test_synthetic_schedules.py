"""Interleaved schedules and overlapped reductions, played by an independent loop so that the answer is known."""

from itertools import product

import numpy as np
import pytest
from instep_diagnosis.whatif import optypes as o
from instep_diagnosis.whatif.analysis import analyse, prepare
from instep_diagnosis.whatif.replay import replay
from instep_diagnosis.whatif.scenarios import nothing, paired, whole
from instep_diagnosis.whatif.synthetic import Plan, Player, synthetic_trace
from instep_diagnosis.whatif.trace import Layout, lay_out

COMPUTE = {o.FORWARD: 0.1, o.BACKWARD: 0.2}
OTHER_SECONDS = 0.01
PLANS = {
    "plain": Plan(Layout(4, 3), 8),
    "plain, overlapped": Plan(Layout(4, 3), 8, is_overlapped=True),
    "two chunks": Plan(Layout(4, 3, 2), 8),
    "two chunks, overlapped": Plan(Layout(4, 3, 2), 8, is_overlapped=True),
    "three chunks on two stages": Plan(Layout(2, 2, 3), 6, is_overlapped=True),
    "one stage": Plan(Layout(1, 4), 4),
    "one rank per stage": Plan(Layout(3, 1), 5),
    "one rank": Plan(Layout(1, 1), 3),
    "fewer micro-batches than stages": Plan(Layout(4, 2), 2),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


def equal(step, kind, stage, dp, number):
    return COMPUTE.get(kind, OTHER_SECONDS)


def slow_worker(factor, at):
    def seconds(step, kind, stage, dp, number):
        return equal(step, kind, stage, dp, number) * (factor if (stage, dp) == at and kind in COMPUTE else 1)

    return seconds


@every_plan
def test_equal_durations_are_a_slowdown_of_one_everywhere(plan):
    result = analyse(synthetic_trace(plan, equal, 3)[0])
    assert result.slowdown == pytest.approx(1)
    assert result.launch_slowdown == pytest.approx(1)
    assert result.replay_error_ratio == pytest.approx(0, abs=1e-12)
    assert result.slowdown_by_worker_PD == pytest.approx(np.ones((plan.layout.pp, plan.layout.dp)))
    for seconds in (*result.stage_seconds_PT, *result.dp_seconds_DT, *result.optype_seconds_T.values()):
        assert result.ratio(seconds) == pytest.approx(1)


@every_plan
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_slow_worker_costs_what_the_schedule_says(plan, place):
    """Ideal and alone are played again from the means, which are known in closed form."""
    at = (0, 0) if place == "first" else (plan.layout.pp - 1, plan.layout.dp - 1)
    workers = plan.layout.pp * plan.layout.dp
    mean = {kind: seconds * (1 + 1 / workers) for kind, seconds in COMPUTE.items()}
    trace, lengths = synthetic_trace(plan, slow_worker(2, at), 2)
    result = analyse(trace)
    ideal = Player(plan, lambda t, kind, s, d, n: mean.get(kind, OTHER_SECONDS), 0).play()

    def alone(worker):
        return lambda t, kind, s, d, n: (
            slow_worker(2, at)(t, kind, s, d, n) if (s, d) == worker else mean.get(kind, OTHER_SECONDS)
        )

    assert result.launch_slowdown == pytest.approx(1)
    assert result.slowdown == pytest.approx(lengths[0] / ideal)
    for worker in product(range(plan.layout.pp), range(plan.layout.dp)):
        assert result.slowdown_by_worker_PD[worker] == pytest.approx(Player(plan, alone(worker), 0).play() / ideal)
    if workers > 1:
        assert result.worst_workers.workers[0] == at


@every_plan
def test_every_kind_and_rank_of_uneven_durations_is_what_the_schedule_says(plan):
    """Uneven over steps and workers; what keeps its time is played again with all else at its known ideal."""
    draws = np.random.default_rng(5).uniform(0.5, 1.5, (2, len(o.OPTYPES), plan.layout.pp, plan.layout.dp, 64))

    def uneven(step, kind, stage, dp, number):
        return equal(step, kind, stage, dp, number) * draws[step, o.CODES[kind], stage, dp, number]

    trace, lengths = synthetic_trace(plan, uneven, 2)
    result = analyse(trace)
    lanes, model = prepare(lay_out(trace))
    ideal = dict(zip((o.OPTYPES[code] for code in lanes.optype_O), model.weights.ideal_O, strict=True))
    for kind, seconds in ideal.items():
        drawn = [uneven(*row) for row in _rows(trace, kind)]
        known = np.median(drawn) if kind not in (*COMPUTE, o.OPTIMIZER) else np.mean(drawn)
        assert seconds == pytest.approx(known)

    def played(keeps):
        choice = lambda t, kind, s, d, n: uneven(t, kind, s, d, n) if keeps(kind, s, d) else ideal[kind]  # noqa: E731
        return [Player(plan, choice, step).play() for step in range(2)]

    assert result.simulated_seconds_T == pytest.approx(lengths)
    for stage in range(plan.layout.pp):
        assert result.stage_seconds_PT[stage] == pytest.approx(played(lambda kind, s, d, stage=stage: s == stage))
    for dp in range(plan.layout.dp):
        assert result.dp_seconds_DT[dp] == pytest.approx(played(lambda kind, s, d, dp=dp: d == dp))
    for name, seconds in result.optype_seconds_T.items():
        assert seconds == pytest.approx(played(lambda kind, s, d, name=name: o.REPORTED_AS[kind] == name))


def _rows(trace, kind):
    rows = np.flatnonzero(trace.optype_N == o.CODES[kind])
    columns = (trace.step_N[rows], trace.stage_N[rows], trace.dp_N[rows], trace.seq_N[rows])
    return [(step, kind, stage, dp, seq) for step, stage, dp, seq in zip(*columns, strict=True)]


def test_transfers_that_carry_nothing_change_nothing():
    """A profiler may record a receive after the last forward, and a send before the first has ended."""
    plan = PLANS["plain"]
    trace, _ = synthetic_trace(plan, slow_worker(2, (1, 1)), 2)
    lanes = lay_out(trace)
    plain = analyse(trace)
    end = float(lanes.end_seconds_ODT.max())
    extra = [
        (dp, stage, step, o.CODES[kind], start, 1e-4, seq, -1)
        for step, dp, stage in product(range(2), range(plan.layout.dp), range(plan.layout.pp))
        for kind, start, seq in ((o.FORWARD_RECV, end, 90), (o.FORWARD_SEND, 0.0, 91))
    ]
    columns = (trace.dp_N, trace.stage_N, trace.step_N, trace.optype_N, trace.start_seconds_N, trace.duration_seconds_N)
    joined = [
        np.concatenate([old, np.array(new)])
        for old, new in zip((*columns, trace.seq_N, trace.chunk_N), zip(*extra, strict=True), strict=True)
    ]
    again = analyse(type(trace)(trace.layout, *joined))
    assert again.slowdown == plain.slowdown
    assert np.array_equal(again.worker_seconds_PDT, plain.worker_seconds_PDT)


@every_plan
@pytest.mark.parametrize("tile_bytes", [1, 4_000, 1 << 20])
def test_replays_in_tiles_of_any_size_agree_to_the_last_bit(plan, tile_bytes, monkeypatch):
    """Ranks and steps in parts, rows and ranks that are recorded in part: the compiled replay against the plain one."""
    compiled = pytest.importorskip("instep_diagnosis.whatif.compiled", reason="needs numba")
    dice = np.random.default_rng(7)
    draws = dice.uniform(0.5, 1.5, (5, len(o.OPTYPES), plan.layout.pp, plan.layout.dp, 64))

    def uneven(step, kind, stage, dp, number):
        return equal(step, kind, stage, dp, number) * draws[step, o.CODES[kind], stage, dp, number]

    _, model = prepare(lay_out(synthetic_trace(plan, uneven, 5)[0]))
    masks = [dice.random((len(o.OPTYPES), plan.layout.pp, plan.layout.dp)) < share for share in (0.1, 0.5, 0.9, 1)]
    every = [whole(plan.layout, [nothing(plan.layout), *masks]), paired(plan.layout)]
    plain = [replay(model, scenarios) for scenarios in every]
    assert len({float(seconds.sum()) for seconds in plain[0]}) > len(masks) or plan.layout.pp * plan.layout.dp == 1
    monkeypatch.setattr(compiled, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(compiled, "TILE_STEPS_MIN", 2)
    monkeypatch.setattr("instep_diagnosis.whatif.replay.BLOCK_BYTES_MAX", tile_bytes)
    for scenarios, wanted in zip(every, plain, strict=True):
        assert np.array_equal(compiled.replay(model, scenarios), wanted)
        assert np.array_equal(replay(model, scenarios), wanted)
