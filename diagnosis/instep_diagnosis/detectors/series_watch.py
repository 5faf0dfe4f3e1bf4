"""Changes of level in many series of a whole fleet, tick by tick: the verdicts of `series`, for a few passes over each
tick's values.

What all nodes share (the median over nodes, series by series) is taken off each value. Two cumulated sums per node and
series, one each way, tell where something may have begun (Page 1954); only there the window is searched, by
`series.level_events`.

Shapes: `T` ticks, `S` series, `N` nodes; a cell is one series of one node. NaN is *not observed*.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.series import Array, SeriesEvent, SeriesSettings, level_events

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """When a change of level of one of very many cells is an event."""

    window_ticks: int = 64
    """A change is sought in so many of the newest ticks."""
    slack_sigmas: float = 0.5
    """Taken off each deviation before it is added up, in long-run standard deviations of the cell."""
    limit_sigmas: float = 12.0
    """A sum above it makes the cell suspect."""
    deviation_sigmas_max: float = 4.0
    """One value counts for no more: three outliers in a row make no suspect."""
    judged_max: int = 128
    """Suspects whose windows are searched in one tick, the strongest first; the others stay suspects."""
    level: SeriesSettings = field(default_factory=lambda: SeriesSettings(price=20.0, samples_min=5))
    """Dearer than for a single table, as there are half a million cells and every tick is a new test."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One node was at another level in one series; told when it begins, and again when it is over."""

    series: str
    event: SeriesEvent


@dataclass(frozen=True, slots=True)
class _Told:
    event: SeriesEvent
    at: float
    normal: float


