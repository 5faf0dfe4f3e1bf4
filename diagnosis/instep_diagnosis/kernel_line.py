"""From a kernel log line to what it says: a pure matcher, ignorant of what the codes mean.

Any prefix is allowed (`dmesg -T`, ISO time, `/dev/kmsg`'s `priority,sequence,microseconds,flags;`), since only the
driver's own words are looked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

LINE_CHARACTERS_MAX = 4096
"""A kernel record is at most 1 KiB or so; a longer line is cut before it is matched."""


class LineKind(StrEnum):
    """What sort of line it is."""

    XID = "xid"
    SXID = "sxid"
    OTHER = "other"
    """A fault line without a number."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class KernelLine:
    """What one line says. None is *not said*."""

    kind: LineKind
    code: int | None = None
    pci: str | None = None
    """As the line has it, lower case: `0000:3b:00`, or with a function for a switch."""
    pid: int | None = None
    name: str | None = None
    """Of the process."""
    link: int | None = None
    subcode: int | None = None
    """Of an NVLink 5 event (Xid 144 to 150): bits 25 to 20 of its first register word, as leptonai/gpud reads it."""
    text: str = ""
    """What follows the code; for `other` the name of the fault, such as `gpu-lost`."""
    is_injected: bool = False
    """The driver says the event was injected on purpose (`i1` in an NVLink 5 line)."""


_PCI = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-9a-fA-F])?"
_CODED = re.compile(rf"\b(?P<kind>S?Xid) \(PCI:(?P<pci>{_PCI})\): (?P<code>\d{{1,6}})\b,?\s*(?P<text>.*)")
_PID = re.compile(r"\bpid='?(\d+)'?")
_NAME = re.compile(r"\bname='?([^,'<>]+)'?,")
_LINK = re.compile(r"\b[Ll]ink (-?\d+)")
_WORDS = re.compile(r"\((0x[0-9a-fA-F]{1,8})\b")
_ANY_PCI = re.compile(_PCI)
_OTHER = (
    ("gpu-lost", re.compile(r"NVRM:.*(?:fallen off the bus|GPU is lost)")),
    ("gpu-init-failed", re.compile(r"NVRM:.*RmInitAdapter failed")),
    ("nic-health-failed", re.compile(r"mlx5_core.*(?:health poll failed|device's health compromised|unrecoverable)")),
)
_NVLINK5 = range(144, 151)


def read_kernel_line(text: str) -> KernelLine:
    """What a kernel log line says.

    >>> read_kernel_line("[12.5] NVRM: Xid (PCI:0000:3b:00): 79, pid=9, GPU has fallen off the bus.").code
    79
    >>> read_kernel_line("usb 1-1: new device").kind.value
    'none'
    """
    line = text[:LINE_CHARACTERS_MAX].strip()
    found = _CODED.search(line)
    return _coded(found) if found else _uncoded(line)


def _coded(found: re.Match[str]) -> KernelLine:
    text, code = found["text"], int(found["code"])
    pid, name, link = _PID.search(text), _NAME.search(text), _LINK.search(text)
    return KernelLine(
        kind=LineKind.XID if found["kind"] == "Xid" else LineKind.SXID,
        code=code,
        pci=found["pci"].lower(),
        pid=int(pid[1]) if pid else None,
        name=name[1].strip() if name else None,
        link=int(link[1]) if link and int(link[1]) >= 0 else None,
        subcode=_subcode(text) if found["kind"] == "Xid" and code in _NVLINK5 else None,
        text=text,
        is_injected=code in _NVLINK5 and bool(re.search(r"\bi1\b", text)),
    )


def _subcode(text: str) -> int | None:
    word = _WORDS.search(text)
    return (int(word[1], 16) >> 20) & 0x3F if word else None


def _uncoded(line: str) -> KernelLine:
    for name, pattern in _OTHER:
        if pattern.search(line):
            pci = _ANY_PCI.search(line)
            return KernelLine(kind=LineKind.OTHER, pci=pci[0].lower() if pci else None, text=name)
    return KernelLine(kind=LineKind.NONE)
