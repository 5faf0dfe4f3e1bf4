"""Rates, intervals and calibration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_diagnosis.detectors.calibration import CONFIDENCE_MAX, calibrated, share_at
from instep_diagnosis.simulation.statistics import (
    Counts,
    calibration_error,
    count_bound,
    interval,
    isotonic,
    reliability,
    wilson,
)

rights = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80)


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_interval_of_a_rate_holds_the_rate(right, wrong):
    low, high = wilson(right, right + wrong)
    assert 0.0 <= low <= high <= 1.0
    if right + wrong:
        assert low - 1e-9 <= right / (right + wrong) <= high + 1e-9


def test_wilson_agrees_with_its_published_value():
    # Newcombe 1998, table I: 81 of 263.
    assert wilson(81, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


@pytest.mark.parametrize(("count", "bound"), [(0, 2.996), (1, 4.744), (5, 10.513), (20, 29.062)])
def test_the_bound_of_a_count_is_that_of_the_tables(count, bound):
    # Garwood 1936: half the 95 % quantile of chi-square with 2 (count + 1) degrees of freedom.
    assert count_bound(count) == pytest.approx(bound, abs=1e-3)


@given(rights)
def test_a_fitted_table_rises_and_stays_between_nought_and_one(pairs):
    table = isotonic([strength for strength, _ in pairs], [right for _, right in pairs])
    shares = [share for _, share in table]
    assert shares == sorted(shares)
    assert all(0.0 < share < 1.0 for share in shares)


def test_confidence_that_is_always_right_has_no_error_and_boasting_has():
    assert calibration_error([1.0] * 20, [True] * 20) == 0.0
    assert calibration_error([0.9] * 20, [False] * 20) == pytest.approx(0.9)


@given(rights)
def test_a_reliability_table_counts_every_verdict_once(pairs):
    rows = reliability([sure for sure, _ in pairs], [right for _, right in pairs])
    assert sum(row.count for row in rows) == len(pairs)


def test_a_fit_mends_what_is_overstated():
    strengths = [0.9] * 100 + [0.5] * 100
    right = [number % 10 < 6 for number in range(100)] + [number % 10 < 2 for number in range(100)]
    table = isotonic(strengths, right)
    assert calibration_error([share_at(table, value) for value in strengths], right) < 0.02


def test_the_bootstrap_interval_holds_the_figure():
    rows = [(1, 0, 0)] * 30 + [(0, 1, 0)] * 5
    low, high = interval(rows, lambda counts: counts.f1, seed=1)
    assert low < Counts(30, 5, 0).f1 < high


@pytest.mark.parametrize("name", ["hang", "hang-live", "straggler"])
def test_stronger_evidence_never_states_less(name):
    stated = [calibrated(name, strength / 20) for strength in range(200)]
    assert stated == sorted(stated)
    assert 0.0 <= stated[0] <= stated[-1] <= CONFIDENCE_MAX
