"""What the nodes said of themselves while a rank was slow, joined to the rank: from the hot window to `RankNodeFacts`.

Pure: it reads arrays and answers. A reading counts only where the rank's own node or GPU differs from its peers' over
the same stretch: what all of them show explains no difference. Series of a drill are judged apart: they are told as
such, and neither hide a real reading nor put a node at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import numpy.typing as npt
from instep_diagnosis.clock_reasons import clock_catalogue
from instep_diagnosis.detectors.node_or_job import Attribution, RankNodeFacts
from instep_diagnosis.node_readings import Seen
from instep_diagnosis.verdict import Evidence, Owner

from instep_collector.hot_window import Reading

CLOCK_REASONS = "instep_gpu_clock_reasons_mask"
SM_CLOCK = "instep_gpu_sm_clock_hertz"
TEMPERATURE = "instep_gpu_temperature_celsius"
POWER = "instep_gpu_power_watts"
LANES, LANES_MAX = "instep_gpu_pcie_width", "instep_gpu_pcie_width_max"
GENERATION = "instep_gpu_pcie_generation"
PORT_STATE, PORT_RATE = "node_infiniband_state_id", "node_infiniband_rate_bytes_per_second"
PRESSURE = "instep_host_pressure_ratio"
CPU_WAIT = "instep_rank_cpu_wait_seconds_total"
NAMES = frozenset(
    {
        CLOCK_REASONS,
        SM_CLOCK,
        TEMPERATURE,
        POWER,
        LANES,
        LANES_MAX,
        GENERATION,
        PORT_STATE,
        PORT_RATE,
        PRESSURE,
        CPU_WAIT,
    }
)
"""The series that are read."""

SHARE_MIN = 0.5
"""A state explains a slow stretch when it held for at least this share of it …"""
BEYOND_PEERS = 0.4
"""… and for so much more of it than for the peers' median."""
PRESSURE_MIN = 0.1
"""Share of the time that some task waited for memory: below it nothing is lost to it."""
PORT_ACTIVE = 4.0
DRILL = ("drill", "true")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one rank runs, and what its node's window holds of the slow stretch."""

    rank: int
    node: str
    gpu: int | None
    """Index on its node; None where it is not known."""
    readings: Sequence[Reading] = ()
    """Of `NAMES`, cut to the stretch."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of one place, of a drill or not; None is not observed."""

    thermal: float | None = None
    power: float | None = None
    """Share of the stretch for which the clocks were held for heat, for power."""
    lanes: float | None = None
    lanes_max: float | None = None
    generation: float | None = None
    ports_active: float | None = None
    rate: float | None = None
    """Of all active ports, bytes a second."""
    memory_pressure: float | None = None
    cpu_wait: float | None = None
    """Seconds a second that the rank's threads were runnable without a core."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The slow stretch and what it cost, as the rank's steps tell."""

    seconds: float
    steps: int
    lost_seconds: float | None = None
    """A step longer than its peers'."""


def join(suspect: Place, peers: Sequence[Place], stretch: Stretch, *, now: float, is_drill: bool = False) -> Seen:
    """Return what the suspect's node and GPU say over the stretch that its peers' do not."""
    own, others = _sight(suspect, is_drill), [_sight(peer, False) for peer in peers]
    is_hot = _stands_out(own.thermal, [peer.thermal for peer in others])
    is_capped = _stands_out(own.power, [peer.power for peer in others])
    is_narrow = own.lanes is not None and own.lanes < _typical([peer.lanes for peer in others], own.lanes_max)
    starved = None if own.cpu_wait is None else own.cpu_wait - _typical([peer.cpu_wait for peer in others], 0.0)
    facts = RankNodeFacts(
        is_thermally_throttled=is_hot,
        is_power_capped=is_capped,
        pcie_lanes=int(own.lanes) if is_narrow and own.lanes is not None else None,
        pcie_lanes_max=int(_typical([peer.lanes for peer in others], own.lanes_max)) if is_narrow else None,
        lost_seconds=stretch.lost_seconds,
        starved_seconds=max(0.0, starved) * stretch.seconds / stretch.steps if starved is not None else None,
    )
    said: list[Evidence] = []
    if is_hot or is_capped:
        said.append(_clocks(suspect, peers, own, now=now, is_drill=is_drill))
    if is_narrow:
        said.append(_evidence(suspect, LANES, f"uses {own.lanes:.0f} lanes", now=now, is_drill=is_drill))
    elsewhere = [sight for peer, sight in zip(peers, others, strict=True) if peer.node != suspect.node]
    other, words = _other(own, others, elsewhere)
    if other is not None:
        name, text = words
        said.append(_evidence(suspect, name, text, now=now, is_drill=is_drill))
    return Seen(facts, tuple(said), other)


