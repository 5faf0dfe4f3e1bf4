"""When a worker's level changed, in any series of one number per worker and time: nothing is known of the job.

What all workers share (a slope, a season, a shift of the whole job) is taken off first, as their median at each time.
In what is left of a worker, levels are found by least squares with a price per change (Killick et al. 2012, PELT). The
price is in units of the *long-run* variance, since autocorrelated noise has slow swings that look like levels.
Shapes: `T` times, `W` workers. NaN is *not observed*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.series_screen import can_change, despiked, long_run_variance, quiet

Array = npt.NDArray[np.float64]


RATIO_MIN, RATIO_MAX = 1e-3, 1e12
"""A value is taken for no less of its worker's median: what has stopped is a thousandth. And for no more."""
MOVED_SHARE_MIN = 0.05
"""Of all steps, those that must move before the noise is theirs alone; with fewer, they are changes of level."""


LEVELS_OF_ONE_EVENT = 3
NEAR_NORMAL_SHARE = 0.25
"""Of the largest change: what several changes leave of a slope is less (a tenth, in simulation)."""


PERIOD_LIKENESS_MIN, PERIODS_ALIKE_MIN = 0.4, 0.75
"""A season is in so many of all periods, each at least by so much of it."""


@dataclass(frozen=True, slots=True)
class SeriesSettings:
    """When a change of level is an event."""

    price: float = 7.0
    """Of one change, in long-run variances times the logarithm of the number of samples. By simulation about one
    healthy series in 250 raises something (40 to 2,000 samples, noise 0.3 to 10 % with autocorrelation 0 to 0.7,
    slopes, seasons, outliers, gaps)."""
    change_ratio_min: float = 0.02
    """Smaller changes of level are no event."""
    samples_min: int = 4
    """A level must hold for so many samples: a shorter one is an outlier."""
    peers_min: int = 3
    """With fewer workers their median is no common behaviour; then events that two workers share are left out."""
    season_share_min: float = 0.35
    """Autocorrelation at the period above which a season is taken off a worker without peers."""


@dataclass(frozen=True, slots=True)
class SeriesEvent:
    """One worker was at another level for a while."""

    worker: str
    start: float
    """Time of the first sample at the new level."""
    end: float
    """Time of the last sample at the new level."""
    ratio: float
    """Level during over level before."""
    is_ongoing: bool
    """The series ends at the new level."""


def detect_series_events(
    values_TW: Array, times_T: Array, workers: tuple[str, ...], settings: SeriesSettings | None = None
) -> list[SeriesEvent]:
    """Events of single workers, by start. A change that most workers share is the job's and no worker's, so it is left
    out. Values at or below zero count as nearly zero."""
    settings = settings or SeriesSettings()
    rest_TW, is_alone_W = _without_common(_relative(values_TW), settings)
    found: list[SeriesEvent] = []
    for column in can_change(rest_TW, settings.price, settings.samples_min):
        is_alone = bool(is_alone_W[column])
        found += level_events(rest_TW[:, column], times_T, workers[column], settings, is_alone=is_alone)
    return sorted(_not_shared(found, len(workers)), key=lambda event: (event.start, event.worker))


def _relative(values_TW: Array) -> Array:
    """Logarithm of each value over its worker's median, within limits."""
    is_positive_TW = np.isfinite(values_TW) & (values_TW > 0)
    typical_W = _medians(values_TW, is_positive_TW)
    with np.errstate(invalid="ignore", over="ignore"):
        x_TW = np.log(np.clip(values_TW / typical_W, RATIO_MIN, RATIO_MAX))
    return np.where(np.isfinite(values_TW), x_TW, np.nan)


