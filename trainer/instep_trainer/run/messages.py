"""What supervisors of one run say to one another: one JSON object a line, over connections that members open."""

from __future__ import annotations

import msgspec
from instep_agent.wire import RankDump, RankReport
from msgspec import Struct


class Hello(Struct, tag="hello", frozen=True, kw_only=True):
    """A supervisor asks to take part."""

    job: str
    run: str
    node: str
    slots: int
    """Ranks this node takes."""
    node_rank: int = -1
    """Place among the nodes when the user gave one."""
    attempt_known: int = -1
    """The highest attempt this node has seen of this run."""
    restarts_known: int = 0
    """Restarts that were used by then: a coordinator that takes over goes on counting from there."""
    address: str = "127.0.0.1"
    """Where other nodes reach this one."""
    port_offer: int = 0
    """A free port here, for the rank store of the next attempt."""
    inventory: dict[int, list[tuple[int, int]]] = {}
    """rank → (step, attempt) of each complete checkpoint slot in this node's memory."""
    key: str = ""
    """Hash of the shared token; supervisors without the same token are refused."""
    supervisor: str = ""
    """Drawn by each supervisor at its start: tells one that comes again from a second one of the same node's name."""


class Alive(Struct, tag="alive", frozen=True):
    """A member is there."""


class Leaving(Struct, tag="leaving", frozen=True):
    """Whoever runs this node has ended its supervisor: its ranks go with it, and that is no fault."""


class Exited(Struct, tag="exited", frozen=True, kw_only=True):
    """A rank's process ended by itself."""

    attempt: int
    rank: int
    exit_code: int


class Stopped(Struct, tag="stopped", frozen=True, kw_only=True):
    """No rank of the attempt lives on this node any more."""

    attempt: int
    inventory: dict[int, list[tuple[int, int]]] = {}
    port_offer: int = 0


class Observed(Struct, tag="observed", frozen=True, kw_only=True):
    """What the node's rank records say."""

    attempt: int
    reports: list[RankReport]


class Dumped(Struct, tag="dumped", frozen=True, kw_only=True):
    """Evidence about this node's ranks."""

    dump: str
    attempt: int
    dumps: list[RankDump]


class Refused(Struct, tag="refused", frozen=True):
    """The coordinator does not take this supervisor."""

    reason: str


class Welcome(Struct, tag="welcome", frozen=True):
    """The coordinator takes it."""

    coordinator: str


class Open(Struct, tag="open", frozen=True, kw_only=True):
    """Start these ranks for this attempt; a node without ranks stands by."""

    attempt: int
    ranks: list[int]
    world_size: int
    group_rank: int
    group_world_size: int
    master_address: str
    master_port: int
    resume_step: int | None
    restarts_used: int


class Stop(Struct, tag="stop", frozen=True, kw_only=True):
    """End this attempt's ranks."""

    attempt: int
    reason: str


class Dump(Struct, tag="dump", frozen=True, kw_only=True):
    """Take evidence from this node's ranks."""

    dump: str
    attempt: int


class Finish(Struct, tag="finish", frozen=True, kw_only=True):
    """The run is over."""

    exit_code: int
    reason: str


ToCoordinator = Hello | Alive | Leaving | Exited | Stopped | Observed | Dumped
ToMember = Refused | Welcome | Open | Stop | Dump | Finish
LINE_BYTES_MAX = 64 << 20

_encoder = msgspec.json.Encoder()
decode_to_coordinator = msgspec.json.Decoder(ToCoordinator).decode
decode_to_member = msgspec.json.Decoder(ToMember).decode


def encode(message: ToCoordinator | ToMember) -> bytes:
    """Return the message as one line."""
    return _encoder.encode(message) + b"\n"
