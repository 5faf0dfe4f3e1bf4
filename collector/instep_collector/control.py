"""Reports that supervisors send, as typed messages (docs/designs/001-control-protocol.md). Unknown fields are
ignored.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from instep_agent.wire import NodeDump, RankDump
from msgspec import Meta, Struct

from instep_collector.errors import Refused

DUMPS_PER_NODE_MAX = 1024
NAME_LENGTH_MAX = 200
"""Of a job, run or node name: they are keys in the store and are shown on the page."""


Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""A count or index; what is larger fits no column of the store."""
ExitCode = Annotated[int, Meta(ge=-1024, le=2**31 - 1)]


class Report(Struct, frozen=True, kw_only=True):
    """What the coordinator of one run says; `body` is decoded by `kind`."""

    id: str | int
    job: str
    run: str
    attempt: Index
    node: str
    kind: str
    body: msgspec.Raw = msgspec.Raw(b"{}")

    @property
    def key(self) -> str:
        """Its identity within the run, as text."""
        return str(self.id)


class Member(Struct, frozen=True, kw_only=True):
    """One node of an attempt and the ranks it runs."""

    node: str
    ranks: tuple[Index, ...]


class AttemptOpened(Struct, frozen=True, kw_only=True):
    """Ranks are being started."""

    members: tuple[Member, ...]
    world_size: Index
    standby: tuple[str, ...] = ()
    resume_step: Index | None = None
    max_restarts: Index = 0
    restarts_used: Index = 0
    cause_order: Index | None = None


class RankExited(Struct, frozen=True, kw_only=True):
    """A rank's process ended; a negative exit code is a signal."""

    rank: Index
    node: str
    exit_code: ExitCode
    reported_by: str = ""


class AttemptEnded(Struct, frozen=True, kw_only=True):
    """All ranks of the attempt are gone."""

    outcome: str
    detail: str = ""


class Dump(Struct, frozen=True, kw_only=True):
    """Evidence, asked for or after a local alarm."""

    order: Index | None = None
    dumps: tuple[RankDump, ...] = ()


class OrderAcknowledged(Struct, frozen=True, kw_only=True):
    """An order was carried out or refused."""

    order: Index
    outcome: str
    detail: str = ""


class StepKept(Struct, frozen=True, kw_only=True):
    """The first step of this attempt that every rank has finished and kept."""

    step: Index
    after_attempt: Index | None = None


class LocalDecision(Struct, frozen=True, kw_only=True):
    """The coordinator acted without an order."""

    action: str
    exclude: tuple[str, ...] = ()
    reason: str = ""
    verdict: dict[str, Any] | None = None


class Heartbeat(Struct, frozen=True, kw_only=True):
    """The run lives."""


class RunFinished(Struct, frozen=True, kw_only=True):
    """The run is over."""

    outcome: str
    exit_code: ExitCode = 0


Body = (
    AttemptOpened
    | RankExited
    | AttemptEnded
    | Dump
    | OrderAcknowledged
    | StepKept
    | LocalDecision
    | Heartbeat
    | RunFinished
)

BODIES: dict[str, type[Body]] = {
    "attempt_opened": AttemptOpened,
    "rank_exited": RankExited,
    "attempt_ended": AttemptEnded,
    "dump": Dump,
    "order_acknowledged": OrderAcknowledged,
    "step_kept": StepKept,
    "local_decision": LocalDecision,
    "heartbeat": Heartbeat,
    "run_finished": RunFinished,
}

_report_decoder = msgspec.json.Decoder(Report)
_node_dump_decoder = msgspec.json.Decoder(NodeDump)
_body_decoders = {kind: msgspec.json.Decoder(model) for kind, model in BODIES.items()}


def read_report(raw: bytes) -> tuple[Report, Body]:
    """Return a report and its body; raises Refused (400) with one sentence when either is not as agreed."""
    try:
        report = _report_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"The body is not a report: {error}.") from error
    decoder = _body_decoders.get(report.kind)
    if decoder is None:
        raise Refused(400, f"There is no report kind {report.kind[:40]!r}: use one of {', '.join(BODIES)}.")
    for name in (report.job, report.run, report.node):
        check_name(name)
    try:
        body: Body = decoder.decode(report.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"The body of the {report.kind} report is not as agreed: {error}.") from error
    _check_body(body)
    return report, body


def read_node_dump(raw: bytes) -> NodeDump:
    """Return an agent's answer to a dump order; raises Refused (400) when it is none, or speaks of others' ranks."""
    try:
        dump = _node_dump_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"The body is not an answer to a dump order: {error}.") from error
    for name in (dump.node, dump.run):
        check_name(name)
    if len(dump.dumps) > DUMPS_PER_NODE_MAX:
        raise Refused(400, f"An answer holds at most {DUMPS_PER_NODE_MAX} ranks.")
    spoken_of = {(one.report.node, one.report.run, one.report.attempt) for one in dump.dumps}
    if spoken_of - {(dump.node, dump.run, dump.attempt)} or any(one.report.rank < 0 for one in dump.dumps):
        raise Refused(400, f"An answer of node {dump.node!r} may speak of its own ranks of that run and attempt only.")
    return dump


def _check_body(body: Body) -> None:
    match body:
        case AttemptOpened():
            for name in (*(member.node for member in body.members), *body.standby):
                check_name(name)
        case AttemptEnded() | RunFinished() if len(body.outcome) > 40:
            raise Refused(400, "outcome has more than 40 characters.")
        case RankExited():
            check_name(body.node)


def check_name(name: str) -> None:
    """Refuse a job, run or node name that is empty, too long or holds control characters."""
    if not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise Refused(
            400, f"{name[:40]!r} is no usable name: job, run and node are 1 to {NAME_LENGTH_MAX} printable characters."
        )
