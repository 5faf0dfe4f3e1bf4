"""What a kernel line means: the catalogue's row, corrected by what the line itself says."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from instep_diagnosis.catalogues import CLEARED_BY_ACTION, CatalogueRow, sxid_catalogue, xid_catalogue
from instep_diagnosis.catalogues.patterns import kernel_patterns
from instep_diagnosis.catalogues.rules import (
    NvlinkRule,
    RecoveryAction,
    nvlink_rules,
    recovery_actions,
    register_bits,
)
from instep_diagnosis.kernel_line import KernelLine, LineKind

FATAL = "fatal"
WARNING = "warning"
DEVICES = ("gpu", "fabric", "nic")
"""Subjects whose fatal faults put a GPU, or the node for its GPUs, out of use."""


@dataclass(frozen=True, slots=True)
class KernelFault:
    """A kernel line with its meaning; fields as in `catalogues.CatalogueRow`."""

    line: KernelLine
    severity: str | None
    workload: str
    action: str
    text: str
    subject: str = "gpu"
    """What it is about, as in `catalogues.patterns.SUBJECTS`."""
    clears: tuple[str, ...] = ()

    @property
    def fault_class(self) -> str:
        """Name of the kind of fault, such as `xid-79`."""
        return self.line.text if self.line.kind is LineKind.OTHER else f"{self.line.kind}-{self.line.code}"

    @property
    def identity_class(self) -> str:
        """The class under which one fault is told once: drivers say that a GPU has fallen off the bus with Xid 79, in
        a line without a number, or both; that a row could not be remapped with Xid 64, by a reading, or both."""
        return _SAME.get(self.fault_class, self.fault_class)

    @property
    def is_of_device(self) -> bool:
        """It is about a GPU, the fabric between them or a network adapter, not about the rest of the node."""
        return self.subject in DEVICES


_SAME = {"gpu-lost": "xid-79", "row-remap-failed": "xid-64", "xid-154": "recovery-action"}
"""Class of a fault → the class under which it is told."""
_UNKNOWN = CatalogueRow(0, None, "unknown", "contact-support", "hardware", "the catalogue does not know this code", "")
_RECOVERY = re.compile(r"\bto\s+(?:0x(?P<value>[0-9a-fA-F]{1,4})\b)?\s*\(?(?P<words>[A-Za-z][A-Za-z0-9 ]*)?")
_NVLINK5 = range(144, 151)


def assess(line: KernelLine) -> KernelFault | None:
    """The meaning of a line, or None when it reports no fault."""
    if line.kind is LineKind.NONE:
        return None
    if line.kind is LineKind.OTHER:
        found = kernel_patterns().rows[line.text]
        return KernelFault(line, found.severity, found.workload, found.action, found.text, found.subject, found.clears)
    rows = (xid_catalogue() if line.kind is LineKind.XID else sxid_catalogue()).rows
    row = rows.get(line.code or 0, _UNKNOWN)
    subject = "fabric" if row.class_ == "fabric" else "gpu"
    return _corrected(KernelFault(line, row.severity, row.workload, row.action, row.text, subject, row.clears), row)


def overruled(fault: KernelFault, recovery: int | None) -> KernelFault:
    """The fault after what NVML says the GPU needs: the driver knows better than a table. None: it does not say."""
    stated = recovery_actions().get(-1 if recovery is None else recovery)
    if stated is None or fault.subject != "gpu":
        return fault
    severity = stated.severity or (WARNING if fault.severity else None)
    return _with(fault, severity, stated.action, f"{fault.text}; {stated.text}")


def recovery_stated(text: str) -> RecoveryAction | None:
    """What an Xid 154 asks for, by its words, else by its value; None where neither is known.

    >>> recovery_stated("GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)").action
    'reboot-node'
    """
    found = list(_RECOVERY.finditer(text))
    if not found:
        return None
    words, value = (found[-1]["words"] or "").lower(), found[-1]["value"]
    for stated in recovery_actions().values():
        if any(word in words for word in stated.words):
            return stated
    return recovery_actions().get(int(value, 16)) if value else None


def _corrected(fault: KernelFault, row: CatalogueRow) -> KernelFault:
    """The fault after its line's own words."""
    if fault.line.kind is LineKind.SXID:
        return _worded(fault, row)
    if fault.line.code == 154:
        return _recovery(fault)
    if fault.line.code == 74:
        return _registers(fault)
    return _nvlink5(fault, row) if fault.line.code in _NVLINK5 else fault


