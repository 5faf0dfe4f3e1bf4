"""What GPUs' readings say by themselves, where no line of the kernel does: its log may not be readable in a pod.

Pure: the newest readings of one node in, what is so and what is not out. A state counts as it stands: what was so when
its agent began counts as well. A counter counts by its rise only: one that has always been high says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isnan

KIND = "gpu_reading"
"""Of the facts that come of readings."""
REMAP_FAILED = "row-remap-failed"
GPU_MISSING = "gpu-missing"
ECC_UNCORRECTED = "ecc-uncorrected"
SRAM_LIMIT = "sram-threshold"
FAULTS = (REMAP_FAILED, GPU_MISSING, ECC_UNCORRECTED, SRAM_LIMIT)
"""Faults that a reading may tell of; each keeps a GPU, or its node, from further work."""
REMAP_HAS_FAILED = "instep_gpu_row_remap_has_failed"
SRAM_LIMIT_IS_PASSED = "instep_gpu_sram_threshold_is_exceeded"
GPUS = "instep_gpus"
UNCORRECTED = "instep_gpu_ecc_uncorrected_volatile_total"
SRAM = "instep_gpu_sram_errors_total"
RECOVERY = "instep_gpu_recovery_action"
_SRAM_UNCORRECTED = ("parity", "secded")
_FLAGS = {REMAP_HAS_FAILED: REMAP_FAILED, SRAM_LIMIT_IS_PASSED: SRAM_LIMIT}
"""Reading that is 1 while a fault is so → the fault."""
HOLD_SECONDS = {REMAP_FAILED: 0.0, SRAM_LIMIT: 0.0, GPU_MISSING: 60.0}
"""So long it must be so before it is told: a driver that starts finds its GPUs one after the other."""


def is_read(name: str, labels: Mapping[str, str]) -> bool:
    """Whether a series is one of those that tell of a fault.

    >>> is_read("instep_gpu_sram_errors_total", {"kind": "parity", "period": "aggregate"})
    False
    """
    if name == SRAM:
        return labels.get("kind") in _SRAM_UNCORRECTED and labels.get("period") == "volatile"
    return name in _FLAGS or name in (GPUS, UNCORRECTED, RECOVERY)


@dataclass(frozen=True, slots=True)
class Reading:
    """The newest value of one series; NaN is no reading."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class ReadingFault:
    """A fault that readings tell of, on one GPU or, with an empty one, on the node."""

    fault: str
    gpu: str = ""
    """Index on its node."""
    uuid: str = ""
    is_drill: bool = False


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter of errors, each of which is a fault."""

    fault: ReadingFault
    name: str
    """As people read it: the metric, with what tells it from its like."""


def faults_told(readings: Iterable[Reading]) -> dict[ReadingFault, str]:
    """Fault → what says so in words, empty where it is not so; faults of which nothing was read are left out.

    >>> failed = Reading("instep_gpu_row_remap_has_failed", {"gpu": "1", "uuid": "GPU-b"}, 1.0)
    >>> faults_told([failed]).popitem()[1]
    'instep_gpu_row_remap_has_failed of GPU 1 is 1.'
    """
    found: dict[ReadingFault, str] = {}
    counts: dict[str, float] = {}
    for reading in readings:
        if isnan(reading.value):
            continue
        if reading.name in _FLAGS:
            one = _fault(_FLAGS[reading.name], reading.labels)
            found[one] = f"{reading.name} of GPU {one.gpu} is 1." if reading.value >= 1.0 else ""
        elif reading.name == GPUS:
            counts[reading.labels.get("seen_by", "")] = reading.value
    return found | _missing(counts)


def errors_counted(readings: Iterable[Reading]) -> dict[Counter, float]:
    """Counter → its value, of those that were read.

    >>> errors_counted([Reading("instep_gpu_ecc_uncorrected_volatile_total", {"gpu": "1"}, 3.0)]).popitem()[1]
    3.0
    """
    found: dict[Counter, float] = {}
    for reading in readings:
        if reading.name in (UNCORRECTED, SRAM) and not isnan(reading.value) and is_read(reading.name, reading.labels):
            kind = f" ({reading.labels['kind']})" if reading.name == SRAM else ""
            found[Counter(_fault(ECC_UNCORRECTED, reading.labels), f"{reading.name}{kind}")] = reading.value
    return found


def rises(before: Mapping[Counter, float], now: Mapping[Counter, float]) -> dict[Counter, float]:
    """Counter → how many errors it has counted since it was read before; one that has not counted any is left out.

    One that was not read before has no rise: what it had counted then is of before. A fall is a new beginning, with a
    driver that was loaded again: the new value is what happened since. A drill counts up from the real value.

    >>> one = Counter(ReadingFault("ecc-uncorrected", "1"), "errors")
    >>> [rises({one: 3.0}, {one: value}).get(one, 0.0) for value in (3.0, 5.0, 0.0, 1.0)]
    [0.0, 2.0, 0.0, 1.0]
    >>> rises({}, {one: 3.0})
    {}
    """
    found: dict[Counter, float] = {}
    for counter, value in now.items():
        old = before.get(counter, before.get(_real(counter), value))
        rise = value if value < old else value - old
        if rise > 0.0:
            found[counter] = rise
    return found


def remembered(before: Mapping[Counter, float], now: Mapping[Counter, float]) -> dict[Counter, float]:
    """What the next reading is held against. A drill's count is over as soon as the real one is read again."""
    kept = {one: value for one, value in before.items() if not (one.fault.is_drill and _real(one) in now)}
    return kept | dict(now)


def _real(counter: Counter) -> Counter:
    return replace(counter, fault=replace(counter.fault, is_drill=False))


def actions_asked(readings: Iterable[Reading]) -> dict[tuple[str, str], int]:
    """Index and UUID of a GPU → the recovery action that its driver asks for, 0 for none; of those that were read.

    >>> actions_asked([Reading("instep_gpu_recovery_action", {"gpu": "1", "uuid": "GPU-b"}, 2.0)])
    {('1', 'GPU-b'): 2}
    """
    return {
        (reading.labels.get("gpu", ""), reading.labels.get("uuid", "")): int(reading.value)
        for reading in readings
        if reading.name == RECOVERY and not isnan(reading.value) and "drill" not in reading.labels
    }


def _fault(fault: str, labels: Mapping[str, str]) -> ReadingFault:
    return ReadingFault(fault, labels.get("gpu", ""), labels.get("uuid", ""), labels.get("drill") == "true")


def _missing(counts: Mapping[str, float]) -> dict[ReadingFault, str]:
    """Whether there are fewer GPUs than are expected. A list without any says that its driver, or the folder that
    lists them, is not there (yet), not that every GPU is gone."""
    expected = counts.get("expected", 0.0)
    seen = {place: counts[place] for place in ("driver", "pci") if counts.get(place, 0.0) >= 1.0}
    if expected < 1.0 or not seen:
        return {}
    place = min(seen, key=seen.__getitem__)
    words = f"{GPUS} seen by {place}: {seen[place]:.0f} of the {expected:.0f} that are expected."
    return {ReadingFault(GPU_MISSING): words if seen[place] < expected else ""}
