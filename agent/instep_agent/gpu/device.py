"""One GPU as its driver gives it: who it is, what it was found not to have, and what in its numbers is no number."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from instep_agent.metric import Metric
from instep_agent.wire import Sample

UNSUPPORTED_RETRY_SECONDS = 600.0
"""A value that a GPU does not have is asked for this rarely: a driver update may bring it."""
LOST = {"gpu_is_lost", "reset_required"}
"""Errors of NVML after which nothing more is to be had from a GPU."""
_UNSUPPORTED = {
    "not_supported",
    "function_not_found",
    "invalid_argument",
    "argument_version_mismatch",
    "deprecated",
    "vgpu_ecc_not_supported",
    "not_found",
}
FIELD_VALUE = struct.Struct("<24xII8s")
"""Type, error and value in NVML's nvmlFieldValue_t; its 24 bytes before are number, scope, time and latency.

Read so and not through `pynvml`'s structures, whose every attribute is a Python call: that took a fifth of the CPU of
all GPU sources.
"""
_VALUE_TYPES = tuple(
    (struct.Struct(f"<{code}"), bits) for code, bits in zip("dIQQqiH", (64, 32, 64, 64, 64, 32, 16), strict=True)
)
"""How the value is read, and its width, in the order of NVML_VALUE_TYPE_*."""
_BLANK_32_FROM, _BLANK_64_FROM, _BLANK_DOUBLE_FROM = 0x7FFFFFF0, 0x7FFFFFFFFFFFFFF0, 2.0**47


@dataclass(frozen=True, slots=True)
class Field:
    """One field value of NVML that is a metric as it stands, but for its unit."""

    constant: str
    """Name of its number in `pynvml`, without `NVML_FI_DEV_`; one that an older `pynvml` does not know is absent."""
    metric: Metric
    scale: float = 1.0
    scope: int = 0


@dataclass(frozen=True, slots=True)
class FieldPlan:
    """Which of some fields a GPU is asked for."""

    of: Sequence[Field]
    """Kept, so that nobody else gets its identity."""
    asked: tuple[Field, ...]
    ids: list[tuple[int, int]]
    """Number and scope of each."""
    until_ns: int | None
    """When one that was not there is asked for again."""


@dataclass(slots=True, eq=False)
class Gpu:
    """One GPU, its handle, and what it was found not to have."""

    index: int
    handle: Any = None
    uuid: str = ""
    pci: str = ""
    """Domain, bus and device, as kernel lines have it: `0000:3b:00`."""
    name: str = ""
    minor: int | None = None
    problem: str = ""
    """Why it cannot be read: an error of NVML such as `gpu_is_lost`; empty when it can."""
    errors: dict[str, int] = field(default_factory=dict)
    """How often a call or value failed, by error; what the GPU does not have is no error."""
    labels: tuple[tuple[str, str], ...] = ()
    alias_labels: tuple[tuple[str, str], ...] = ()
    calls: dict[str, tuple[Callable[..., Any], bytes]] = field(default_factory=dict)
    """By name: the driver's function, and how a call of it on this GPU is announced."""
    missing: dict[Any, int] = field(default_factory=dict)
    """What was found not to be there, and when it is asked for again."""
    field_plans: dict[int, FieldPlan] = field(default_factory=dict)
    """By the identity of their tuple: which of some fields are asked for."""

    def label(self) -> None:
        """Make the labels: few on most samples; those with another exporter's name too have what its labels hold."""
        self.labels = (("gpu", str(self.index)), ("uuid", self.uuid))
        known = (("model", self.name), ("pci", self.pci))
        self.alias_labels = tuple(sorted((*self.labels, *((key, value) for key, value in known if value))))

    def sample(self, metric: Metric, value: float, **more: str) -> Sample:
        """Give one reading of this GPU."""
        labels = self.alias_labels if metric.alias else self.labels
        if more:
            labels = tuple(sorted((*labels, *more.items())))
        return Sample(name=metric.name, labels=labels, value=float(value))

    def is_missing(self, key: Any, now_ns: int) -> bool:
        """Whether this was found not to be there, not long ago."""
        return self.missing.get(key, 0) > now_ns

    def note(self, key: Any, error: str, now_ns: int) -> None:
        """Remember what came of asking for `key`; raise `GpuLost` when the whole GPU is gone."""
        if error in LOST:
            self.problem = error
            raise GpuLost
        if error not in _UNSUPPORTED or error == "invalid_argument":
            self.errors[error] = self.errors.get(error, 0) + 1
        if error in _UNSUPPORTED or error == "no_permission":
            self.missing[key] = now_ns + int(UNSUPPORTED_RETRY_SECONDS * 1e9)
            self.field_plans.clear()


class GpuLost(Exception):
    """A GPU answers no more; caught where all GPUs are gone through."""


def is_blank(value: float, *, bits: int) -> bool:
    """Whether the driver's way of saying *no value* is in a number.

    >>> is_blank(0xFFFFFFFF, bits=32), is_blank(9223372036854775794, bits=64), is_blank(41, bits=32)
    (True, True, False)
    """
    if isinstance(value, float):
        return not math.isfinite(value) or _BLANK_DOUBLE_FROM <= value < _BLANK_DOUBLE_FROM + 16
    if bits == 32:
        return value == 0xFFFFFFFF or _BLANK_32_FROM <= value <= 0x7FFFFFFF
    return value >= _BLANK_64_FROM or value == 0xFFFFFFFF


def short_address(bus: str) -> str:
    """Give a PCI address as the kernel log has it.

    >>> short_address("00000000:3B:00.0")
    '0000:3b:00'
    """
    domain, _, rest = bus.lower().rpartition(".")[0].partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest else bus.lower()


def value_of(value_type: int, raw: bytes) -> float | None:
    """Give the number in a field value, None when it is blank.

    >>> value_of(1, bytes([41, 0, 0, 0, 255, 255, 255, 255])), value_of(1, b"\\xff" * 8)
    (41.0, None)
    """
    form, bits = _VALUE_TYPES[value_type]
    (value,) = form.unpack_from(raw)
    return None if bits > 16 and is_blank(value, bits=bits) else float(value)
