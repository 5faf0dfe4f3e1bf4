"""The sequential test for slow ranks: is a rank slower than its peers by more than chance and habit explain?

For every rank, x is the logarithm of its work over the median of its peers, one value a step. Every stretch of n steps
that ends now is asked two things; the surest stretch that passes one is a finding.

- *Slower than its peers*: is its level above k = `offset_share` × log(`ratio_min`)? A small lasting offset (rank 0
  logs) is healthy.
- *Slower than it was*: has its level risen over the rank's own steps before by more than a level wanders? A habit
  cannot explain that, so it names less: a few per cent in a quiet job.

Sureness is z = (level − null) · √n / σ, where level and long-run σ are those of `levels`, and σ comes from the job
itself. It is the generalised likelihood ratio test for a change of unknown time and size (Lai 1995): strong faults need
few steps, weak ones more. Of two ranks each is the other's only peer: then the slow one must also have risen itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instep_diagnosis.detectors.levels import location, long_run_noise, median, scale_of
from instep_diagnosis.detectors.work import Array, peers_median
from instep_diagnosis.settings import StragglerSettings

_PAST_STEPS_MIN = 8
"""Fewer steps before a stretch are no past."""
_RISE_PAST_STEPS_MIN = 16
"""… and a rise of a few per cent needs so many."""
_PAST_ALONE_STEPS = 24
"""With so many the noise is taken from the past alone: a short stretch has lost its slow part to its own level."""
_EVERY_LENGTH_UPTO, _LENGTH_GROWTH = 32, 1.12
"""Stretches of every length up to the first; then each is longer by the second."""
_SAMPLED_RANKS = 16
"""Ranks whose noise stands for the job's."""
_OTHERS_SHARE = 0.85
"""A rank is taken for no quieter than this share of the others' noise."""
_FIRST_LOOK_SHARE = 0.75
"""A cheap mean over the steps must come so near to the threshold before a rank is looked at closely."""
_NEAR_SHARE = 0.8
"""A stretch whose median is below this share of the smallest level is not looked at further."""
_OWN_RISE_SHARE = 0.5
"""Of two ranks, the slow one's own work must have risen by this share of what they came apart."""
_PAIR_RISE_SIGMAS = 2.5
"""Of two ranks, a rise must be so many times the noise of one step: what is less a single peer's lasting noise makes,
too."""
_PEERS_RISE_FACTOR = 2.0
"""Where neighbours disturb, a rank must have come apart from its peers by so many times what they became slower."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of one kind of work."""

    ratio_min: float
    """Smallest slowdown against peers."""
    rise_ratio_min: float | None = None
    """Smallest rise over the rank's own past; None: a rise alone is none."""
    disturbance: float = 0.0
    """How far, from 0 to 1, neighbours on the same cores may explain a slowdown."""


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A rank's stretch of slow steps, ending with the newest."""

    column: int
    """The rank's column in the arrays."""
    start: int
    """First row of the stretch."""
    rows: tuple[int, ...]
    """Rows of the stretch in which the rank and a peer were observed."""
    ratio: float
    """Its work over that of its peers."""
    z: float
    is_ongoing: bool


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The newest n steps of a rank, and those before."""

    x_T: Array
    own_T: Array
    """Logarithm of the rank's own work."""
    length: int
    others_noise: float
    floor: float

    @property
    def newest_T(self) -> Array:
        return self.x_T[-self.length :]

    @property
    def past_T(self) -> Array:
        return self.x_T[: -self.length]

    @property
    def has_past(self) -> bool:
        return len(self.past_T) >= _PAST_STEPS_MIN

    def residuals(self) -> list[Array]:
        """Both parts less their own level; only the past where it is long enough."""
        newest = self.newest_T - median(self.newest_T)
        if not self.has_past:
            return [newest]
        past = self.past_T - median(self.past_T)
        return [past] if len(past) >= _PAST_ALONE_STEPS else [past, newest]

    def own_rise(self) -> float:
        """By how much the rank's own work rose, whatever its peers did."""
        return median(self.own_T[-self.length :]) - median(self.own_T[: -self.length])


def find_slowdowns(work_seconds_TR: Array, limits: Limits, settings: StragglerSettings) -> list[Slowdown]:
    """Columns that are slower than their peers, slowest first; empty with too few steps or peers."""
    x_TR = np.log(work_seconds_TR) - np.log(peers_median(work_seconds_TR))
    test = _Test(limits, settings, x_TR.shape[1])
    noise = others_noise(x_TR, settings.noise_ratio_min)
    found = []
    for column in test.first_look(x_TR):
        rows = np.flatnonzero(np.isfinite(x_TR[:, column]))
        if rows.size >= settings.steps_min:
            own_T = np.log(work_seconds_TR[rows, column])
            if slow := test.best(x_TR[rows, column], own_T, rows, int(column), noise):
                found.append(slow)
    return sorted(found, key=lambda slow: -slow.ratio)


