"""What dcgm-exporter calls a metric and its labels, in the generation that people's dashboards know.

Up to 4.8 its names are those that stand as `alias` beside each metric. From 4.9 on (DCGM 4.7) it renames what DCGM has
renamed, and many units are base units, as ours are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from instep_agent.metric import Metric
from instep_agent.wire import GpuReport

Generation = Literal["old", "new", "off"]
Labels = tuple[tuple[str, str], ...]
RENAMED = {
    "DCGM_FI_DEV_GPU_UTIL": "DCGM_FI_DEV_GPU_UTIL_RATIO",
    "DCGM_FI_DEV_MEM_COPY_UTIL": "DCGM_FI_DEV_MEMORY_UTIL_RATIO",
    "DCGM_FI_DEV_FB_USED": "DCGM_FI_DEV_FB_USED_BYTES",
    "DCGM_FI_DEV_FB_FREE": "DCGM_FI_DEV_FB_FREE_BYTES",
    "DCGM_FI_DEV_FB_RESERVED": "DCGM_FI_DEV_FB_RESERVED_BYTES",
    "DCGM_FI_DEV_GPU_TEMP": "DCGM_FI_DEV_GPU_TEMP_CELSIUS",
    "DCGM_FI_DEV_MEMORY_TEMP": "DCGM_FI_DEV_MEMORY_TEMP_CELSIUS",
    "DCGM_FI_DEV_POWER_USAGE": "DCGM_FI_DEV_BOARD_POWER_WATTS",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL",
    "DCGM_FI_DEV_SM_CLOCK": "DCGM_FI_DEV_SM_CLOCK_HERTZ",
    "DCGM_FI_DEV_MEM_CLOCK": "DCGM_FI_DEV_MEMORY_CLOCK_HERTZ",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": "DCGM_FI_DEV_PCIE_REPLAY_TOTAL",
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": "DCGM_FI_DEV_ROW_REMAP_CORRECTABLE_TOTAL",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": "DCGM_FI_DEV_ROW_REMAP_UNCORRECTABLE_TOTAL",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": "DCGM_FI_DEV_ROW_REMAP_FAILED",
    "DCGM_FI_DEV_RETIRED_SBE": "DCGM_FI_DEV_PAGE_RETIRED_SBE_TOTAL",
    "DCGM_FI_DEV_RETIRED_DBE": "DCGM_FI_DEV_PAGE_RETIRED_DBE_TOTAL",
    "DCGM_FI_DEV_RETIRED_PENDING": "DCGM_FI_DEV_PAGE_RETIRED_PENDING",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO",
    "DCGM_FI_PROF_SM_ACTIVE": "DCGM_FI_PROF_SM_UTIL_RATIO",
    "DCGM_FI_PROF_SM_OCCUPANCY": "DCGM_FI_PROF_SM_OCCUPANCY_RATIO",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "DCGM_FI_PROF_TENSOR_UTIL_RATIO",
    "DCGM_FI_PROF_DRAM_ACTIVE": "DCGM_FI_PROF_DRAM_UTIL_RATIO",
}
"""Old name → new one, whose unit is ours. What is not here has kept its name and unit."""
_NAMES = {"uuid": "UUID", "pci": "pci_bus_id", "model": "modelName"}
_PCI = re.compile(r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.([0-7]))?")


def second_names(metrics: Iterable[Metric], generation: Generation) -> dict[str, Metric]:
    """Give, by a metric's own name, how it is shown under dcgm-exporter's.

    >>> from instep_agent.metric import gauge
    >>> busy = gauge("x_ratio", "Busy.", alias="DCGM_FI_DEV_GPU_UTIL", alias_scale=100.0)
    >>> [(one.name, one.alias_scale) for one in second_names([busy], "new").values()]
    [('DCGM_FI_DEV_GPU_UTIL_RATIO', 1.0)]
    """
    found = {one.name: one for one in metrics if one.alias and generation != "off"}
    if generation == "new":
        return {
            name: replace(one, name=RENAMED[one.alias], alias_scale=1.0)
            if one.alias in RENAMED
            else replace(one, name=one.alias)
            for name, one in found.items()
        }
    return {name: replace(one, name=one.alias) for name, one in found.items()}


def second_labels(labels: Labels, gpu: GpuReport | None, *, node: str, generation: Generation) -> Labels:
    """Give the labels under which dcgm-exporter shows the same thing; `gpu` is the one that they name, if known."""
    found = {_NAMES.get(name, name): value for name, value in labels}
    if gpu is not None:
        found.setdefault("UUID", gpu.uuid)
        found.setdefault("pci_bus_id", gpu.pci)
    if found.get("pci_bus_id"):
        found["pci_bus_id"] = long_address(found["pci_bus_id"])
    if found.get("gpu"):
        found["device"] = f"nvidia{found['gpu']}"
    found["hostname" if generation == "new" else "Hostname"] = node
    return tuple(found.items())


def long_address(address: str) -> str:
    """Give a PCI address as NVML and dcgm-exporter write it.

    >>> long_address("0000:3b:00"), long_address("elsewhere")
    ('00000000:3B:00.0', 'elsewhere')
    """
    found = _PCI.fullmatch(address)
    return f"{int(found[1], 16):08X}:{found[2].upper()}.{found[3] or 0}" if found else address
