"""What every GPU is doing this second: load, memory, heat, power, clocks, and why the clocks are what they are."""

from __future__ import annotations

from collections.abc import Iterator

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Field, Gpu
from instep_agent.metric import Metric, counter, gauge
from instep_agent.node import Node, Reading
from instep_agent.wire import Sample

IS_LOST = gauge(
    "instep_gpu_is_lost", "1 for a GPU that the driver lost or does not let anybody read, 0 for one that answers."
)
READ_ERRORS = counter(
    "instep_gpu_read_errors_total",
    "Values that could not be read since the driver was opened, by NVML's error; what a GPU does not have is no error.",
)
UTILIZATION = gauge(
    "instep_gpu_utilization_ratio",
    "Share of time that any kernel ran (nvmlDeviceGetUtilizationRates).",
    alias="DCGM_FI_DEV_GPU_UTIL",
    alias_scale=100.0,
)
MEMORY_UTILIZATION = gauge(
    "instep_gpu_memory_utilization_ratio",
    "Share of time that device memory was read or written (same function).",
    alias="DCGM_FI_DEV_MEM_COPY_UTIL",
    alias_scale=100.0,
)
MEMORY_TOTAL = gauge("instep_gpu_memory_total_bytes", "Device memory (nvmlDeviceGetMemoryInfo_v2).")
MEMORY_USED = gauge(
    "instep_gpu_memory_used_bytes",
    "Device memory that programs hold (nvmlDeviceGetMemoryInfo_v2).",
    alias="DCGM_FI_DEV_FB_USED",
    alias_scale=1.0 / (1 << 20),
)
MEMORY_FREE = gauge(
    "instep_gpu_memory_free_bytes",
    "Device memory to be had (nvmlDeviceGetMemoryInfo_v2).",
    alias="DCGM_FI_DEV_FB_FREE",
    alias_scale=1.0 / (1 << 20),
)
MEMORY_RESERVED = gauge(
    "instep_gpu_memory_reserved_bytes",
    "Device memory of driver and firmware.",
    alias="DCGM_FI_DEV_FB_RESERVED",
    alias_scale=1.0 / (1 << 20),
)
TEMPERATURE = gauge(
    "instep_gpu_temperature_celsius", "Temperature of the GPU (nvmlDeviceGetTemperature).", alias="DCGM_FI_DEV_GPU_TEMP"
)
MARGIN = gauge("instep_gpu_temperature_margin_celsius", "Degrees left to the nearest slowdown threshold.")
POWER = gauge(
    "instep_gpu_power_watts",
    "Power of the whole board, averaged over 1 s where the GPU does so (nvmlDeviceGetPowerUsage).",
    alias="DCGM_FI_DEV_POWER_USAGE",
)
SM_CLOCK = gauge(
    "instep_gpu_sm_clock_hertz",
    "SM clock (nvmlDeviceGetClockInfo).",
    alias="DCGM_FI_DEV_SM_CLOCK",
    alias_scale=1e-6,
)
MEMORY_CLOCK = gauge(
    "instep_gpu_memory_clock_hertz",
    "Memory clock (nvmlDeviceGetClockInfo).",
    alias="DCGM_FI_DEV_MEM_CLOCK",
    alias_scale=1e-6,
)
REASONS_MASK = gauge(
    "instep_gpu_clock_reasons_mask", "Why the clocks are what they are, as the driver's bits.", is_on_page=False
)
SLOWING = (
    "software_power_cap",
    "hardware_slowdown",
    "software_thermal",
    "hardware_thermal",
    "hardware_power_brake",
    "reliability",
)
"""The reasons that make a busy GPU slow; of the others, such as that it is idle, nobody need act on any."""
REASON = gauge(
    "instep_gpu_clock_reason", "1 for each reason that holds the clocks now, 0 for the others.", page_labels=SLOWING
)
FIELDS = (
    Field(
        "MEMORY_TEMP",
        gauge(
            "instep_gpu_memory_temperature_celsius",
            "Temperature of the device memory (field MEMORY_TEMP).",
            alias="DCGM_FI_DEV_MEMORY_TEMP",
        ),
    ),
    Field(
        "POWER_INSTANT",
        gauge("instep_gpu_power_instant_watts", "Power at this instant (field POWER_INSTANT).", is_on_page=False),
        1e-3,
    ),
    Field(
        "TOTAL_ENERGY_CONSUMPTION",
        counter(
            "instep_gpu_energy_joules_total",
            "Energy since the driver was loaded (field TOTAL_ENERGY_CONSUMPTION).",
            alias="DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            alias_scale=1e3,
        ),
        1e-3,
    ),
    Field(
        "PERF_POLICY_POWER",
        counter("instep_gpu_power_limited_seconds_total", "Time that the power limit held the clocks."),
        1e-9,
    ),
    Field(
        "PERF_POLICY_THERMAL",
        counter("instep_gpu_thermally_limited_seconds_total", "Time that temperature held the clocks."),
        1e-9,
    ),
)
REASONS = (
    (0x1, "gpu_idle"),
    (0x2, "application_clocks"),
    (0x4, "software_power_cap"),
    (0x8, "hardware_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "software_thermal"),
    (0x40, "hardware_thermal"),
    (0x80, "hardware_power_brake"),
    (0x100, "display_clock"),
    (0x200, "board_limit"),
    (0x400, "reliability"),
)
_SENSOR_GPU, _SM, _MEMORY = 0, 1, 2
CALM_SECONDS = 2.0
"""The next look comes after this while what holds the clocks of every GPU, if anything does, is as at the last one."""


class GpuState:
    """Load, memory, temperatures, power, energy and clocks of every GPU, from NVML.

    Once a second while anything changes in why the clocks are what they are, or a GPU cannot be read: a slower look
    would miss short throttling that makes one rank late, and a faster one would see the same numbers again, since the
    driver itself averages load and power over up to a second. Every other second while nothing does. With MIG on the
    driver gives no load: it is absent then, not 0.
    """

    name = "gpu_state"
    interval_seconds = 1.0
    deadline_seconds = 5.0
    child = "nvml"
    rights = "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them"
    metrics: tuple[Metric, ...] = (
        IS_LOST,
        READ_ERRORS,
        UTILIZATION,
        MEMORY_UTILIZATION,
        MEMORY_TOTAL,
        MEMORY_USED,
        MEMORY_FREE,
        MEMORY_RESERVED,
        TEMPERATURE,
        MARGIN,
        POWER,
        SM_CLOCK,
        MEMORY_CLOCK,
        REASONS_MASK,
        REASON,
        *(each.metric for each in FIELDS),
    )

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver
        self._reasons: dict[Gpu, tuple[int, tuple[Sample, ...]]] = {}
        self.rest_seconds = 0.0

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the state of every GPU. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        self.rest_seconds = 0.0
        gpus = self._driver.gpus(node)
        self.rest_seconds = CALM_SECONDS
        self._reasons = {gpu: kept for gpu, kept in self._reasons.items() if gpu in gpus}
        yield from self._driver.each(node, lambda gpu: self._read(gpu, node))
        unreadable = self._driver.unreadable()
        for gpu in (*gpus, *(gpu for gpu in unreadable if gpu not in gpus)):
            if gpu.problem:
                self.rest_seconds = 0.0
            yield gpu.sample(IS_LOST, bool(gpu.problem))
            for error, count in gpu.errors.items():
                yield gpu.sample(READ_ERRORS, count, error=error)

    def _read(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        driver = self._driver
        celsius = driver.number(gpu, node, "nvmlDeviceGetTemperature", _SENSOR_GPU)
        margin = driver.number(gpu, node, "nvmlDeviceGetMarginTemperature")
        milliwatts = driver.number(gpu, node, "nvmlDeviceGetPowerUsage")
        sm_megahertz = driver.number(gpu, node, "nvmlDeviceGetClockInfo", _SM)
        memory_megahertz = driver.number(gpu, node, "nvmlDeviceGetClockInfo", _MEMORY)
        for metric, value, scale in (
            (TEMPERATURE, celsius, 1.0),
            (MARGIN, margin, 1.0),
            (POWER, milliwatts, 1e-3),
            (SM_CLOCK, sm_megahertz, 1e6),
            (MEMORY_CLOCK, memory_megahertz, 1e6),
        ):
            if value is not None:
                yield gpu.sample(metric, value * scale)
        yield from self._load(gpu, node)
        yield from self._memory(gpu, node)
        yield from driver.field_samples(gpu, node, FIELDS)
        yield from self._clock_reasons(gpu, node)

    def _load(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        rates = self._driver.call(gpu, node, "nvmlDeviceGetUtilizationRates")
        if rates is None:
            return
        for metric, percent in ((UTILIZATION, rates.gpu), (MEMORY_UTILIZATION, rates.memory)):
            if percent <= 100:
                yield gpu.sample(metric, percent / 100)

    def _memory(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        """Yield the second form's numbers; an older driver has only the first, whose `used` holds the reserve too."""
        memory = self._driver.call(gpu, node, "nvmlDeviceGetMemoryInfo", self._driver.constant("nvmlMemory_v2"))
        if memory is None:
            memory = self._driver.call(gpu, node, "nvmlDeviceGetMemoryInfo")
        for metric, key in (
            (MEMORY_TOTAL, "total"),
            (MEMORY_USED, "used"),
            (MEMORY_FREE, "free"),
            (MEMORY_RESERVED, "reserved"),
        ):
            value = getattr(memory, key, None)
            if value is not None:
                yield gpu.sample(metric, value)

    def _clock_reasons(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        mask = self._driver.call(gpu, node, "nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:
            mask = self._driver.call(gpu, node, "nvmlDeviceGetCurrentClocksThrottleReasons")
        if mask is None:
            return
        kept = self._reasons.get(gpu)
        if kept is None or kept[0] != mask:
            self.rest_seconds = 0.0
            samples = (gpu.sample(REASON, bool(mask & bit), reason=reason) for bit, reason in REASONS)
            kept = self._reasons[gpu] = (mask, (gpu.sample(REASONS_MASK, mask), *samples))
        yield from kept[1]
