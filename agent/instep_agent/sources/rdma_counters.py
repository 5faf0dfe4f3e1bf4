"""Every counter of every RDMA port, every ten seconds, and which of them count no more."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from instep_agent.counters import CounterMemory, NoNumber, number
from instep_agent.held_files import HeldFiles, names_in, number_of
from instep_agent.metric import counter, gauge
from instep_agent.network.rdma import Hca, Hcas, Labels, Port, class_folder, sample
from instep_agent.network.rdma_counter_table import BY_FILE, COUNTERS
from instep_agent.node import Fact, Node, Reading
from instep_agent.sight import check_readable
from instep_agent.wire import Sample

FOLDERS = ("counters", "hw_counters")
COUNTERS_MAX = 256
"""Of one port."""
RETRY_SECONDS = 600.0
"""A counter that a device does not have, or may not be asked for, is asked for this rarely: on a restricted function
every try costs a line in the kernel log.
"""
NOT_HERE = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.ENODATA, errno.ENOENT, errno.ELOOP}
_LIFESPAN = "lifespan"
_LIST_SECONDS = 60.0
_NO_IDENTITY = -1
"""That of no adapter: it went away since."""


@dataclass(slots=True)
class _File:
    """One counter file, and what its samples look like."""

    path: str
    key: str
    name: str
    labels: Labels
    maximum: int
    scale: float
    retry_ns: int = 0


@dataclass(slots=True)
class _Watched:
    """What is remembered of one port."""

    identity: int
    boot_id: str
    files: list[_File]
    list_due_ns: int
    lifespan_seconds: float | None
    memory: CounterMemory = field(default_factory=CounterMemory)
    was_blind: set[str] = field(default_factory=set)
    resets_total: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Readings that failed, by what was wrong."""


class RdmaCounters:
    """All counters of every RDMA port, from `counters/` and `hw_counters/` of its folder in `/sys/class/infiniband`.

    Values are as the device has them, but for data, which it counts in words of 4 bytes. A counter of 4, 8, 16 or 32
    bits stops at its highest number: there `instep_rdma_count_blind` is 1, a fact says so once, and nobody can tell
    from it that a link is healthy. A counter that falls was cleared, and an adapter that is another one than before
    began anew (its driver was reloaded, the node booted): `rdma_counters_reset` says which, and
    `instep_rdma_count_resets_total` counts it. A counter that gives no number ("N/A", invalid, no rights) is asked
    for again after 10 minutes; one bad file loses no other one. Virtual functions are left out, because each reading
    there may cost a line in the kernel log.
    """

    name = "rdma_counters"
    interval_seconds = 10.0
    deadline_seconds = 5.0
    child = "sysfs"
    rights = "reads the node's /sys: everybody may, in a container the node's /sys mounted read-only"
    metrics = (
        *(one.metric for one in COUNTERS),
        counter("instep_rdma_count_total", "A counter of the port that has no name of its own here.", is_on_page=False),
        gauge(
            "instep_rdma_count_blind",
            "1 while the counter stands at its highest number and counts no more, 0 when it did and was cleared.",
        ),
        gauge("instep_rdma_counters_blind", "Counters of the port that stand at their highest number."),
        gauge("instep_rdma_counters_unreadable", "Counters of the port that are there and give no number."),
        counter("instep_rdma_count_read_errors_total", "Readings that failed, by what was wrong."),
        counter("instep_rdma_count_resets_total", "Times that counters of the port began anew.", is_on_page=False),
        gauge(
            "instep_rdma_count_lifespan_seconds",
            "So long the device may answer with the same values; asking more often gives nothing new.",
            is_on_page=False,
        ),
    )

    def __init__(self, files: HeldFiles | None = None) -> None:
        self._files = HeldFiles() if files is None else files
        self._hcas = Hcas()
        self._ports: dict[tuple[str, str], _Watched] = {}
        self._read_total = 0
        """Counters that gave a number in this turn."""

    def collect(self, node: Node) -> Iterator[Reading]:
        """Yield the ports' counters and what happened to them. Raise `Absent` on a node without RDMA adapters."""
        here = self._hcas.look(node)
        self._read_total = 0
        known = {*(hca.name for hca in here), *(hca.name for hca in self._hcas.gone())}
        for key in [key for key in self._ports if key[0] not in known]:
            del self._ports[key]
        for change in self._hcas.changes:
            self._files.close(f"{class_folder(node)}/{change.name}/")
            for (name, _), watched in self._ports.items():
                if name == change.name and change.kind in ("back", "reloaded"):
                    watched.identity = _NO_IDENTITY
        for hca in here:
            if not hca.is_virtual_function:
                for port in hca.ports:
                    yield from self._port(hca, port, node)
        if self._read_total == 0:
            check_readable(file.path for watched in self._ports.values() for file in watched.files)

    def _port(self, hca: Hca, port: Port, node: Node) -> Iterator[Reading]:
        watched = self._ports.get((hca.name, port.number))
        now_ns = node.monotonic_ns()
        if watched is None:
            watched = _Watched(hca.identity, node.boot_id, *_listed(port, now_ns))
            self._ports[hca.name, port.number] = watched
        elif (hca.identity, node.boot_id) != (watched.identity, watched.boot_id):
            reason = "reboot" if node.boot_id != watched.boot_id else "reload"
            watched.identity, watched.boot_id = hca.identity, node.boot_id
            watched.memory = CounterMemory()
            watched.files, watched.list_due_ns, watched.lifespan_seconds = _listed(port, now_ns)
            watched.resets_total += 1
            yield _reset_fact(hca, port, reason, [], node)
        elif now_ns >= watched.list_due_ns:
            _list_again(watched, port, now_ns)
        yield from self._read_all(hca, port, watched, node)

    def _read_all(self, hca: Hca, port: Port, watched: _Watched, node: Node) -> Iterator[Reading]:
        now_ns = node.monotonic_ns()
        reset: list[str] = []
        blind: set[str] = set()
        unreadable = 0
        for file in watched.files:
            value = self._value(file, watched, now_ns)
            if value is None:
                unreadable += 1
                continue
            self._read_total += 1
            yield Sample(name=file.name, labels=file.labels, value=value * file.scale)
            step = watched.memory.observe(file.key, value, file.maximum)
            if step.is_reset:
                reset.append(file.key)
            if step.is_blind:
                blind.add(file.key)
                if not step.was_blind:
                    yield _blind_fact(hca, port, file, watched.resets_total, node)
        if reset:
            watched.resets_total += 1
            yield _reset_fact(hca, port, "cleared", reset, node)
        is_any_read = unreadable < len(watched.files)
        yield from _summary(port, watched, blind if is_any_read else None, unreadable)

    def _value(self, file: _File, watched: _Watched, now_ns: int) -> int | None:
        if file.retry_ns > now_ns:
            return None
        try:
            return number(self._files.text(file.path))
        except NoNumber as error:
            what, is_lasting = str(error), str(error) == "not_available"
        except OSError as error:
            what = errno.errorcode.get(error.errno or 0, "unknown").lower()
            is_lasting = error.errno in NOT_HERE
        watched.errors[what] += 1
        if is_lasting:
            file.retry_ns = now_ns + int(RETRY_SECONDS * 1e9)
        return None


