"""What the ranks of a training job call, step after step, for the usual layouts: data, tensor, pipeline and expert
parallel, and their products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from instep_diagnosis.wait_graph.history import Signature
from instep_diagnosis.wait_graph.recorder import GroupName

LAYOUTS = ("ddp", "fsdp", "tp", "tp-dp", "pp", "pp-dp-tp", "ep")
STEPS = 4
"""Recorders keep more; so many show what a rank always does."""


@dataclass(frozen=True, slots=True)
class Part:
    """One collective, or one transfer of a batch, as one rank calls it."""

    group: int
    """Index among the job's groups."""
    size: int
    """Ranks that take part."""
    op: str
    elements: int
    dtype: str = "BFloat16"
    sender: int = -1
    receiver: int = -1
    number: int = 0
    """How many of its channel the rank has called, this one included."""

    @property
    def is_transfer(self) -> bool:
        """Whether it is a send or a receive."""
        return self.sender >= 0

    @property
    def channel(self) -> tuple[int, ...]:
        """What its number counts in."""
        return (self.group, self.sender, self.receiver)

    @property
    def instance(self) -> tuple[int, ...]:
        """What the ranks meet in."""
        return (self.group, self.sender, self.receiver, self.number)

    @property
    def signature(self) -> Signature:
        """What all of them must agree on."""
        sizes = "" if self.op == "all_to_all" else f"{self.elements} elements"
        return ("transfer" if self.is_transfer else self.op, sizes, self.dtype)


Item = tuple[Part, ...]
"""One collective, or a batch of transfers begun together."""
Program = tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Training:
    """A job's groups, and what each rank calls."""

    layout: str
    groups: tuple[GroupName, ...]
    programs: list[Program]
    has_transfers: bool


@dataclass(slots=True)
class _Builder:
    """Writes one rank's program."""

    rank: int
    groups: dict[str, tuple[int, tuple[int, ...]]]
    """Description → index and members of the rank's own group of that kind."""
    items: list[Item] = field(default_factory=list)
    counts: dict[tuple[int, ...], int] = field(default_factory=lambda: defaultdict(int))

    def call(self, description: str, op: str, elements: int, dtype: str = "BFloat16") -> None:
        """A collective; nothing in a group of one."""
        index, members = self.groups[description]
        if len(members) > 1:
            channel = (index, -1, -1)
            self.counts[channel] += 1
            self.items.append((Part(index, len(members), op, elements, dtype, number=self.counts[channel]),))

    def transfer(self, *ways: tuple[str, int]) -> None:
        """A batch of sends and receives, each with the place of its peer in the pipeline."""
        index, members = self.groups["pp"]
        parts = []
        for way, place in ways:
            if not 0 <= place < len(members):
                continue
            ends = (self.rank, members[place]) if way == "send" else (members[place], self.rank)
            self.counts[index, *ends] += 1
            parts.append(Part(index, 2, way, 4_096, "BFloat16", *ends, number=self.counts[index, *ends]))
        if parts:
            self.items.append(tuple(parts))


def training(random: Random, *, world_size_max: int, layout: str | None = None) -> Training:
    """A healthy job of one layout, of at most so many ranks."""
    kind = layout or random.choice(LAYOUTS)
    tp, dp, pp = _sizes(random, kind, world_size_max)
    grid = _Grid(tp, dp, pp)
    groups, own = grid.groups(has_experts=kind == "ep")
    layers, micro_batches = random.randrange(1, 4), random.randrange(1, 5)
    programs = []
    for rank in range(grid.size):
        builder = _Builder(rank, own[rank])
        for _ in range(STEPS):
            _step(builder, kind, layers, micro_batches)
        programs.append(tuple(builder.items))
    return Training(kind, groups, programs, has_transfers=pp > 1)


def _sizes(random: Random, kind: str, world_size_max: int) -> tuple[int, int, int]:
    """Sizes of the tensor, data and pipeline dimensions."""
    choices = [n for n in (2, 4, 8) if n <= world_size_max]
    tp = random.choice(choices) if kind in ("tp", "tp-dp", "pp-dp-tp") else 1
    pp = random.choice([n for n in choices if n * tp <= world_size_max] or [1]) if kind in ("pp", "pp-dp-tp") else 1
    if kind in ("tp", "pp"):
        return tp, 1, pp
    most = world_size_max // (tp * pp)
    powers = [1 << power for power in range(1, 14) if 1 << power <= most] or [1]
    return tp, random.choice([*powers, most] if most > 1 else powers), pp


