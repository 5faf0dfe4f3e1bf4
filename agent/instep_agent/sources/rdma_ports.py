"""The RDMA ports of the node every second: state, rate, what each is there for, and every loss of a link."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from instep_agent.counters import CounterMemory, NoNumber, number
from instep_agent.held_files import HeldFiles, number_of
from instep_agent.metric import counter, gauge
from instep_agent.network.link_watch import Happened, LinkEvent, LinkWatch
from instep_agent.network.rdma import Change, Hca, Hcas, Port, class_folder, facts_of, sample
from instep_agent.network.roles import Evidence, Role, default_route_interfaces, role_of
from instep_agent.node import Fact, Node, Reading
from instep_agent.sight import check_readable
from instep_agent.wire import Sample

LISTING_SECONDS = 5.0
"""So often adapters are listed while all that are known answer; one that is gone or was reloaded does not."""
LOSSES_SECONDS = 10.0
"""So often the counter of losses is read, which a device answers and not the kernel's memory; and after each change."""
ROLES_SECONDS = 60.0
RATE_SECONDS = 2.0
"""So often an active port's rate and physical state are read; each question goes to the adapter, and they change with
the state."""
GIGABIT_BYTES = 125e6
LINK_DOWNED_MAX = 255
_ACTIVE, _ACTIVE_DEFER = 4, 5
_STATE = re.compile(r"(\d{1,3}): *([\w ]{1,32})")
_RATE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?) Gb/sec(?: \((\d{1,2})X)?")


@dataclass(slots=True)
class _Watched:
    """What is remembered of one port."""

    watch: LinkWatch = field(default_factory=LinkWatch)
    losses: CounterMemory = field(default_factory=CounterMemory)
    losses_due_ns: int = 0
    link_downed: int | None = None
    role: Role = Role.unknown
    role_due_ns: int = 0
    rate_text: str = ""
    looked_ns: int = 0
    boot_id: str = ""
    told: _Told | None = None
    rate_due_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Told:
    """What a port said at its last look, and what was made of it: as long as it says the same, nothing is made anew."""

    hca: Hca
    texts: tuple[str, str, str]
    """State, physical state and rate."""
    is_up: bool | None
    samples: tuple[Sample, ...]


class RdmaPorts:
    """State, physical state and rate of every RDMA port, from `/sys/class/infiniband/<device>/ports/<port>`.

    A port is up when its state is ACTIVE. A loss is told when it is seen (`link_down`), its end with the outage's
    length and the bounds between which the true one lies (`link_up`); a loss that came and went between two looks is
    told when the port's own counter has it (`link_flap`). What a port is there for is told from evidence, not from its
    name: a virtual function has a link to its physical one; over a management port goes the node's default route;
    unprovisioned is a port that is down, with a physical state of Sleep, Polling or Disabled, whose `link_downed`,
    received packets and interface's `carrier_up_count` are all 0 as far as they exist, and that was not up at any look.
    An adapter that vanishes, returns or was reloaded is told too.
    """

    name = "rdma_ports"
    interval_seconds = 1.0
    deadline_seconds = 2.0
    child = "sysfs"
    rights = "reads the node's /sys: everybody may, in a container the node's /sys mounted read-only"
    metrics = (
        gauge(
            "node_infiniband_state_id",
            "State of the port: 0 no change, 1 down, 2 init, 3 armed, 4 active, 5 active deferred.",
        ),
        gauge(
            "node_infiniband_physical_state_id",
            "Physical state of the port: 1 sleep, 2 polling, 3 disabled, 4 training, 5 link up, 6 error recovery.",
        ),
        gauge("node_infiniband_rate_bytes_per_second", "Signal rate of the port."),
        gauge("node_infiniband_info", "1, with what the adapter is."),
        gauge("instep_rdma_port_lanes", "Lanes in use, as the port's rate tells them.", is_on_page=False),
        gauge("instep_rdma_port_info", "1, with the port's link layer, interface, PCI address and role."),
        gauge("instep_rdma_device_present", "1 while the adapter is there, 0 when it was there and is gone."),
        counter("instep_rdma_port_downs_total", "Losses of the link, seen and unseen, since the agent's start."),
    )

    def __init__(self, files: HeldFiles | None = None) -> None:
        self._files = HeldFiles() if files is None else files
        self._hcas = Hcas()
        self._ports: dict[tuple[str, str], _Watched] = {}
        self._routed: frozenset[str] = frozenset()
        self._routed_due_ns = 0
        self._here: list[Hca] = []
        self._about: dict[str, tuple[Sample, ...]] = {}
        """What is said of each adapter that is here, by name; made when they are listed."""
        self._listing_due_ns = 0
        self._reopened_total = 0

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the ports' samples and what happened to them. Raise `Absent` on a node without RDMA adapters."""
        now_ns = node.monotonic_ns()
        states = self._states() if now_ns < self._listing_due_ns else {}
        if not all(states.values()) or not states or self._files.reopened_total != self._reopened_total:
            yield from facts_of(self._list(node), node)
            states = self._states()
        here = self._here
        if now_ns >= self._routed_due_ns:
            self._routed, self._routed_due_ns = default_route_interfaces(node), now_ns + int(ROLES_SECONDS * 1e9)
        for hca in here:
            yield from self._about[hca.name]
            for port in hca.ports:
                yield from self._port(hca, port, node, states[port.path])
        for hca in self._hcas.gone():
            yield sample("instep_rdma_device_present", (("device", hca.name),), 0)
        if not any(watched.watch.was_seen for watched in self._ports.values()):
            check_readable(f"{port.path}/state" for hca in here for port in hca.ports)

    def _states(self) -> dict[str, str]:
        """Give what the state file of each known port says, by the port's folder; empty where it does not answer."""
        return {port.path: self._text(f"{port.path}/state") for hca in self._here for port in hca.ports}

    def _list(self, node: Node) -> list[Change]:
        """See which adapters there are, and give what has happened to any since the last listing."""
        self._here = self._hcas.look(node)
        self._about = {hca.name: _about(hca) for hca in self._here}
        self._reopened_total = self._files.reopened_total
        self._listing_due_ns = 0 if self._hcas.gone() else node.monotonic_ns() + int(LISTING_SECONDS * 1e9)
        for change in self._hcas.changes:
            self._files.close(f"{class_folder(node)}/{change.name}/")
            for (name, _), watched in self._ports.items():
                if name == change.name:
                    watched.losses = CounterMemory()
                    watched.watch.rebase()
        self._forget({*(hca.name for hca in self._here), *(hca.name for hca in self._hcas.gone())})
        return self._hcas.changes

    def _forget(self, known: set[str]) -> None:
        for key in [key for key in self._ports if key[0] not in known]:
            del self._ports[key]

    def _port(self, hca: Hca, port: Port, node: Node, state: str) -> Iterator[Reading]:
        watched = self._ports.get((hca.name, port.number))
        if watched is None:
            watched = self._ports[hca.name, port.number] = _Watched()
        now_ns = node.monotonic_ns()
        path = port.path
        told = watched.told
        if told is not None and told.is_up and told.texts[0] == state and now_ns < watched.rate_due_ns:
            texts = told.texts
        else:
            texts = (state, self._text(f"{path}/phys_state"), self._text(f"{path}/rate"))
            watched.rate_due_ns = now_ns + int(RATE_SECONDS * 1e9)
        if told is not None and told.hca is hca and told.texts == texts and not _is_due(hca, watched, now_ns):
            watched.watch.look(told.is_up, now_ns)
            watched.looked_ns = now_ns
            yield from told.samples
            return
        yield from self._changed(hca, port, watched, node, texts)

    def _changed(
        self, hca: Hca, port: Port, watched: _Watched, node: Node, texts: tuple[str, str, str]
    ) -> Iterator[Reading]:
        """A port that says something else than before, or of which it is time to read what is not read at each look."""
        now_ns = node.monotonic_ns()
        (state, _), (physical, physical_name), rate_text = _state(texts[0]), _state(texts[1]), texts[2]
        happened = watched.watch.look(_is_up(state), now_ns)
        if not hca.is_virtual_function:
            happened += self._losses(port, watched, node, is_due=bool(happened))
        watched.looked_ns = now_ns
        is_newly_up = state == _ACTIVE and watched.role in (Role.unprovisioned, Role.unknown)
        if now_ns >= watched.role_due_ns or is_newly_up:
            watched.role = self._role(hca, port, watched, node, physical)
            watched.role_due_ns = now_ns + int(ROLES_SECONDS * 1e9)
        about = {"device": hca.name, "port": port.number, "pci": hca.pci, "netdev": port.netdev, "role": watched.role}
        about["phys_state"] = physical_name
        for one in happened:
            yield _link_fact(one, about, node)
        yield from _rate_change(watched, rate_text, about, node)
        samples = (*self._samples(hca, port, watched, state, physical), *_rate_samples(port, rate_text))
        watched.told = _Told(hca, texts, _is_up(state), samples)
        yield from samples

    def _samples(
        self, hca: Hca, port: Port, watched: _Watched, state: int | None, physical: int | None
    ) -> Iterator[Sample]:
        if state is not None:
            yield sample("node_infiniband_state_id", port.labels, state)
        if physical is not None:
            yield sample("node_infiniband_physical_state_id", port.labels, physical)
        info = {
            "device": hca.name,
            "link_layer": self._text(f"{port.path}/link_layer")[:32],
            "netdev": port.netdev,
            "pci": hca.pci,
            "port": port.number,
            "role": watched.role.value,
        }
        yield sample("instep_rdma_port_info", tuple(info.items()), 1)
        if watched.watch.was_seen:  # of a port whose state nobody may read, 0 would say that it was never down
            yield sample("instep_rdma_port_downs_total", port.labels, watched.watch.downs_total)

    def _text(self, path: str) -> str:
        """Give what stands in a file, empty where it cannot be read now: one bad file loses no other one."""
        try:
            return self._files.text(path)
        except OSError:
            return ""

    def _losses(self, port: Port, watched: _Watched, node: Node, *, is_due: bool) -> list[Happened]:
        """Read the counter of losses when it is time, or when the state says that it will have changed."""
        now_ns = node.monotonic_ns()
        if not is_due and not watched.watch.waits and now_ns < watched.losses_due_ns:
            return []
        watched.losses_due_ns = now_ns + int(LOSSES_SECONDS * 1e9)
        if watched.boot_id != node.boot_id:
            watched.boot_id, watched.losses = node.boot_id, CounterMemory()
        try:
            watched.link_downed = number(self._files.text(f"{port.path}/counters/link_downed"))
        except (OSError, NoNumber):
            watched.link_downed = None
            return []
        step = watched.losses.observe("link_downed", watched.link_downed, LINK_DOWNED_MAX)
        looked_seconds = (now_ns - watched.looked_ns) / 1e9 if watched.looked_ns else self.interval_seconds
        return watched.watch.count(step.rise, looked_seconds)

    def _role(self, hca: Hca, port: Port, watched: _Watched, node: Node, physical: int | None) -> Role:
        packets, carrier_ups = None, None
        if not hca.is_virtual_function and not watched.watch.was_up:
            packets = number_of(f"{port.path}/counters/port_rcv_packets")
            if port.netdev:
                carrier_ups = number_of(f"{node.root}/sys/class/net/{port.netdev}/carrier_up_count")
        return role_of(
            Evidence(
                hca.is_virtual_function,
                port.netdev in self._routed,
                watched.watch.was_up,
                physical,
                watched.link_downed,
                packets,
                carrier_ups,
            )
        )


def _about(hca: Hca) -> tuple[Sample, ...]:
    return (
        sample("instep_rdma_device_present", (("device", hca.name),), 1),
        sample("node_infiniband_info", hca.info(), 1),
    )


def _is_due(hca: Hca, watched: _Watched, now_ns: int) -> bool:
    """Whether it is time for the port's role, or for its counter of losses."""
    counts = not hca.is_virtual_function and (watched.watch.waits or now_ns >= watched.losses_due_ns)
    return counts or now_ns >= watched.role_due_ns


def _state(text: str) -> tuple[int | None, str]:
    found = _STATE.fullmatch(text)
    return (int(found[1]), found[2]) if found else (None, "")


def _is_up(state: int | None) -> bool | None:
    """Whether a port can carry traffic; deferred, it is about to go one way or the other."""
    return None if state is None or state in (0, _ACTIVE_DEFER) else state == _ACTIVE


def _link_fact(one: Happened, about: dict[str, str], node: Node) -> Fact:
    fields = dict(about)
    for name, seconds in (("seconds", one.seconds), ("seconds_min", one.seconds_min), ("seconds_max", one.seconds_max)):
        if seconds is not None:
            fields[name] = f"{seconds:.3f}"
    where = f"Port {about['port']} of {about['device']}"
    if one.event is LinkEvent.down:
        text = f"{where} lost its link; physical state {about['phys_state'] or 'unknown'}."
    elif one.event is LinkEvent.up:
        least = "" if one.seconds_max is not None else "at least "
        text = f"{where} has its link again after {least}{one.seconds:.1f} s."
    else:
        fields["count"] = str(one.count)
        text = f"{where} lost its link {one.count} times between two looks, each time for less than a look."
    return Fact(one.event.value, text, node.monotonic_ns(), node.realtime_ns(), fields)


def _rate_change(watched: _Watched, rate_text: str, about: dict[str, str], node: Node) -> Iterator[Fact]:
    """Tell another rate than before; a port without a link shows none that means anything."""
    if not rate_text or not watched.watch.is_up:
        return
    before, watched.rate_text = watched.rate_text, rate_text
    if before and before != rate_text:
        text = f"Port {about['port']} of {about['device']} runs at {rate_text[:64]} instead of {before[:64]}."
        fields = about | {"rate": rate_text[:64], "rate_before": before[:64]}
        yield Fact("link_rate_changed", text, node.monotonic_ns(), node.realtime_ns(), fields)


def _rate_samples(port: Port, text: str) -> Iterator[Sample]:
    found = _RATE.match(text)
    if found is None:
        return
    yield sample("node_infiniband_rate_bytes_per_second", port.labels, float(found[1]) * GIGABIT_BYTES)
    if found[2]:
        yield sample("instep_rdma_port_lanes", port.labels, int(found[2]))