def _medians(values_TW: Array, kept_TW: npt.NDArray[np.bool_]) -> Array:
    """[W]: median of the values that are kept; NaN where none is."""
    ordered_TW = np.sort(np.where(kept_TW, values_TW, np.inf), axis=0)
    count_W = kept_TW.sum(axis=0)
    if not count_W.any():
        return np.full(count_W.size, np.nan)
    middle = np.stack([np.maximum(count_W - 1, 0) // 2, count_W // 2 * (count_W > 0)])
    return np.where(count_W > 0, np.take_along_axis(ordered_TW, middle, axis=0).mean(axis=0), np.nan)


def _without_common(x_TW: Array, settings: SeriesSettings) -> tuple[Array, npt.NDArray[np.bool_]]:
    """What is left of each worker, and [W]: whether it has no peers, so that its own slope was taken off."""
    is_peered_T = np.isfinite(x_TW).sum(axis=1) >= settings.peers_min
    common_T = np.full(len(x_TW), np.nan)
    for t in np.flatnonzero(is_peered_T):
        seen = x_TW[t][np.isfinite(x_TW[t])]
        common_T[t] = np.median(seen)
    rest_TW: Array = x_TW - common_T[:, None]
    is_alone_W = ~_are_like_peers(x_TW, rest_TW)
    for column in np.flatnonzero(is_alone_W):
        rest_TW[:, column] = _without_season_and_slope(x_TW[:, column], settings)
    return rest_TW, is_alone_W


def _are_like_peers(own_TW: Array, shared_TW: Array) -> npt.NDArray[np.bool_]:
    """[W]: whether taking off the common behaviour leaves less, or not much more, than was there."""
    known_TW = np.isfinite(shared_TW)
    count_W = known_TW.sum(axis=0)
    is_seen_W = (count_W >= 0.5 * np.isfinite(own_TW).sum(axis=0)) & (count_W >= 4)
    with np.errstate(invalid="ignore"):
        is_calmer_W = _scatter(shared_TW, known_TW) <= 1.5 * _scatter(own_TW, known_TW)
    return np.asarray(is_seen_W & is_calmer_W)


def _scatter(values_TW: Array, known_TW: npt.NDArray[np.bool_]) -> Array:
    """[W]: median step from one known value to the next."""
    order_TW = np.argsort(~known_TW, axis=0, kind="stable")
    steps_TW = np.abs(np.diff(np.take_along_axis(values_TW, order_TW, axis=0), axis=0))
    return _medians(steps_TW, np.take_along_axis(known_TW, order_TW, axis=0)[1:])


def _without_season_and_slope(x_T: Array, settings: SeriesSettings) -> Array:
    """A worker without peers: its own season, where one shows clearly, and its own slope taken off.

    The slope is the median over pairs an eighth of the series apart, of which one change of level touches one in eight.
    """
    known = np.flatnonzero(np.isfinite(x_T))
    if known.size < 16:
        return x_T
    whole = np.interp(np.arange(x_T.size), known, x_T[known])
    period = _period(whole, settings)
    if period and _season(whole, period).any():
        # Wrong by one sample, it would run away from the season within a few periods.
        near = range(max(2, period - period // 16 - 1), period + period // 16 + 2)
        seasons = [_season(whole, each) for each in near]
        whole = whole - min(seasons, key=lambda season: float(np.mean(np.abs(whole - season))))
    apart = max(4, whole.size // 8)
    slope = float(np.median(whole[apart:] - whole[:-apart])) / apart
    whole = whole - slope * np.arange(whole.size)
    return np.asarray(np.where(np.isfinite(x_T), whole, np.nan))


def _period(x: Array, settings: SeriesSettings) -> int:
    """Lag of the clearest repetition, at least four times in the series; 0 without one.

    Of what is left when the mean of an eighth of the series around each sample is taken off: a change of level is then
    a short spike, and a slope nothing.
    """
    width = max(5, x.size // 8) | 1
    padded = np.pad(x, width // 2, mode="edge")
    swing = x - np.convolve(padded, np.full(width, 1.0 / width), mode="valid")
    limit = 3.0 * 1.4826 * float(np.median(np.abs(swing)))
    swing = np.clip(swing, -limit, limit)
    power = float(swing @ swing)
    if power <= 0.0:
        return 0
    size = 1 << (2 * swing.size - 1).bit_length()
    correlation = np.fft.irfft(np.abs(np.fft.rfft(swing, size)) ** 2, size)[: swing.size // 4 + 1] / power
    # Before the first lag without correlation lies what noise has of its own.
    correlation[: int(np.argmax(correlation <= 0.0)) if (correlation <= 0.0).any() else correlation.size] = 0.0
    if correlation.max(initial=0.0) < settings.season_share_min:
        return 0
    # The shortest of those that repeat as clearly, at its own peak.
    first = int(np.argmax(correlation >= 0.9 * correlation.max()))
    return first + int(np.argmax(correlation[first : first + max(2, first // 4)]))


def _season(x: Array, period: int) -> Array:
    """Median over the periods of what each phase is above its own period's median; nothing where most periods do not
    show it: a few changes of level that happen to lie a period apart are no season."""
    whole = np.full(-(-x.size // period) * period, np.nan)
    whole[: x.size] = x
    table = whole.reshape(-1, period)
    table = table - np.nanmedian(table, axis=1, keepdims=True)
    season = np.nanmedian(table, axis=0)
    whole_periods = table[: x.size // period]
    likeness = whole_periods @ season / max(float(season @ season), 1e-30)
    if np.mean(likeness > PERIOD_LIKENESS_MIN) < PERIODS_ALIKE_MIN:
        return np.zeros_like(x)
    return np.asarray(np.tile(season, len(table))[: x.size])


def level_events(
    rest_T: Array, times_T: Array, worker: str, settings: SeriesSettings, *, is_alone: bool = False
) -> list[SeriesEvent]:
    """Events of one worker from what is left of it when all that is common is taken off; NaN is left out."""
    rows = np.flatnonzero(np.isfinite(rest_T))
    if rows.size < 3 * settings.samples_min:
        return []
    levels = _levels(rest_T[rows], settings)
    if is_alone and len(levels) > LEVELS_OF_ONE_EVENT:
        levels = _levels(_upright(rest_T[rows], rows, levels), settings)
    normal = _normal(levels, rows.size)
    return [_event(run, normal, times_T[rows], worker, rows.size) for run in _runs(levels, normal, settings)]


@dataclass(frozen=True, slots=True)
class _Level:
    start: int
    end: int
    """Sample after its last."""
    height: float


def _levels(x_T: Array, settings: SeriesSettings) -> list[_Level]:
    """Stretches of equal level: first with a cautious guess of the noise, then with what is left around them."""
    near_W = _noise(x_T)
    smooth_T = despiked(x_T[:, None], near_W)[:, 0]
    price = settings.price * np.log(len(x_T))
    ends = change_points(smooth_T, price * (2.0 * float(near_W[0])) ** 2, settings.samples_min)
    rest_T = np.concatenate([part - np.median(part) for part in np.split(smooth_T, ends[:-1])])
    ends = change_points(smooth_T, price * float(long_run_variance(rest_T[:, None])[0]), settings.samples_min)
    return [_Level(a, b, float(np.median(x_T[a:b]))) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _noise(x_T: Array) -> Array:
    """[1]: noise from one sample to the next. Whole numbers often stay the same, and so does what has stopped: steps of
    nothing are left out where enough others are there, since they make noise look like none."""
    steps_T = np.diff(x_T)
    moved = steps_T[steps_T != 0.0]
    is_enough = moved.size >= MOVED_SHARE_MIN * steps_T.size
    return np.asarray(quiet((moved if is_enough else steps_T)[:, None]) / np.sqrt(2.0))


def change_points(x_T: Array, price: float, samples_min: int) -> list[int]:
    """Ends of the stretches of equal level that fit best at this price per change; the last is the end of the series.

    >>> change_points(np.array([0.0] * 8 + [1.0] * 8), 0.1, 2)
    [8, 16]
    """
    total = np.concatenate([[0.0], np.cumsum(x_T)])
    squares = np.concatenate([[0.0], np.cumsum(x_T**2)])
    count = len(x_T)
    best = np.full(count + 1, np.inf)
    best[0] = -price
    before = np.zeros(count + 1, dtype=int)
    starts = np.array([0])
    for end in range(samples_min, count + 1):
        length = end - starts
        cost = best[starts] + squares[end] - squares[starts] - (total[end] - total[starts]) ** 2 / length
        chosen = int(np.argmin(cost))
        best[end], before[end] = cost[chosen] + price, starts[chosen]
        starts = starts[cost <= best[end]]
        if end + 1 - samples_min >= samples_min:
            starts = np.append(starts, end + 1 - samples_min)
    ends = [count]
    while before[ends[0]] > 0:
        ends.insert(0, int(before[ends[0]]))
    return ends


def _upright(x_T: Array, rows: npt.NDArray[np.int64], levels: list[_Level]) -> Array:
    """A worker without peers and with several changes, which bend the slope that was taken off: without the slope that
    is left between its levels near the normal one. That is the median over pairs half of them apart."""
    normal = _normal(levels, x_T.size)
    near = NEAR_NORMAL_SHARE * max(abs(level.height - normal) for level in levels)
    kept = [np.arange(level.start, level.end) for level in levels if abs(level.height - normal) <= near]
    places = np.concatenate(kept)
    apart = places.size // 2
    first, second = places[:-apart], places[apart:]
    slope = float(np.median((x_T[second] - x_T[first]) / (rows[second] - rows[first])))
    return np.asarray(x_T - slope * rows)


def _normal(levels: list[_Level], count: int) -> float:
    """The level before: that of the beginning, unless that one is a short stretch before a long one."""
    first = levels[0]
    longest = max(levels, key=lambda level: level.end - level.start)
    is_short = first.end - first.start < 0.1 * count < 0.5 * (longest.end - longest.start)
    return longest.height if is_short else first.height


def _runs(levels: list[_Level], normal: float, settings: SeriesSettings) -> list[list[_Level]]:
    """Neighbouring levels on the same side of the normal one."""
    runs: list[list[_Level]] = []
    side_before = 0
    for level in levels:
        distance = level.height - normal
        side = 0 if abs(distance) < np.log1p(settings.change_ratio_min) else int(np.sign(distance))
        if side and side == side_before:
            runs[-1].append(level)
        elif side:
            runs.append([level])
        side_before = side
    return runs


def _event(run: list[_Level], normal: float, times_T: Array, worker: str, count: int) -> SeriesEvent:
    weights = [level.end - level.start for level in run]
    height = float(np.average([level.height for level in run], weights=weights))
    return SeriesEvent(
        worker=worker,
        start=float(times_T[run[0].start]),
        end=float(times_T[run[-1].end - 1]),
        ratio=float(np.exp(height - normal)),
        is_ongoing=run[-1].end == count,
    )


def _not_shared(events: list[SeriesEvent], workers: int) -> list[SeriesEvent]:
    """Without those that at least half of the workers, and at least two, show at the same time and in the same way."""
    kept = []
    for event in events:
        like = {other.worker for other in events if _is_same(event, other)}
        if len(like) < 2 or 2 * len(like) < workers:
            kept.append(event)
    return kept


def _is_same(one: SeriesEvent, other: SeriesEvent) -> bool:
    overlap = min(one.end, other.end) - max(one.start, other.start)
    longer = max(one.end - one.start, other.end - other.start)
    is_alike = abs(np.log(one.ratio) - np.log(other.ratio)) <= 0.5 * abs(np.log(one.ratio))
    return is_alike and overlap >= 0.8 * longer