def _listed(port: Port, now_ns: int) -> tuple[list[_File], int, float | None]:
    """List a port's counters; gives when to list them again, and the device's own lifespan of values."""
    files = []
    for folder in FOLDERS:
        for name in names_in(f"{port.path}/{folder}"):
            if name != _LIFESPAN and len(name) <= 64:
                files.append(_file(port, folder, name))
    lifespan = number_of(f"{port.path}/hw_counters/{_LIFESPAN}")
    return files[:COUNTERS_MAX], now_ns + int(_LIST_SECONDS * 1e9), None if lifespan is None else lifespan / 1000.0


def _file(port: Port, folder: str, name: str) -> _File:
    path = f"{port.path}/{folder}/{name}"
    known = BY_FILE.get((folder, name))
    if known is None:
        labels = (("counter", name), *port.labels)
        return _File(path, f"{folder}/{name}", "instep_rdma_count_total", labels, 0, 1.0)
    return _File(path, name, known.metric.name, port.labels, known.maximum, known.scale)


def _list_again(watched: _Watched, port: Port, now_ns: int) -> None:
    """Take up counters that appeared, keep what is known of the others."""
    kept = {file.path: file for file in watched.files}
    files, watched.list_due_ns, watched.lifespan_seconds = _listed(port, now_ns)
    watched.files = [kept.get(file.path, file) for file in files]


def _summary(port: Port, watched: _Watched, blind: set[str] | None, unreadable: int) -> Iterator[Reading]:
    """Yield what the port's counters say of themselves; `blind` is None where none of them could be read."""
    if blind is not None:
        watched.was_blind |= blind
        for key in sorted(watched.was_blind):
            yield sample("instep_rdma_count_blind", (("counter", key), *port.labels), key in blind)
        yield sample("instep_rdma_counters_blind", port.labels, len(blind))
    yield sample("instep_rdma_counters_unreadable", port.labels, unreadable)
    yield sample("instep_rdma_count_resets_total", port.labels, watched.resets_total)
    for what, count in watched.errors.items():
        yield sample("instep_rdma_count_read_errors_total", (*port.labels, ("error", what)), count)
    if watched.lifespan_seconds is not None:
        yield sample("instep_rdma_count_lifespan_seconds", port.labels, watched.lifespan_seconds)


def _blind_fact(hca: Hca, port: Port, file: _File, resets: int, node: Node) -> Fact:
    """Tell it once between two resets; an agent that starts again tells it under the same identity."""
    text = (
        f"Counter {file.key} of port {port.number} of {hca.name} stands at its highest number, {file.maximum}, and "
        "counts no more: clear the port's counters (perfquery -x -R, or a reload of its driver) to see again."
    )
    fields = {"device": hca.name, "port": port.number, "pci": hca.pci, "counter": file.key}
    fields["maximum"] = str(file.maximum)
    name = f"rdma-blind-{hca.name}-{port.number}-{file.key}" + (f"-{resets}" if resets else "")
    return Fact("rdma_counter_blind", text, node.monotonic_ns(), node.realtime_ns(), fields, identity=name)


_REASONS = {
    "cleared": "were cleared, or the device began anew",
    "reload": "began anew with the adapter's driver",
    "reboot": "began anew with the node",
}


def _reset_fact(hca: Hca, port: Port, reason: str, counters: list[str], node: Node) -> Fact:
    fields = {"device": hca.name, "port": port.number, "pci": hca.pci, "reason": reason}
    if counters:
        fields["counters"] = ",".join(counters)[:1024]
    text = f"Counters of port {port.number} of {hca.name} {_REASONS[reason]}: nothing before counts as a rise."
    return Fact("rdma_counters_reset", text, node.monotonic_ns(), node.realtime_ns(), fields)