def _with(fault: KernelFault, severity: str | None, action: str, text: str) -> KernelFault:
    """The fault with another severity and action, and with what ends such a one."""
    clears = fault.clears
    if (severity, action) != (fault.severity, fault.action):
        clears = CLEARED_BY_ACTION[action] if severity == FATAL else ()
    return replace(fault, severity=severity, action=action, text=text, clears=clears)


def _recovery(fault: KernelFault) -> KernelFault:
    stated = recovery_stated(fault.line.text)
    if stated is not None:
        return _with(fault, stated.severity, stated.action, f"{fault.text.partition(';')[0]}: {stated.text}")
    if not _RECOVERY.search(fault.line.text):
        return fault
    # It asks for something new: the GPU is not to be used until somebody has looked.
    action = "reboot-node" if "reboot" in fault.line.text.lower() else "reset-gpu"
    return _with(fault, FATAL, action, fault.text)


def _word(text: str) -> str | None:
    """The severity that a line states itself."""
    if re.search(r"\bnon-?fatal\b", text, re.IGNORECASE):
        return WARNING
    return FATAL if re.search(r"\bfatal\b", text, re.IGNORECASE) else None


def _registers(fault: KernelFault) -> KernelFault:
    """Xid 74: the word in the line, unless every bit that is set is harmless by itself."""
    word = _word(fault.line.text)
    if word is None:
        return fault
    found = [row for row in register_bits() if row.mask & _register(fault.line, row.register)]
    known = sum(row.mask for row in register_bits() if row.register == 1)
    is_harmless = bool(found) and all(row.is_harmless for row in found) and not _register(fault.line, 1) & ~known
    text = "; ".join((fault.text.partition(";")[0], *(row.text for row in found)))
    if word == FATAL and not is_harmless:
        return _with(fault, FATAL, "reset-gpu", text)
    return _with(fault, WARNING, "none", text)


def _register(line: KernelLine, number: int) -> int:
    return line.words[number - 1] if len(line.words) >= number else 0


def _nvlink5(fault: KernelFault, row: CatalogueRow) -> KernelFault:
    """Xid 144 to 150: the row of the event, if there is one, and the word in the line."""
    rule = _nvlink_rule(fault.line)
    if rule is None:
        return _worded(fault, row)
    text = f"NVLink 5, {fault.line.unit}: {rule.text}"
    word = None if rule.is_always else _word(fault.line.text)
    severity = word or rule.severity
    action = "reset-gpu" if severity == FATAL and rule.action == "none" else rule.action
    return _with(fault, severity, "none" if severity != FATAL and action == "reset-gpu" else action, text)


def _nvlink_rule(line: KernelLine) -> NvlinkRule | None:
    status = line.words[1] if len(line.words) > 1 else None
    for rule in nvlink_rules():
        is_unit = any((line.unit or "").startswith(unit) for unit in rule.units)
        is_status = not rule.statuses or status in rule.statuses
        if rule.xid == line.code and is_unit and is_status and (not rule.subcodes or line.subcode in rule.subcodes):
            return rule
    return None


def _worded(fault: KernelFault, row: CatalogueRow) -> KernelFault:
    word = None if row.is_always else _word(fault.line.text)
    if word == FATAL:
        action = "reset-gpu" if row is _UNKNOWN or row.action == "none" else row.action
        return _with(fault, FATAL, action, fault.text)
    if word == WARNING and (row.severity == FATAL or row is _UNKNOWN or row.class_ == "fabric"):
        is_kept = fault.line.kind is LineKind.SXID and row.severity == WARNING
        return fault if is_kept else _with(fault, WARNING, "none", fault.text)
    return fault
