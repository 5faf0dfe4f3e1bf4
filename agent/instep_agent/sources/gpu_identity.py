"""Who each GPU is and how it is set up: what dashboards join by, and what its other numbers are held against."""

from __future__ import annotations

from collections.abc import Iterator

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Field, Gpu
from instep_agent.metric import Metric, gauge
from instep_agent.node import Node, Reading
from instep_agent.wire import Sample

INFO = gauge("instep_gpu_info", "Always 1; the labels say who the GPU is (NVML).")
DRIVER_INFO = gauge("instep_gpu_driver_info", "Always 1; the labels are the versions of driver, NVML and CUDA (NVML).")
SM_CLOCK_MAX = gauge("instep_gpu_sm_clock_max_hertz", "Highest SM clock (nvmlDeviceGetMaxClockInfo).")
MEMORY_CLOCK_MAX = gauge(
    "instep_gpu_memory_clock_max_hertz", "Highest memory clock (nvmlDeviceGetMaxClockInfo).", is_on_page=False
)
ECC_MODE = gauge("instep_gpu_ecc_is_enabled", "1 where ECC is on (field ECC_CURRENT).")
PERSISTENCE = gauge(
    "instep_gpu_persistence_mode_is_enabled", "1 where the driver stays loaded without a user.", is_on_page=False
)
MIG_MODE = gauge("instep_gpu_mig_is_enabled", "1 where the GPU is split into instances (nvmlDeviceGetMigMode).")
MIG_MODE_PENDING = gauge(
    "instep_gpu_mig_pending_is_enabled",
    "1 where the GPU will be split into instances after its next reset.",
    is_on_page=False,
)
SHUTDOWN = gauge("instep_gpu_shutdown_celsius", "Temperature at which the GPU shuts itself down.", is_on_page=False)
SLOWDOWN = gauge("instep_gpu_slowdown_celsius", "Temperature at which hardware slows the GPU down.", is_on_page=False)
MEMORY_MAX = gauge(
    "instep_gpu_memory_max_celsius", "Memory temperature at which software slows the GPU down.", is_on_page=False
)
GPU_MAX = gauge(
    "instep_gpu_max_celsius", "Temperature at which the GPU may run below its base clock.", is_on_page=False
)
LIMITS = (
    Field("POWER_CURRENT_LIMIT", gauge("instep_gpu_power_limit_watts", "Power limit in force."), 1e-3),
    Field(
        "POWER_DEFAULT_LIMIT",
        gauge("instep_gpu_power_limit_default_watts", "Power limit after a start.", is_on_page=False),
        1e-3,
    ),
    Field(
        "POWER_MIN_LIMIT",
        gauge("instep_gpu_power_limit_min_watts", "Lowest power limit there is.", is_on_page=False),
        1e-3,
    ),
    Field(
        "POWER_MAX_LIMIT",
        gauge("instep_gpu_power_limit_max_watts", "Highest power limit there is.", is_on_page=False),
        1e-3,
    ),
    Field("ECC_CURRENT", ECC_MODE),
    Field(
        "TEMPERATURE_SHUTDOWN_TLIMIT",
        gauge("instep_gpu_shutdown_margin_celsius", "T.Limit of shutdown.", is_on_page=False),
    ),
    Field(
        "TEMPERATURE_SLOWDOWN_TLIMIT",
        gauge("instep_gpu_slowdown_margin_celsius", "T.Limit of hardware slowdown.", is_on_page=False),
    ),
    Field(
        "TEMPERATURE_MEM_MAX_TLIMIT",
        gauge("instep_gpu_memory_max_margin_celsius", "T.Limit of the memory.", is_on_page=False),
    ),
    Field(
        "TEMPERATURE_GPU_MAX_TLIMIT",
        gauge("instep_gpu_max_margin_celsius", "T.Limit of running below base clock.", is_on_page=False),
    ),
)
_THRESHOLDS = (SHUTDOWN, SLOWDOWN, MEMORY_MAX, GPU_MAX)
"""In the order of NVML_TEMPERATURE_THRESHOLD_*."""
_SM, _MEMORY = 1, 2
"""NVML_CLOCK_*."""
_TEXTS = (
    ("serial", "nvmlDeviceGetSerial"),
    ("board", "nvmlDeviceGetBoardPartNumber"),
    ("vbios", "nvmlDeviceGetVbiosVersion"),
)


