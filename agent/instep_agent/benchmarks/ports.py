"""Ports of this machine, and the page that an exporter shows on one."""

from __future__ import annotations

import contextlib
import random
import socket
import urllib.request

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


def scrape(port: int, timeout_seconds: float = 10.0) -> str:
    """Give the page of an exporter on this machine."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout_seconds) as answer:
        return str(answer.read().decode())


def series_of(page: str) -> int:
    """Give how many series a page has.

    >>> series_of("# HELP a b\\na 1\\nb 2\\n")
    2
    """
    return sum(1 for line in page.splitlines() if line and not line.startswith("#"))


def value_of(page: str, series: str) -> float | None:
    """Give the value of one series, with its labels as the page writes them; None when the page has none.

    >>> value_of('a 1\\nb{c="d"} 2.5\\n', 'b{c="d"}')
    2.5
    """
    for line in page.splitlines():
        if line.startswith(f"{series} "):
            return float(line.rsplit(" ", 1)[1])
    return None
