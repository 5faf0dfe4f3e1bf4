"""What a kernel line means: the catalogue's row, corrected by what the line itself says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from instep_diagnosis.catalogues import CatalogueRow, sxid_catalogue, xid_catalogue
from instep_diagnosis.kernel_line import KernelLine, LineKind

FATAL = "fatal"
WARNING = "warning"


@dataclass(frozen=True, slots=True)
class KernelFault:
    """A kernel line with its meaning; fields as in `catalogues.CatalogueRow`."""

    line: KernelLine
    severity: str | None
    workload: str
    action: str
    text: str

    @property
    def fault_class(self) -> str:
        """Name of the kind of fault, such as `xid-79`."""
        return self.line.text if self.line.kind is LineKind.OTHER else f"{self.line.kind}-{self.line.code}"


_UNKNOWN = CatalogueRow(0, None, "unknown", "contact-support", "hardware", "the catalogue does not know this code", "")
_OTHER = {
    "gpu-lost": CatalogueRow(0, FATAL, "fails", "reboot-node", "hardware", "the GPU has fallen off the bus", ""),
    "gpu-init-failed": CatalogueRow(0, FATAL, "fails", "reset-gpu", "hardware", "the GPU could not be initialised", ""),
    "nic-health-failed": CatalogueRow(0, FATAL, "fails", "reboot-node", "fabric", "the network adapter failed", ""),
}
_RECOVERY = re.compile(r"\bto (?:0x[0-9a-fA-F]+ )?\(?(?P<action>[A-Za-z ]+)")
# First register word of Xid 74 (Hopper and older): bits that alone prove nothing (to ignore, sympathetic, or only on
# repeat).
_XID_74_HARMLESS = sum(1 << bit for bit in (0, 1, 20, 23, 27, 29, 30))


def assess(line: KernelLine) -> KernelFault | None:
    """The meaning of a line, or None when it reports no fault."""
    if line.kind is LineKind.NONE:
        return None
    row = _row(line)
    severity, action = _corrected(line, row)
    return KernelFault(line=line, severity=severity, workload=row.workload, action=action, text=row.text)


def _row(line: KernelLine) -> CatalogueRow:
    if line.kind is LineKind.OTHER:
        return _OTHER[line.text]
    rows = (xid_catalogue() if line.kind is LineKind.XID else sxid_catalogue()).rows
    return rows.get(line.code or 0, _UNKNOWN)


def _corrected(line: KernelLine, row: CatalogueRow) -> tuple[str | None, str]:
    """Severity and action after the line's own words: the driver knows better than a table."""
    if line.kind is LineKind.XID and line.code == 154:
        return _recovery_action(line.text)
    if line.kind is LineKind.XID and line.code == 74:
        return (FATAL, row.action) if _is_fatal_nvlink(line.text) else (row.severity, row.action)
    is_worded = line.kind is LineKind.SXID or line.code in range(144, 151)
    if is_worded and row.severity != FATAL:
        return _worded(line.text, row)
    return row.severity, row.action


def _recovery_action(text: str) -> tuple[str | None, str]:
    found = _RECOVERY.search(text)
    words = found["action"].strip().lower() if found else ""
    if not words or words.startswith("none"):
        return None, "none"
    return FATAL, "reboot-node" if "reboot" in words or "system" in words else "reset-gpu"


def _is_fatal_nvlink(text: str) -> bool:
    if not re.search(r"(?<!non-)(?<!non)\bfatal\b", text, re.IGNORECASE):
        return False
    word = re.search(r"\((0x[0-9a-fA-F]+)", text)
    return word is None or int(word[1], 16) & ~_XID_74_HARMLESS != 0


def _worded(text: str, row: CatalogueRow) -> tuple[str | None, str]:
    if re.search(r"\bnon-?fatal\b", text, re.IGNORECASE):
        return WARNING, "none"
    if re.search(r"\bfatal\b", text, re.IGNORECASE):
        return FATAL, "reset-gpu" if row is _UNKNOWN else row.action
    return row.severity, row.action
