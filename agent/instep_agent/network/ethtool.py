"""The statistics that a network driver keeps, by the ethtool ioctl; everybody may ask.

The kernel writes as many numbers as the driver has at that moment, whatever room the caller said there is: a driver
that gets more queues between two calls would write beyond a buffer of the size that it said first. So there is always
room for many more, in memory of its own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

SIOCETHTOOL = 0x8946
GET_DRIVER, GET_STRINGS, GET_STATISTICS = 0x03, 0x1B, 0x1D
SET_OF_STATISTICS = 1
NAME_BYTES = 32
STATISTICS_MAX = 32_768
"""A driver that says it has more is not asked; one with 128 queues has 6,000."""
_ROOM = 2 * STATISTICS_MAX
_INTERFACE_BYTES_MAX = 15
_DRIVER = struct.Struct("=I32s32s32s32s32s12sIIIII")
"""Struct ethtool_drvinfo: command, driver, version, firmware, bus, expansion ROM, reserved, flags, statistics, …"""
_REQUEST = struct.Struct("16sP")
"""Struct ifreq, as far as it matters here; it is 40 bytes long."""
_REQUEST_BYTES = 40

Ioctl = Callable[[int, int, bytes], object]
"""Descriptor, request, argument; raises `OSError`."""


@dataclass(frozen=True, slots=True)
class Driver:
    """Who serves an interface, and how many statistics it has."""

    name: str
    bus: str
    """The PCI address of the device, where it is one."""
    statistics: int


class Ethtool:
    """Asks drivers for their statistics. One for a source; `close` it."""

    def __init__(self, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._ioctl = ioctl
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._memory = mmap.mmap(-1, 16 + _ROOM * NAME_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def driver(self, interface: str) -> Driver:
        """Give who serves an interface. Raise `OSError`: ENODEV where there is no such interface, EOPNOTSUPP."""
        self._ask(interface, struct.pack("=I", GET_DRIVER).ljust(_DRIVER.size, b"\0"))
        fields = _DRIVER.unpack_from(self._memory)
        return Driver(_text(fields[1]), _text(fields[4]), fields[8])

    def names(self, interface: str, count: int) -> list[str]:
        """Give the names of the driver's statistics. Raise `OSError`; EOVERFLOW when they are too many."""
        _check(count)
        self._ask(interface, struct.pack("=III", GET_STRINGS, SET_OF_STATISTICS, count))
        (found,) = struct.unpack_from("=I", self._memory, 8)
        _check(found)
        return [_text(self._memory[12 + at * NAME_BYTES : 12 + (at + 1) * NAME_BYTES]) for at in range(found)]

    def values(self, interface: str, count: int, places: list[int]) -> list[int] | None:
        """Give the statistics at these places. None when the driver has another number of them by now."""
        _check(count)
        self._ask(interface, struct.pack("=II", GET_STATISTICS, count))
        (found,) = struct.unpack_from("=I", self._memory, 4)
        if found != count:
            return None
        return [struct.unpack_from("=Q", self._memory, 8 + place * 8)[0] for place in places]

    def _ask(self, interface: str, command: bytes) -> None:
        name = interface.encode()
        if len(name) > _INTERFACE_BYTES_MAX:
            raise OSError(errno.ENODEV, "no interface has so long a name", interface)
        self._memory[: len(command)] = command
        request = _REQUEST.pack(name, self._address).ljust(_REQUEST_BYTES, b"\0")
        self._ioctl(self._socket.fileno(), SIOCETHTOOL, request)


def _check(count: int) -> None:
    if count > STATISTICS_MAX:
        raise OSError(errno.EOVERFLOW, f"the driver says that it has {count} statistics")


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip()
