"""Made-up steps: the same seed makes the same job, faults are where they are said to be, and only faults are named."""

import numpy as np
import pytest
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.detectors.work import step_arrays
from instep_diagnosis.simulation.jitter import KINDS, noise, recorded, scaled_noise
from instep_diagnosis.simulation.scoring import is_false, is_hit, watch_case
from instep_diagnosis.simulation.steps import BENIGN, FAULTS, StepFault, arrays_of, step_case


def test_the_same_seed_makes_the_same_job():
    one, other = step_case(11), step_case(11)
    assert np.array_equal(one.own_TR, other.own_TR)
    assert (one.rank, one.fault, one.ratio) == (other.rank, other.fault, other.ratio)
    assert not np.array_equal(one.own_TR[:40, :4], step_case(12).own_TR[:40, :4])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_job_is_slower_from_its_onset_on_and_in_one_rank_only(fault):
    case = step_case(3, ranks=8, fault=fault, ratio=1.5, sigma=0.004)
    before, after = case.busy_TR[: case.onset].mean(axis=0), case.busy_TR[case.onset :].mean(axis=0)
    slower = np.flatnonzero(after > 1.1 * before)
    assert slower.tolist() == [case.rank]


@pytest.mark.parametrize("fault", BENIGN)
@pytest.mark.parametrize("seed", range(2))
def test_a_benign_twin_names_nobody(fault, seed):
    case = step_case(seed, ranks=8, fault=fault)
    assert case.rank is None
    assert watch_case(case)["answers"]["instep"]["named"] == []


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault is not StepFault.NOW_AND_THEN])
@pytest.mark.parametrize("seed", range(2))
def test_the_slow_rank_is_named_alone_within_its_bound(fault, seed):
    found = watch_case(step_case(seed, ranks=8, fault=fault, ratio=1.5, sigma=0.008))
    assert is_hit(found, found["answers"]["instep"])
    assert not is_false(found, found["answers"]["instep"])
    assert found["owner_right"]


def test_reports_and_arrays_say_the_same():
    case = step_case(5, ranks=6, fault=StepFault.SLOW, ratio=1.3)
    arrays = step_arrays(case.reports(70, window_steps=64), window_steps=64)
    direct = arrays_of(case, 70, window_steps=64)
    assert arrays.steps == direct.steps
    assert np.allclose(arrays.own_seconds_TR, direct.own_seconds_TR)
    assert np.allclose(arrays.wait_seconds_TR, direct.wait_seconds_TR)


def test_a_job_of_the_largest_size_has_its_slow_rank_named():
    case = step_case(1, ranks=8_192, fault=StepFault.SLOW, ratio=1.3, sigma=0.01)
    named = [verdict.suspects[0].rank for verdict in detect_stragglers(case.reports(case.onset + 16, window_steps=24))]
    assert named == [case.rank]


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_drawn_from_what_was_recorded(kind):
    drawn = noise(np.random.default_rng(1), 100, 5, kind=kind)
    assert drawn.shape == (100, 5)
    assert np.isin(drawn, recorded(kind)).all()


def test_scaled_noise_is_as_large_as_asked_for():
    drawn = scaled_noise(np.random.default_rng(1), 4_000, 8, sigma=0.05)
    assert 1.4826 * np.median(np.abs(drawn)) == pytest.approx(0.05, rel=0.1)
