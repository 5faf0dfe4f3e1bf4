"""The coordinator's decisions, pure: events in, effects out; time is an argument and nothing is sent from here.

One coordinator per run opens attempts one after another. An attempt is opened only from the state that its predecessor
left
(compare-and-swap on the attempt number), so an order, a crash and a lost node that concern the same attempt make one
restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from instep_trainer.run.messages import Finish, Hello, Open, Refused, Stop, Stopped, ToMember, Welcome

TOGETHER_SECONDS = 0.5
"""Exits this close to the first are told too; what ends later follows from it, or from our own signals."""
INTERRUPTED = 130
"""Exit status of a run that a person ended."""


class Stage(StrEnum):
    """Where the run is."""

    GATHERING = "gathering"
    RUNNING = "running"
    STOPPING = "stopping"
    """Ranks of the attempt are ending; then the decision is awaited."""
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run; seconds."""

    nodes_min: int
    nodes_max: int
    max_restarts: int
    verdict_wait_seconds: float = 1.5
    """How long a crash waits for the server's order before the local default."""
    last_call_seconds: float = 1.0
    """How long the first opening waits for further nodes, once there are enough."""
    member_silence_seconds: float = 3.0
    """A member not heard of for so long is lost."""
    gather_seconds: float = 600.0
    """How long the run waits for enough nodes."""
    is_server_there: bool = False
    """With no server there is nobody to wait for."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the server asks of one attempt."""

    id: int
    run: str
    attempt: int
    action: str
    exclude: tuple[str, ...] = ()
    reason: str = ""
    incident: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """Effect: a message to one member."""

    node: str
    message: ToMember


@dataclass(frozen=True, slots=True)
class Tell:
    """Effect: a report to the server."""

    kind: str
    body: dict[str, Any]
    attempt: int


@dataclass(frozen=True, slots=True)
class TakeDumps:
    """Effect: collect evidence from every member and report it under this order."""

    order: int


Effect = Send | Tell | TakeDumps


@dataclass(slots=True)
class Member:
    """A supervisor that takes part."""

    hello: Hello
    heard_at: float
    port_offer: int
    inventory: dict[int, list[tuple[int, int]]]


@dataclass(slots=True)
class Decision:
    """Why the attempt ends and what comes after it."""

    reason: str
    decide_at: float
    """Without an order, the local default is taken at this time."""
    order: Order | None = None
    is_local: bool = True
    exclude: set[str] = field(default_factory=set)
    is_final: bool = False
    """No further attempt."""
    exit_code: int = 0
    """Of the rank whose end brought this decision about; 0 for anything else."""
    made_at: float = 0.0


