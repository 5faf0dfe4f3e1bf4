"""Which ranks are compared with a slow one, and what the hot window holds of their nodes over its slow stretch."""

from __future__ import annotations

from collections.abc import Sequence

from instep_agent.wire import GpuReport, RankReport
from instep_diagnosis.node_readings import NodeReadings, Seen
from instep_diagnosis.verdict import Verdict

from instep_collector.boards import RankBoard
from instep_collector.hot_window import HotWindow, Reading
from instep_collector.node_join import DRILL, NAMES, Place, Stretch, join
from instep_collector.registry import Registry

PEERS_MAX = 16
"""Ranks that a slow one is compared with, spread over the job."""


def readings_of(
    verdicts: Sequence[Verdict], board: RankBoard, registry: Registry, window: HotWindow, *, now: float
) -> dict[int, NodeReadings]:
    """Return, by slow rank, what its node says that its peers' do not; without ranks of which nothing is seen."""
    slow = {verdict.suspects[0].rank: verdict for verdict in verdicts if verdict.suspects and verdict.is_ongoing}
    found = {}
    for rank, verdict in slow.items():
        stretch = None if rank is None or rank not in board.reports else stretch_of(verdict, board, rank)
        if rank is None or stretch is None:
            continue
        until = board.reports[rank][1]
        cut = _Cut(registry, window, until - stretch.seconds, until)
        suspect = cut.place(board.reports[rank][0])
        if not suspect.readings:
            continue
        peers = [cut.place(board.reports[peer][0]) for peer in _peers(board, set(slow))]
        found[rank] = NodeReadings(
            real=join(suspect, peers, stretch, now=now),
            drill=join(suspect, peers, stretch, now=now, is_drill=True) if _has_drill(suspect) else Seen(),
        )
    return found


def stretch_of(verdict: Verdict, board: RankBoard, rank: int) -> Stretch | None:
    """Return how long a rank has been slow, from its own steps since the onset; None where they are not known."""
    since = verdict.onset_step if verdict.onset_step is not None else 0
    walls = [step.wall_seconds for step in board.steps.get(rank, ()) if step.step >= since]
    if not walls:
        return None
    own = next((item.fields for item in verdict.evidence if "peers_seconds" in item.fields), {})
    mine, theirs = own.get("own_seconds"), own.get("peers_seconds")
    is_known = isinstance(mine, float) and isinstance(theirs, float)
    return Stretch(sum(walls), len(walls), mine - theirs if is_known else None)  # type: ignore[operator]


def _has_drill(place: Place) -> bool:
    return any(DRILL in reading.labels.items() for reading in place.readings)


def _peers(board: RankBoard, slow: set[int | None]) -> list[int]:
    """Return ranks that are not slow, evenly spread."""
    ranks = [rank for rank in sorted(board.reports) if rank not in slow]
    stride = max(1, -(-len(ranks) // PEERS_MAX))
    return ranks[::stride]


class _Cut:
    """The hot window, cut to a stretch; each node is read once."""

    def __init__(self, registry: Registry, window: HotWindow, since: float, until: float) -> None:
        self._registry, self._window = registry, window
        self._since, self._until = since, until
        self._read: dict[str, list[Reading]] = {}

    def place(self, report: RankReport) -> Place:
        """Return where a rank runs, with what its node said."""
        if report.node not in self._read:
            self._read[report.node] = self._window.readings(report.node, NAMES, since=self._since, until=self._until)
        live = self._registry.nodes.get(report.node)
        gpu = gpu_index(report, live.gpus if live is not None else ())
        return Place(report.rank, report.node, gpu, self._read[report.node])


def gpu_index(report: RankReport, gpus: Sequence[GpuReport]) -> int | None:
    """Return the index of a rank's GPU on its node: by UUID, by index, or by the address that the agent found.

    >>> from instep_agent.wire import GpuReport, RankReport
    >>> rank = RankReport(job="j", run="r", attempt=0, rank=0, local_rank=0, world_size=1, pid=1, node="n", gpu="GPU-a")
    >>> gpu_index(rank, (GpuReport(index=3, uuid="GPU-a", pci="0000:3b:00"),))
    3
    """
    if report.gpu.isdecimal() and len(report.gpu) <= 4:
        return int(report.gpu)
    pci = report.place.gpu_pci if report.place is not None else ""
    found = (gpu.index for gpu in gpus if (report.gpu and gpu.uuid == report.gpu) or (pci and gpu.pci == pci))
    return next(found, None)
