"""From a kernel log line to what it says: a pure matcher, ignorant of what the codes mean.

Any prefix is allowed (`dmesg -T`, ISO time, `/dev/kmsg`'s `priority,sequence,microseconds,flags;`, a container
runtime's), since only the driver's own words are looked for. What lines without a code look like is data:
`catalogues/kernel.toml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from instep_diagnosis.catalogues.patterns import PatternRow, kernel_patterns

LINE_CHARACTERS_MAX = 4096
"""A kernel record is at most 1 KiB or so; a longer line is cut before it is matched."""
STATEMENT_LINES_MAX = 16
"""A statement that the driver writes over several lines is given up after so many others in between."""


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
    """Of an NVLink 5 event (Xid 144 to 150): bits 25 to 20 of its first register word, the reason."""
    text: str = ""
    """What follows the code; for `other` the name of the fault, such as `gpu-lost`."""
    is_injected: bool = False
    """The driver says the event was injected on purpose (`i1` in an NVLink 5 line)."""
    unit: str | None = None
    """Of the GPU: `GPC 9, TPC 5` of an Xid 13, `RLW_REMAP` of an NVLink 5 event."""
    words: tuple[int, ...] = ()
    """Register words in brackets, first to last."""
    device: str | None = None
    """A disk, a port or a server that a line without a code names."""


_PCI = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-9a-fA-F])?"
# Old drivers write no `PCI:`; a MIG instance stands behind the address as ` GPU-I:05`.
_CODED = re.compile(
    rf"\b(?P<kind>S?Xid) \((?:PCI:)?(?P<pci>{_PCI})(?: GPU-I:\w+)?\): (?P<code>\d{{1,6}})\b,?\s*(?P<text>.*)"
)
_PID = re.compile(r"\bpid='?(\d{1,10})\b'?")
_NAME = re.compile(r"\bname='?([^,'<>]+)'?(?:,|$)")
_LINK = re.compile(r"\b[Ll]ink (-?\d{1,4})\b")
_WORDS = re.compile(r"\((0x[0-9a-fA-F]{1,8}(?:[,\s]+0x[0-9a-fA-F]{1,8})*)")
_NVLINK_UNIT = re.compile(r"\b([A-Z][A-Z0-9_]+(?:/[A-Z0-9_]+)*)\s+(?i:(?:link[ -])?(?:non-?)?fatal)\b")
_SM_UNIT = re.compile(r"\((GPC \d{1,3}, TPC \d{1,3})")
_ANY_PCI = re.compile(_PCI)
_FULL_PCI = re.compile(r"\b[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]\b")
_STATEMENT = re.compile(rf"NVRM: The NVIDIA GPU (?P<pci>{_PCI})")
_DRIVER = re.compile(r"NVRM:\s*(?P<text>.*)")
_BREAKS = str.maketrans(dict.fromkeys("\0\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))
_NVLINK5 = range(144, 151)
_WITH_PCI = ("gpu", "fabric", "nic", "pcie")


def read_kernel_line(text: str) -> KernelLine:
    """What a kernel log line says.

    >>> read_kernel_line("[12.5] NVRM: Xid (PCI:0000:3b:00): 79, pid=9, GPU has fallen off the bus.").code
    79
    >>> read_kernel_line("usb 1-1: new device").kind.value
    'none'
    """
    line = text[:LINE_CHARACTERS_MAX].translate(_BREAKS).strip()
    found = _CODED.search(line)
    return _coded(found) if found else _uncoded(line)


def read_kernel_lines(lines: Iterable[str]) -> Iterator[KernelLine]:
    """What each line of a log says, in order, one for one.

    A GPU that is lost at the driver's start is told over several lines, with its address in the first and the fault in
    the last; the last line gets the address.
    """
    statement: _Statement | None = None
    for text in lines:
        line = read_kernel_line(text)
        cut = text[:LINE_CHARACTERS_MAX].translate(_BREAKS)
        if statement is not None:
            line = statement.completed(cut, line)
            statement = None if statement.is_over else statement
        if line.kind is LineKind.NONE and (opening := _STATEMENT.search(cut)):
            statement = _Statement(opening["pci"].lower(), cut[opening.start() :])
        yield line


@dataclass(slots=True)
class _Statement:
    """What the driver has said of one GPU so far."""

    pci: str
    text: str
    lines_left: int = STATEMENT_LINES_MAX
    is_over: bool = False

    def completed(self, text: str, line: KernelLine) -> KernelLine:
        """The line, with the fault and the address of the statement where it ends it."""
        self.lines_left -= 1
        self.is_over = self.lines_left <= 0
        part = _DRIVER.search(text)
        if part is None or line.pci or line.kind in (LineKind.XID, LineKind.SXID):
            return line
        self.text = f"{self.text} {part['text']}"[:LINE_CHARACTERS_MAX]
        whole = _uncoded(self.text)
        if whole.kind is not LineKind.OTHER:
            return line
        self.is_over = True
        return replace(whole, pci=self.pci)


def _coded(found: re.Match[str]) -> KernelLine:
    text, code = found["text"], int(found["code"])
    is_nvlink5 = found["kind"] == "Xid" and code in _NVLINK5
    pid, name, link = _PID.search(text), _NAME.search(text), _LINK.search(text)
    unit = (_NVLINK_UNIT if is_nvlink5 else _SM_UNIT).search(text)
    words = _register_words(text)
    return KernelLine(
        kind=LineKind.XID if found["kind"] == "Xid" else LineKind.SXID,
        code=code,
        pci=found["pci"].lower(),
        pid=int(pid[1]) if pid else None,
        name=name[1].strip() if name else None,
        link=int(link[1]) if link and int(link[1]) >= 0 else None,
        subcode=(words[0] >> 20) & 0x3F if is_nvlink5 and words else None,
        text=text,
        is_injected=is_nvlink5 and bool(re.search(r"\bi1\b", text)),
        unit=unit[1] if unit else None,
        words=words,
    )


def _register_words(text: str) -> tuple[int, ...]:
    found = _WORDS.search(text)
    return tuple(int(word, 16) for word in re.findall(r"0x[0-9a-fA-F]+", found[1])) if found else ()


def _uncoded(line: str) -> KernelLine:
    match = kernel_patterns().match(line)
    if match is None:
        return KernelLine(kind=LineKind.NONE)
    row, found = match
    fields = found.groupdict()
    pid = fields.get("pid")
    return KernelLine(
        kind=LineKind.OTHER,
        pci=_address(row, line, found),
        pid=int(pid) if pid and len(pid) <= 10 else None,
        name=fields.get("name"),
        text=row.name,
        device=fields.get("device"),
    )


def _address(row: PatternRow, line: str, found: re.Match[str]) -> str | None:
    """The PCI address a line names: in the matched words or behind them, else a full one before them.

    Not just the first in the line, since a date in its prefix may look like one.
    """
    if row.subject not in _WITH_PCI:
        return None
    named = found.groupdict().get("pci")
    if named:
        return str(named).lower()
    behind = _ANY_PCI.search(line, found.start())
    before = _FULL_PCI.findall(line[: found.start()])
    address = behind[0] if behind else before[-1] if before else None
    return address.lower() if address else None