class GpuIdentity:
    """Names, versions, limits and modes of every GPU, from NVML.

    What never changes is read once for each opening of the driver. Limits and modes are settings that an administrator
    may change at any time: once a minute is soon enough to draw them.
    """

    name = "gpu_identity"
    interval_seconds = 60.0
    deadline_seconds = 10.0
    child = "nvml"
    rights = "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them"
    metrics: tuple[Metric, ...] = (
        INFO,
        DRIVER_INFO,
        SM_CLOCK_MAX,
        MEMORY_CLOCK_MAX,
        PERSISTENCE,
        MIG_MODE,
        MIG_MODE_PENDING,
        *_THRESHOLDS,
        *(each.metric for each in LIMITS),
    )

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver
        self._generation = 0
        self._constant: dict[int, tuple[Sample, ...]] = {}
        self._versions: tuple[Sample, ...] = ()

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield what every GPU is and is set to. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        self._driver.gpus(node)
        if self._generation != self._driver.generation:
            self._generation, self._constant = self._driver.generation, {}
            self._versions = tuple(self._read_versions())
        yield from self._versions
        yield from self._driver.each(node, lambda gpu: self._read(gpu, node))

    def _read_versions(self) -> Iterator[Sample]:
        labels = []
        for label, function in (("driver", "nvmlSystemGetDriverVersion"), ("nvml", "nvmlSystemGetNVMLVersion")):
            try:
                labels.append((label, str(self._driver.ask(function))))
            except nvml.NvmlRefused:  # an unknown version is a missing label; the GPUs tell the rest
                continue
        try:
            cuda = int(self._driver.ask("nvmlSystemGetCudaDriverVersion_v2"))
            labels.append(("cuda", f"{cuda // 1000}.{cuda % 1000 // 10}"))
        except nvml.NvmlRefused:  # as above
            pass
        yield Sample(name=DRIVER_INFO.name, labels=tuple(sorted(labels)), value=1.0)

    def _read(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        if gpu.index not in self._constant:
            self._constant[gpu.index] = tuple(self._read_once(gpu, node))
        yield from self._constant[gpu.index]
        yield from self._driver.field_samples(gpu, node, LIMITS)
        persistence = self._driver.number(gpu, node, "nvmlDeviceGetPersistenceMode")
        if persistence is not None:
            yield gpu.sample(PERSISTENCE, persistence)
        mig = self._driver.call(gpu, node, "nvmlDeviceGetMigMode")
        if mig is not None:
            yield gpu.sample(MIG_MODE, mig[0])
            yield gpu.sample(MIG_MODE_PENDING, mig[1])

    def _read_once(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        known = {"model": gpu.name, "pci": gpu.pci, "minor": "" if gpu.minor is None else str(gpu.minor)}
        for label, function in _TEXTS:
            known[label] = str(self._driver.call(gpu, node, function) or "")
        yield gpu.sample(INFO, 1.0, **{label: text for label, text in known.items() if text})
        for kind, metric in enumerate(_THRESHOLDS):
            celsius = self._driver.number(gpu, node, "nvmlDeviceGetTemperatureThreshold", kind)
            if celsius is not None:
                yield gpu.sample(metric, celsius)
        for clock, metric in ((_SM, SM_CLOCK_MAX), (_MEMORY, MEMORY_CLOCK_MAX)):
            megahertz = self._driver.number(gpu, node, "nvmlDeviceGetMaxClockInfo", clock)
            if megahertz is not None:
                yield gpu.sample(metric, megahertz * 1e6)
