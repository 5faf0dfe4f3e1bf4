"""One rank of a small real job: its collectives are real (gloo), its compute is a timed wait or fixed work.

It carries out a program of `instep_diagnosis.simulation.programs`, so that every layout has its usual calls. A plan
tells all ranks beforehand which of them does what wrong at which step. A thread answers with dumps while it hangs.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from instep_agent.rank_record import RankIdentity, RankRecordWriter
from instep_diagnosis.simulation.programs import Item, Part, Program
from instep_diagnosis.wait_graph.recorder import GroupName

from instep_trainer.observe.recorder import RankRecorder
from instep_trainer.observe.start import observe

TIMEOUT_SECONDS = 600
"""Of a collective: far beyond any wait of the benchmark, whose driver ends the job."""
WAITING_FAULTS = ("sleep", "spin", "gil", "stop")
"""Faults that can be taken back, so that the job goes on."""
CALL_FAULTS = ("skip", "extra", "wrong-op", "swap")
BENIGN_PHASES = ("data", "checkpoint", "evaluation")
"""One rank stays in such a phase for a while, and comes back by itself: no fault."""
BENIGN_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """What one rank does wrong at one place of one step."""

    kind: str
    rank: int
    step: int
    item: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the ranks of one job do. Seconds of work are by step and rank."""

    groups: tuple[GroupName, ...]
    programs: tuple[Program, ...]
    """One step of each rank."""
    steps: int
    work_seconds_TR: Sequence[Sequence[float]]
    faults: tuple[PlannedFault, ...] = ()
    unit_seconds: float = 0.0
    """Work is computing, in units that count as so many seconds (`unit_seconds`): so all ranks have the same units for
    the same seconds. 0: work is a timed wait."""
    tokens_TR: Sequence[Sequence[int]] = ()
    """What each step worked on, as a script would report it; empty where none does."""


@dataclass(slots=True)
class _Rank:
    rank: int
    plan: Plan
    pipe: Connection
    progress: Any
    """Shared array: how many calls each rank has returned from, -1 when it is done; and the moment of the newest
    fault in nanoseconds of the monotonic clock."""
    recorder: RankRecorder
    go_on: threading.Event = field(default_factory=threading.Event)
    handles: dict[int, Any] = field(default_factory=dict)


NODE, RUN = "node-a", "paced"


