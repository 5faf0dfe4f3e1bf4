"""Which rank is slow, why, since when and at what cost; and who is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_agent.wire import StepReport
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.detectors.work import per_tokens
from instep_diagnosis.evidence import JobSteps
from instep_diagnosis.verdict import Cause, Certainty, Kind, Owner
from msgspec.structs import replace

from tests.diagnosis.training import job_steps, own_work

FEW = settings(max_examples=25, deadline=None)


def slowed(rank=2, ratio=1.3, onset=30, **kwargs):
    own_TR = own_work(**kwargs)
    own_TR[onset:, rank] *= ratio
    return own_TR


def names(verdicts):
    return [verdict.suspects[0].rank for verdict in verdicts]


def test_a_healthy_job_has_no_straggler():
    assert detect_stragglers(job_steps(own_work())) == []


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_that_computes_longer_is_named(rank):
    (verdict,) = detect_stragglers(job_steps(slowed(rank)))
    assert names([verdict]) == [rank]
    assert (verdict.kind, verdict.certainty, verdict.cause) == (Kind.STRAGGLER, Certainty.CONFIRMED, Cause.SLOW_COMPUTE)
    assert verdict.owner is Owner.NODE and not verdict.is_node_at_fault
    assert abs(verdict.onset_step - 30) <= 1
    assert verdict.cost_gpu_seconds == pytest.approx(0.03 * 30 * 4, rel=0.1)
    assert any(f"{percent} % slower" in verdict.summary for percent in (29, 30, 31))


def test_a_rank_that_waits_inside_its_own_work_is_told_from_one_that_computes():
    own_TR = slowed()
    (verdict,) = detect_stragglers(job_steps(own_TR, cpu_TR=own_work()))
    assert verdict.cause is Cause.SLOW_STALL
    assert verdict.owner is Owner.JOB


def test_a_rank_without_cores_is_starved_and_not_slow():
    own_TR = own_work()
    starved_TR = np.zeros_like(own_TR)
    starved_TR[30:, 2] = 0.06
    (verdict,) = detect_stragglers(job_steps(own_TR, starved_TR=starved_TR))
    assert (names([verdict]), verdict.cause) == ([2], Cause.STARVED)


def test_contention_that_falls_on_everybody_names_nobody():
    rng = np.random.default_rng(3)
    own_TR = own_work()
    assert detect_stragglers(job_steps(own_TR, starved_TR=rng.exponential(0.08, own_TR.shape))) == []


def test_a_slow_loader_is_named_as_data():
    own_TR = own_work()
    data_TR = np.zeros_like(own_TR)
    data_TR[30:, 2] = 0.05
    (verdict,) = detect_stragglers(job_steps(own_TR, data_TR=data_TR))
    assert (names([verdict]), verdict.cause) == ([2], Cause.DATA)


def test_a_job_that_is_slower_as_a_whole_has_no_straggler():
    own_TR = own_work()
    own_TR[30:] *= 1.5
    assert detect_stragglers(job_steps(own_TR)) == []


@pytest.mark.parametrize("offset", [1.01, 1.02, 1.03])
def test_a_small_lasting_offset_is_healthy(offset):
    own_TR = own_work(noise=0.003)
    own_TR[:, 0] *= offset
    assert detect_stragglers(job_steps(own_TR)) == []


def test_a_slow_rank_is_found_among_two():
    assert names(detect_stragglers(job_steps(slowed(1, ranks=2)))) == [1]


def test_one_rank_has_no_peers():
    own_TR = own_work(ranks=1)
    assert detect_stragglers(job_steps(own_TR)) == []


def test_a_few_steps_say_nothing():
    assert detect_stragglers(job_steps(slowed(onset=0, steps=7))) == []


def test_a_rank_slow_from_the_start_is_found():
    assert names(detect_stragglers(job_steps(slowed(onset=0, steps=12)))) == [2]


def test_one_long_step_is_no_straggler():
    own_TR = own_work()
    own_TR[-1, 2] *= 20
    assert detect_stragglers(job_steps(own_TR)) == []


def test_a_rank_many_times_slower_is_named_with_its_true_ratio():
    (verdict,) = detect_stragglers(job_steps(slowed(ratio=10.0)))
    assert verdict.evidence[0].fields["ratio"] == pytest.approx(10.0, rel=0.02)


def test_a_recovered_rank_ends_its_finding():
    own_TR = slowed(onset=10, steps=60)
    own_TR[50:, 2] /= 1.3
    verdicts = detect_stragglers(job_steps(own_TR))
    assert all(not verdict.is_ongoing for verdict in verdicts)
    assert all(verdict.is_ongoing for verdict in detect_stragglers(job_steps(own_TR[:48])))


def test_more_tokens_are_more_work_and_no_slowness():
    rng = np.random.default_rng(5)
    tokens_TR = rng.integers(500, 2000, (60, 4))
    own_TR = own_work(noise=0.01) * tokens_TR / 1000
    assert detect_stragglers(job_steps(own_TR, tokens_TR=tokens_TR)) == []
    own_TR[30:, 2] *= 1.3
    assert names(detect_stragglers(job_steps(own_TR, tokens_TR=tokens_TR))) == [2]


@pytest.mark.parametrize("seed", range(12))
def test_where_sequences_vary_the_slow_rank_is_named_whoever_had_to_wait_by_its_tokens(seed):
    tokens_TR = np.random.default_rng(seed).integers(1_024, 8_192, (80, 4))
    own_TR = own_work(steps=80, noise=0.006, seed=seed) * (0.1 + 0.9 * tokens_TR / 4_608)
    assert detect_stragglers(job_steps(own_TR, tokens_TR=tokens_TR)) == []
    own_TR[60:, 1] *= 1.1
    assert names(detect_stragglers(job_steps(own_TR, tokens_TR=tokens_TR))) == [1]


def test_a_slow_ranks_long_steps_do_not_bend_what_tokens_are_held_to_take():
    tokens_TR = np.random.default_rng(3).integers(1_024, 8_192, (128, 2)).astype(float)
    own_TR = 0.03 + 0.17 * tokens_TR / 4_608
    slow_TR = own_TR.copy()
    slow_TR[30:58, 1] *= 1.5
    even_TR = per_tokens(slow_TR, tokens_TR, np.zeros_like(tokens_TR))[58:]
    assert np.ptp(even_TR) / even_TR.mean() < 0.05
    assert np.ptp(per_tokens(own_TR, tokens_TR, np.zeros_like(tokens_TR))) < 1e-6


def test_a_rank_that_always_gets_more_tokens_is_not_slow():
    tokens_TR = np.full((60, 4), 1000)
    tokens_TR[:, 1] = 1300
    assert detect_stragglers(job_steps(own_work() * tokens_TR / 1000, tokens_TR=tokens_TR)) == []


def test_starvation_that_was_not_observed_is_not_subtracted():
    job = job_steps(slowed())
    steps = {rank: tuple(replace(row, starved_seconds=None) for row in rows) for rank, rows in job.steps.items()}
    assert names(detect_stragglers(JobSteps("gpt", "run-1", 1, steps, job.nodes))) == [2]


def test_without_cpu_times_the_cause_is_unknown():
    job = job_steps(slowed())
    steps = {rank: tuple(replace(row, cpu_seconds=None) for row in rows) for rank, rows in job.steps.items()}
    (verdict,) = detect_stragglers(JobSteps("gpt", "run-1", 1, steps, job.nodes))
    assert (verdict.cause, verdict.owner) == (Cause.UNKNOWN, Owner.UNKNOWN)


@FEW
@given(st.permutations(range(4)), st.sampled_from([1.0, 1.3]))
def test_permuting_ranks_permutes_the_answer(order, ratio):
    own_TR = slowed(2, ratio)
    expected = [order.index(rank) for rank in names(detect_stragglers(job_steps(own_TR)))]
    assert names(detect_stragglers(job_steps(own_TR[:, order]))) == expected


@FEW
@given(st.sampled_from([0.125, 0.5, 8.0, 1024.0]), st.sampled_from([1.0, 1.3]))
def test_scaling_every_duration_changes_nothing(scale, ratio):
    own_TR = slowed(2, ratio)

    def scaled(row: StepReport) -> StepReport:
        fields = ("wall_seconds", "wait_seconds", "data_seconds", "cpu_seconds", "starved_seconds")
        return replace(row, **{name: getattr(row, name) * scale for name in fields})

    job = job_steps(own_TR)
    larger = {rank: tuple(scaled(row) for row in rows) for rank, rows in job.steps.items()}
    found = detect_stragglers(JobSteps("gpt", "run-1", 1, larger, job.nodes))
    assert names(found) == names(detect_stragglers(job))
    assert [v.onset_step for v in found] == [v.onset_step for v in detect_stragglers(job)]


@FEW
@given(st.integers(0, 1000), st.sampled_from([1.0, 1.3]))
def test_adding_a_healthy_rank_makes_no_new_finding(seed, ratio):
    own_TR = slowed(2, ratio, seed=7)
    more_TR = np.hstack([own_TR, own_work(seed=seed + 100)[:, :1]])
    assert set(names(detect_stragglers(job_steps(more_TR)))) <= set(names(detect_stragglers(job_steps(own_TR))))


@FEW
@given(st.sets(st.tuples(st.integers(0, 59), st.integers(0, 3)), max_size=120))
def test_missing_data_never_raises_a_finding(missing):
    assert detect_stragglers(job_steps(own_work(noise=0.05), missing=missing)) == []


@FEW
@given(st.sets(st.tuples(st.integers(0, 59), st.integers(0, 3)), max_size=80))
def test_missing_data_never_turns_blame_to_another(missing):
    assert set(names(detect_stragglers(job_steps(slowed(), missing=missing)))) <= {2}