class SeriesWatch:
    """The state of a fleet's series between ticks. It knows no clock: a tick's time is an argument."""

    def __init__(self, series: tuple[str, ...], nodes: tuple[str, ...], settings: WatchSettings | None = None) -> None:
        """Watch these series of these nodes. Raises `ValueError` where nodes are too few to have anything in common."""
        self._series, self._nodes, self._settings = series, nodes, settings or WatchSettings()
        if len(nodes) < self._settings.level.peers_min:
            raise ValueError(f"{len(nodes)} nodes have no peers: watch at least {self._settings.level.peers_min}.")
        shape = (len(series), len(nodes))
        self._rest_TSN: Floats = np.full((self._settings.window_ticks, *shape), np.nan, dtype=np.float32)
        self._times_T = np.zeros(self._settings.window_ticks)
        self._usual_SN: Floats = np.full(shape, np.nan, dtype=np.float32)
        self._scale_SN: Floats = np.full(shape, np.inf, dtype=np.float32)
        self._up_SN: Floats = np.zeros(shape, dtype=np.float32)
        self._down_SN: Floats = np.zeros(shape, dtype=np.float32)
        self._told: dict[int, _Told] = {}
        self._ticks = self._next_series = 0

    def take(self, now: float, values_SN: npt.NDArray[np.floating]) -> list[WatchEvent]:
        """What the values of one tick make known: changes that began, and told ones that are over."""
        deviation_SN = self._deviations(values_SN)
        row = self._ticks % self._settings.window_ticks
        np.add(deviation_SN, self._usual_SN, out=self._rest_TSN[row])
        self._times_T[row] = now
        self._ticks += 1
        self._add_up(deviation_SN)
        if 2 * self._ticks >= self._settings.window_ticks:
            self._measure_some()
        return [found for cell in self._suspects() if (found := self._judged(cell, now)) is not None]

    def _deviations(self, values_SN: npt.NDArray[np.floating]) -> Floats:
        """Logarithm of each value over its cell's usual one, less what most nodes share of that."""
        x_SN: Floats = np.log(np.maximum(values_SN, _VALUE_MIN, dtype=np.float32))
        np.copyto(self._usual_SN, x_SN, where=np.isnan(self._usual_SN))
        x_SN -= self._usual_SN
        np.maximum(x_SN, _LOG_RATIO_MIN, out=x_SN)
        for row_N in x_SN:
            known = row_N[~np.isnan(row_N)]
            row_N -= np.median(known) if known.size >= self._settings.level.peers_min else np.float32(np.nan)
        return x_SN

    def _add_up(self, deviation_SN: Floats) -> None:
        most, slack = np.float32(self._settings.deviation_sigmas_max), np.float32(self._settings.slack_sigmas)
        z_SN = deviation_SN / self._scale_SN
        np.nan_to_num(z_SN, copy=False)
        np.clip(z_SN, -most, most, out=z_SN)
        for sum_SN, add in ((self._up_SN, np.add), (self._down_SN, np.subtract)):
            add(sum_SN, z_SN, out=sum_SN)
            sum_SN -= slack
            np.maximum(sum_SN, np.float32(0.0), out=sum_SN)

    def _measure_some(self) -> None:
        """Measure what is usual in a few series anew, all in turn: each once in half a window."""
        count = -(-2 * len(self._series) // self._settings.window_ticks)
        for _ in range(min(count, len(self._series))):
            place = self._next_series
            self._next_series = (place + 1) % len(self._series)
            usual_N, scale_N = usual_and_scale(
                self._in_order(self._rest_TSN[:, place]), samples_min=3 * self._settings.level.samples_min
            )
            # What may be about to change is no part of what is usual.
            half = 0.5 * self._settings.limit_sigmas
            is_calm_N = np.maximum(self._up_SN[place], self._down_SN[place]) < half
            is_new_N = np.isfinite(usual_N) & (is_calm_N | np.isinf(self._scale_SN[place]))
            np.copyto(self._usual_SN[place], usual_N, where=is_new_N)
            np.copyto(self._scale_SN[place], scale_N, where=is_new_N)

    def _in_order(self, ring_Tx: Floats) -> Floats:
        return np.roll(ring_Tx, -(self._ticks % len(ring_Tx)), axis=0)

    def _suspects(self) -> Index:
        """Cells whose sum is too high, strongest first; none where half of the nodes have one: that is the job's."""
        highest_SN = np.maximum(self._up_SN, self._down_SN)
        is_high_SN = highest_SN > self._settings.limit_sigmas
        # Not all get over the limit in the same tick.
        is_shared_S = 2 * (highest_SN > 0.5 * self._settings.limit_sigmas).sum(axis=1) >= len(self._nodes)
        if is_shared_S.any():
            is_high_SN[is_shared_S] = False
            self._up_SN[is_shared_S] = self._down_SN[is_shared_S] = 0.0
        cells = np.flatnonzero(is_high_SN)
        strongest = np.argsort(-highest_SN.reshape(-1)[cells], kind="stable")
        return np.asarray(cells[strongest[: self._settings.judged_max]])

    def _judged(self, cell: int, now: float) -> WatchEvent | None:
        place, node = divmod(int(cell), len(self._nodes))
        rest_T = self._in_order(self._rest_TSN[:, place, node]).astype(np.float64)
        times_T = np.roll(self._times_T, -(self._ticks % len(self._times_T)))
        told = self._told.get(int(cell))
        found = level_events(rest_T, times_T, self._nodes[node], self._settings.level)
        # After what was told the sums began anew, so that only what began later can be new.
        events = [event for event in found if told is None or event.start > told.at]
        events = [
            event for event in events if self._is_strong(event, rest_T, times_T, float(self._scale_SN[place, node]))
        ]
        if told is not None and told.event.is_ongoing and self._is_back(rest_T, told):
            ended = replace(told.event, end=self._last_away(rest_T, times_T, told), is_ongoing=False)
            return self._tell(int(cell), _Told(ended, now, told.normal), told.normal)
        if not events:
            # No change yet. A true one goes on adding and is looked at again soon.
            self._up_SN[place, node] *= 0.5
            self._down_SN[place, node] *= 0.5
            return None
        event, normal = events[-1], float(self._usual_SN[place, node])
        level = normal + float(np.log(event.ratio)) if event.is_ongoing else normal
        return self._tell(int(cell), _Told(event, now, normal), level)

    def _is_strong(self, event: SeriesEvent, rest_T: Array, times_T: Array, scale: float) -> bool:
        """Whether it also has the price of a change in the noise that the series has on most nodes."""
        times_K = times_T[np.isfinite(rest_T)]
        count = int(((times_K >= event.start) & (times_K <= event.end)).sum())
        gain = count * (1.0 - count / times_K.size) * float(np.log(event.ratio)) ** 2
        return gain > self._settings.level.price * float(np.log(times_K.size)) * scale**2

    def _is_back(self, rest_T: Array, told: _Told) -> bool:
        known = rest_T[np.isfinite(rest_T)][-self._settings.level.samples_min :]
        away = abs(float(np.median(known)) - told.normal)
        return away < 0.5 * abs(float(np.log(told.event.ratio)))

    def _last_away(self, rest_T: Array, times_T: Array, told: _Told) -> float:
        away = np.abs(rest_T - told.normal) > 0.5 * abs(float(np.log(told.event.ratio)))
        return float(times_T[away].max(initial=told.event.start))

    def _tell(self, cell: int, told: _Told, level: float) -> WatchEvent:
        """Remember what is told, and go on from the level at which the cell is now."""
        place, node = divmod(cell, len(self._nodes))
        self._told[cell] = told
        self._usual_SN[place, node] = level
        self._up_SN[place, node] = self._down_SN[place, node] = 0.0
        return WatchEvent(self._series[place], told.event)


_VALUE_MIN = np.float32(1e-30)
"""Values at or below zero count as nearly zero."""
_LOG_RATIO_MIN = np.float32(np.log(1e-3))
"""And no value as less than a thousandth of the usual one."""
_CLIP_SIGMAS = 3.0
_NEAR_QUANTILE = 0.9


def usual_and_scale(rest_TN: Floats, samples_min: int) -> tuple[Floats, Floats]:
    """[N] median of each column, and the root of its long-run variance as a first-order process, outliers cut. NaN and
    infinity for columns with too few values.

    A short window knows its autocorrelation badly, and of many some know it as far too low: none is taken for less than
    what nine of ten columns have.
    """
    rest_NT = np.ascontiguousarray(rest_TN.T)
    known_NT = np.isfinite(rest_NT)
    count_N = known_NT.sum(axis=1)
    usual_N = _medians(rest_NT, count_N)
    rest_NT -= usual_N[:, None]
    sigma_N = 1.4826 * _medians(np.abs(rest_NT), count_N)
    np.nan_to_num(rest_NT, copy=False)
    limit_N1 = np.nan_to_num(_CLIP_SIGMAS * sigma_N)[:, None]
    np.clip(rest_NT, -limit_N1, limit_N1, out=rest_NT)
    power_N = np.einsum("nt,nt->n", rest_NT, rest_NT)
    near_N = np.einsum("nt,nt->n", rest_NT[:, 1:], rest_NT[:, :-1]) / np.maximum(power_N, 1e-20)
    is_known_N = count_N >= samples_min
    like_most = float(np.quantile(near_N[is_known_N], _NEAR_QUANTILE)) if is_known_N.any() else 0.0
    rho_N = np.clip(np.maximum(near_N, like_most), 0.0, 0.95)
    variance_N = np.maximum(power_N / np.maximum(count_N, 1), 1e-12) * (1.0 + rho_N) / (1.0 - rho_N)
    usual_N = np.where(is_known_N, usual_N, np.float32(np.nan))
    return usual_N, np.where(is_known_N, np.sqrt(variance_N), np.inf).astype(np.float32)


def _medians(values_NT: Floats, count_N: Index) -> Floats:
    """[N]: median of each row's known values, of which there are so many."""
    ordered_NT = np.sort(values_NT, axis=1)  # NaN last
    rows = np.arange(len(values_NT))
    low_N, high_N = (ordered_NT[rows, np.maximum(count_N - back, 0) // 2] for back in (1, 0))
    return np.asarray((low_N + high_N) * np.float32(0.5))
