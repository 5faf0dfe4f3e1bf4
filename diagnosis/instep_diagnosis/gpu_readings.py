"""What GPUs' readings say by themselves, where no line of the kernel does: its log may not be readable in a pod.

Pure: the newest readings of one node in, what is so and what is not out. A reading is a state: what was so when its
agent began counts as well. Counters are not read here; one that has always been high says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan

KIND = "gpu_reading"
"""Of the facts that come of readings."""
REMAP_FAILED = "row-remap-failed"
GPU_MISSING = "gpu-missing"
FAULTS = (REMAP_FAILED, GPU_MISSING)
"""Faults that a reading may tell of; each keeps a GPU, or its node, from further work."""
REMAP_HAS_FAILED = "instep_gpu_row_remap_has_failed"
GPUS = "instep_gpus"
NAMES = frozenset({REMAP_HAS_FAILED, GPUS})
"""The series that are read."""
HOLD_SECONDS = {REMAP_FAILED: 0.0, GPU_MISSING: 60.0}
"""So long it must be so before it is told: a driver that starts finds its GPUs one after the other."""


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
        if reading.name == REMAP_HAS_FAILED:
            gpu, uuid = reading.labels.get("gpu", ""), reading.labels.get("uuid", "")
            one = ReadingFault(REMAP_FAILED, gpu, uuid, reading.labels.get("drill") == "true")
            found[one] = f"{REMAP_HAS_FAILED} of GPU {gpu} is 1." if reading.value >= 1.0 else ""
        elif reading.name == GPUS:
            counts[reading.labels.get("seen_by", "")] = reading.value
    return found | _missing(counts)


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
