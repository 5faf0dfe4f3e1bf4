"""Which lines of the kernel log may matter to a job, and which of them say the same thing: pure functions of a line.

Lines are bytes here: a storm of 800,000 lines is passed through without decoding those that are only counted.
"""

from __future__ import annotations

import re

PCI = rb"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?"
_ALONE = (
    b"NVRM",
    b"Xid",
    b"nvidia",
    b"mlx5",
    b"AER: ",
    b"Out of memory",
    b"oom-kill",
    b"oom_reaper",
    b"Killed process",
    b"blocked for more than",
    b"hung_task",
    b"soft lockup",
    b"hard LOCKUP",
    b"self-detected stall",
    b"detected stalls on CPUs",
    b"Hardware Error",
    b"Machine check",
    b"mce: ",
    b"EDAC ",
    b"NETDEV WATCHDOG",
    b"I/O error",
    b"I/O timeout",
    b"fallen off the bus",
    b"Remounting filesystem read-only",
    b"Kernel panic",
    b"kernel BUG at",
    b"bnxt_en",
    b"irdma",
    b"instep-drill",
)
"""A line with one of these passes. Many words, each cheap: looking for 29 of them costs less than one expression."""
_TOGETHER = (
    (b"nvlink", re.compile(rb"")),
    (b"NVLink", re.compile(rb"")),
    (b"nvswitch", re.compile(rb"")),
    (b"pcieport", re.compile(rb"error|[Ll]ink [Dd]own|[Ll]ink [Uu]p|[Cc]ard not present")),
    (b"pciehp", re.compile(rb"")),
    (b"segfault", re.compile(rb"libnccl|libcuda|libtorch|libc10|python|pt_|nvidia")),
    (b"traps: ", re.compile(rb"libnccl|libcuda|libtorch|libc10|python|pt_")),
    (b"EXT4-fs", re.compile(rb"error|warning|[Rr]emount|aborted|read-only|failed")),
    (b"XFS (", re.compile(rb"error|[Cc]orrupt|[Ss]hut|failed|read-only|timeout")),
    (b"BTRFS", re.compile(rb"error|critical|forced readonly|corrupt")),
    (b"JBD2", re.compile(rb"error|[Aa]bort")),
    (b"nvme", re.compile(rb"timeout|error|reset|abort|removing|not ready|Removed")),
    (b"nfs: ", re.compile(rb"not responding|server .* OK|timed out")),
    (b"LustreError", re.compile(rb"")),
    (b"ink is", re.compile(rb"[Ll]ink is (?:[Uu]p|[Dd]own|Not Ready)", re.IGNORECASE)),
    (b"ink becomes ready", re.compile(rb"")),
    (b"link down", re.compile(rb"")),
    (b"temperature", re.compile(rb"above threshold|critical")),
)
"""A line with one of these passes when the expression beside it is found too."""
_WORDS = tuple(word for word, _ in _TOGETHER)
_CODED = re.compile(rb"\bS?Xid \(PCI:[^)]{1,32}\): (\d{1,6})")
_NVLINK5 = frozenset(b"%d" % code for code in range(144, 151))
_FIRST_WORD = re.compile(rb"\(0x[0-9a-fA-F]+")
_VOLATILE = re.compile(rb"0x[0-9a-fA-F]+|\bpid=[^,]*|\bname=[^,]*|\b\d{5,}\b")
_NUMBER = re.compile(rb"(" + PCI + rb")|0x[0-9a-fA-F]+|(?<![A-Za-z_])\d+")
_PID = re.compile(
    rb"\bpid='?(\d+)|Killed process (\d+)|\boom_reaper: reaped process (\d+)|\btask [^:\s]+:(\d+) blocked"
    rb"|stuck for \d+s! \[[^\]]*:(\d+)\]"
    rb"|^(?:traps: )?[^\[\]]{1,16}\[(\d+)\]:?[^\[]* (?:segfault|trap|general protection)"
)
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def is_interesting(line: bytes) -> bool:
    """Whether the line may matter. Generous on purpose: one that means nothing costs little, one held back is lost.

    >>> is_interesting(b"NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."), is_interesting(b"usb 1-1: new")
    (True, False)
    """
    if any(map(line.__contains__, _ALONE)):
        return True
    return any(map(line.__contains__, _WORDS)) and any(
        word in line and also.search(line) is not None for word, also in _TOGETHER
    )


def meaning_of(line: bytes) -> bytes:
    """Give the part of a line that tells it from others: equal ones are repeats, whatever else differs.

    In a numbered line of the GPU driver, process, addresses and long numbers do not matter; link, GPC and TPC do, and
    of an NVLink 5 event (144 to 150) its first word. Any other line is told by its whole text.

    >>> meaning_of(b"NVRM: Xid (PCI:0000:3b:00): 31, pid=12, name=python, Fault at 0x7f_00 on GPC 3")
    b'NVRM: Xid (PCI:0000:3b:00): 31, #, #, Fault at #_00 on GPC 3'
    """
    coded = _CODED.search(line)
    if coded is None:
        return line
    end = coded.end()
    if coded[1] in _NVLINK5 and (word := _FIRST_WORD.search(line, end)):
        return _VOLATILE.sub(b"#", line[: word.start()]) + word[0] + _VOLATILE.sub(b"#", line[word.end() :])
    return line[:end] + _VOLATILE.sub(b"#", line[end:])


def family_of(line: bytes) -> bytes:
    """Give what a line has in common with all that say it of the same device: its code, or its text without numbers.

    >>> family_of(b"I/O error, dev sda, sector 1234"), family_of(b"NVRM: Xid (PCI:0000:3b:00): 13, GPC 3")
    (b'I/O error, dev sda, sector #', b'Xid (PCI:0000:3b:00): 13')
    """
    coded = _CODED.search(line)
    return coded[0] if coded else _NUMBER.sub(lambda found: found[1] or b"#", line)


def is_numbered(line: bytes) -> bool:
    """Whether it is a numbered fault of the GPU or NVSwitch driver: such a line is never held back."""
    return _CODED.search(line) is not None


def pid_of(line: bytes) -> int:
    """Give the process that a line names, by its number on the node; 0 when it names none.

    >>> pid_of(b"Out of memory: Killed process 4242 (python) total-vm:1kB"), pid_of(b"NVRM: fallen off the bus")
    (4242, 0)
    """
    found = _PID.search(line)
    return int(next(filter(None, found.groups()))) if found else 0


def unescaped(line: bytes) -> bytes:
    r"""Give a record's text as it was logged: /dev/kmsg writes line ends and bytes beyond ASCII as `\xNN`.

    >>> unescaped(rb"NVRM: GPU 0000:3b:00.0\x0aNVRM: fallen off the bus")
    b'NVRM: GPU 0000:3b:00.0\nNVRM: fallen off the bus'
    """
    return _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), line) if b"\\x" in line else line