@dataclass(frozen=True, slots=True)
class _Grid:
    """Ranks in the order in which launchers lay them out: tensor innermost, then data, then pipeline."""

    tp: int
    dp: int
    pp: int

    @property
    def size(self) -> int:
        return self.tp * self.dp * self.pp

    def groups(
        self, *, has_experts: bool
    ) -> tuple[tuple[GroupName, ...], list[dict[str, tuple[int, tuple[int, ...]]]]]:
        """All groups, and for each rank its own by description."""
        found: list[GroupName] = []
        own: list[dict[str, tuple[int, tuple[int, ...]]]] = [{} for _ in range(self.size)]
        kinds: dict[str, Callable[[int], object]] = {
            "default_pg": lambda rank: 0,
            "tp": lambda rank: rank // self.tp,
            "dp": lambda rank: (rank % self.tp, rank // (self.tp * self.dp)),
            "pp": lambda rank: rank % (self.tp * self.dp),
        }
        if has_experts:
            kinds["ep"] = lambda rank: rank // 4
        for description, place in kinds.items():
            members: dict[object, list[int]] = defaultdict(list)
            for rank in range(self.size):
                members[place(rank)].append(rank)
            for ranks in members.values():
                for rank in ranks:
                    own[rank][description] = (len(found), tuple(ranks))
                found.append(GroupName(str(len(found)), description, tuple(ranks)))
        return tuple(found), own


def _step(builder: _Builder, kind: str, layers: int, micro_batches: int) -> None:
    if kind in ("pp", "pp-dp-tp"):
        _one_forward_one_backward(builder, layers, micro_batches)
    else:
        _forward(builder, kind, layers)
        _backward(builder, kind, layers)
    if kind == "fsdp":
        for layer in range(layers):
            builder.call("dp", "reduce_scatter", 9_000 + layer)
    else:
        for bucket in range(layers):
            builder.call("dp", "all_reduce", 50_000 + bucket, "Float")
    builder.call("default_pg", "all_reduce", 1, "Float")


def _forward(builder: _Builder, kind: str, layers: int) -> None:
    for layer in range(layers):
        if kind == "fsdp":
            builder.call("dp", "all_gather", 7_000 + layer)
        if kind == "ep":
            builder.call("ep", "all_to_all", 512)
            builder.call("ep", "all_to_all", 513)
        builder.call("tp", "all_gather", 2_048)
        builder.call("tp", "reduce_scatter", 8_192)


def _backward(builder: _Builder, kind: str, layers: int) -> None:
    for layer in reversed(range(layers)):
        if kind == "fsdp":
            builder.call("dp", "all_gather", 7_000 + layer)
        if kind == "ep":
            builder.call("ep", "all_to_all", 514)
        builder.call("tp", "all_gather", 8_192)
        builder.call("tp", "all_reduce", 2_048)


def _one_forward_one_backward(builder: _Builder, layers: int, micro_batches: int) -> None:
    """The usual schedule of a pipeline stage, its sends and receives in batches."""
    members = builder.groups["pp"][1]
    stage = members.index(builder.rank)
    warm_up = min(len(members) - 1 - stage, micro_batches)
    steady = micro_batches - warm_up
    before, after = stage - 1, stage + 1
    for _ in range(warm_up):
        builder.transfer(("recv", before))
        _forward(builder, "pp", layers)
        builder.transfer(("send", after))
    if steady:
        builder.transfer(("recv", before))
    for micro_batch in range(steady):
        _forward(builder, "pp", layers)
        builder.transfer(("send", after), ("recv", after))
        _backward(builder, "pp", layers)
        if micro_batch < steady - 1:
            builder.transfer(("send", before), ("recv", before))
        else:
            builder.transfer(("send", before))
    for _ in range(warm_up):
        builder.transfer(("recv", after))
        _backward(builder, "pp", layers)
        builder.transfer(("send", before))
