"""Changes of level in any series: those of single workers are told, those of all are not."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_diagnosis.cli import main
from instep_diagnosis.detectors.series import SeriesSettings, detect_series_events, level_events
from instep_diagnosis.detectors.series_screen import can_change, despiked, median_of_seven
from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.files.series import read_series


def series(seed, *, samples=300, workers=4, noise=0.01, autocorrelation=0.3):
    """Values around 1 per time and worker, with first-order noise."""
    dice = np.random.default_rng(seed)
    fresh = noise * np.sqrt(1 - autocorrelation**2) * dice.standard_normal((samples, workers))
    x_TW = fresh.copy()
    for t in range(1, samples):
        x_TW[t] = autocorrelation * x_TW[t - 1] + fresh[t]
    return np.exp(x_TW)


def events(values_TW):
    times_T = np.arange(float(len(values_TW)))
    return detect_series_events(values_TW, times_T, tuple(f"w{n}" for n in range(values_TW.shape[1])))


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("ratio", [0.8, 0.95, 1.05, 1.3])
def test_an_event_is_told_with_its_onset_its_end_and_its_ratio(workers, ratio):
    values_TW = series(1, workers=workers)
    values_TW[120:200, 0] *= ratio
    (event,) = events(values_TW)
    assert event.worker == "w0"
    assert abs(event.start - 120) <= 3
    assert abs(event.end - 199) <= 3
    assert event.ratio == pytest.approx(ratio, abs=0.02)
    assert not event.is_ongoing


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_several_events_of_one_worker_are_told_each_with_its_end(workers):
    wanted = [(40, 69, 1.2), (100, 139, 1.3), (200, 239, 0.8)]
    for seed in range(12):
        values_TW = series(seed, workers=workers)
        for first, last, ratio in wanted:
            values_TW[first : last + 1, 0] *= ratio
        found = events(values_TW)
        assert [event.worker for event in found] == ["w0"] * 3, seed
        for event, (first, last, ratio) in zip(found, wanted, strict=True):
            assert abs(event.start - first) <= 3 and abs(event.end - last) <= 3, seed
            assert event.ratio == pytest.approx(ratio, abs=0.03)
            assert not event.is_ongoing


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("scale", [10, 20, 30, 60])
def test_whole_numbers_that_often_stay_the_same_are_no_events(workers, scale):
    raised = [
        event for seed in range(12) for event in events(np.round(scale * series(seed, workers=workers, noise=0.02)))
    ]
    assert raised == []


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_worker_that_stops_is_told_from_when_it_stopped(workers):
    for seed in range(12):
        values_TW = series(seed, workers=workers)
        values_TW[150:, 0] = 0.0
        (event,) = events(values_TW)
        assert (event.worker, event.ratio, event.is_ongoing) == ("w0", pytest.approx(0.001, rel=0.05), True)
        assert abs(event.start - 150) <= 3


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_series_without_noise_change_once_or_never(workers):
    values_TW = np.full((100, workers), 7.0)
    assert events(values_TW) == []
    values_TW[50:, 0] *= 1.1
    (event,) = events(values_TW)
    assert (event.worker, event.start, event.ratio) == ("w0", 50.0, pytest.approx(1.1))


@pytest.mark.parametrize("factor", [1000.0, 1e6, 1e-3])
def test_another_unit_from_some_moment_on_is_told_with_its_factor(factor):
    values_TW = series(1)
    values_TW[200:, 1] *= factor
    (event,) = events(values_TW)
    assert (event.worker, event.start) == ("w1", 200.0)
    assert event.ratio == pytest.approx(factor, rel=0.05)
    values_TW[200:, [0, 2, 3]] *= factor
    assert events(values_TW) == []


def test_numbers_at_the_ends_of_what_a_float_holds_give_an_answer():
    values_TW = series(1)
    values_TW[150:, 0], values_TW[:150, 0] = 1e149, 1e-300
    with np.errstate(all="raise", under="ignore"):
        assert {event.worker for event in events(values_TW)} <= {"w0"}


def test_an_event_that_lasts_is_ongoing():
    values_TW = series(2)
    values_TW[150:, 2] *= 1.2
    (event,) = events(values_TW)
    assert (event.worker, event.end, event.is_ongoing) == ("w2", 299.0, True)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_a_shift_of_all_workers_is_no_workers_event(workers):
    values_TW = series(3, workers=workers)
    values_TW[140:] *= 1.4
    assert events(values_TW) == []


def test_slopes_and_seasons_of_the_job_are_no_events():
    t = np.arange(600)[:, None]
    for workers in (1, 4):
        values_TW = series(4, samples=600, workers=workers) * np.exp(0.2 * t / 600 + 0.1 * np.sin(t * 2 * np.pi / 24))
        assert events(values_TW) == [], workers


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("period", [24, 60, 120])
def test_a_season_of_five_periods_and_more_is_no_event(workers, period):
    t = np.arange(600)[:, None]
    for seed in range(6):
        for season in (np.sin(t * 2 * np.pi / period), t % period < period / 6):
            assert events(series(seed, samples=600, workers=workers) * np.exp(0.2 * season)) == [], seed


def test_outliers_and_gaps_are_no_events_and_hide_none():
    values_TW = series(5)
    dice = np.random.default_rng(5)
    values_TW[dice.random(values_TW.shape) < 0.02] *= 3
    values_TW[dice.random(values_TW.shape) < 0.1] = np.nan
    assert events(values_TW) == []
    values_TW[100:160, 3] *= 0.9
    assert [event.worker for event in events(values_TW)] == ["w3"]


def test_few_healthy_series_raise_something():
    raised = total = 0
    for seed in range(60):
        dice = np.random.default_rng(seed)
        workers = int(dice.choice([1, 2, 4]))
        values_TW = series(
            seed, samples=int(dice.choice([60, 200, 600])), workers=workers, noise=0.03,
            autocorrelation=float(dice.choice([0.0, 0.4, 0.7])),
        )  # fmt: skip
        raised += len({event.worker for event in events(values_TW)})
        total += workers
    assert raised <= 0.02 * total


@pytest.mark.parametrize("samples", [20, 60, 250])
@pytest.mark.parametrize("autocorrelation", [0.0, 0.7])
def test_what_is_not_looked_at_closely_holds_no_change(samples, autocorrelation):
    """Changes from far too small to large, lasting and passing, gaps and outliers: the screen may miss none."""
    rest_TW = np.log(series(12, samples=samples, workers=400, autocorrelation=autocorrelation))
    dice = np.random.default_rng(12)
    for column in range(200):
        first, last = sorted(dice.integers(0, samples, 2))
        rest_TW[first:last, column] += dice.normal(0, 0.03)
    rest_TW[dice.random(rest_TW.shape) < 0.02] += 1.0
    rest_TW[dice.random(rest_TW.shape) < 0.02] = np.nan
    settings, times_T = SeriesSettings(), np.arange(float(samples))
    looked_at = set(can_change(rest_TW, settings.price, settings.samples_min))
    changed = {w for w in range(400) if level_events(rest_TW[:, w], times_T, "", settings)}
    assert changed <= looked_at
    assert changed
    # Autocorrelated noise looks like levels at first, and has to be looked at.
    assert len(looked_at) < (300 if autocorrelation == 0.0 else 400)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-10, 10), min_size=7, max_size=7))
def test_the_middle_of_seven_is_their_median(values):
    assert median_of_seven([np.array([value]) for value in values])[0] == np.median(values)


def test_a_lone_spike_is_cut_and_a_level_is_kept():
    x_TW = np.zeros((20, 2))
    x_TW[9, 0] = 5.0
    x_TW[9:, 1] = 5.0
    smooth_TW = despiked(x_TW, np.full(2, 0.1))
    assert smooth_TW[9, 0] == pytest.approx(0.3)
    assert np.array_equal(smooth_TW[:, 1], x_TW[:, 1])


def test_a_silent_worker_and_an_empty_table_raise_nothing():
    values_TW = series(6)
    values_TW[:, 1] = np.nan
    assert events(values_TW) == []
    assert events(np.zeros((0, 0))) == []


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(4)), st.sampled_from([1e-3, 7.0, 1e6]))
def test_permuting_and_scaling_change_nothing_but_names(order, factor):
    values_TW = series(7)
    values_TW[90:, 1] *= 1.3
    (event,) = events(factor * values_TW[:, order])
    assert order[int(event.worker[1:])] == 1
    assert event.ratio == pytest.approx(events(values_TW)[0].ratio)


def written(path, values_TW, *, order=None, time="{}"):
    rows = [f"{time.format(t)},w{w},{value}" for t, row in enumerate(values_TW) for w, value in enumerate(row)]
    rows = rows if order is None else [rows[n] for n in order]
    path.write_text("\n".join(["time,worker,value", *rows]))
    return str(path)


def test_the_command_takes_rows_in_any_order_twice_and_with_gaps(tmp_path, capsys):
    values_TW = series(8)
    values_TW[100:200, 2] *= 1.25
    values_TW[5, 0] = np.nan
    order = np.random.default_rng(8).permutation(np.repeat(np.arange(values_TW.size), 2))
    assert main(["series", written(tmp_path / "a.csv", values_TW, order=order), "--json"]) == 1
    (event,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert event["worker"] == "w2"
    assert abs(event["start"] - 100) <= 3
    assert event["ratio"] == pytest.approx(1.25, abs=0.01)


def test_workers_that_are_not_sampled_together_are_compared_all_the_same(tmp_path):
    values_TW = series(9)
    values_TW[150:, 1] *= 1.3
    values_TW[80:] *= 1.5
    rows = [f"{t + 0.21 * w},w{w},{value}" for t, row in enumerate(values_TW) for w, value in enumerate(row)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["time,worker,value", *rows]))
    table = read_series(str(path))
    (event,) = detect_series_events(table.values_TW, table.times_T, table.workers)
    assert event.worker == "w1"
    assert abs(event.start - 150) <= 3


def test_one_sample_of_each_worker_is_no_event(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("time,worker,value\n1,a,1\n0,b,1\n")
    assert main(["series", str(path)]) == 0
    assert capsys.readouterr().out == "No worker changed its level by itself.\n"


def test_dates_are_told_as_dates(tmp_path, capsys):
    values_TW = series(10, samples=60)
    values_TW[30:, 0] *= 2
    assert main(["series", written(tmp_path / "a.csv", values_TW, time="2025-03-01T10:{:02}:00")]) == 1
    assert "from 2025-03-01T10:30:00+00:00 and still is" in capsys.readouterr().out


def test_a_quiet_file_ends_0(tmp_path, capsys):
    assert main(["series", written(tmp_path / "a.csv", series(11))]) == 0
    assert capsys.readouterr().out == "No worker changed its level by itself.\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column time"),
        ("time,worker\n1,a", "no column value"),
        ("time,worker,value\nsoon,a,1", "Line 2 of"),
        ("time,worker,value\n", "holds no value"),
        ("time,worker,value\n1,a,nan\n2,a,none", "holds no value"),
        ("time,worker,value,value\n1,a,2,3", "column value twice"),
    ],
)
def test_damage_is_told_in_one_sentence(tmp_path, capsys, text, words):
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert main(["series", str(path)]) == 3
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


@settings(deadline=None, max_examples=150)
@given(
    st.binary(max_size=200)
    | st.lists(st.tuples(st.floats() | st.text(max_size=4), st.sampled_from("ab"), st.floats()), max_size=60)
)
def test_any_file_gives_events_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    if isinstance(content, bytes):
        path.write_bytes(b"time,worker,value\n" + content)
    else:
        path.write_text("\n".join(["time,worker,value", *(f"{t!r},{w},{v}" for t, w, v in content)]))
    try:
        table = read_series(str(path))
        for event in detect_series_events(table.values_TW, table.times_T, table.workers):
            assert np.isfinite(event.ratio)
    except EvidenceError as error:
        assert "\n" not in str(error)
