"""How every GPU is joined to the others: its NVLinks one by one, and the fabric that its node belongs to."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterator

from instep_agent.gpu import nvml
from instep_agent.gpu.device import Field, Gpu
from instep_agent.metric import Metric, counter, gauge
from instep_agent.node import Node, Reading
from instep_agent.wire import Sample

LINKS_MAX = 36
ALL_LINKS = 0xFFFFFFFF
"""As a field's scope: the sum over all links."""
LINK_STATE = gauge(
    "instep_gpu_nvlink_state", "0 inactive, 1 active, 2 asleep, 3 active without traffic.", is_on_page=False
)
LINK_ERRORS = counter("instep_gpu_nvlink_link_errors_total", "Errors of one NVLink by kind.", is_on_page=False)
LINKS = gauge("instep_gpu_nvlinks", "NVLinks that the GPU has.")
LINKS_ACTIVE = gauge("instep_gpu_nvlinks_active", "NVLinks that are active.")
ERRORS = counter("instep_gpu_nvlink_errors_total", "Errors of all NVLinks of a GPU together, by kind.")
ERRORS_MAX = gauge("instep_gpu_nvlink_link_errors_max", "Errors of its worst NVLink, by kind.")
BYTES = (
    Field(
        "NVLINK_THROUGHPUT_DATA_TX",
        counter("instep_gpu_nvlink_transmit_bytes_total", "Data sent over all NVLinks."),
        1024.0,
        ALL_LINKS,
    ),
    Field(
        "NVLINK_THROUGHPUT_DATA_RX",
        counter("instep_gpu_nvlink_receive_bytes_total", "Data received over all NVLinks."),
        1024.0,
        ALL_LINKS,
    ),
)
FABRIC_STATE = gauge("instep_gpu_fabric_state", "0 not supported, 1 not started, 2 in progress, 3 completed.")
FABRIC_STATUS = gauge(
    "instep_gpu_fabric_status", "Error number of joining the fabric, 0 for none; once completed.", is_on_page=False
)
FABRIC_HEALTH = gauge("instep_gpu_fabric_health_mask", "Health of the fabric as the driver's bits.")
FABRIC_CLIQUE = gauge(
    "instep_gpu_fabric_clique", "Number of the clique of GPUs that the fabric manager gave.", is_on_page=False
)
_KINDS = (
    # Up to Hopper: the older fields (CRC_FLIT_ERROR_COUNT_* and so on) answer there with 0 whatever happened.
    ("NVLINK_ERROR_DL_REPLAY", "replay"),
    ("NVLINK_ERROR_DL_RECOVERY", "recovery"),
    ("NVLINK_ERROR_DL_CRC", "crc"),
    # From Blackwell on.
    ("NVLINK_COUNT_MALFORMED_PACKET_ERRORS", "malformed_packet"),
    ("NVLINK_COUNT_BUFFER_OVERRUN_ERRORS", "buffer_overrun"),
    ("NVLINK_COUNT_RCV_ERRORS", "receive"),
    ("NVLINK_COUNT_RCV_REMOTE_ERRORS", "receive_remote"),
    ("NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS", "link_integrity"),
    ("NVLINK_COUNT_XMIT_DISCARDS", "transmit_discard"),
    ("NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS", "link_recovery_successful"),
    ("NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS", "link_recovery_failed"),
    ("NVLINK_COUNT_EFFECTIVE_ERRORS", "effective"),
    ("NVLINK_COUNT_SYMBOL_ERRORS", "symbol"),
)
_FUNCTION_KINDS = ((0, "replay"), (1, "recovery"), (2, "crc_flit"), (3, "crc_data"), (4, "ecc_data"))
"""nvmlNvLinkErrorCounter_t, for drivers without the fields."""
_FABRIC_TYPES = ("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t")
_FABRIC_COMPLETED = 3


