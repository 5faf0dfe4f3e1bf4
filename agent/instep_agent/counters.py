"""What only a memory can tell of a counter: by how much it rose, that it began anew, and that it counts no more."""

from __future__ import annotations

from dataclasses import dataclass, field

DIGITS_MAX = 20
ALL_ONES = 2**64 - 1
"""What a device that does not answer reads as; no counter gets there."""


class NoNumber(ValueError):
    """There is no number where a counter should be; the text says what is: `not_available`, `blank` or `torn`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One reading of a counter, held against the one before."""

    rise: int
    """Since the reading before; since its new beginning where it began anew; 0 at the first reading."""
    is_reset: bool
    """It is lower than before: cleared, or its driver or device began anew."""
    is_blind: bool
    """It stands at the highest number it can hold: what happens now is not counted."""
    was_blind: bool


@dataclass(slots=True)
class CounterMemory:
    """The last reading of each counter of one thing, such as a port. A new memory is a new baseline."""

    _values: dict[str, int] = field(default_factory=dict)
    _blind: set[str] = field(default_factory=set)
    _wide: set[str] = field(default_factory=set)
    """Counters that were seen above the highest number that the specification gives them: these do not stop there."""

    def observe(self, name: str, value: int, maximum: int = 0) -> Step:
        """Give what a reading says; `maximum` is where the counter stops, 0 for one that never does.

        >>> memory = CounterMemory()
        >>> [memory.observe("link_downed", value, 255).rise for value in (3, 4, 4, 1)]
        [0, 1, 0, 1]
        >>> memory.observe("link_downed", 255, 255).is_blind
        True
        """
        before = self._values.get(name, value)
        self._values[name] = value
        if maximum and value > maximum:
            self._wide.add(name)
        was_blind = name in self._blind
        is_blind = 0 < maximum == value and name not in self._wide
        if is_blind:
            self._blind.add(name)
        else:
            self._blind.discard(name)
        is_reset = value < before
        return Step(value if is_reset else value - before, is_reset, is_blind, was_blind)


def number(text: str) -> int:
    """Give the number of a counter file. Raise `NoNumber` for anything else.

    >>> number("17")
    17
    >>> number("N/A (no PMA)")
    Traceback (most recent call last):
    instep_agent.counters.NoNumber: not_available
    """
    if text.isdecimal() and text.isascii() and len(text) <= DIGITS_MAX:
        value = int(text)
        if value >= ALL_ONES:
            raise NoNumber("blank")
        return value
    raise NoNumber("not_available" if text.startswith("N/A") else "torn")
