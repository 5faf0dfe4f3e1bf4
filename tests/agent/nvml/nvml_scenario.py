"""Writes what the NVML stand-in answers: a healthy node with eight GPUs, and one line more for each fault.

A line is `<key> <value>`; the last one that fits counts. Keys: `gpus`, `driver_version`; `*.power` for every GPU,
`3.power` for one; `3.power !15` is an NVML error; `3.lost 1` a GPU off the bus; `*.hang nvmlDeviceGetPowerUsage` blocks
that call while the line is there; `event 17 3 79` is an Xid 79 of GPU 3, and 17 its number, higher than all before.
`*.field.82 48` is a field value for every scope, `3.field.161.7 5` for scope 7 alone.
"""

import os
from pathlib import Path

GIB = 1 << 30
XID, ECC_CORRECTED, POWER_SOURCE, CLOCK = 0x8, 0x1, 0x80, 0x10
FIELDS = {
    "ECC_CURRENT": (1, "1"),
    "ECC_SBE_VOL_TOTAL": (3, "2"),
    "ECC_DBE_VOL_TOTAL": (4, "0"),
    "ECC_SBE_AGG_TOTAL": (5, "7"),
    "ECC_DBE_AGG_TOTAL": (6, "0"),
    "ECC_SBE_VOL_DEV": (11, "2"),
    "ECC_DBE_VOL_DEV": (12, "0"),
    "PERF_POLICY_POWER": (74, "3500000000"),
    "PERF_POLICY_THERMAL": (75, "0"),
    "MEMORY_TEMP": (82, "u:52"),
    "TOTAL_ENERGY_CONSUMPTION": (83, "123456789012"),
    "NVLINK_LINK_COUNT": (91, "u:18"),
    "PCIE_REPLAY_COUNTER": (94, "u:0"),
    "PCIE_REPLAY_ROLLOVER_COUNTER": (95, "u:0"),
    "NVLINK_THROUGHPUT_DATA_TX": (138, "1000"),
    "NVLINK_THROUGHPUT_DATA_RX": (139, "2000"),
    "REMAPPED_COR": (142, "u:1"),
    "REMAPPED_UNC": (143, "u:0"),
    "REMAPPED_PENDING": (144, "u:0"),
    "REMAPPED_FAILURE": (145, "u:0"),
    "NVLINK_ERROR_DL_REPLAY": (161, "0"),
    "NVLINK_ERROR_DL_RECOVERY": (162, "0"),
    "NVLINK_ERROR_DL_CRC": (163, "0"),
    "NVLINK_GET_STATE": (165, "u:1"),
    "PCIE_L0_TO_RECOVERY_COUNTER": (169, "u:4"),
    "PCIE_COUNT_CORRECTABLE_ERRORS": (173, "u:0"),
    "PCIE_COUNT_NAKS_RECEIVED": (174, "u:0"),
    "PCIE_COUNT_RECEIVER_ERROR": (175, "u:0"),
    "PCIE_COUNT_BAD_TLP": (176, "u:0"),
    "PCIE_COUNT_NAKS_SENT": (177, "u:0"),
    "PCIE_COUNT_BAD_DLLP": (178, "u:0"),
    "PCIE_COUNT_NON_FATAL_ERROR": (179, "u:0"),
    "PCIE_COUNT_FATAL_ERROR": (180, "u:0"),
    "POWER_INSTANT": (186, "u:655000"),
    "POWER_MIN_LIMIT": (187, "u:200000"),
    "POWER_MAX_LIMIT": (188, "u:700000"),
    "POWER_DEFAULT_LIMIT": (189, "u:700000"),
    "POWER_CURRENT_LIMIT": (190, "u:700000"),
    "TEMPERATURE_SHUTDOWN_TLIMIT": (193, "-8"),
    "TEMPERATURE_SLOWDOWN_TLIMIT": (194, "-2"),
    "TEMPERATURE_MEM_MAX_TLIMIT": (195, "i:0"),
    "TEMPERATURE_GPU_MAX_TLIMIT": (196, "i:0"),
    "PCIE_COUNT_TX_BYTES": (197, "5000000"),
    "PCIE_COUNT_RX_BYTES": (198, "6000000"),
    "GET_GPU_RECOVERY_ACTION": (230, "u:0"),
}
"""Number and healthy answer of every field value that a GPU of this scenario has."""
LINES = {
    "name": "NVIDIA H100 80GB HBM3",
    "board_part": "692-2G520-0200-000",
    "vbios": "96.00.89.00.01",
    "persistence_mode": 1,
    "mig": 0,
    "mig_pending": 0,
    "utilization": 97,
    "utilization_memory": 61,
    "memory_total": 80 * GIB,
    "memory_reserved": GIB,
    "memory_used": 70 * GIB,
    "temperature": 41,
    "temperature_margin": 46,
    "power": 650000,
    "clock.1": 1755,
    "clock.2": 2619,
    "clock_max.1": 1980,
    "clock_max.2": 2619,
    "clock_reasons": 0x4,
    "sram_parity_aggregate": 0,
    "sram_secded_aggregate": 0,
    "sram_corrected_aggregate": 3,
    "sram_parity_volatile": 0,
    "sram_secded_volatile": 0,
    "sram_corrected_volatile": 0,
    "sram_bucket.l2": 0,
    "sram_bucket.sm": 0,
    "sram_bucket.pcie": 0,
    "sram_bucket.mcu": 0,
    "sram_bucket.other": 0,
    "sram_threshold_exceeded": 0,
    "remap_banks.max": 2559,
    "remap_banks.high": 1,
    "remap_banks.partial": 0,
    "remap_banks.low": 0,
    "remap_banks.none": 0,
    "pcie_generation": 5,
    "pcie_generation_max": 5,
    "pcie_width": 16,
    "pcie_width_max": 16,
    "fabric_state": 3,
    "fabric_status": 0,
    "fabric_clique": 0,
    "fabric_health_mask": 0x1AA,
    "event_types": XID | 0x3 | CLOCK | POWER_SOURCE | 0x8000,
    "gpm": 1,
    "gpm_metric.1": 98.5,
    "gpm_metric.2": 91.25,
    "gpm_metric.3": 40.0,
    "gpm_metric.5": 62.5,
    "gpm_metric.10": 55.0,
    "gpm_metric.20": 100.0,
    "gpm_metric.21": 200.0,
    "gpm_metric.60": 30000.0,
    "gpm_metric.61": 31000.0,
}
"""What every GPU answers; a key that is not here is not supported, as on the GPU that this describes."""


