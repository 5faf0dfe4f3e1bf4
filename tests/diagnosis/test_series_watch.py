"""A fleet's series tick by tick: the changes that a search of the whole window finds, and none that all nodes share."""

from dataclasses import replace

import numpy as np
import pytest
from instep_diagnosis.detectors.series import SeriesSettings, detect_series_events
from instep_diagnosis.detectors.series_watch import SeriesWatch, WatchSettings, usual_and_scale

NODES, SERIES, TICKS, WINDOW = 60, 4, 200, 64
NAMES = tuple(f"node-{n}" for n in range(NODES))


def fleet(seed, *, ticks=TICKS, noise=0.02, autocorrelation=0.3):
    """Values by tick, series and node: each cell at its own height, with first-order noise and what all share."""
    dice = np.random.default_rng(seed)
    fresh_TSN = noise * np.sqrt(1 - autocorrelation**2) * dice.standard_normal((ticks, SERIES, NODES))
    x_TSN = fresh_TSN.copy()
    for t in range(1, ticks):
        x_TSN[t] = autocorrelation * x_TSN[t - 1] + fresh_TSN[t]
    swing_T = 0.3 * np.sin(np.arange(ticks) / 9.0) + 0.5 * (np.arange(ticks) > ticks // 2)
    return np.exp(x_TSN + swing_T[:, None, None] + dice.normal(0, 2, (SERIES, NODES)))


def watched(values_TSN, settings=None):
    """(tick, series, event) of all that is told."""
    watch = SeriesWatch(tuple(map(str, range(SERIES))), NAMES, settings)
    return [
        (t, int(told.series), told.event)
        for t, values_SN in enumerate(values_TSN)
        for told in watch.take(float(t), values_SN)
    ]


def test_tells_the_changes_that_a_search_of_the_whole_window_finds():
    level = SeriesSettings(price=20.0, samples_min=5)
    compared = 0
    for seed in range(10):
        dice = np.random.default_rng(1000 + seed)
        values_TSN = fleet(seed)
        for cell in dice.choice(SERIES * NODES, 6, replace=False):
            first = TICKS - int(dice.integers(20, 45))
            values_TSN[first:, cell // NODES, cell % NODES] *= np.exp(dice.choice([-1, 1]) * 0.2)
        told = {(s, event.worker): event for _, s, event in watched(values_TSN, WatchSettings(level=level))}
        times_T = np.arange(float(TICKS))[-WINDOW:]
        exact = {
            (s, event.worker): event
            for s in range(SERIES)
            for event in detect_series_events(values_TSN[-WINDOW:, s], times_T, NAMES, level)
        }
        assert told.keys() == exact.keys(), seed
        for cell, event in exact.items():
            assert abs(told[cell].start - event.start) <= 4
            # Told after some ticks, when noise still counts.
            assert told[cell].ratio == pytest.approx(event.ratio, rel=0.06)
            compared += 1
    assert compared > 50


@pytest.mark.parametrize("autocorrelation", [0.0, 0.5, 0.8])
def test_swings_of_all_nodes_gaps_and_resets_are_no_events(autocorrelation):
    for seed in range(3):
        values_TSN = fleet(seed, ticks=400, autocorrelation=autocorrelation)
        dice = np.random.default_rng(seed)
        values_TSN[dice.random(values_TSN.shape) < 0.1] = np.nan  # a node is silent
        values_TSN[dice.random(values_TSN.shape) < 0.003] = 0.0  # a counter begins anew
        values_TSN[dice.random(values_TSN.shape) < 0.003] *= 1e3
        values_TSN[100:130, :, 5] = np.nan
        values_TSN[200, 2] = np.nan
        assert watched(values_TSN) == []


def test_a_change_is_told_when_it_begins_and_when_it_is_over():
    values_TSN = fleet(1)
    values_TSN[100:150, 2, 7] *= 1.5
    (at, series, began), (until, same, over) = watched(values_TSN)
    assert (series, began.worker, began.is_ongoing) == (2, "node-7", True)
    assert 103 <= at <= 110
    assert abs(began.start - 100) <= 2
    assert began.ratio == pytest.approx(1.5, rel=0.05)
    assert (same, over.worker, over.start, over.is_ongoing) == (2, "node-7", began.start, False)
    assert 150 <= until <= 160
    assert abs(over.end - 150) <= 4


def test_a_second_change_of_the_same_cell_is_told_too():
    values_TSN = fleet(2, ticks=300)
    values_TSN[100:, 1, 3] *= 1.5
    values_TSN[200:, 1, 3] *= 1.5
    first, second = watched(values_TSN)
    assert abs(first[2].start - 100) <= 2
    assert abs(second[2].start - 200) <= 2


def test_what_half_of_the_fleet_shows_is_the_jobs():
    values_TSN = fleet(3)
    values_TSN[120:, 1, : NODES // 2] *= 1.4
    assert watched(values_TSN) == []


def test_only_so_many_are_judged_in_a_tick_and_none_is_lost():
    values_TSN = fleet(4)
    values_TSN[100:, :, :5] *= 1.6
    told = watched(values_TSN, replace(WatchSettings(), judged_max=3))
    assert {(s, event.worker) for _, s, event in told} == {(s, f"node-{n}") for s in range(SERIES) for n in range(5)}
    assert max(np.bincount([t for t, *_ in told])) <= 3


def test_permuting_nodes_and_scaling_series_change_nothing_but_names():
    values_TSN = fleet(5)
    values_TSN[120:, 0, 9] *= 1.3
    order = np.random.default_rng(5).permutation(NODES)
    ((at, _, one),), ((other_at, _, other),) = watched(values_TSN), watched(1e4 * values_TSN[:, :, order])
    assert order[int(other.worker.split("-")[1])] == 9
    assert (at, one.start) == (other_at, other.start)
    assert one.ratio == pytest.approx(other.ratio, rel=1e-3)


def test_a_node_alone_has_nothing_in_common_with_anyone():
    with pytest.raises(ValueError, match="no peers"):
        SeriesWatch(("a",), ("node-0", "node-1"))


def test_the_scale_is_that_of_the_mean_of_many_samples():
    """Means of 400 samples of first-order noise spread as the root of the long-run variance over 400 says."""
    dice = np.random.default_rng(6)
    x_TN = dice.standard_normal((400, 500)).astype(np.float32)
    for t in range(1, 400):
        x_TN[t] += 0.5 * x_TN[t - 1]
    x_TN[:250, 0] = np.nan
    x_TN[10:, 1] = np.nan
    usual_N, scale_N = usual_and_scale(x_TN, 15)
    assert np.std(x_TN[:, 2:].mean(axis=0)) * 20 == pytest.approx(np.median(scale_N), rel=0.25)
    assert abs(usual_N[0] - np.nanmedian(x_TN[:, 0])) < 1e-6
    assert np.isnan(usual_N[1])
    assert np.isinf(scale_N[1])
