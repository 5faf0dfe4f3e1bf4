"""What a straggler costs, where only each rank's seconds of each step are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from instep_diagnosis.whatif.steps import cost_of


def test_a_slow_rank_costs_its_excess_times_all_ranks():
    cost = cost_of([1], [[1.0, 1.5, 1.0, 1.0]] * 10)
    assert cost.saved_seconds == pytest.approx(5.0)
    assert cost.gpu_seconds == pytest.approx(20.0)
    assert cost.slowdown == pytest.approx(1.5)
    assert cost.steps == 10


def test_a_rank_like_its_peers_costs_nothing():
    cost = cost_of([1], [[1.0, 1.0, 1.0, 1.0]] * 10)
    assert (cost.saved_seconds, cost.slowdown) == (0.0, 1.0)


def test_only_what_the_next_slowest_does_not_take_anyway_is_saved():
    assert cost_of([1], [[1.0, 1.5, 1.4, 1.0]]).saved_seconds == pytest.approx(0.1)
    assert cost_of([1, 2], [[1.0, 1.5, 1.4, 1.0]]).saved_seconds == pytest.approx(0.5)


def test_a_stage_that_has_more_to_do_by_design_costs_nothing():
    work = [[1.0, 1.0, 3.0, 3.0]]
    assert cost_of([2], work, peers_R=[0, 0, 1, 1]).saved_seconds == 0
    assert cost_of([2], [[1.0, 1.0, 4.0, 3.0]], peers_R=[0, 0, 1, 1]).saved_seconds == pytest.approx(1)


def test_a_rank_without_peers_or_without_steps_cannot_be_judged():
    alone = cost_of([0], [[5.0, 1.0]], peers_R=[0, 1])
    assert (alone.steps, alone.saved_seconds) == (0, 0.0)
    assert math.isnan(alone.slowdown)
    assert cost_of([0], np.empty((0, 3))).steps == 0


def test_a_step_saves_no_more_than_it_took():
    assert cost_of([0], [[9.0, 1.0]], step_seconds_T=[2.0]).saved_seconds == 2.0


def test_what_was_not_observed_costs_nothing():
    cost = cost_of([0], [[math.nan, 1.0, 1.0], [2.0, 1.0, math.nan], [math.nan] * 3])
    assert (cost.saved_seconds, cost.steps) == (1.0, 1)


@pytest.mark.parametrize(
    ("suspects", "work", "more"),
    [
        ([3], [[1.0, 1.0]], {}),
        ([0], [1.0], {}),
        ([0], [[1.0]], {"peers_R": [0, 1]}),
        ([0], [[1.0]], {"step_seconds_T": [1, 2]}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(suspects, work, more):
    with pytest.raises(ValueError, match=r"\.$"):
        cost_of(suspects, work, **more)


WORK = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 6)), elements=st.floats(0.01, 100))


@given(WORK, st.data())
def test_costs_scale_with_time_follow_permutations_and_are_never_negative(work, data):
    suspect = data.draw(st.integers(0, work.shape[1] - 1))
    order = data.draw(st.permutations(range(work.shape[1])))
    cost = cost_of([suspect], work)
    assert cost.saved_seconds >= 0
    assert cost_of([suspect], work * 4).saved_seconds == pytest.approx(4 * cost.saved_seconds)
    assert cost_of([order.index(suspect)], work[:, order]) == cost
