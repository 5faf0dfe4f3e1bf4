"""What NCCL's own RAS service says of the jobs on this node; what it means is diagnosis's business."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from instep_agent.announce import announce
from instep_agent.errors import Absent, SourceFailed
from instep_agent.metric import gauge
from instep_agent.nccl.ras_answer import Communicator, RasAnswer
from instep_agent.nccl.ras_client import PORT, RasAddress, ask, parse_address
from instep_agent.nccl.ras_json import parse_json
from instep_agent.nccl.ras_statements import statements_of
from instep_agent.nccl.ras_text import parse_text
from instep_agent.network.namespaces import Network, inside, networks_of_ranks
from instep_agent.node import Fact, Node
from instep_agent.wire import Sample

ADDRESSES = (f"localhost:{PORT}",)
TURN_SECONDS_MAX = 9.0
"""For all services together."""
ONE_SECONDS_MAX = 7.0
"""For one; it gives up on a process after `ras_client.LEG_SECONDS`, and may do so twice."""
QUIET_SECONDS = 120.0
"""Between two looks where another node speaks for the job: it may have died."""
TEXT_QUIET_SECONDS = 60.0
"""Between two looks at an old service: its text does not say whose node speaks for the job, so all of them ask."""
COMMUNICATORS_MAX = 32
"""The largest ones have samples of their own."""
FACTS_MAX = 64
"""Of one turn; what is beyond is only counted."""
NOBODY_REST_SECONDS = 60.0
"""Between two looks for a service where none listened."""
EARLY_SECONDS = 0.5
"""A turn that comes so little before its time is none too early."""
FORGET_SECONDS = 900.0
"""After so long without a word of a communicator, what was said of it is forgotten."""
KNOWN_MAX = 4096

_memory = msgspec.msgpack.Decoder(tuple[list[tuple[tuple[str | int, ...], int, int, bool]], int])


@dataclass(frozen=True, slots=True)
class _Look:
    """One service: where, and how to get there."""

    address: RasAddress
    network: Network | None = None


@dataclass(slots=True)
class _Known:
    """Something that is so since an earlier answer."""

    since_ns: int
    seen_ns: int
    is_told: bool


@dataclass(slots=True)
class _Turn:
    """What one turn found."""

    answers: list[RasAnswer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    has_listener: bool = False
    quiet_seconds: float = 0.0


class NcclRas:
    """Status of NCCL communicators, from the RAS service that every NCCL process (2.24 and later) offers on loopback.

    One process answers for its whole job, so only the agent on the node of the largest communicator's lowest rank goes
    on asking; the others look again every two minutes. Several jobs of one user share a port, and a turn may
    reach either: give each its own NCCL_RAS_ADDR and list them in `nccl_ras_addresses`. Ranks in another network
    namespace are asked from within, with the rights below; without them they are counted as unseen. Counts are
    launches, not completions: in a hang of all ranks alike they are equal.
    """

    name = "nccl_ras"
    interval_seconds = 10.0
    deadline_seconds = 12.0
    child = "slow"
    rights = (
        "connects to loopback ports; for ranks in another network namespace it needs CAP_SYS_ADMIN, CAP_SYS_PTRACE and "
        "the node's pid namespace"
    )
    metrics = (
        gauge("instep_nccl_ras_communicators", "Communicators by `status`, as a job's RAS service counts them."),
        gauge("instep_nccl_ras_ranks_missing", "Ranks that the service had no answer from, by `kind`."),
        gauge("instep_nccl_ras_ranks_in_error", "Ranks with an asynchronous or initialisation error of NCCL."),
        gauge("instep_nccl_ras_timeouts", "Timeouts while the service gathered its last answer."),
        gauge("instep_nccl_ras_collection_seconds", "How long the service gathered its last answer."),
        gauge("instep_nccl_ras_networks_unseen", "Network namespaces of ranks that could not be looked into."),
        gauge("instep_nccl_ras_unanswered", "Services that took the connection and gave no sound answer."),
        gauge("instep_nccl_communicator_ranks", "Ranks of a communicator, by `state`.", is_on_page=False),
        gauge(
            "instep_nccl_communicator_launches_min",
            "Fewest launches of an operation over a communicator's ranks.",
            is_on_page=False,
        ),
        gauge(
            "instep_nccl_communicator_launches_max",
            "Most launches of an operation over a communicator's ranks.",
            is_on_page=False,
        ),
    )

    def __init__(self, addresses: Sequence[str] = ADDRESSES) -> None:
        self._addresses = tuple(map(parse_address, addresses))
        if not self._addresses:
            self.child = ""  # nobody to ask, so no process is needed
        self._known: dict[tuple[object, ...], _Known] = {}
        self._quiet_until_ns = 0
        self.rest_seconds = 0.0
        """After a turn: how long the services may be left alone."""

    def memory(self) -> bytes:
        """Give what is known since when, and until when nobody need be asked."""
        known = [(key, one.since_ns, one.seen_ns, one.is_told) for key, one in self._known.items()]
        return msgspec.msgpack.encode((known, self._quiet_until_ns))

    def recall(self, memory: bytes) -> None:
        """Know what an earlier process knew."""
        known, self._quiet_until_ns = _memory.decode(memory)
        self._known = {key: _Known(since_ns, seen_ns, is_told) for key, since_ns, seen_ns, is_told in known}

    def collect(self, node: Node) -> Iterator[Sample | Fact]:
        """Yield what the services say of jobs that this node speaks for; nothing between two looks.

        Raise `Absent` when nothing listens, `SourceFailed` when nothing that listens gives an answer.
        """
        if not self._addresses:
            raise Absent("No NCCL RAS service is asked: nccl_ras_addresses is empty.")
        now_ns = node.monotonic_ns()
        self.rest_seconds = max(0.0, (self._quiet_until_ns - now_ns) / 1e9)
        if self.rest_seconds > EARLY_SECONDS:
            return
        self.rest_seconds = 0.0
        turn, unseen = self._ask_all(node)
        if not turn.answers and turn.failures:
            raise SourceFailed(turn.failures[0])
        if not turn.has_listener:
            self.rest_seconds = NOBODY_REST_SECONDS
            raise Absent("No NCCL RAS service listens here: no NCCL job runs, or NCCL_RAS_ENABLE=0.")
        self._quiet_until_ns = now_ns + int(turn.quiet_seconds * 1e9)
        self.rest_seconds = turn.quiet_seconds
        yield Sample(name="instep_nccl_ras_networks_unseen", labels=(), value=float(unseen))
        yield Sample(name="instep_nccl_ras_unanswered", labels=(), value=float(len(turn.failures) - unseen))
        yield from _samples(turn.answers)
        yield from self._facts(turn.answers, node)

    def _ask_all(self, node: Node) -> tuple[_Turn, int]:
        turn, unseen = _Turn(), 0
        until_seconds = time.monotonic() + TURN_SECONDS_MAX
        quiet_seconds: list[float] = []
        for network in (None, *networks_of_ranks(node)):
            try:
                with inside(network) if network is not None else contextlib.nullcontext():
                    for address in self._addresses:
                        quiet_seconds += self._ask(_Look(address, network), turn, until_seconds)
            except SourceFailed as error:
                turn.failures.append(str(error))
                unseen += 1
        turn.quiet_seconds = min(quiet_seconds, default=0.0)
        return turn, unseen

    def _ask(self, look: _Look, turn: _Turn, until_seconds: float) -> list[float]:
        """Ask one service; give how long it may be left alone."""
        where = f" in the network of {look.network.rank}" if look.network else ""
        announce(f"NCCL RAS at {look.address}{where}")
        try:
            reply = ask(look.address, until_seconds=min(until_seconds, time.monotonic() + ONE_SECONDS_MAX))
            if reply is None:
                return []
            turn.has_listener = True
            answer = parse_json(reply.body) if reply.is_json else parse_text(reply.body)
        except SourceFailed as error:
            turn.has_listener = True
            turn.failures.append(str(error))
            return [0.0]
        if answer.reporter and not _is_own(answer.reporter):
            return [QUIET_SECONDS]
        turn.answers.append(answer)
        return [0.0 if reply.is_json else TEXT_QUIET_SECONDS]

    def _facts(self, answers: Sequence[RasAnswer], node: Node) -> Iterator[Fact]:
        """Yield what is newly so: a rank in trouble at once, different launches when two answers agree on them."""
        now_ns = node.monotonic_ns()
        told = 0
        for one in statements_of(answers):
            known = self._known.get(one.key)
            if known is None and len(self._known) >= KNOWN_MAX:
                continue
            is_confirmed = known is not None or not one.is_confirmed_later
            known = self._known.setdefault(one.key, _Known(now_ns, now_ns, is_told=False))
            known.seen_ns = now_ns
            if not is_confirmed or known.is_told or told >= FACTS_MAX:
                continue
            known.is_told = True
            told += 1
            fields = one.fields
            if one.is_confirmed_later:
                fields = fields | {"seconds": f"{(now_ns - known.since_ns) / 1e9:.1f}"}
            yield Fact(one.kind, one.text, now_ns, node.realtime_ns(), fields)
        yield from self._ended(answers, node, now_ns)

    def _ended(self, answers: Sequence[RasAnswer], node: Node, now_ns: int) -> Iterator[Fact]:
        """Yield who answers again, by the communicators of this turn; forget what is not spoken of any more."""
        spoken_of = {one.hash for answer in answers for one in answer.communicators}
        for key, known in list(self._known.items()):
            is_over = known.seen_ns < now_ns and key[1] in spoken_of
            if is_over or known.seen_ns < now_ns - FORGET_SECONDS * 1e9:
                del self._known[key]
            if is_over and known.is_told and key[0] in ("dead", "unresponsive"):
                fields = {"communicator": str(key[1]), "communicator_rank": str(key[2])}
                text = f"Rank {key[2]} of communicator {key[1]} answers NCCL RAS again."
                yield Fact("nccl_rank_back", text, now_ns, node.realtime_ns(), fields)


def _is_own(host: str) -> bool:
    """Whether this address is one of the namespace that we are in: only then can a socket be bound to it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _samples(answers: Sequence[RasAnswer]) -> Iterator[Sample]:
    if not answers:
        return
    statuses: dict[str, int] = {}
    kinds = {"dead": 0, "unresponsive": 0, "left": 0, "error": 0}
    for answer in answers:
        for status, count in answer.communicators_by_state.items():
            statuses[status] = statuses.get(status, 0) + count
        for trouble in answer.troubles:
            kinds[trouble.kind] += 1
    for status, count in sorted(statuses.items()):
        yield _sample("instep_nccl_ras_communicators", count, status=status)
    yield _sample("instep_nccl_ras_ranks_in_error", kinds.pop("error"))
    for kind, count in kinds.items():
        yield _sample("instep_nccl_ras_ranks_missing", count, kind=kind)
    yield _sample("instep_nccl_ras_timeouts", sum(answer.timeouts for answer in answers))
    times = [answer.collection_seconds for answer in answers if answer.collection_seconds is not None]
    if times:
        yield _sample("instep_nccl_ras_collection_seconds", max(times))
    largest = {one.hash: one for answer in answers for one in answer.communicators[:COMMUNICATORS_MAX]}
    for communicator in sorted(largest.values(), key=lambda one: -one.size)[:COMMUNICATORS_MAX]:
        yield from _communicator_samples(communicator)


def _communicator_samples(one: Communicator) -> Iterator[Sample]:
    for state, count in sorted((one.states | {"missing": one.missing}).items()):
        if count:
            yield _sample("instep_nccl_communicator_ranks", count, communicator=one.hash, state=state)
    for op, (low, high) in one.launches.items():
        yield _sample("instep_nccl_communicator_launches_min", low, communicator=one.hash, op=op)
        yield _sample("instep_nccl_communicator_launches_max", high, communicator=one.hash, op=op)


def _sample(name: str, value: float, **labels: str) -> Sample:
    return Sample(name=name, labels=tuple(sorted(labels.items())), value=float(value))
