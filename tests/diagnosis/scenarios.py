"""Jobs as a test tells them: four ranks on two nodes that train, and then something happens to one of them.

    job = Scenario().trains(steps=40).waits(0, 1, 3).sits(2, phase="forward", process="stopped")

Everything is plain data; ages are seconds before the moment of evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from instep_agent.wire import CollectiveEntry, GroupReport, RankDump, RankReport, StackFrame, ThreadStack
from instep_diagnosis.evidence import JobState, NodeFact
from instep_diagnosis.jobs import job_state
from msgspec.structs import replace

WORLD = 4
DEFAULT = "00000000000000d0"
XID_79 = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, name=python, GPU has fallen off the bus."


def group(
    entered: int | None,
    *,
    done: int | None = None,
    age: float = 0.05,
    op: str = "all_reduce",
    members: tuple[int, ...] | None = (0, 1, 2, 3),
    key: str = DEFAULT,
    description: str = "default",
    payload: int = 4096,
    returned: int | None = None,
) -> GroupReport:
    """One rank's place in one group; `done` is the completed seq."""
    return GroupReport(
        key=key,
        description=description,
        size=len(members) if members else WORLD,
        members=members,
        entered_seq=entered,
        returned_seq=done if returned is None else returned,
        completed_seq=done,
        op=op,
        payload_bytes=payload,
        entered_age_seconds=age,
    )


def report(rank: int, **changes: Any) -> RankReport:
    """A healthy rank in the middle of a step."""
    base = RankReport(
        job="gpt",
        run="run-1",
        attempt=1,
        rank=rank,
        local_rank=rank % 2,
        world_size=WORLD,
        pid=4240 + rank,
        node="node-a" if rank < 2 else "node-b",
        gpu=f"GPU-{rank}",
        is_annotated=True,
        step=40,
        phase="forward",
        heartbeat_age_seconds=0.05,
        process_state="running",
        groups=(group(510, done=510),),
    )
    return replace(base, **changes)


@dataclass
class Scenario:
    """A job of four ranks under construction; every method returns the scenario."""

    steps: tuple[float, ...] = (0.2,) * 40
    reports: dict[int, RankReport] = field(default_factory=lambda: {rank: report(rank) for rank in range(WORLD)})
    ages: dict[int, float] = field(default_factory=dict)
    dumps: dict[int, RankDump] = field(default_factory=dict)
    exits: dict[int, int] = field(default_factory=dict)
    exit_ages: dict[int, float] = field(default_factory=dict)
    facts: list[NodeFact] = field(default_factory=list)

    def steps_of(self, *seconds: float) -> Scenario:
        self.steps = seconds
        return self

    def waits(self, *ranks: int, seconds: float = 4.0, seq: int = 511, **kwargs: Any) -> Scenario:
        """These ranks have entered a collective and wait in it."""
        for rank in ranks:
            place = group(seq, done=seq - 1, age=seconds, **kwargs)
            self._change(rank, phase="wait", heartbeat_age_seconds=seconds, process_state="sleeping", groups=(place,))
        return self

    def sits(
        self, rank: int, *, phase: str, process: str = "sleeping", seconds: float = 4.0, **changes: Any
    ) -> Scenario:
        """This rank has shown no sign of life for so long."""
        return self._change(rank, phase=phase, process_state=process, heartbeat_age_seconds=seconds, **changes)

    def in_groups(self, rank: int, *groups: GroupReport) -> Scenario:
        return self._change(rank, groups=groups)

    def last_heard(self, rank: int, seconds: float) -> Scenario:
        self.ages[rank] = seconds
        return self

    def never_heard(self, *ranks: int) -> Scenario:
        for rank in ranks:
            del self.reports[rank]
        return self

    def dumped(
        self, rank: int, *frames: tuple[str, str, int], answers: bool | None = True, gil: bool = False
    ) -> Scenario:
        """Evidence was taken from this rank; frames are (function, file, line), innermost first."""
        stack = ThreadStack(
            name="MainThread",
            is_main=True,
            is_active=gil,
            owns_gil=gil,
            frames=tuple(StackFrame(function=name, file=file, line=line) for name, file, line in frames),
        )
        self.dumps[rank] = RankDump(report=self.reports[rank], stacks=(stack,), answers=answers)
        return self

    def exited(self, rank: int, code: int, *, ago: float | None = None) -> Scenario:
        self.exits[rank] = code
        if ago is not None:
            self.exit_ages[rank] = ago
        return self

    def kernel_line(
        self, node: str, text: str, *, ago: float = 5.0, gpu: str = "", index: int | None = None, **fields: str
    ) -> Scenario:
        return self.told(node, "kernel_line", text, ago=ago, gpu=gpu, index=index, **fields)

    def told(
        self,
        node: str,
        kind: str,
        text: str,
        *,
        ago: float = 5.0,
        gpu: str = "",
        index: int | None = None,
        **fields: str,
    ) -> Scenario:
        """Something that a node's agent told of it."""
        event = f"boot:{len(self.facts)}"
        self.facts.append(
            NodeFact(event, node, kind, text, ago, gpu=gpu, gpu_index=index, boot_id="boot", fields=fields)
        )
        return self

    def called(self, rank: int, *calls: tuple[int, str, int], key: str = DEFAULT) -> Scenario:
        """The rank's ring: (seq, operation, bytes), oldest first."""
        entries = tuple(
            CollectiveEntry(group_key=key, seq=seq, op=op, payload_bytes=size, entered_age_seconds=4.0)
            for seq, op, size in calls
        )
        return self._change(rank, collectives=entries)

    def withhold_process_state(self) -> Scenario:
        for rank in self.reports:
            self._change(rank, process_state="unknown")
        for rank, dump in self.dumps.items():
            self.dumps[rank] = replace(dump, report=self.reports[rank])
        return self

    def job(self) -> JobState:
        return job_state(
            [(self.reports[rank], self.ages.get(rank, 0.0)) for rank in self.reports],
            step_seconds=self.steps,
            dumps=self.dumps,
            exits=self.exits,
            exit_ages=self.exit_ages,
            facts=self.facts,
        )

    def _change(self, rank: int, **changes: Any) -> Scenario:
        self.reports[rank] = replace(self.reports[rank], **changes)
        return self
