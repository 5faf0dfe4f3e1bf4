"""Which hang comes next, so that any number of them fills the table of layouts and faults evenly; and the workers that
carry jobs out beside one another.

Most of a job is waiting (for an alarm to be sure, for steps that are timed), so that two jobs on two cores disturb each
other little.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from instep_diagnosis.simulation.statistics import wilson

Case = dict[str, Any]
"""What came of one fault: a line of `cases.jsonl`."""
KIND, PAIR_KIND = "hang-real", "hang-real-pair"
WAITING_KINDS = ("sleep", "spin", "gil", "stop")
CALL_KINDS = ("skip", "extra", "wrong-op", "swap")
FIRST_LAYOUTS = ("ddp", "fsdp", "tp", "pp")
"""Filled first, up to `CELL_CASES`: what most jobs are."""
LAYOUTS = (*FIRST_LAYOUTS, "tp-dp", "ep", "pp-dp-tp")
EPISODES = 4
"""Of a job with slow ranks; every other one is healthy."""
LOST_MAX = 20
"""Workers that may die in one campaign: more of them are a fault of the machine, or of the benchmark."""
CELL_CASES = 10
"""Of each fault in each layout, before the other layouts have their turn."""
WAITING_MAX = 6
"""Faults taken back in one job, before one of its calls is wrong and it ends."""
RANKS = (4, 4, 4, 5, 6, 7, 8, 8)
"""At most so many in a job, drawn evenly; no fewer than 4."""
IMPOSSIBLE = frozenset({("pp", "swap")})
"""A pipeline's step has one collective, which can change places with no other."""


class Seeded(Protocol):
    """What can be carried out: a job that its seed tells from others."""

    @property
    def seed(self) -> int:
        """Of the job."""
        ...


OrderT = TypeVar("OrderT", bound=Seeded)


@dataclass(frozen=True, slots=True)
class StragglerOrder:
    """One job with slow ranks to carry out."""

    seed: int


@dataclass(frozen=True, slots=True)
class Order:
    """One job that hangs to carry out."""

    seed: int
    layout: str
    kinds: tuple[str, ...]
    """Faults, the last one a wrong call, with which it ends."""
    ranks_min: int = 4
    ranks_max: int = 8


def next_order(seed: int, cases: Sequence[Case], running: Sequence[Order] = ()) -> Order:
    """The job that adds most to an even table, given the cases there are and the jobs that run."""
    counts = table(cases)
    counts.update((order.layout, kind) for order in running for kind in order.kinds)
    # What came to no judgement counts a little, so that what never does holds nothing up.
    tried = Counter((case["layout"], case["fault"]) for case in cases if case["kind"] == KIND and not _judged(case))
    random = Random(f"campaign {seed}")

    def need(cell: tuple[str, str]) -> float:
        return counts[cell] + 0.5 * tried[cell]

    open_layouts = [one for one in FIRST_LAYOUTS if any(counts[one, kind] < CELL_CASES for kind in kinds_of(one))]
    layout = min(
        open_layouts or LAYOUTS,
        key=lambda one: (sum(need((one, kind)) for kind in kinds_of(one)) / len(kinds_of(one)), random.random()),
    )
    calls = [kind for kind in CALL_KINDS if kind in kinds_of(layout)]
    call = min(calls, key=lambda kind: (need((layout, kind)), random.random()))
    level = (sum(need((layout, kind)) for kind in calls) + 1.0) / len(calls)
    behind = {kind: level - need((layout, kind)) for kind in WAITING_KINDS}
    waiting: list[str] = []
    while len(waiting) < WAITING_MAX and (not waiting or max(behind.values()) >= 1.0):
        kind = max(behind, key=lambda kind: (behind[kind], random.random()))
        behind[kind] -= 1.0
        waiting.append(kind)
    return Order(seed, layout, (*waiting, call), ranks_max=random.choice(RANKS))


def pair_order(seed: int) -> Order:
    """A job of two ranks, any layout and faults; apart, as no majority tells anything in it."""
    random = Random(f"pair {seed}")
    layout = random.choice(LAYOUTS[:-1])
    kinds = [kind for kind in CALL_KINDS if kind in kinds_of(layout)]
    return Order(seed, layout, (*random.sample(WAITING_KINDS, 2), random.choice(kinds)), ranks_min=2, ranks_max=2)


def kinds_of(layout: str) -> tuple[str, ...]:
    """The faults that a layout can have."""
    return tuple(kind for kind in (*WAITING_KINDS, *CALL_KINDS) if (layout, kind) not in IMPOSSIBLE)