# What is seen of one place -------------------------------------------------------------------------------------------


def _sight(place: Place, is_drill: bool) -> Sight:
    gpu = {} if place.gpu is None else {"gpu": str(place.gpu)}
    of_gpu = _Readings(place, gpu, is_drill) if gpu else None
    of_node, of_rank = _Readings(place, {}, is_drill), _Readings(place, {"rank": str(place.rank)}, is_drill)
    states = of_node.each(PORT_STATE)
    return Sight(
        thermal=of_gpu.share(CLOCK_REASONS, _is_thermal) if of_gpu else None,
        power=of_gpu.share(CLOCK_REASONS, _is_power) if of_gpu else None,
        lanes=of_gpu.middle(LANES) if of_gpu else None,
        lanes_max=of_gpu.middle(LANES_MAX) if of_gpu else None,
        generation=of_gpu.middle(GENERATION) if of_gpu else None,
        ports_active=float(sum(np.median(state) == PORT_ACTIVE for state in states)) if states else None,
        rate=float(sum(np.median(rate) for rate in of_node.each(PORT_RATE))) if of_node.each(PORT_RATE) else None,
        memory_pressure=_Readings(place, {"resource": "memory", "kind": "some"}, is_drill).middle(PRESSURE),
        cpu_wait=of_rank.rise(CPU_WAIT),
    )


@dataclass(frozen=True, slots=True)
class _Readings:
    """The readings of one place with some labels, of a drill or not."""

    place: Place
    labels: dict[str, str] = field(default_factory=dict)
    is_drill: bool = False

    def each(self, name: str) -> list[Floats]:
        """Return the values of each series of a name, without gaps."""
        found = [reading for reading in self.place.readings if reading.name == name and self._fits(reading)]
        values = [reading.values[np.isfinite(reading.values)].astype(np.float64) for reading in found]
        return [each for each in values if each.size]

    def middle(self, name: str) -> float | None:
        """Return the median of the first such series."""
        found = self.each(name)
        return float(np.median(found[0])) if found else None

    def share(self, name: str, holds: Callable[[int], bool]) -> float | None:
        """Return for which share of the readings something holds."""
        found = self.each(name)
        return float(np.mean([holds(int(value)) for value in found[0]])) if found else None

    def rise(self, name: str) -> float | None:
        """Return by how much a counter rose each second."""
        for reading in self.place.readings:
            if reading.name == name and self._fits(reading):
                known = np.isfinite(reading.values)
                times, values = reading.times[known], reading.values[known]
                if values.size >= 2 and times[-1] > times[0] and values[-1] >= values[0]:
                    return float((values[-1] - values[0]) / (times[-1] - times[0]))
        return None

    def _fits(self, reading: Reading) -> bool:
        has_drill = reading.labels.get(DRILL[0]) == DRILL[1]
        return has_drill is self.is_drill and self.labels.items() <= reading.labels.items()


def _is_thermal(mask: int) -> bool:
    return bool(mask & _bits("thermal"))


def _is_power(mask: int) -> bool:
    """Held for power; a brake of the hardware that is not for heat counts, since power is the other reason for it."""
    return not _is_thermal(mask) and bool(mask & (_bits("power") | _bits("brake")))


def _bits(kind: str) -> int:
    return sum(row.bit for row in clock_catalogue().rows.values() if row.kind == kind)


# What stands out -----------------------------------------------------------------------------------------------------


def _stands_out(own: float | None, peers: Sequence[float | None]) -> bool | None:
    """Whether a state held for the suspect and not for its peers; None where it was not observed."""
    if own is None:
        return None
    return own >= SHARE_MIN and own - _typical(peers, 0.0) >= BEYOND_PEERS


def _typical(peers: Sequence[float | None], default: float | None) -> float:
    known = [value for value in peers if value is not None]
    return float(median(known)) if known else float(default or 0.0)


