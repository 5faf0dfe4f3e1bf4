"""The one place that talks to the NVIDIA driver: NVML through `pynvml`, every call announced, every error mapped.

What each error of NVML means here:

- *not supported*, *function not found* and their like: that GPU has no such value. It is absent, and asked for again
  only after UNSUPPORTED_RETRY_SECONDS.
- *no permission*: the same, and counted in `Gpu.errors`, since somebody may want to put it right.
- *GPU is lost*, *reset required*: the GPU is passed over from here on, and one fact says so; the others go on. While a
  GPU is lost, NVML is opened anew after REOPEN_SECONDS and then more rarely, since a handle never comes back to life.
- *uninitialized*, *driver not loaded*, *version mismatch*: the driver was taken away or exchanged; the turn fails and
  the next one opens NVML anew.
- anything else (unknown, timeout, no data): no reading this time, and counted.

A value that the driver marks as blank is absent, never published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from instep_agent.announce import announce, announce_encoded
from instep_agent.errors import Absent, SourceFailed
from instep_agent.gpu.device import FIELD_VALUE, LOST, Field, FieldPlan, Gpu, GpuLost, is_blank, short_address, value_of
from instep_agent.node import Fact, Node, Reading
from instep_agent.wire import Sample

GPUS_MAX = 64
REOPEN_SECONDS = 120.0
REOPEN_SECONDS_MAX = 1920.0
"""While a GPU is lost, doubling between the two: opening costs seconds on a large node; a GPU may be gone for good."""
OPEN_RETRY_SECONDS = 15.0
"""After NVML could not be opened; every attempt may make the driver's helper try to load the kernel module."""
_REOPEN = {"uninitialized", "driver_not_loaded", "lib_rm_version_mismatch"}
_CANNOT_OPEN = {
    "driver_not_loaded": "the kernel driver is not loaded: load it (modprobe nvidia), or remove the driver's library "
    "from a node without GPUs",
    "lib_rm_version_mismatch": "library and kernel driver have different versions: reload the driver or restart the "
    "node",
    "no_permission": "permission denied: give the agent the devices /dev/nvidia* and a user that may open them",
}