def run_rank(rank: int, plan: Plan, folder: str, pipe: Connection, progress: Any) -> None:
    """The life of one rank. What it and gloo have to say goes to a file in the folder, its record below it."""
    with (Path(folder) / f"{rank}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    size = len(plan.programs)
    identity = RankIdentity(job="bench", run=RUN, attempt=0, rank=rank, local_rank=rank, world_size=size, node=NODE)
    recorder = observe(RankRecordWriter.create(folder, identity))
    recorder.annotate()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'store'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    own = _Rank(rank, plan, pipe, progress, recorder)
    for place, group in enumerate(plan.groups):
        members = list(group.members)
        is_world = group.description == "default_pg"
        if len(members) > 1:
            made = dist.group.WORLD if is_world else dist.new_group(members, group_desc=group.description)
            own.handles[place] = made
    threading.Thread(target=_answer, args=(own,), daemon=True).start()
    for step in range(plan.steps):
        _step(own, step)
    progress[rank] = -1
    own.go_on.clear()
    own.go_on.wait(TIMEOUT_SECONDS)
    # Teardown of a gloo group may wait for peers that have gone: the driver has all it needs.
    os._exit(0)


def _answer(own: _Rank) -> None:
    """Answer the driver until it hangs up."""
    while True:
        try:
            asked = own.pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        if asked == "dump":
            own.pipe.send(repaired_dump(own.plan.groups))
        else:
            own.go_on.set()


def repaired_dump(groups: Sequence[GroupName]) -> bytes:
    """The recorder's dump with the members of the groups filled in, which gloo leaves empty."""
    write = getattr(torch._C._distributed_c10d, "_dump_fr_trace")  # noqa: B009  private, so that torch's types lack it
    dump = pickle.loads(write(True, False, False))
    # `dist.new_group` returns what is no group to ranks that are not members: only own ones are in `pg_names`.
    world = dist.distributed_c10d._world
    dump["pg_config"] = {
        name: {
            "name": name,
            "desc": group.group_desc if group is not dist.group.WORLD else "default_pg",
            "ranks": str(sorted(dist.get_process_group_ranks(group))),
        }
        for group, name in world.pg_names.items()
    }
    for entry in dump["entries"]:
        entry.setdefault("frames", [])
    return pickle.dumps(dump)


def _step(own: _Rank, step: int) -> None:
    faults = {fault.item: fault for fault in own.plan.faults if fault.step == step and fault.rank == own.rank}
    program = own.plan.programs[own.rank]
    work = own.plan.work_seconds_TR[step][own.rank]
    place = 0
    before = own.recorder.enter_phase("forward")
    while place < len(program):
        _work(own, work / len(program))
        place += _do(own, program, place, faults.get(place))
        own.progress[own.rank] += 1
    own.recorder.leave_phase(before)
    own.recorder.finish_step(step + 1, own.plan.tokens_TR[step][own.rank] if own.plan.tokens_TR else 0)


def _do(own: _Rank, program: Program, place: int, fault: PlannedFault | None) -> int:
    """One call with what goes wrong at it; how many items of the program are done with it."""
    item = program[place]
    if fault is not None and fault.kind not in BENIGN_PHASES:
        own.progress[len(own.plan.programs)] = time.monotonic_ns()
    if fault is None:
        _call(own, item)
    elif fault.kind in (*WAITING_FAULTS, *BENIGN_PHASES):
        _hang(own, fault.kind)
        _call(own, item)
    elif fault.kind == "extra":
        _call(own, item)
        _call(own, item)
    elif fault.kind == "wrong-op":
        _call(own, tuple(_other(part) for part in item))
    elif fault.kind == "swap":
        _call(own, program[place + 1])
        _call(own, item)
        return 2
    return 1


def _other(part: Part) -> Part:
    """The same call with another operation."""
    op = "all_reduce" if part.op != "all_reduce" else "all_gather"
    return Part(part.group, part.size, op, part.elements, part.dtype, number=part.number)


def _hang(own: _Rank, kind: str) -> None:
    """Do not go on until the driver says so, or a benign pause is over."""
    own.go_on.clear()
    if kind == "sleep":
        own.go_on.wait()
    elif kind in BENIGN_PHASES:
        before = own.recorder.enter_phase(kind)
        time.sleep(BENIGN_SECONDS)
        own.recorder.leave_phase(before)
    elif kind == "spin":
        while not own.go_on.is_set():
            sum(range(1_000))
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "gil":
        # A call through PyDLL keeps the interpreter's lock; the driver ends it with a signal.
        signal.signal(signal.SIGUSR1, lambda *_: None)
        ctypes.PyDLL(None).pause()


def _work(own: _Rank, seconds: float) -> None:
    if own.plan.unit_seconds <= 0.0:
        time.sleep(seconds)
        return
    for _ in range(max(1, round(seconds / own.plan.unit_seconds))):
        _unit()


def _unit() -> float:
    return float(sum(range(2_000)))


def unit_seconds() -> float:
    """What one unit of computing takes here: the fastest fifth of many, since neighbours only ever add to it."""
    times = []
    for _ in range(500):
        began = time.thread_time()
        _unit()
        times.append(time.thread_time() - began)
    return max(1e-7, sorted(times)[len(times) // 5])


def _call(own: _Rank, item: Item) -> None:
    if item[0].is_transfer:
        handle = own.handles[item[0].group]
        works = [_transfer(own, part, handle) for part in item]
        for work in works:
            work.wait()
    else:
        _collective(item[0], own.handles[item[0].group])


def _transfer(own: _Rank, part: Part, handle: Any) -> Any:
    tensor = torch.zeros(16)
    if part.op == "send":
        return dist.isend(tensor, part.receiver, group=handle)
    return dist.irecv(tensor, part.sender, group=handle)


def _collective(part: Part, handle: Any) -> None:
    """The call itself. One operation of one group always has the same size: gloo ends the process on another one, where
    a hang is wanted."""
    count = 64 + 8 * len(part.op)
    dtype = torch.float32 if part.dtype == "Float" else torch.bfloat16
    whole, share = torch.zeros(count, dtype=dtype), torch.zeros(count // part.size, dtype=dtype)
    even = torch.zeros(share.numel() * part.size, dtype=dtype)
    if part.op == "all_reduce":
        dist.all_reduce(whole, group=handle)
    elif part.op == "all_gather":
        dist.all_gather_single(even, share, group=handle)
    elif part.op == "reduce_scatter":
        dist.reduce_scatter_single(share, even, group=handle)
    else:
        dist.all_to_all_single(torch.empty_like(even), even, group=handle)
