"""A job as a server hears of it: four ranks on two nodes, a node standing by; agents' frames and a coordinator's
reports.

Everything is a message over the real wire formats; nothing here knows how the server judges it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from instep_agent.wire import ClockAnchor, Event, Frame, GpuReport, GroupReport, RankDump, RankReport, StepReport
from msgspec.structs import replace

WORLD = 4
MEMBERS = (0, 1, 2, 3)
STEP_SECONDS = 0.2
XID_79 = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4243, name=python, GPU has fallen off the bus."


def node_of(rank: int) -> str:
    return "node-a" if rank < 2 else "node-b"


def group(seq: int, *, done: int, age: float) -> GroupReport:
    return GroupReport(
        key="00000000000000d0",
        description="default",
        size=WORLD,
        members=MEMBERS,
        entered_seq=seq,
        returned_seq=done,
        completed_seq=done,
        op="all_reduce",
        payload_bytes=4096,
        entered_age_seconds=age,
    )


def steps(first: int, last: int, slow: float = 1.0, wall: float = 1.0) -> tuple[StepReport, ...]:
    """Own work is half of a step; `slow` stretches this rank's, `wall` everybody's step."""
    work = STEP_SECONDS / 2 * slow
    whole = max(STEP_SECONDS * wall, work)
    return tuple(
        StepReport(
            step=step,
            wall_seconds=whole + step % 3 * 0.001,
            forward_seconds=work + step % 5 * 0.0003,
            wait_seconds=whole - work,
            cpu_seconds=STEP_SECONDS / 2,
            starved_seconds=0.0,
            tokens=512,
        )
        for step in range(first, last)
    )


@dataclass
class FakeJob:
    """Builds frames and reports of one run."""

    job: str = "gpt"
    run: str = "run-1"
    attempt: int = 0
    step: int = 40
    max_restarts: int = 3
    restarts_used: int = 0
    _sequence: dict[str, int] = field(default_factory=dict)
    _reports: int = 0

    def rank(self, rank: int, **changes: Any) -> RankReport:
        """A healthy rank in the middle of a step."""
        seq = self.step * 10
        base = RankReport(
            job=self.job,
            run=self.run,
            attempt=self.attempt,
            rank=rank,
            local_rank=rank % 2,
            world_size=WORLD,
            pid=4240 + rank,
            node=node_of(rank),
            gpu=f"GPU-{node_of(rank)}-{rank % 2}",
            is_annotated=True,
            step=self.step,
            phase="forward",
            heartbeat_age_seconds=0.05,
            process_state="running",
            groups=(group(seq, done=seq, age=0.05),),
        )
        return replace(base, **changes)

    def healthy(self, count: int = 40, slow: dict[int, float] | None = None) -> list[RankReport]:
        """Every rank, with its last `count` steps."""
        slow = slow or {}
        wall = max([1.0, *(0.5 * factor + 0.5 for factor in slow.values())])
        return [
            self.rank(rank, steps=steps(self.step - count, self.step, slow.get(rank, 1.0), wall)) for rank in MEMBERS
        ]

    def stuck(self, culprit: int, seconds: float, process: str = "stopped") -> list[RankReport]:
        """The culprit is stopped; its peers wait for it in the next collective."""
        seq = self.step * 10 + 1
        waits = {
            "phase": "wait",
            "process_state": "sleeping",
            "heartbeat_age_seconds": seconds,
            "groups": (group(seq, done=seq - 1, age=seconds),),
        }
        still = {"phase": "forward", "process_state": process, "heartbeat_age_seconds": seconds}
        return [self.rank(rank, **(still if rank == culprit else waits)) for rank in MEMBERS]

    def frames(
        self, ranks: list[RankReport], clock: Any, events: dict[str, tuple[Event, ...]] | None = None
    ) -> list[bytes]:
        """One frame of each node."""
        return [
            self.frame(node, [rank for rank in ranks if rank.node == node], clock, (events or {}).get(node, ()))
            for node in ("node-a", "node-b", "node-c")
        ]

    def frame(self, node: str, ranks: list[RankReport], clock: Any, events: tuple[Event, ...] = ()) -> bytes:
        self._sequence[node] = self._sequence.get(node, -1) + 1
        # The node's clocks are far from the server's, on purpose.
        monotonic_ns, realtime_ns = int((clock.monotonic() + 5000) * 1e9), int((clock.realtime() + 90) * 1e9)
        gpus = tuple(
            GpuReport(index=index, uuid=f"GPU-{node}-{index}", pci=pci)
            for index, pci in enumerate(("0000:3b:00", "0000:5e:00"))
        )
        return msgspec.msgpack.encode(
            Frame(
                cluster="test",
                node=node,
                boot_id=f"boot-{node}",
                agent_epoch="epoch-1",
                sequence=self._sequence[node],
                anchor=ClockAnchor(
                    boot_id=f"boot-{node}", monotonic_ns=monotonic_ns, realtime_ns=realtime_ns, uncertainty_ns=1000
                ),
                ranks=tuple(ranks),
                gpus=gpus,
                events=events,
            )
        )

    def xid(
        self, *, age: float = 0.2, text: str = XID_79, id: str = "boot-node-b:epoch-1:1", drill: bool = False
    ) -> Event:
        return Event(
            id=id,
            kind="kernel_line",
            text=text,
            age_seconds=age,
            monotonic_ns=1,
            realtime_ns=1_700_000_000_000_000_000,
            is_drill=drill,
        )

    def report(self, kind: str, body: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        self._reports += 1
        return {
            "id": f"{self.run}-{self._reports}",
            "job": self.job,
            "run": self.run,
            "attempt": self.attempt,
            "node": "node-a",
            "kind": kind,
            "body": body or {},
        } | changes

    def opened(self, cause_order: int | None = None, nodes: tuple[str, str] = ("node-a", "node-b")) -> dict[str, Any]:
        return self.report(
            "attempt_opened",
            {
                "members": [{"node": nodes[0], "ranks": [0, 1]}, {"node": nodes[1], "ranks": [2, 3]}],
                "standby": [] if "node-c" in nodes else ["node-c"],
                "resume_step": self.step,
                "max_restarts": self.max_restarts,
                "restarts_used": self.restarts_used,
                "cause_order": cause_order,
                "world_size": WORLD,
            },
        )

    def exited(self, rank: int, code: int = -9) -> dict[str, Any]:
        return self.report(
            "rank_exited", {"rank": rank, "node": node_of(rank), "exit_code": code, "reported_by": node_of(rank)}
        )

    def dump(self, order: int, ranks: list[RankReport]) -> dict[str, Any]:
        return self.report(
            "dump",
            {
                "order": order,
                "dumps": msgspec.to_builtins(
                    [RankDump(report=rank, answers=rank.process_state != "stopped") for rank in ranks]
                ),
            },
        )

    def restarted(
        self, order: int | None = None, nodes: tuple[str, str] = ("node-a", "node-b")
    ) -> list[dict[str, Any]]:
        """The next attempt starts and keeps its first step."""
        ended = self.report("attempt_ended", {"outcome": "restarting", "detail": ""})
        self.attempt, self.restarts_used = self.attempt + 1, self.restarts_used + 1
        opened = self.opened(order, nodes)
        return [ended, opened, self.report("step_kept", {"step": self.step + 1, "after_attempt": self.attempt - 1})]