class Driver:
    """NVML, opened when it is first asked, for all sources of one process."""

    def __init__(self) -> None:
        self._library: Any = None
        self._errors: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._gpus: tuple[Gpu, ...] = ()
        self._reported: dict[str, Gpu] = {}
        """By UUID or index: GPUs of which it was said that they cannot be read."""
        self._known: dict[str, Gpu] = {}
        self._opened_ns = 0
        self._reopen_seconds = REOPEN_SECONDS
        self._refusal: tuple[int, Exception] | None = None
        self.generation = 0
        """Counts the openings: event sets, samples and handles of an earlier one mean nothing."""

    def gpus(self, node: Node) -> tuple[Gpu, ...]:
        """Give the GPUs; NVML is opened where need be. Raise `Absent` without any, `SourceFailed` when refused."""
        now_ns = node.monotonic_ns()
        if not self._reported:
            self._reopen_seconds = REOPEN_SECONDS
        elif self._library is not None and now_ns - self._opened_ns >= self._reopen_seconds * 1e9:
            self._reopen_seconds = min(2 * self._reopen_seconds, REOPEN_SECONDS_MAX)
            self.close()
        if self._library is None:
            self._open(now_ns)
        if not self._gpus:
            raise Absent("NVML lists no GPU on this node.")
        return self._gpus

    def each(self, node: Node, read: Callable[[Gpu], Iterator[Reading]]) -> Iterator[Reading]:
        """Yield what `read` gives of every GPU that answers, then a fact for each that was lost or came back."""
        for gpu in self.gpus(node):
            if gpu.problem:
                continue
            try:
                yield from read(gpu)
            except GpuLost:
                continue
            reported = [self._reported.pop(name, None) for name in (gpu.uuid, f"index {gpu.index}")]
            if any(reported):
                yield _fact(node, gpu, "gpu_back", "answers again")
        yield from self._losses(node)

    def call(self, gpu: Gpu, node: Node, function: str, *arguments: Any, variant: str = "") -> Any:
        """Give what the function of this name answers, or None when the GPU has no such value now.

        `variant` tells calls apart that differ in more than whole numbers, where one may be there and another not.
        """
        key = (function, variant, *[each for each in arguments if isinstance(each, int)])
        if key in gpu.missing and gpu.is_missing(key, node.monotonic_ns()):
            return None
        try:
            prepared = gpu.calls.get(function)
            if prepared is None:
                call = f"{function} gpu {gpu.index}".encode()
                prepared = gpu.calls[function] = getattr(self._library, function), call
            announce_encoded(prepared[1])
            return prepared[0](gpu.handle, *arguments)
        except self._library.NVMLError as error:
            self._note(gpu, key, error, node.monotonic_ns())
        except (AttributeError, self._library.NVMLLibraryMismatchError):  # an older `pynvml`, or an older driver
            gpu.note(key, "function_not_found", node.monotonic_ns())
        return None

    def number(self, gpu: Gpu, node: Node, function: str, *arguments: Any) -> float | None:
        """Give `call`'s answer when it is a number that is not blank."""
        value = self.call(gpu, node, function, *arguments)
        return None if value is None or is_blank(value, bits=32) else float(value)

    def fields(self, gpu: Gpu, node: Node, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], float]:
        """Give the field values that the GPU has, by name and scope, in one call of the driver."""
        now_ns = node.monotonic_ns()
        asked = [each for each in wanted if not gpu.is_missing(each, now_ns) and self._field_number(each[0])]
        if not asked:
            return {}
        ids = [(self._numbers[each[0]], each[1]) for each in asked]
        answers = self.call(gpu, node, "nvmlDeviceGetFieldValues", ids)
        found: dict[tuple[str, int], float] = {}
        if answers is None:
            return found
        for each, (value_type, error, raw) in zip(asked, FIELD_VALUE.iter_unpack(bytes(answers)), strict=True):
            if error:
                gpu.note(each, self._errors.get(error, "unknown"), now_ns)
                continue
            value = value_of(value_type, raw)
            if value is not None:
                found[each] = value
        return found

    def _field_number(self, constant: str) -> int:
        """Give a field's number, 0 when this version of `pynvml` does not know it."""
        if constant not in self._numbers:
            self._numbers[constant] = int(self.constant(f"NVML_FI_DEV_{constant}") or 0)
        return self._numbers[constant]

    def field_samples(self, gpu: Gpu, node: Node, fields: Sequence[Field]) -> Iterator[Sample]:
        """Yield a sample for each of the fields that the GPU has."""
        now_ns = node.monotonic_ns()
        plan = gpu.field_plans.get(id(fields))
        if plan is None or (plan.until_ns is not None and plan.until_ns <= now_ns):
            plan = gpu.field_plans[id(fields)] = self._field_plan(gpu, fields, now_ns)
        answers = self.call(gpu, node, "nvmlDeviceGetFieldValues", plan.ids) if plan.ids else None
        if answers is None:
            return
        for each, (value_type, error, raw) in zip(plan.asked, FIELD_VALUE.iter_unpack(bytes(answers)), strict=True):
            if error:
                gpu.note((each.constant, each.scope), self._errors.get(error, "unknown"), now_ns)
                continue
            value = value_of(value_type, raw)
            if value is not None:
                yield gpu.sample(each.metric, value * each.scale)

    def _field_plan(self, gpu: Gpu, fields: Sequence[Field], now_ns: int) -> FieldPlan:
        """Give which of these the GPU may have; one that this version of `pynvml` does not know it has not."""
        known = [each for each in fields if self._field_number(each.constant)]
        asked = tuple(each for each in known if not gpu.is_missing((each.constant, each.scope), now_ns))
        ids = [(self._numbers[each.constant], each.scope) for each in asked]
        again_ns = [gpu.missing[each.constant, each.scope] for each in known if each not in asked]
        return FieldPlan(fields, asked, ids, min(again_ns, default=None))

    def constant(self, name: str) -> Any:
        """Give a constant or type of `pynvml`, None when this version has no such thing."""
        return getattr(self._library, name, None)

    def ask(self, function: str, *arguments: Any) -> Any:
        """Give the answer of a function that belongs to no GPU. Raise `NvmlRefused` with the error's name."""
        if self._library is None:
            raise NvmlRefused("uninitialized")
        announce(function)
        try:
            return getattr(self._library, function)(*arguments)
        except self._library.NVMLError as error:
            name = self._errors.get(error.value, "unknown")
            if name in _REOPEN:
                self._driver_gone(name, error)
            raise NvmlRefused(name) from error
        except AttributeError as error:
            raise NvmlRefused("function_not_found") from error

    def close(self) -> None:
        """Let go of the driver; the next turn opens it again."""
        library, self._library, self._gpus = self._library, None, ()
        if library is not None:
            announce("nvmlShutdown")
            try:
                library.nvmlShutdown()
            except library.NVMLError:  # it is gone already: that is why it is closed
                return

    def _open(self, now_ns: int) -> None:
        if self._refusal is not None and now_ns - self._refusal[0] < OPEN_RETRY_SECONDS * 1e9:
            raise self._refusal[1].with_traceback(None)
        library = _pynvml()
        self._errors = _error_names(library)
        announce("nvmlInit")
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            self._refusal = (now_ns, _refusal(self._errors.get(error.value, "unknown"), str(error)))
            raise self._refusal[1] from error
        self._library, self._refusal, self._opened_ns = library, None, now_ns
        self.generation += 1
        try:
            self._gpus = tuple(self._gpu(index) for index in range(min(self.ask("nvmlDeviceGetCount"), GPUS_MAX)))
        except NvmlRefused as refused:
            self.close()
            raise SourceFailed(f"The NVIDIA driver does not say how many GPUs it has ({refused.error}).") from refused
        self._known |= {gpu.uuid: gpu for gpu in self._gpus if gpu.uuid}

    def _gpu(self, index: int) -> Gpu:
        gpu = Gpu(index)
        try:
            gpu.handle = self.ask("nvmlDeviceGetHandleByIndex", index)
            gpu.uuid = str(self.ask("nvmlDeviceGetUUID", gpu.handle))
            gpu.pci = short_address(str(self.ask("nvmlDeviceGetPciInfo", gpu.handle).busId))
            gpu.name = str(self.ask("nvmlDeviceGetName", gpu.handle))
            gpu.minor = int(self.ask("nvmlDeviceGetMinorNumber", gpu.handle))
        except NvmlRefused as refused:
            if not gpu.uuid or refused.error in LOST:
                gpu.problem = refused.error
        self._recall(gpu)
        gpu.label()
        return gpu

    def _recall(self, gpu: Gpu) -> None:
        """A lost GPU may not tell who it is: it is the one that had its index, if nobody else is that one now."""
        before = [each for each in self._known.values() if each.index == gpu.index]
        if gpu.problem and not gpu.uuid and before:
            gpu.uuid, gpu.pci, gpu.name = before[0].uuid, before[0].pci, before[0].name

    def _losses(self, node: Node) -> Iterator[Fact]:
        """Yield a fact for every GPU that cannot be read, once."""
        listed = {gpu.uuid for gpu in self._gpus}
        gone = [gpu for uuid, gpu in self._known.items() if uuid not in listed]
        for gpu in gone:
            gpu.problem = "no_longer_listed"
        for gpu in (*self._gpus, *gone):
            name = gpu.uuid or f"index {gpu.index}"
            if not gpu.problem:
                continue
            is_new = name not in self._reported
            self._reported[name] = gpu
            if is_new:
                yield _fact(node, gpu, "gpu_lost", f"cannot be read ({gpu.problem.replace('_', ' ')})")

    def unreadable(self) -> tuple[Gpu, ...]:
        """Give the GPUs of which it was reported that they cannot be read."""
        return tuple(self._reported.values())

    def _note(self, gpu: Gpu, key: Any, error: Any, now_ns: int) -> None:
        name = self._errors.get(error.value, "unknown")
        if name in _REOPEN:
            self._driver_gone(name, error)
        gpu.note(key, name, now_ns)

    def _driver_gone(self, name: str, error: Exception) -> None:
        self.close()
        raise SourceFailed(
            f"The NVIDIA driver was taken away or exchanged under the agent ({name.replace('_', ' ')}); it is opened "
            "again at the next turn."
        ) from error


