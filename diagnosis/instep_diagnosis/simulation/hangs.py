"""Training jobs that hang, made up from a seed: programs of collectives for the usual layouts, one fault, and the
flight-recorder dumps that the ranks would leave. The truth is known.

Each rank has a program of items (a collective, or a batch of transfers). Its host enqueues some items ahead; its device
carries them out in order; an item is done once every rank that takes part has begun it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random

from instep_diagnosis.simulation.programs import Item, Part, Program, training
from instep_diagnosis.wait_graph.history import Progress, Standing
from instep_diagnosis.wait_graph.recorder import Entry, GroupName, RecorderDump


class Fault(StrEnum):
    """What is done to the job."""

    HEALTHY = "healthy"
    STOPPED = "stopped"
    """One rank's process stops; its dump is there."""
    LOADER = "loader"
    """One rank waits for its next batch, with nothing outstanding."""
    SKIPPED = "skipped"
    EXTRA = "extra"
    WRONG_SIZE = "wrong-size"
    WRONG_DTYPE = "wrong-dtype"
    WRONG_OP = "wrong-op"
    SWAPPED = "swapped"
    """Two operations of one rank in the wrong order."""
    DEAD = "dead"
    """One rank leaves no dump."""
    DEVICE_LAG = "device-lag"
    """One rank's device does not finish what the others finish."""
    DEVICE_UNSTARTED = "device-unstarted"
    """One rank's device does not begin what the others have begun; timing is on."""
    SYMMETRIC = "symmetric"
    """An operation that all have begun does not end: nobody can be named."""


HOST_FAULTS = (Fault.STOPPED, Fault.LOADER, Fault.DEAD)
CALL_FAULTS = (
    Fault.SKIPPED,
    Fault.EXTRA,
    Fault.WRONG_SIZE,
    Fault.WRONG_DTYPE,
    Fault.WRONG_OP,
    Fault.SWAPPED,
)
DEVICE_FAULTS = (Fault.DEVICE_LAG, Fault.DEVICE_UNSTARTED, Fault.SYMMETRIC)

ATTEMPTS_MAX = 50
"""Tries to place a fault so that the job hangs: a call too many of one kind may shift all later ones unnoticed."""


@dataclass(frozen=True, slots=True)
class HangCase:
    """The dumps of one job, and who is to blame."""

    seed: int
    layout: str
    fault: Fault
    world_size: int
    culprits: tuple[int, ...]
    dumps: dict[int, RecorderDump]
    is_gloo: bool
    tied: tuple[int, ...] = ()
    """Where the guilty call has no majority against it: all who took part."""


@dataclass(slots=True)
class _Run:
    """The state in which a job has stopped."""

    programs: list[Program]
    host_limit: list[int]
    """Items that a rank's host enqueues at most."""
    device_limit: list[int]
    """Items that a rank's device begins at most."""
    lag_at: dict[int, int] = field(default_factory=dict)
    broken: set[tuple[int, ...]] = field(default_factory=set)
    done: list[int] = field(default_factory=list)
    """Items completed by each rank."""
    arrivals: dict[tuple[int, ...], dict[int, Part]] = field(default_factory=lambda: defaultdict(dict))


def hang_case(
    seed: int, *, world_size_max: int = 64, fault: Fault | None = None, layout: str | None = None
) -> HangCase:
    """A job with a fault that hangs it, or a healthy one; the same for the same arguments."""
    random = Random(seed)
    for _ in range(ATTEMPTS_MAX):
        kind = fault or random.choice(list(Fault))
        job = training(random, world_size_max=world_size_max, layout=layout)
        is_gloo = not job.has_transfers and kind not in DEVICE_FAULTS and random.random() < 0.4
        case = _attempt(seed, random, kind, job.layout, job.groups, job.programs, is_gloo=is_gloo)
        if case is not None:
            return case
    raise ValueError(f"Seed {seed} places no {fault} that hangs a job of {layout or 'any layout'}: take another seed.")


@dataclass(frozen=True, slots=True)
class Stopped:
    """How far each rank has come where one does not go on."""

    limits: list[int]
    """Items that its host enqueues at most."""
    done: list[int]


def stopped_by(programs: Sequence[Program], rank: int, place: int) -> Stopped:
    """How far all come where a rank does not go on before this item of its program."""
    run = _Run(list(programs), [len(p) for p in programs], [len(p) for p in programs])
    run.host_limit[rank] = place
    _carry_out(run)
    return Stopped(run.host_limit, run.done)