def table(cases: Sequence[Case]) -> Counter[tuple[str, str]]:
    """Layout and fault → judged cases."""
    return Counter((case["layout"], case["fault"]) for case in cases if case["kind"] == KIND and _judged(case))


def table_lines(cases: Sequence[Case]) -> Iterator[str]:
    """Layout × fault: exactly named by the live detectors, of how many; the rates with their 95 % lower bounds; and
    what the dumps alone could tell at best."""
    judged = [case for case in cases if case["kind"] == KIND and _judged(case)]
    if not judged:
        return
    kinds = (*WAITING_KINDS, *CALL_KINDS)
    cells, right = table(cases), table([case for case in judged if _is_exact(case, "instep")])
    yield f"{KIND}, exactly named of judged, live detectors:"
    yield f"  {'layout':9}" + "".join(f" {kind:>8}" for kind in (*kinds, "all"))
    for layout in (*LAYOUTS, "all"):
        rows = [layout] if layout != "all" else list(LAYOUTS)
        found = [(sum(right[row, kind] for row in rows), sum(cells[row, kind] for row in rows)) for kind in kinds]
        found.append((sum(hits for hits, _ in found), sum(count for _, count in found)))
        yield f"  {layout:9}" + "".join(f" {f'{hits}/{count}' if count else '–':>8}" for hits, count in found)
    hits, jobs = sum(_is_exact(case, "instep") for case in judged), len({case["seed"] for case in judged})
    low = wilson(hits, len(judged))[0]
    yield f"  exact {hits} of {len(judged)} in {jobs} jobs: at least {100 * low:.1f} % (95 % lower bound)"
    yield from _dump_lines([case for case in judged if "alike_in_dumps" in case])


def _dump_lines(judged: Sequence[Case]) -> Iterator[str]:
    """How often the dumps alone determine the rank, and how often it was named where they do."""
    method = "instep flight-recorder"
    told = [case for case in judged if case["alike_in_dumps"] == case["truth"]]
    if not told:
        return
    exact = sum(_is_exact(case, method) for case in told)
    yield (
        f"  dumps alone: they determine the rank in {len(told)} of {len(judged)} cases, and it is named in {exact} of "
        f"these ({100 * exact / len(told):.1f} %, at least {100 * wilson(exact, len(told))[0]:.1f} %)"
    )


def _is_exact(case: Case, method: str) -> bool:
    answer = case["answers"][method]
    return answer["named"] == case["truth"] and not answer["is_tied"]


def _judged(case: Case) -> bool:
    return bool(case.get("answers"))


@dataclass(slots=True)
class _Worker(Generic[OrderT]):
    pipe: Connection
    process: Any
    order: OrderT | None = None


def carry_out(
    orders: Callable[[Sequence[OrderT]], OrderT | None], work: Callable[[OrderT], Iterator[Case]], *, workers: int
) -> Iterator[Case]:
    """The cases of jobs as they come, from so many workers at once, until there are no more orders.

    `orders` is asked for the next job whenever a worker is free, and told which run. A worker that dies costs its job,
    and another one takes its place, up to `LOST_MAX` times.
    """
    context = multiprocessing.get_context("spawn")
    crew: list[_Worker[OrderT]] = [_begin(context, work) for _ in range(max(1, workers))]
    lost = 0
    try:
        while lost <= LOST_MAX:
            for worker in crew:
                if worker.order is None:
                    worker.order = orders([other.order for other in crew if other.order is not None])
                    if worker.order is not None:
                        worker.pipe.send(worker.order)
            busy = {worker.pipe: worker for worker in crew if worker.order is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]  # `wait` returns what it was given
                try:
                    said = worker.pipe.recv()
                except (EOFError, OSError):
                    yield {"kind": "worker", "seed": worker.order.seed if worker.order else 0, "outcome": "lost"}
                    lost += 1
                    worker.process.join()
                    crew[crew.index(worker)] = _begin(context, work)
                    continue
                if said is None:
                    worker.order = None
                else:
                    yield said
    finally:
        for worker in crew:
            worker.pipe.close()
        for worker in crew:
            worker.process.join()


def _begin(context: Any, work: Callable[[OrderT], Iterator[Case]]) -> _Worker[OrderT]:
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work))
    process.start()
    theirs.close()
    return _Worker(mine, process)


def _serve(pipe: Connection, work: Callable[[OrderT], Iterator[Case]]) -> None:
    """Carry out what is ordered until the other end hangs up; None ends the cases of an order."""
    try:
        while True:
            order = pipe.recv()
            for case in work(order):
                pipe.send(case)
            pipe.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return