class Coordination:
    """The state of one run. Every method returns the effects to carry out, in order."""

    def __init__(self, *, job: str, run: str, node: str, key: str, limits: Limits) -> None:
        self.job, self.run, self.node, self.key, self.limits = job, run, node, key, limits
        self.stage = Stage.GATHERING
        self.attempt = -1
        self.members: dict[str, Member] = {}
        self.assignment: dict[str, list[int]] = {}
        self.excluded: set[str] = set()
        self.restarts_used = 0
        self.exit_code: int | None = None
        self._decision: Decision | None = None
        self._exits: dict[int, int] = {}
        self._waiting_for: set[str] = set()
        self._enough_since: float | None = None
        self._gathering_since: float | None = None
        self._outcomes: dict[tuple[int, int], tuple[str, str]] = {}
        """(order, attempt) → how it went."""
        self._opening_order: Order | None = None

    # Members ----------------------------------------------------------------------------------------------------------

    def join(self, hello: Hello, now: float) -> list[Effect]:
        """Take a supervisor in, or refuse it with a sentence."""
        refusal = self._refusal(hello)
        if refusal:
            return [Send(hello.node, Refused(refusal))]
        self.members[hello.node] = Member(hello, now, hello.port_offer, hello.inventory)
        if self.stage is Stage.GATHERING:
            self.attempt = max(self.attempt, hello.attempt_known)
            self.restarts_used = max(self.restarts_used, hello.restarts_known)
        return [Send(hello.node, Welcome(self.node)), *self._stale_ranks(hello.node), *self.tick(now)]

    def leave(self, node: str, now: float) -> list[Effect]:
        """A member's connection broke or it fell silent: its ranks are gone with it."""
        if self.members.pop(node, None) is None or self.stage is Stage.FINISHED:
            return []
        self._waiting_for.discard(node)
        if self.stage is Stage.RUNNING and self.assignment.get(node):
            lost = [
                Tell(
                    "rank_exited",
                    {"rank": rank, "node": node, "exit_code": -9, "reported_by": self.node, "is_node_lost": True},
                    self.attempt,
                )
                for rank in self.assignment[node]
            ]
            return lost + self._end_attempt(Decision(f"node {node} was lost", self._decide_at(now)), now)
        return self.tick(now)

    def withdraw(self, node: str, now: float) -> list[Effect]:
        """Whoever runs a member's node has ended it: its ranks move where they can, and nobody is told of a fault."""
        if self.members.pop(node, None) is None or self.stage is Stage.FINISHED:
            return []
        self._waiting_for.discard(node)
        if self.stage is Stage.RUNNING and self.assignment.get(node):
            return self._end_attempt(Decision(f"node {node} was taken out of the run by whoever runs it", now), now)
        return self.tick(now)

    def heard(self, node: str, now: float) -> None:
        """A member said something."""
        if node in self.members:
            self.members[node].heard_at = now

    def exited(self, node: str, attempt: int, rank: int, exit_code: int, now: float) -> list[Effect]:
        """A rank ended: all well at the end of the script, or a failure that ends the attempt."""
        if attempt == self.attempt and self.stage is Stage.STOPPING and rank not in self._exits:
            return self._exited_too(node, rank, exit_code, now)
        if attempt != self.attempt or self.stage is not Stage.RUNNING:
            return []
        self._exits[rank] = exit_code
        if exit_code == 0:
            return self._finish(0, "finished") if len(self._exits) == self.world_size else []
        decision = Decision(_exit_reason(node, rank, exit_code), self._decide_at(now), exit_code=exit_code, made_at=now)
        return [self._rank_exited(node, rank, exit_code), *self._end_attempt(decision, now)]

    def _exited_too(self, node: str, rank: int, exit_code: int, now: float) -> list[Effect]:
        """A rank that ended with the first one. A killed rank's peers fail within moments, and may be heard of before
        it, so all of them are told and the one that was killed is the reason; who is to blame the detectors judge.
        """
        decision = self._decision
        if decision is None or not decision.exit_code or exit_code == 0 or now - decision.made_at > TOGETHER_SECONDS:
            return []
        self._exits[rank] = exit_code
        if exit_code < 0 < decision.exit_code:
            decision.reason, decision.exit_code = _exit_reason(node, rank, exit_code), exit_code
        return [self._rank_exited(node, rank, exit_code)]

    def _rank_exited(self, node: str, rank: int, exit_code: int) -> Tell:
        body = {"rank": rank, "node": node, "exit_code": exit_code, "reported_by": node}
        return Tell("rank_exited", body, self.attempt)

    def stopped(self, node: str, message: Stopped, now: float) -> list[Effect]:
        """A node has no rank of the attempt left."""
        member = self.members.get(node)
        if member is None:
            return []
        member.inventory, member.port_offer = message.inventory, message.port_offer
        if message.attempt == self.attempt:
            self._waiting_for.discard(node)
        return self.tick(now)

    # Orders and decisions ---------------------------------------------------------------------------------------------

    def order(self, order: Order, now: float) -> list[Effect]:
        """Carry an order out once, or refuse it; either is acknowledged, again if it comes again."""
        known = self._outcomes.get((order.id, order.attempt))
        if known is not None:
            return [self._acknowledge(order, *known)]
        refusal = self._order_refusal(order)
        if refusal:
            return [self._acknowledge(order, "refused", refusal)]
        if order.action == "dump":
            return [TakeDumps(order.id)]
        if self.stage is Stage.STOPPING and self._decision is not None:
            self._decision.order, self._decision.exclude = order, set(order.exclude)
            self._decision.is_final = order.action == "stop"
            return [self._acknowledge(order, "done", "taken into the restart under way"), *self.tick(now)]
        decision = Decision(order.reason, now, order=order, exclude=set(order.exclude), is_final=order.action == "stop")
        return [self._acknowledge(order, "done", ""), *self._end_attempt(decision, now)]

    def dumped(self, order_id: int) -> list[Effect]:
        """The evidence of a dump order has gone to the server."""
        self._outcomes[order_id, self.attempt] = ("done", "")
        return [Tell("order_acknowledged", {"order": order_id, "outcome": "done", "detail": ""}, self.attempt)]

    def restart_locally(self, *, attempt: int, reason: str, verdict: dict[str, Any], now: float) -> list[Effect]:
        """The supervisors' own detector found a hang while the server was silent."""
        if attempt != self.attempt or self.stage is not Stage.RUNNING:
            return []
        may_go_on = self.restarts_used < self.limits.max_restarts
        told = Tell(
            "local_decision",
            {"action": "restart" if may_go_on else "stop", "exclude": [], "reason": reason, "verdict": verdict},
            attempt,
        )
        return [told, *self._end_attempt(Decision(reason, now, is_local=False, is_final=not may_go_on), now)]

    def interrupted(self) -> list[Effect]:
        """A person ends the coordinator. What its ranks do from here on is told to nobody as a fault.

        Alone, it ends the run with it; others may take the run over under a new coordinator.
        """
        if self.stage is Stage.FINISHED:
            return []
        self.stage = Stage.FINISHED
        is_alone = set(self.members) <= {self.node}
        told = self._attempt_ended("stopped", "interrupted")
        if is_alone:
            told.append(Tell("run_finished", {"outcome": "failed", "exit_code": INTERRUPTED}, max(0, self.attempt)))
        return told

    def tick(self, now: float) -> list[Effect]:
        """Time passes: silent members are dropped, waiting decisions fall due."""
        effects: list[Effect] = []
        for node, member in list(self.members.items()):
            if node != self.node and now - member.heard_at > self.limits.member_silence_seconds:
                effects += self.leave(node, now)
        if self.stage is Stage.STOPPING and not self._waiting_for and self._is_decided(now):
            effects += self._after_attempt(now)
        if self.stage is Stage.GATHERING:
            effects += self._open_when_enough(now)
        return effects

    @property
    def world_size(self) -> int:
        """Ranks of the running attempt."""
        return sum(len(ranks) for ranks in self.assignment.values())

    @property
    def standby(self) -> list[str]:
        """Members without ranks that may be used."""
        return sorted(node for node in self.members if not self.assignment.get(node) and node not in self.excluded)

    # Inside -----------------------------------------------------------------------------------------------------------

    def _refusal(self, hello: Hello) -> str:
        if (hello.job, hello.run) != (self.job, self.run):
            return (
                f"This endpoint belongs to run {self.run} of job {self.job}, not to run {hello.run} of job "
                f"{hello.job}: choose another --rdzv-endpoint, or --rdzv-id of the run that is to be joined."
            )
        if hello.key != self.key:
            return "The token differs from the coordinator's: give every supervisor of a run the same --token-file."
        if hello.node in self.members:
            return f"A supervisor on node {hello.node} already takes part: give each node its own --node-name."
        if len(self.members) >= self.limits.nodes_max:
            return f"The run has its {self.limits.nodes_max} nodes already (--nnodes)."
        if self.stage is Stage.FINISHED:
            return "The run is over."
        return ""

    def _stale_ranks(self, node: str) -> list[Effect]:
        """Ranks that a rejoining node may still think it runs belong to an attempt that is over."""
        return [Send(node, Stop(attempt=self.attempt, reason="rejoined"))] if self.stage is Stage.RUNNING else []

    def _order_refusal(self, order: Order) -> str:
        if order.run != self.run:
            return f"the order is for run {order.run}, this is run {self.run}"
        if order.attempt != self.attempt or self.stage in (Stage.GATHERING, Stage.FINISHED):
            return f"the order is for attempt {order.attempt}, which is over"
        if order.action not in ("dump", "restart", "stop"):
            return f"action {order.action} is not known here"
        if self._decision is not None and self._decision.order is not None:
            return f"attempt {order.attempt} is already being ended by order {self._decision.order.id}"
        if order.action == "restart" and self.restarts_used >= self.limits.max_restarts:
            return f"the budget of {self.limits.max_restarts} restarts is used up (--max-restarts)"
        return ""

    def _acknowledge(self, order: Order, outcome: str, detail: str) -> Tell:
        self._outcomes[order.id, order.attempt] = (outcome, detail)
        return Tell("order_acknowledged", {"order": order.id, "outcome": outcome, "detail": detail}, order.attempt)

    def _decide_at(self, now: float) -> float:
        return now + (self.limits.verdict_wait_seconds if self.limits.is_server_there else 0.0)

    def _is_decided(self, now: float) -> bool:
        return self._decision is not None and (self._decision.order is not None or now >= self._decision.decide_at)

    def _end_attempt(self, decision: Decision, now: float) -> list[Effect]:
        self.stage = Stage.STOPPING
        self._decision = decision
        self._waiting_for = {node for node, ranks in self.assignment.items() if ranks and node in self.members}
        stops: list[Effect] = [
            Send(node, Stop(attempt=self.attempt, reason=decision.reason)) for node in sorted(self._waiting_for)
        ]
        return stops + self.tick(now)

    def _after_attempt(self, now: float) -> list[Effect]:
        decision = self._decision
        assert decision is not None
        if decision.is_final or self.restarts_used >= self.limits.max_restarts:
            return self._finish(1, decision.reason + self._why_no_restart(decision))
        effects: list[Effect] = []
        if decision.order is None and decision.is_local:
            effects.append(
                Tell(
                    "local_decision",
                    {"action": "restart", "exclude": [], "reason": decision.reason, "verdict": None},
                    self.attempt,
                )
            )
        effects += self._attempt_ended("restarting", decision.reason)
        self.excluded |= decision.exclude
        self.restarts_used += 1
        self._opening_order = decision.order
        self._decision = None
        self.stage = Stage.GATHERING
        self._gathering_since = now
        self._enough_since = now - self.limits.last_call_seconds
        return effects

    def _why_no_restart(self, decision: Decision) -> str:
        if decision.is_final and decision.order is not None:
            return ""
        if self.limits.max_restarts == 0:
            return " (--max-restarts is 0: no restart was asked for)"
        return f" ({self.restarts_used} of {self.limits.max_restarts} restarts are used: --max-restarts)"

    def _attempt_ended(self, outcome: str, detail: str) -> list[Effect]:
        """Nothing when no attempt was ever opened."""
        if self.attempt < 0:
            return []
        return [Tell("attempt_ended", {"outcome": outcome, "detail": detail}, self.attempt)]

    def _open_when_enough(self, now: float) -> list[Effect]:
        self._gathering_since = now if self._gathering_since is None else self._gathering_since
        chosen = self._choose_nodes()
        if chosen is None:
            self._enough_since = None
            if now - self._gathering_since > self.limits.gather_seconds:
                return self._finish(
                    1,
                    f"only {len(self.members)} of {self.limits.nodes_min} nodes came within "
                    f"{self.limits.gather_seconds:.0f} s",
                )
            return []
        self._enough_since = now if self._enough_since is None else self._enough_since
        is_full = len(self.members) >= self.limits.nodes_max
        if not is_full and now - self._enough_since < self.limits.last_call_seconds:
            return []
        return self._open(chosen)

    def _choose_nodes(self) -> list[str] | None:
        """Those of the last attempt keep their places; an excluded or lost one is replaced by a node that stands by."""
        usable = {node for node in self.members if node not in self.excluded}
        if len(usable) < self.limits.nodes_min:
            usable = set(self.members)  # better the suspected node than no run: the budget bounds it
        if len(usable) < self.limits.nodes_min:
            return None
        spare = sorted(usable - set(self.assignment), key=self._place)
        if not self.assignment:
            return spare[: self.limits.nodes_min]
        return [node if node in usable else spare.pop(0) for node in self.assignment]

    def _place(self, node: str) -> tuple[bool, int, str]:
        node_rank = self.members[node].hello.node_rank
        return (node_rank < 0, node_rank, node)

    def _open(self, chosen: list[str]) -> list[Effect]:
        self.attempt += 1
        self.stage = Stage.RUNNING
        self._exits = {}
        self.assignment = {}
        first = 0
        for node in chosen:
            slots = self.members[node].hello.slots
            self.assignment[node] = list(range(first, first + slots))
            first += slots
        order, self._opening_order = self._opening_order, None
        resume = committed_step(self.members[node].inventory for node in self.members)
        opened = Tell(
            "attempt_opened",
            {
                "members": [{"node": node, "ranks": ranks} for node, ranks in self.assignment.items()],
                "standby": self.standby,
                "resume_step": resume,
                "world_size": self.world_size,
                "max_restarts": self.limits.max_restarts,
                "restarts_used": self.restarts_used,
                "cause_order": order.id if order else None,
            },
            self.attempt,
        )
        return [opened, *(Send(node, self._opening(node, group, resume)) for group, node in enumerate(chosen))]

    def _opening(self, node: str, group: int, resume: int | None) -> Open:
        master = self.members[next(iter(self.assignment))]
        return Open(
            attempt=self.attempt,
            ranks=self.assignment[node],
            world_size=self.world_size,
            group_rank=group,
            group_world_size=len(self.assignment),
            master_address=master.hello.address,
            master_port=master.port_offer,
            resume_step=resume,
            restarts_used=self.restarts_used,
        )

    def _finish(self, exit_code: int, reason: str) -> list[Effect]:
        self.stage = Stage.FINISHED
        self.exit_code = exit_code
        outcome = "finished" if exit_code == 0 else "failed"
        return [
            *self._attempt_ended(outcome, reason),
            Tell("run_finished", {"outcome": outcome, "exit_code": exit_code}, max(0, self.attempt)),
            *(Send(node, Finish(exit_code=exit_code, reason=reason)) for node in self.members),
        ]


def committed_step(inventories: Iterable[dict[int, list[tuple[int, int]]]]) -> int | None:
    """The newest step that every current rank has complete; None without any. See `checkpoint.agree` for the rule."""
    from instep_trainer.checkpoint.agree import resume_step

    held: dict[int, list[tuple[int, int]]] = {}
    for inventory in inventories:
        for rank, slots in inventory.items():
            held.setdefault(rank, []).extend((step, attempt) for step, attempt in slots)
    return resume_step(held) if held else None


def _exit_reason(node: str, rank: int, exit_code: int) -> str:
    return f"rank {rank} on {node} ended with {describe_exit(exit_code)}"


def describe_exit(exit_code: int) -> str:
    """`exit status 1` or `signal 9`, as a person says it."""
    return f"signal {-exit_code}" if exit_code < 0 else f"exit status {exit_code}"