def is_held_up(programs: Sequence[Program], rank: int, changed: Program) -> bool:
    """Whether others than a rank cannot finish where it calls this instead of its own program.

    Sizes are left out of account: only operations and their order differ.
    """
    plain = [_numbered(_sizeless(changed if other == rank else program)) for other, program in enumerate(programs)]
    run = _Run(plain, [len(p) for p in plain], [len(p) for p in plain])
    _carry_out(run)
    return any(done < len(plain[other]) for other, done in enumerate(run.done) if other != rank)


def _sizeless(program: Program) -> Program:
    return tuple(tuple(replace(part, elements=0) for part in item) for item in program)


def _attempt(
    seed: int,
    random: Random,
    kind: Fault,
    layout: str,
    groups: Sequence[GroupName],
    programs: list[Program],
    *,
    is_gloo: bool,
) -> HangCase | None:
    size = len(programs)
    guilty = random.randrange(size)
    run = _Run(list(programs), [len(p) for p in programs], [len(p) for p in programs])
    place = random.randrange(len(programs[guilty]) // 2, len(programs[guilty]))
    if not _inject(random, kind, run, guilty, place):
        return None
    _carry_out(run)
    is_hung = any(done < len(program) for done, program in zip(run.done, run.programs, strict=True))
    is_alone = all(
        done == len(p) for r, (done, p) in enumerate(zip(run.done, run.programs, strict=True)) if r != guilty
    )
    if is_hung != (kind is not Fault.HEALTHY) or (is_hung and is_alone):
        return None
    has_timing = kind is Fault.DEVICE_UNSTARTED or (not is_gloo and random.random() < 0.5)
    ahead = 0 if is_gloo else random.randrange(1, 6)
    writer = _Writer(
        random.randrange(1, 100_000), random.randrange(24, 512), ahead, has_timing=has_timing, is_gloo=is_gloo
    )
    # Where no dump lists the members of its groups, nothing could tell that the job had one more rank.
    is_raw = is_gloo and random.random() < 0.5 and not (kind is Fault.DEAD and guilty == size - 1)
    dumps = {rank: writer.dump(run, groups, rank, is_raw=is_raw) for rank in range(size)}
    if kind is Fault.DEAD:
        del dumps[guilty]
    blamed = () if kind in (Fault.HEALTHY, Fault.SYMMETRIC) else (guilty,)
    return HangCase(seed, layout, kind, size, blamed, dumps, is_gloo, _tied(run, kind, guilty))


def _inject(random: Random, kind: Fault, run: _Run, guilty: int, place: int) -> bool:
    """Put the fault into the run; False where this place does not allow it."""
    if kind in HOST_FAULTS:
        run.host_limit[guilty] = place
    elif kind in (Fault.DEVICE_LAG, Fault.SYMMETRIC):
        item = run.programs[guilty][place]
        if item[0].is_transfer:
            return False
        run.lag_at = {guilty: place} if kind is Fault.DEVICE_LAG else {}
        run.broken = {item[0].instance} if kind is Fault.SYMMETRIC else set()
    elif kind is Fault.DEVICE_UNSTARTED:
        run.device_limit[guilty] = place
    elif kind in CALL_FAULTS:
        changed = _changed(random, kind, run.programs[guilty], place)
        if changed is None:
            return False
        run.programs[guilty] = _numbered(changed)
        run.host_limit[guilty] = run.device_limit[guilty] = len(changed)
    return True


def _changed(random: Random, kind: Fault, program: Program, place: int) -> Program | None:
    """A program with one wrong call, or None where the call at this place cannot be wrong in that way."""
    (part, *others) = program[place]
    if others or part.is_transfer:
        return None
    before, after = program[:place], program[place + 1 :]
    wrong: dict[Fault, Part] = {
        Fault.WRONG_SIZE: replace(part, elements=part.elements + 1 + random.randrange(99)),
        Fault.WRONG_DTYPE: replace(part, dtype="Float" if part.dtype != "Float" else "BFloat16"),
        Fault.WRONG_OP: replace(part, op="all_gather" if part.op != "all_gather" else "all_reduce"),
    }
    if kind is Fault.WRONG_SIZE and part.op == "all_to_all":
        return None
    if kind in wrong:
        return (*before, (wrong[kind],), *after)
    if kind is Fault.SKIPPED:
        return (*before, *after)
    if kind is Fault.EXTRA:
        extra = replace(part, elements=part.elements + 17)
        return None if part.op == "all_to_all" else (*before, (extra,), program[place], *after)
    if not after or len(after[0]) > 1 or after[0][0].is_transfer or after[0][0].signature == part.signature:
        return None
    return (*before, after[0], program[place], *after[1:])


def _numbered(program: Program) -> Program:
    """The same program with each call numbered in its group."""
    counts: dict[tuple[int, ...], int] = defaultdict(int)
    found: list[Item] = []
    for item in program:
        parts = []
        for part in item:
            counts[part.channel] += 1
            parts.append(replace(part, number=counts[part.channel]))
        found.append(tuple(parts))
    return tuple(found)


def _carry_out(run: _Run) -> None:
    """Let every rank go on until none can."""
    size = len(run.programs)
    run.done = [0] * size
    open_parts = [0] * size
    ready = list(range(size))
    while ready:
        rank = ready.pop()
        place = run.done[rank]
        if place >= min(run.host_limit[rank], run.device_limit[rank], len(run.programs[rank])):
            continue
        item = run.programs[rank][place]
        open_parts[rank] = len(item)
        for part in item:
            arrived = run.arrivals[part.instance]
            arrived[rank] = part
            if len(arrived) < part.size or part.instance in run.broken or not _agree(arrived):
                continue
            for other in arrived:
                open_parts[other] -= 1
                if not open_parts[other] and run.lag_at.get(other) != run.done[other]:
                    run.done[other] += 1
                    ready.append(other)


def _agree(arrived: dict[int, Part]) -> bool:
    return len({part.signature for part in arrived.values()}) == 1


def _tied(run: _Run, kind: Fault, guilty: int) -> tuple[int, ...]:
    """All who took part in what the guilty call met, where that is a group of two."""
    if kind not in CALL_FAULTS:
        return ()
    pairs = {
        tuple(sorted(arrived))
        for instance, arrived in run.arrivals.items()
        if guilty in arrived and next(iter(arrived.values())).size == 2
    }
    return tuple(sorted({rank for pair in pairs for rank in pair}))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes dumps as one version of torch with one setting does."""

    base: int
    """Operations of each group before those simulated: the ring has lost them."""
    ring: int
    ahead: int
    has_timing: bool
    is_gloo: bool

    def dump(self, run: _Run, groups: Sequence[GroupName], rank: int, *, is_raw: bool) -> RecorderDump:
        """One rank's dump; a raw one does not list the members of its groups."""
        own = [place for place, group in enumerate(groups) if rank in group.members]
        ids = {place: number for number, place in enumerate(own)}
        program, done = run.programs[rank], run.done[rank]
        enqueued = min(run.host_limit[rank], len(program), done + 1 + self.ahead)
        entries: list[Entry] = []
        transfers: dict[int, int] = defaultdict(int)
        statuses: dict[int, Standing] = {}
        for place in range(enqueued):
            progress = self._progress(place, done, run.device_limit[rank])
            batch = self._entries(program[place], groups, ids, progress, len(entries), transfers)
            entries += batch
            for entry in batch:
                statuses[entry.pg_id] = _moved(
                    statuses.get(entry.pg_id), entry.seq, progress, has_timing=self.has_timing
                )
        return RecorderDump(
            entries=tuple(entries[-self.ring :]),
            groups=() if is_raw else tuple(groups[place] for place in own),
            statuses=statuses,
            is_gloo=self.is_gloo,
        )

    def _progress(self, place: int, done: int, device_limit: int) -> Progress:
        if place < done:
            return Progress.COMPLETED
        return Progress.STARTED if self.has_timing and place == done < device_limit else Progress.ENTERED

    def _entries(
        self,
        item: Item,
        groups: Sequence[GroupName],
        ids: dict[int, int],
        progress: Progress,
        recorded: int,
        transfers: dict[int, int],
    ) -> list[Entry]:
        is_batch = item[0].is_transfer
        if is_batch:
            transfers[item[0].group] += 1
        found: list[Entry] = []
        for part in item:
            group = groups[part.group]
            ends = (group.members.index(part.sender), group.members.index(part.receiver)) if is_batch else None
            found.append(
                Entry(
                    record_id=self.base + recorded + len(found),
                    pg_id=ids[part.group],
                    name=group.name,
                    description=group.description,
                    seq=self.base + (transfers[part.group] if is_batch else part.number),
                    op=part.op,
                    # A batch's parts are never updated, only the record of the whole.
                    progress=Progress.ENTERED if is_batch else progress,
                    signature=part.signature,
                    is_transfer=is_batch,
                    peers=ends,
                )
            )
        if is_batch:
            last = found[-1]
            whole = replace(last, record_id=last.record_id + 1, op="coalesced", peers=None, progress=progress)
            found.append(replace(whole, is_last_of_batch=True, signature=("", "", "")))
        return found


def _moved(status: Standing | None, seq: int, progress: Progress, *, has_timing: bool) -> Standing:
    before = status or Standing()
    return Standing(
        entered=seq,
        started=seq if has_timing and progress >= Progress.STARTED else before.started,
        completed=seq if progress is Progress.COMPLETED else before.completed,
    )