class Scenario:
    """The file that the stand-in reads; every change puts a whole new file in the old one's place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._events = 0

    def write(self, lines: list[str]) -> None:
        """Say exactly these lines from now on."""
        self._lines = list(lines)
        new = self.path.with_suffix(".new")
        new.write_text("\n".join(self._lines) + "\n")
        os.replace(new, self.path)

    def healthy(self, gpus: int = 8) -> None:
        """A node with so many working H100 GPUs."""
        self.write(healthy_lines(gpus))

    def add(self, *lines: str) -> None:
        """Say these lines too; they count before those that were there."""
        self.write([*self._lines, *lines])

    def remove(self, *lines: str) -> None:
        """Take lines back."""
        self.write([line for line in self._lines if line not in lines])

    def event(self, gpu: int, data: int, kind: int = XID) -> None:
        """Let a GPU report something."""
        self._events += 1
        self.add(f"event {self._events} {gpu} {data} {kind}")


def healthy_lines(gpus: int = 8) -> list[str]:
    """Give the lines of a node with working H100 GPUs."""
    lines = [f"gpus {gpus}", "driver_version 575.57.08", "nvml_version 13.575.57.08", "cuda_version 12090"]
    lines += [f"*.{key} {value}" for key, value in LINES.items()]
    lines += [f"*.field.{number} {answer}" for number, answer in FIELDS.values()]
    for gpu in range(gpus):
        lines += [
            f"{gpu}.uuid {uuid(gpu)}",
            f"{gpu}.pci {bus(gpu)}",
            f"{gpu}.serial 16530240{gpu:05d}",
            f"{gpu}.minor {gpu}",
            f"{gpu}.process {1000 + gpu} {60 * GIB}",
        ]
    return lines


def uuid(gpu: int) -> str:
    """Who the GPU is."""
    return f"GPU-00000000-0000-4000-8000-{gpu:012d}"


def bus(gpu: int) -> str:
    """Its PCI address as NVML writes it."""
    return f"00000000:{0x1B + 0x11 * gpu:02X}:00.0"


def pci(gpu: int) -> str:
    """Its PCI address as the kernel log has it."""
    return f"0000:{0x1B + 0x11 * gpu:02x}:00"


def field(name: str) -> int:
    """Number of a field value."""
    return FIELDS[name][0]
