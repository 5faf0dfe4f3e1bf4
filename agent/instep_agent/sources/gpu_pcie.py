"""The PCIe link of every GPU: how wide and fast it is, how fast it could be, and its errors."""

from __future__ import annotations

from collections.abc import Iterator

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Field, Gpu
from instep_agent.metric import Metric, counter, gauge
from instep_agent.node import Node, Reading
from instep_agent.wire import Sample

STATE = (
    (
        gauge("instep_gpu_pcie_generation", "PCIe generation in use; an idle GPU may lower it."),
        "nvmlDeviceGetCurrPcieLinkGeneration",
    ),
    (gauge("instep_gpu_pcie_width", "PCIe lanes in use."), "nvmlDeviceGetCurrPcieLinkWidth"),
)
CONSTANT = (
    (
        gauge("instep_gpu_pcie_generation_max", "Highest generation that GPU and slot have in common."),
        "nvmlDeviceGetMaxPcieLinkGeneration",
    ),
    (
        gauge("instep_gpu_pcie_width_max", "Most lanes that GPU and slot have in common."),
        "nvmlDeviceGetMaxPcieLinkWidth",
    ),
)
FIELDS = (
    Field(
        "PCIE_REPLAY_COUNTER",
        counter("instep_gpu_pcie_replays_total", "PCIe replays.", alias="DCGM_FI_DEV_PCIE_REPLAY_COUNTER"),
    ),
    Field(
        "PCIE_REPLAY_ROLLOVER_COUNTER",
        counter("instep_gpu_pcie_replay_rollovers_total", "PCIe replay rollovers.", is_on_page=False),
    ),
    Field(
        "PCIE_L0_TO_RECOVERY_COUNTER", counter("instep_gpu_pcie_recoveries_total", "Times the link was trained again.")
    ),
    Field(
        "PCIE_COUNT_CORRECTABLE_ERRORS",
        counter("instep_gpu_pcie_correctable_errors_total", "Corrected PCIe errors.", is_on_page=False),
    ),
    Field(
        "PCIE_COUNT_NON_FATAL_ERROR",
        counter("instep_gpu_pcie_nonfatal_errors_total", "Not fatal PCIe errors.", is_on_page=False),
    ),
    Field("PCIE_COUNT_FATAL_ERROR", counter("instep_gpu_pcie_fatal_errors_total", "Fatal PCIe errors.")),
    Field(
        "PCIE_COUNT_RECEIVER_ERROR",
        counter("instep_gpu_pcie_receiver_errors_total", "PCIe receiver errors.", is_on_page=False),
    ),
    Field("PCIE_COUNT_BAD_TLP", counter("instep_gpu_pcie_bad_tlps_total", "Bad PCIe packets.", is_on_page=False)),
    Field(
        "PCIE_COUNT_BAD_DLLP", counter("instep_gpu_pcie_bad_dllps_total", "Bad PCIe link packets.", is_on_page=False)
    ),
    Field("PCIE_COUNT_NAKS_SENT", counter("instep_gpu_pcie_naks_sent_total", "PCIe NAKs sent.", is_on_page=False)),
    Field(
        "PCIE_COUNT_NAKS_RECEIVED",
        counter("instep_gpu_pcie_naks_received_total", "PCIe NAKs received.", is_on_page=False),
    ),
    Field(
        "PCIE_COUNT_TX_BYTES",
        counter("instep_gpu_pcie_transmit_bytes_total", "Bytes sent; the driver's own counter may begin again at 0."),
    ),
    Field(
        "PCIE_COUNT_RX_BYTES",
        counter(
            "instep_gpu_pcie_receive_bytes_total", "Bytes received; the driver's own counter may begin again at 0."
        ),
    ),
)


class GpuPcie:
    """Width, generation, errors and bytes of every GPU's PCIe link, from NVML.

    Every 10 s: errors count up and stay, and a link that lost lanes does not get them back by itself. The driver's
    throughput function is not used: it blocks for 20 ms a call, while bytes are to be had as counters. What the maximum
    is is read once for each opening of the driver.
    """

    name = "gpu_pcie"
    interval_seconds = 10.0
    deadline_seconds = 5.0
    child = "nvml"
    rights = "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them"
    metrics: tuple[Metric, ...] = (
        *(metric for metric, _function in (*STATE, *CONSTANT)),
        *(each.metric for each in FIELDS),
    )

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver
        self._constant: dict[Gpu, tuple[Sample, ...]] = {}

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the link of every GPU. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        gpus = self._driver.gpus(node)
        self._constant = {gpu: kept for gpu, kept in self._constant.items() if gpu in gpus}
        yield from self._driver.each(node, lambda gpu: self._read(gpu, node))

    def _read(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        if gpu not in self._constant:
            self._constant[gpu] = tuple(self._numbers(gpu, node, CONSTANT))
        yield from self._constant[gpu]
        yield from self._numbers(gpu, node, STATE)
        yield from self._driver.field_samples(gpu, node, FIELDS)

    def _numbers(self, gpu: Gpu, node: Node, functions: tuple[tuple[Metric, str], ...]) -> Iterator[Sample]:
        for metric, function in functions:
            value = self._driver.number(gpu, node, function)
            if value is not None:
                yield gpu.sample(metric, value)