class GpuLinks:
    """State and errors of every NVLink, and the state of the fabric, from NVML.

    Every 30 s: errors count up and stay, and a link that fails while a job uses it comes as an event at once. Frames
    carry every link; the page shows the sum and the worst link of each GPU. A sum is left out while one of the links
    that it had before cannot be read, since it would seem to fall.
    """

    name = "gpu_links"
    interval_seconds = 30.0
    deadline_seconds = 5.0
    child = "nvml"
    rights = "opens /dev/nvidiactl and /dev/nvidia*: everybody may, in a container the NVIDIA runtime gives them"
    metrics: tuple[Metric, ...] = (
        LINK_STATE,
        LINK_ERRORS,
        LINKS,
        LINKS_ACTIVE,
        ERRORS,
        ERRORS_MAX,
        *(each.metric for each in BYTES),
        FABRIC_STATE,
        FABRIC_STATUS,
        FABRIC_HEALTH,
        FABRIC_CLIQUE,
    )

    def __init__(self, driver: nvml.Driver = nvml.shared) -> None:
        self._driver = driver
        self._counts: dict[Gpu, int] = {}
        self._seen: dict[tuple[Gpu, str], int] = {}

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield links and fabric of every GPU. Raise `Absent` without an NVIDIA GPU, `SourceFailed` when refused."""
        gpus = self._driver.gpus(node)
        self._counts = {gpu: count for gpu, count in self._counts.items() if gpu in gpus}
        self._seen = {key: count for key, count in self._seen.items() if key[0] in gpus}
        yield from self._driver.each(node, lambda gpu: self._read(gpu, node))

    def _read(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        if gpu not in self._counts:
            found = self._driver.fields(gpu, node, [("NVLINK_LINK_COUNT", 0)])
            self._counts[gpu] = min(int(found.get(("NVLINK_LINK_COUNT", 0), 0)), LINKS_MAX)
        if self._counts[gpu]:
            yield gpu.sample(LINKS, self._counts[gpu])
            yield from self._states(gpu, node)
            yield from self._errors(gpu, node)
            yield from self._driver.field_samples(gpu, node, BYTES)
        yield from self._fabric(gpu, node)

    def _states(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        states = self._driver.fields(gpu, node, [("NVLINK_GET_STATE", link) for link in range(self._counts[gpu])])
        by_link: dict[int, float | None] = {link: state for (_name, link), state in states.items()}
        if not by_link:
            by_link = {
                link: self._driver.number(gpu, node, "nvmlDeviceGetNvLinkState", link)
                for link in range(self._counts[gpu])
            }
        known = {link: state for link, state in by_link.items() if state is not None}
        for link, state in known.items():
            yield gpu.sample(LINK_STATE, state, link=str(link))
        if known:
            yield gpu.sample(LINKS_ACTIVE, sum(state == 1 for state in known.values()))

    def _errors(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        by_kind = self._counted(gpu, node) or self._counted_by_function(gpu, node)
        for kind, by_link in by_kind.items():
            for link, count in by_link.items():
                yield gpu.sample(LINK_ERRORS, count, kind=kind, link=str(link))
            seen = self._seen[gpu, kind] = max(self._seen.get((gpu, kind), 0), len(by_link))
            if len(by_link) == seen:
                yield gpu.sample(ERRORS, sum(by_link.values()), kind=kind)
                yield gpu.sample(ERRORS_MAX, max(by_link.values()), kind=kind)

    def _counted(self, gpu: Gpu, node: Node) -> dict[str, dict[int, float]]:
        links = range(self._counts[gpu])
        found = self._driver.fields(gpu, node, [(field, link) for field, _kind in _KINDS for link in links])
        by_kind: dict[str, dict[int, float]] = defaultdict(dict)
        kinds = dict(_KINDS)
        for (field, link), count in found.items():
            by_kind[kinds[field]][link] = count
        return by_kind

    def _counted_by_function(self, gpu: Gpu, node: Node) -> dict[str, dict[int, float]]:
        by_kind: dict[str, dict[int, float]] = defaultdict(dict)
        for number, kind in _FUNCTION_KINDS:
            for link in range(self._counts[gpu]):
                count = self._driver.number(gpu, node, "nvmlDeviceGetNvLinkErrorCounter", link, number)
                if count is not None:
                    by_kind[kind][link] = count
        return by_kind

    def _fabric(self, gpu: Gpu, node: Node) -> Iterator[Sample]:
        for name in _FABRIC_TYPES:
            fabric_type = self._driver.constant(name)
            if fabric_type is None:
                continue
            fabric = fabric_type()
            answer = self._driver.call(gpu, node, "nvmlDeviceGetGpuFabricInfoV", ctypes.byref(fabric), variant=name)
            if answer is not None:
                yield from _fabric_samples(gpu, fabric)
                return


def _fabric_samples(gpu: Gpu, fabric: object) -> Iterator[Sample]:
    """Yield the state; the rest means something only once the GPU has joined."""
    state = getattr(fabric, "state", 0)
    if not state:  # the driver's way to say that there is no fabric
        return
    yield gpu.sample(FABRIC_STATE, state)
    if state == _FABRIC_COMPLETED:
        yield gpu.sample(FABRIC_STATUS, getattr(fabric, "status", 0))
        yield gpu.sample(FABRIC_CLIQUE, getattr(fabric, "cliqueId", 0))
        yield gpu.sample(FABRIC_HEALTH, getattr(fabric, "healthMask", 0))