def others_noise(x_TR: Array, floor: float) -> float:
    """Long-run noise of the middle one of the job's ranks; 0 for fewer than four, which a slow one would spoil."""
    ranks = x_TR.shape[1]
    if ranks < 4:
        return 0.0
    columns = np.unique(np.linspace(0, ranks - 1, min(ranks, _SAMPLED_RANKS)).astype(int))
    known = [x_TR[np.isfinite(x_TR[:, c]), c] for c in columns]
    found = [long_run_noise([x_T - median(x_T)], floor) for x_T in known if x_T.size >= _PAST_STEPS_MIN]
    return float(np.median(found)) if found else 0.0


def z_min(ranks: int, settings: StragglerSettings) -> float:
    """The threshold: the more ranks there are, the farther one of them strays by chance.

    >>> round(z_min(4, StragglerSettings()), 2), round(z_min(8192, StragglerSettings()), 1)
    (4.4, 5.9)
    """
    return float(np.sqrt(settings.z_min**2 + 2.0 * np.log(max(1.0, ranks / 4.0))))


class _Test:
    """The two questions with their limits as logarithms."""

    def __init__(self, limits: Limits, settings: StragglerSettings, ranks: int) -> None:
        self._settings = settings
        self._ranks = ranks
        self._z_min = z_min(ranks, settings)
        is_disturbed = limits.disturbance >= settings.disturbance_min
        self._is_disturbed = is_disturbed
        share = limits.disturbance if is_disturbed else 0.0
        allowed = float(np.log1p(share * settings.disturbed_offset_ratio))
        least = float(np.log1p(share * (settings.disturbed_ratio_min - 1.0)))
        self._null = max(settings.offset_share * float(np.log(limits.ratio_min)), allowed)
        self._level_min = 0.9 * max(float(np.log(limits.ratio_min)), least)
        rise = limits.rise_ratio_min
        if rise is not None and ranks == 2:
            rise = max(rise, settings.pair_rise_ratio_min)
        self._rise_null = allowed + (0.0 if rise is None else settings.wander_share * float(np.log(rise)))
        self._rise_min = np.inf if rise is None else 0.9 * max(float(np.log(rise)), least)
        self._fast_share = settings.rise_fast_share_max if is_disturbed else settings.fast_share_max
        self._length_min = settings.disturbed_steps_min if is_disturbed else settings.run_steps_min

    def first_look(self, x_TR: Array) -> npt.NDArray[np.intp]:
        """Columns worth a close look: all at once, since a large job has thousands."""
        known_TR = np.isfinite(x_TR)
        scale = scale_of([x_TR[known_TR]], self._settings.noise_ratio_min) if known_TR.any() else 1.0
        limit = max(3.0 * scale, 3.0 * self._null)
        newest_TR = np.where(known_TR, np.clip(np.nan_to_num(x_TR), -limit, limit), 0.0)[::-1]
        counts_TR = np.maximum(np.cumsum(known_TR[::-1], axis=0), 1)
        null = min(self._null, self._rise_null) if np.isfinite(self._rise_min) else self._null
        z_TR = (np.cumsum(newest_TR, axis=0) / counts_TR - null) * np.sqrt(counts_TR) / scale
        return np.flatnonzero((z_TR >= _FIRST_LOOK_SHARE * self._z_min).any(axis=0))

    def best(self, x_T: Array, own_T: Array, rows: npt.NDArray[np.intp], column: int, noise: float) -> Slowdown | None:
        """The surest stretch of one rank that passes; None without."""
        best: tuple[float, int] | None = None
        for length in _lengths(self._length_min, len(x_T)):
            stretch = _Stretch(x_T, own_T, length, noise, self._settings.noise_ratio_min)
            z = self._sureness(stretch)
            if z is not None and (best is None or z > best[0]):
                best = (z, length)
        if best is None:
            return None
        z, length = best
        begin = self._onset(x_T, length)
        level = median(x_T[begin:])
        is_large = level >= self._level_min
        if len(x_T) - begin < (self._length_min if is_large else self._settings.rise_steps_min):
            return None  # A short burst carries the stretch.
        has_past = begin >= _PAST_STEPS_MIN
        if (self._ranks == 2 and not has_past) or (has_past and self._is_explained(x_T, own_T, begin)):
            return None
        return Slowdown(
            column=column,
            start=int(rows[begin]),
            rows=tuple(int(row) for row in rows[begin:]),
            ratio=float(np.exp(level)),
            z=z,
            is_ongoing=self._is_ongoing(x_T[begin:]),
        )

    def _is_explained(self, x_T: Array, own_T: Array, begin: int) -> bool:
        """Whether what changed was not the rank: of two ranks the peer, which became faster; or, where neighbours
        disturb, all of them, one a little more than the others."""
        apart = median(x_T[begin:]) - median(x_T[:begin])
        own_rise = median(own_T[begin:]) - median(own_T[:begin])
        if self._ranks == 2 and own_rise < _OWN_RISE_SHARE * apart:
            return True
        peers_T = own_T - x_T
        peers_rise = median(peers_T[begin:]) - median(peers_T[:begin])
        return self._is_disturbed and apart < _PEERS_RISE_FACTOR * peers_rise

    def _is_ongoing(self, stretch_T: Array) -> bool:
        """Whether the newest part is still as slow as what came before: the mean of a slowdown that ended lingers."""
        newest = max(self._settings.run_steps_min, len(stretch_T) // 3)
        before_T = stretch_T[:-newest]
        if len(before_T) < self._settings.run_steps_min // 2:
            before_T = stretch_T
        return median(stretch_T[-newest:]) > 0.5 * median(before_T)

    def _onset(self, x_T: Array, length: int) -> int:
        """Where the level changed: from there on the steps speak most for the new level against the old one."""
        past_T, newest_T = x_T[:-length], x_T[-length:]
        old = max(0.0, median(past_T)) if len(past_T) >= _PAST_STEPS_MIN else 0.0
        change = median(newest_T) - old
        gain_T = np.clip(x_T - old, -change, 2.0 * change) - 0.5 * change
        from_here_T = np.cumsum(gain_T[::-1])[::-1]
        return int(np.argmax(from_here_T[: len(x_T) - self._settings.run_steps_min + 1]))

    def _sureness(self, stretch: _Stretch) -> float | None:
        """z of the question that is passed more surely; None where none is."""
        newest_T, length, settings = stretch.newest_T, stretch.length, self._settings
        least = min(self._level_min, self._rise_min)
        if median(newest_T) < _NEAR_SHARE * least:
            return None
        residuals = stretch.residuals()
        scale = scale_of(residuals, stretch.floor)
        level = location(newest_T, scale)
        if level < least:
            return None
        noise = max(long_run_noise(residuals, stretch.floor), _OTHERS_SHARE * stretch.others_noise)
        error = noise / np.sqrt(length)
        past = location(stretch.past_T, scale) if stretch.has_past else 0.0
        rise_error = error * np.sqrt(1.0 + length / max(1, len(stretch.past_T)))
        z = float((level - self._null) / error)
        rise_z = float((level - max(0.0, past) - self._rise_null) / rise_error)
        if self._ranks == 2 and not (stretch.has_past and self._rose(stretch, level - past, rise_z)):
            return None
        ordered_T = np.sort(newest_T)
        low = float(ordered_T[int(self._fast_share * length)])
        is_slow = z >= self._z_min and level >= self._level_min and low >= 0.5 * self._null
        is_slow = is_slow and length * level >= settings.lost_work_min
        rise_min = max(self._rise_min, _PAIR_RISE_SIGMAS * scale) if self._ranks == 2 else self._rise_min
        has_risen = (
            length >= settings.rise_steps_min
            and len(stretch.past_T) >= _RISE_PAST_STEPS_MIN
            and rise_z >= (settings.pair_rise_z_min if self._ranks == 2 else self._z_min)
            and min(level, level - past) >= rise_min
            and float(ordered_T[int(settings.rise_fast_share_max * length)]) >= past
        )
        found = ([z] if is_slow else []) + ([rise_z] if has_risen else [])
        return max(found, default=None)

    def _rose(self, stretch: _Stretch, apart: float, rise_z: float) -> bool:
        return rise_z >= self._settings.pair_z_min and stretch.own_rise() >= _OWN_RISE_SHARE * apart


def _lengths(least: int, most: int) -> list[int]:
    found = list(range(least, min(most, _EVERY_LENGTH_UPTO) + 1))
    while found and found[-1] * _LENGTH_GROWTH <= most:
        found.append(max(found[-1] + 1, int(found[-1] * _LENGTH_GROWTH)))
    return found + ([most] if found and found[-1] < most else [])
