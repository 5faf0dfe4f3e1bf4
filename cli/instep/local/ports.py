"""Ports of this machine for what is started here."""

from __future__ import annotations

import contextlib
import random
import socket

PORTS = range(15_000, 32_768)
"""Below those that Linux gives to connections (`net.ipv4.ip_local_port_range`): one of these is not taken meanwhile."""
_given: set[int] = set()
_draw = random.SystemRandom()


def free_port() -> int:
    """Give a port of the loopback interface that nobody listens on now, and never the same one twice."""
    while True:
        port = _draw.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):  # taken: draw another
            if port not in _given:
                probe.bind(("127.0.0.1", port))
                _given.add(port)
                return port
