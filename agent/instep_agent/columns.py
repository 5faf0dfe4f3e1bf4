"""Samples as two columns, the series and their values: most turns of a source change only the values.

A source yields plain samples. Whoever keeps them compares them once with those of its turn before; where the series are
the same, everything after that (the child's answer, the frame) handles the same tuple again, and numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from sys import intern

from instep_agent.wire import Sample

Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Some series and a value for each. Who has seen this very tuple of series before knows what it is."""

    series: tuple[Series, ...] = ()
    values: Sequence[float] = ()

    def samples(self) -> Iterator[Sample]:
        """Yield the same, one by one."""
        for (name, labels), value in zip(self.series, self.values, strict=True):
            yield Sample(name=name, labels=labels, value=value)


NO_SAMPLES = Column()


def column_of(samples: Iterable[Sample], before: tuple[Series, ...] = ()) -> Column:
    """Give the samples as a column, with the tuple `before` where its series are the same.

    >>> one = column_of([Sample(name="a", labels=(), value=1.0)])
    >>> column_of([Sample(name="a", labels=(), value=2.0)], one.series).series is one.series
    True
    """
    samples = tuple(samples)
    values = [each.value for each in samples]
    if len(samples) == len(before):
        for each, (name, labels) in zip(samples, before, strict=True):
            if each.name != name or (each.labels is not labels and each.labels != labels):
                break
        else:
            return Column(before, values)
    return Column(tuple([(each.name, each.labels) for each in samples]), values)


def compacted(series: tuple[Series, ...]) -> tuple[Series, ...]:
    """Give the same series with every text and pair of a label there once: decoded, each has its own.

    >>> one, other = compacted((("a", (("gpu", "0"),)), ("b", (("gpu", "0"),))))
    >>> one[1] is other[1]
    True
    """
    kept: dict[object, tuple[tuple[str, str], ...]] = {}
    pairs: dict[tuple[str, str], tuple[str, str]] = {}
    found = []
    for name, labels in series:
        if labels not in kept:
            own = tuple([pairs.setdefault(each, (intern(each[0]), intern(each[1]))) for each in labels])
            kept[own] = own
        found.append((intern(name), kept[labels]))
    return tuple(found)