class NvmlRefused(Exception):
    """NVML gave an error to a question about no GPU in particular; never leaves the sources."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


shared = Driver()
"""For all sources of a process: NVML is opened once."""


def _fact(node: Node, gpu: Gpu, kind: str, what: str) -> Fact:
    address = f" ({gpu.pci})" if gpu.pci else ""
    fields = {"gpu": str(gpu.index), "uuid": gpu.uuid, "pci": gpu.pci}
    if gpu.problem:
        fields["error"] = gpu.problem
    return Fact(kind, f"GPU {gpu.index}{address} {what}.", node.monotonic_ns(), node.realtime_ns(), fields)


def _refusal(error: str, text: str) -> Exception:
    if error == "library_not_found":
        return Absent("libnvidia-ml.so.1 is not there: no NVIDIA driver is installed.")
    why = _CANNOT_OPEN.get(error, f"{text.rstrip('.').lower()}: look at the kernel log for lines of NVRM")
    return SourceFailed(f"Cannot open the NVIDIA driver (NVML), {why}.")


def _pynvml() -> Any:
    """Give `pynvml`, imported in the child that asks drivers and nowhere else: it costs 5 MiB."""
    import pynvml  # type: ignore[import-untyped]

    return pynvml


@lru_cache(maxsize=1)
def _error_names(library: Any) -> dict[int, str]:
    prefix = "NVML_ERROR_"
    return {getattr(library, name): name[len(prefix) :].lower() for name in dir(library) if name.startswith(prefix)}
