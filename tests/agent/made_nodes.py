"""How these tests make nodes: a root folder, and clocks that stand still until they are told to go on."""

from pathlib import Path

from instep_agent.node import Node

RECORDED = Path(__file__).parent / "sources/recorded"


class Clock:
    """A monotonic clock at `seconds` after boot; the wall clock runs a fixed distance ahead of it."""

    def __init__(self, seconds=10_000.0):
        self.seconds = seconds

    def monotonic_ns(self):
        return int(self.seconds * 1e9)

    def realtime_ns(self):
        return self.monotonic_ns() + 1_700_000_000 * 10**9


def node_at(root, clock=None, **options):
    clock = clock or Clock()
    return Node("node-a", Path(root), monotonic_ns=clock.monotonic_ns, realtime_ns=clock.realtime_ns, **options)
