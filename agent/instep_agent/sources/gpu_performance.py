"""What the units of every GPU did over the last seconds, from its own performance counters (NVML GPM)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Gpu, is_blank
from instep_agent.metric import Metric, gauge
from instep_agent.node import Node, Reading
from instep_agent.wire import Sample

_PERCENT, _MEBIBYTES = 0.01, float(1 << 20)
METRICS = (
    (
        "GRAPHICS_UTIL",
        gauge(
            "instep_gpu_engine_active_ratio", "Time that any engine was at work.", alias="DCGM_FI_PROF_GR_ENGINE_ACTIVE"
        ),
        _PERCENT,
    ),
    (
        "SM_UTIL",
        gauge("instep_gpu_sm_active_ratio", "Share of the SMs that were at work.", alias="DCGM_FI_PROF_SM_ACTIVE"),
        _PERCENT,
    ),
    (
        "SM_OCCUPANCY",
        gauge(
            "instep_gpu_sm_occupancy_ratio", "Warps at work against what would fit.", alias="DCGM_FI_PROF_SM_OCCUPANCY"
        ),
        _PERCENT,
    ),
    (
        "ANY_TENSOR_UTIL",
        gauge(
            "instep_gpu_tensor_active_ratio",
            "Time that the tensor cores were at work.",
            alias="DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        ),
        _PERCENT,
    ),
    (
        "DRAM_BW_UTIL",
        gauge(
            "instep_gpu_dram_active_ratio",
            "Bandwidth of device memory in use against the highest.",
            alias="DCGM_FI_PROF_DRAM_ACTIVE",
        ),
        _PERCENT,
    ),
    (
        "PCIE_TX_PER_SEC",
        gauge(
            "instep_gpu_pcie_transmit_bytes_per_second",
            "Bytes sent over PCIe.",
            alias="DCGM_FI_PROF_PCIE_TX_BYTES",
            is_on_page=False,
        ),
        _MEBIBYTES,
    ),
    (
        "PCIE_RX_PER_SEC",
        gauge(
            "instep_gpu_pcie_receive_bytes_per_second",
            "Bytes received over PCIe.",
            alias="DCGM_FI_PROF_PCIE_RX_BYTES",
            is_on_page=False,
        ),
        _MEBIBYTES,
    ),
    (
        "NVLINK_TOTAL_TX_PER_SEC",
        gauge(
            "instep_gpu_nvlink_transmit_bytes_per_second",
            "Bytes sent over all NVLinks.",
            alias="DCGM_FI_PROF_NVLINK_TX_BYTES",
            is_on_page=False,
        ),
        _MEBIBYTES,
    ),
    (
        "NVLINK_TOTAL_RX_PER_SEC",
        gauge(
            "instep_gpu_nvlink_receive_bytes_per_second",
            "Bytes received over all NVLinks.",
            alias="DCGM_FI_PROF_NVLINK_RX_BYTES",
            is_on_page=False,
        ),
        _MEBIBYTES,
    ),
)
"""Name in NVML_GPM_METRIC_*, metric, and what its unit is in ours."""


@dataclass(slots=True, eq=False)
class _Watched:
    """Two sample buffers of a GPU, used in turn, and the request that compares them; None where there is no GPM."""

    request: Any = None
    before: Any = None
    spare: Any = None
    metrics: list[tuple[Metric, float]] = field(default_factory=list)
    has_before: bool = False


class GpuPerformance:
    """SM, tensor and memory activity and link bytes of every GPU, on Hopper and later, from NVML GPM.

    Every 5 s: each reading is the mean since the one before, so nothing is missed in between, and a collective that
    spins without moving a byte lasts for tens of seconds. The first turn takes a sample and gives nothing yet. Absent
    on GPUs without GPM, and with MIG on.
    """

    name = "gpu_performance"
    interval_seconds = 5.0
    deadline_seconds = 5.0
    child = "nvml"
    is_rate = True
    rights = "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them"
    metrics: tuple[Metric, ...] = tuple(metric for _name, metric, _scale in METRICS)

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver
        self._watched: dict[Gpu, _Watched] = {}

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the means since the last turn. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        gpus = self._driver.gpus(node)
        for gone in [gpu for gpu in self._watched if gpu not in gpus]:
            self._free(self._watched.pop(gone))
        yield from self._driver.each(node, lambda gpu: self._read(gpu, node))

    def _read(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        if gpu not in self._watched:
            self._watched[gpu] = self._prepare(gpu, node)
        watched = self._watched[gpu]
        if watched.request is None:
            return
        if self._driver.call(gpu, node, "nvmlGpmSampleGet", watched.spare) is None:
            watched.has_before = False  # a mean over a time that was not watched would be no reading of this moment
            return
        watched.before, watched.spare = watched.spare, watched.before
        if watched.has_before:
            watched.request.sample1, watched.request.sample2 = watched.spare, watched.before
            yield from self._compare(gpu, watched)
        watched.has_before = True

    def _prepare(self, gpu: Gpu, node: Node) -> _Watched:
        support = self._driver.call(gpu, node, "nvmlGpmQueryDeviceSupport")
        mig = self._driver.call(gpu, node, "nvmlDeviceGetMigMode")
        if support is None or not support.isSupportedDevice or (mig is not None and mig[0]):
            return _Watched()
        try:
            before, spare = (self._driver.ask("nvmlGpmSampleAlloc") for _ in range(2))
        except nvml.NvmlRefused:  # out of memory: as on a GPU without GPM, until the driver is opened again
            return _Watched()
        watched = _Watched(self._driver.constant("c_nvmlGpmMetricsGet_t")(), before, spare)
        watched.request.version = self._driver.constant("NVML_GPM_METRICS_GET_VERSION")
        for name, metric, scale in METRICS:
            number = self._driver.constant(f"NVML_GPM_METRIC_{name}")
            if number is not None:
                watched.request.metrics[len(watched.metrics)].metricId = number
                watched.metrics.append((metric, scale))
        watched.request.numMetrics = len(watched.metrics)
        return watched

    def _compare(self, gpu: Gpu, watched: _Watched) -> Iterator[Sample]:
        try:
            self._driver.ask("nvmlGpmMetricsGet", watched.request)
        except nvml.NvmlRefused as refused:
            gpu.errors[refused.error] = gpu.errors.get(refused.error, 0) + 1
            return
        for position, (metric, scale) in enumerate(watched.metrics):
            answer = watched.request.metrics[position]
            if not answer.nvmlReturn and not is_blank(answer.value, bits=64):
                yield gpu.sample(metric, answer.value * scale)

    def _free(self, watched: _Watched) -> None:
        for sample in (watched.before, watched.spare) if watched.request is not None else ():
            with contextlib.suppress(nvml.NvmlRefused):  # it went with the driver that made it
                self._driver.ask("nvmlGpmSampleFree", sample)