def _other(
    own: Sight, peers: Sequence[Sight], elsewhere: Sequence[Sight]
) -> tuple[Attribution | None, tuple[str, str]]:
    """Return the first of what else differs: ports, their rate, the PCIe generation, memory; with series and words.

    What is the node's own is compared with other nodes: `elsewhere`.
    """
    ports, rate = _typical([one.ports_active for one in elsewhere], 0.0), _typical([one.rate for one in elsewhere], 0.0)
    generation = _typical([one.generation for one in peers], 0.0)
    pressure = _typical([one.memory_pressure for one in elsewhere], 0.0)
    if own.ports_active is not None and own.ports_active < ports:
        words = f"has {own.ports_active:.0f} RDMA ports up, its peers {ports:.0f}"
        fix = "Look at the port, its cable and the switch; the job goes around it meanwhile."
        return Attribution(Owner.NETWORK, f"Its node {words}.", fix, 0.0, True), (PORT_STATE, words)
    if own.rate is not None and own.rate < 0.9 * rate:
        words = f"has RDMA links of {own.rate:.3g} bytes a second, its peers {rate:.3g}"
        fix = "A link came up slower than it can: reseat or replace its cable, then bring it up again."
        return Attribution(Owner.NETWORK, f"Its node {words}.", fix, 0.0, True), (PORT_RATE, words)
    if own.generation is not None and own.generation < generation:
        words = f"runs PCIe generation {own.generation:.0f}, its peers {generation:.0f}"
        fix = "Reseat the device, or have the slot or riser replaced."
        return Attribution(Owner.NODE, f"The GPU {words}.", fix, 0.0, True), (GENERATION, words)
    if elsewhere and own.memory_pressure is not None and own.memory_pressure >= max(PRESSURE_MIN, 2.0 * pressure):
        words = f"waits for memory {own.memory_pressure:.0%} of the time, its peers {pressure:.0%}"
        fix = "Find who else fills the node's memory, and move or limit them."
        return Attribution(Owner.NODE, f"The node {words}.", fix, 0.0, False), (PRESSURE, words)
    return None, ("", "")


def _clocks(place: Place, peers: Sequence[Place], own: Sight, *, now: float, is_drill: bool) -> Evidence:
    """Return why the clocks are held, with clock, temperature and power beside the peers'."""
    share, why = max((own.thermal or 0.0, "heat"), (own.power or 0.0, "power"))
    words = [f"holds its clocks for {why} {share:.0%} of the slow stretch"]
    for name, unit, scale in ((SM_CLOCK, "MHz", 1e-6), (TEMPERATURE, "°C", 1.0), (POWER, "W", 1.0)):
        mine = _Readings(place, {"gpu": str(place.gpu)}, is_drill).middle(name)
        theirs = [_Readings(peer, {"gpu": str(peer.gpu)}).middle(name) for peer in peers]
        known = [value for value in theirs if value is not None]
        if mine is not None:
            beside = f" (peers {median(known) * scale:.0f})" if known else ""
            words.append(f"{mine * scale:.0f} {unit}{beside}")
    return _evidence(place, CLOCK_REASONS, ", ".join(words), now=now, is_drill=is_drill)


def _evidence(place: Place, name: str, words: str, *, now: float, is_drill: bool) -> Evidence:
    """Return one reading as evidence, with the newest sample and its age."""
    labels = {} if place.gpu is None or not name.startswith("instep_gpu") else {"gpu": str(place.gpu)}
    chosen = _Readings(place, labels, is_drill)
    found = [one for one in place.readings if one.name == name and chosen._fits(one) and one.times.size]
    # Of several ports, the one that is lowest.
    newest = min(found, key=lambda one: float(one.values[-1]), default=None)
    what = f"GPU {place.gpu} of {place.node}" if labels else place.node
    return Evidence(
        text=f"{what} {words}.",
        node=place.node,
        rank=place.rank,
        source="node-readings",
        age_seconds=None if newest is None else round(max(0.0, now - float(newest.times[-1])), 3),
        fields={
            "series": name,
            "value": None if newest is None else float(newest.values[-1]),
            "gpu": str(place.gpu) if labels else "",
            "device": newest.labels.get("device", "") if newest is not None else "",
            "is_drill": is_drill,
        },
    )
