"""Errors of every GPU's memories, and what was taken out of use because of them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Field, Gpu, is_blank
from instep_agent.metric import Metric, counter, gauge
from instep_agent.node import Node, Reading
from instep_agent.wire import Sample

FIELDS = (
    Field(
        "ECC_SBE_VOL_TOTAL",
        counter(
            "instep_gpu_ecc_corrected_volatile_total",
            "Corrected memory errors since the driver was loaded.",
            alias="DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
        ),
    ),
    Field(
        "ECC_DBE_VOL_TOTAL",
        counter(
            "instep_gpu_ecc_uncorrected_volatile_total",
            "Uncorrected memory errors since the driver was loaded.",
            alias="DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        ),
    ),
    Field(
        "ECC_SBE_AGG_TOTAL",
        counter(
            "instep_gpu_ecc_corrected_aggregate_total",
            "Corrected memory errors over the board's life.",
            alias="DCGM_FI_DEV_ECC_SBE_AGG_TOTAL",
        ),
    ),
    Field(
        "ECC_DBE_AGG_TOTAL",
        counter(
            "instep_gpu_ecc_uncorrected_aggregate_total",
            "Uncorrected memory errors over the board's life.",
            alias="DCGM_FI_DEV_ECC_DBE_AGG_TOTAL",
        ),
    ),
    Field(
        "ECC_SBE_VOL_DEV",
        counter(
            "instep_gpu_ecc_device_memory_corrected_volatile_total", "Of these, in device memory.", is_on_page=False
        ),
    ),
    Field(
        "ECC_DBE_VOL_DEV",
        counter(
            "instep_gpu_ecc_device_memory_uncorrected_volatile_total", "Of these, in device memory.", is_on_page=False
        ),
    ),
    Field(
        "REMAPPED_COR",
        gauge(
            "instep_gpu_remapped_rows_corrected",
            "Rows remapped because of corrected errors.",
            alias="DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        ),
    ),
    Field(
        "REMAPPED_UNC",
        gauge(
            "instep_gpu_remapped_rows_uncorrected",
            "Rows remapped because of uncorrected errors.",
            alias="DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        ),
    ),
    Field(
        "REMAPPED_PENDING",
        gauge("instep_gpu_row_remap_is_pending", "1 while rows wait for a reset to be remapped."),
    ),
    Field(
        "REMAPPED_FAILURE",
        gauge(
            "instep_gpu_row_remap_has_failed",
            "1 when a row could not be remapped.",
            alias="DCGM_FI_DEV_ROW_REMAP_FAILURE",
        ),
    ),
    Field(
        "RETIRED_SBE",
        gauge(
            "instep_gpu_retired_pages_corrected",
            "Pages retired because of corrected errors, on GPUs that do not remap rows.",
            alias="DCGM_FI_DEV_RETIRED_SBE",
        ),
    ),
    Field(
        "RETIRED_DBE",
        gauge(
            "instep_gpu_retired_pages_uncorrected",
            "Pages retired because of uncorrected errors.",
            alias="DCGM_FI_DEV_RETIRED_DBE",
        ),
    ),
    Field(
        "RETIRED_PENDING",
        gauge(
            "instep_gpu_page_retirement_is_pending",
            "1 while pages wait for a reset.",
            alias="DCGM_FI_DEV_RETIRED_PENDING",
        ),
    ),
)
REMAP_BANKS = gauge("instep_gpu_remap_banks", "Memory banks by how many spare rows they have left.", is_on_page=False)
SRAM = counter(
    "instep_gpu_sram_errors_total",
    "Errors of the memories on the chip: kind corrected, parity or secded; period volatile or aggregate.",
    is_on_page=False,
)
SRAM_PLACE = counter(
    "instep_gpu_sram_uncorrected_aggregate_total", "Uncorrected errors on the chip by place.", is_on_page=False
)
SRAM_THRESHOLD = gauge(
    "instep_gpu_sram_threshold_is_exceeded", "1 when the driver's own limit of such errors is passed."
)
_SRAM_MEMBERS = (
    ("aggregateCor", "corrected", "aggregate"),
    ("aggregateUncParity", "parity", "aggregate"),
    ("aggregateUncSecDed", "secded", "aggregate"),
    ("volatileCor", "corrected", "volatile"),
    ("volatileUncParity", "parity", "volatile"),
    ("volatileUncSecDed", "secded", "volatile"),
)
_SRAM_PLACES = (
    ("aggregateUncBucketL2", "l2"),
    ("aggregateUncBucketSm", "sm"),
    ("aggregateUncBucketPcie", "pcie"),
    ("aggregateUncBucketMcu", "microcontroller"),
    ("aggregateUncBucketOther", "other"),
)


class GpuMemoryHealth:
    """ECC errors, remapped rows, retired pages and SRAM errors of every GPU, from NVML.

    Every 10 s: these count up and stay, so nothing is lost in between, and what is urgent among it comes as an event at
    once. A *volatile* count starts at 0 again with the driver: a fall is a new beginning, and the new value is what
    happened since. An *aggregate* count falls only when the board or its InfoROM was exchanged.
    """

    name = "gpu_memory_health"
    interval_seconds = 10.0
    deadline_seconds = 5.0
    child = "nvml"
    rights = (
        "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them; SRAM "
        "errors are told to root only"
    )
    metrics: tuple[Metric, ...] = (
        *(each.metric for each in FIELDS),
        REMAP_BANKS,
        SRAM,
        SRAM_PLACE,
        SRAM_THRESHOLD,
    )

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the counts of every GPU. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        yield from self._driver.each(node, lambda gpu: self._read(gpu, node))

    def _read(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        yield from self._driver.field_samples(gpu, node, FIELDS)
        banks = self._driver.call(gpu, node, "nvmlDeviceGetRowRemapperHistogram")
        for spare in ("max", "high", "partial", "low", "none") if banks is not None else ():
            yield gpu.sample(REMAP_BANKS, getattr(banks, spare), spare=spare)
        yield from self._sram(gpu, node)

    def _sram(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        """Yield the errors on the chip; the driver tells them to root only."""
        status_type = self._driver.constant("c_nvmlEccSramErrorStatus_v1_t")
        if status_type is None:
            return
        status = status_type()
        if self._driver.call(gpu, node, "nvmlDeviceGetSramEccErrorStatus", ctypes.byref(status)) is None:
            return
        for member, kind, period in _SRAM_MEMBERS:
            if not is_blank(getattr(status, member), bits=64):
                yield gpu.sample(SRAM, getattr(status, member), kind=kind, period=period)
        for member, place in _SRAM_PLACES:
            if not is_blank(getattr(status, member), bits=64):
                yield gpu.sample(SRAM_PLACE, getattr(status, member), place=place)
        yield gpu.sample(SRAM_THRESHOLD, bool(status.bThresholdExceeded))
