"""Messages between rank records, agents, supervisors and the server: the one wire vocabulary.

Readers ignore unknown fields, so that versions can roll; a field added later has a default. Ages and durations are
measured where the thing happened, in seconds; nobody subtracts its own clock from another node's
(docs/reference/wire.md).
"""

from __future__ import annotations

from msgspec import Struct

FRAME_VERSION = (1, 0)
"""Major and minor version of a frame. A server takes the same major, and any minor."""


class ClockAnchor(Struct, frozen=True, kw_only=True):
    """One reading of a node's clocks, taken together."""

    boot_id: str
    monotonic_ns: int
    realtime_ns: int
    uncertainty_ns: int


class GroupReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far one rank has got in one process group. Sequence numbers count from 1; None is *not observed*."""

    key: str
    """16 hex digits: hash of the ordered global members, the description and the creation ordinal."""
    description: str = ""
    ordinal: int = 0
    size: int = 0
    members: tuple[int, ...] | None = None
    """Global ranks in group order, or None when the record had no room for them."""
    entered_seq: int | None = None
    """The last collective this rank called (enqueued)."""
    returned_seq: int | None = None
    """The last collective whose call came back; on NCCL that is the launch, not completion."""
    completed_seq: int | None = None
    op: str = ""
    """Operation of `entered_seq`, such as `all_reduce`."""
    payload_bytes: int = 0
    entered_age_seconds: float | None = None
    """Since `entered_seq` was entered, at the moment the record was read."""


class CollectiveEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One collective in a rank's ring, oldest first."""

    group_key: str
    seq: int
    op: str
    payload_bytes: int
    entered_age_seconds: float
    is_completed: bool | None = None


class StepReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished step of one rank: durations in seconds; None is *not observed*."""

    step: int
    wall_seconds: float
    data_seconds: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Blocked on peers: inside collectives, and after the last one of a backward pass was handed over."""
    cpu_seconds: float | None = None
    """CPU time of the rank's main thread."""
    starved_seconds: float | None = None
    """Time the main thread was runnable but had no core (the kernel's run-queue delay)."""
    yardstick_seconds: float | None = None
    """What a small computation, the same for all ranks and steps, took on the rank's core beside its work."""
    tokens: int = 0
    tokens_squared: int = 0
    """Sum over sequences of length squared: the attention part of the work."""
    micro_steps: int = 1
    is_skipped: bool = False
    """The optimizer did not step (a GradScaler found infinities)."""


class RankPlace(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where one rank runs: its process on the node, its GPU, the RDMA devices nearest to that, its container."""

    pid: int = 0
    """Number of its process on the node, as kernel lines have it; 0 when it is not known."""
    pid_namespace: int = 0
    """Inode number of the pid namespace in which `RankReport.pid` counts."""
    gpus_visible: str = ""
    """`CUDA_VISIBLE_DEVICES` of the process as it started; empty when it is not set, or cannot be read."""
    gpu_pci: str = ""
    """Address of the rank's GPU, `0000:3b:00`, where the driver tells it."""
    hcas: tuple[str, ...] = ()
    """Names of the RDMA devices nearest to that GPU on the PCI tree; several that are equally near."""
    namespace: str = ""
    pod_uid: str = ""
    container: str = ""
    scheduler_job_id: str = ""
    missing: tuple[str, ...] = ()
    """What is not known: `process`, `owner` (the process is not that of the record's), `environment`, `cgroup`."""


class RankReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one rank record said when it was read."""

    job: str
    run: str
    attempt: int
    rank: int
    local_rank: int
    world_size: int
    pid: int
    node: str
    gpu: str = ""
    """GPU UUID, or its index on the node as text, or empty when the rank uses none."""
    mesh: tuple[tuple[str, int], ...] = ()
    """Named coordinates, such as (("dp", 1), ("pp", 0))."""
    is_annotated: bool = False
    """The script marks its phases itself, so time outside every phase is known to be the script's own loop."""
    step: int = 0
    """Steps finished so far, counted over the whole run."""
    micro_step: int = 0
    phase: str = "unknown"
    """A value of `rank_record.Phase`."""
    phase_age_seconds: float | None = None
    """Since that phase began, at the moment the record was read."""
    heartbeat_age_seconds: float = 0.0
    """Since the rank last wrote its heartbeat: a phase change, a finished micro-step or step, or a collective."""
    process_state: str = "unknown"
    """`running`, `sleeping`, `stopped`, `uninterruptible`, `zombie`, `gone` or `unknown` (could not look)."""
    cpu_seconds: float | None = None
    """CPU time of the whole process since it started."""
    groups: tuple[GroupReport, ...] = ()
    steps: tuple[StepReport, ...] = ()
    """Finished steps not reported before, oldest first."""
    collectives: tuple[CollectiveEntry, ...] = ()
    """The last collectives, oldest first; filled when the rank looks stalled, empty otherwise."""
    unobserved: tuple[str, ...] = ()
    """Paths that cannot be seen in this rank (such as `p2p`): not observed, which is not *not entered*."""
    place: RankPlace | None = None
    """Where it runs, when that is new or changed and every minute; None: as last told."""


class GpuReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU of a node, enough to join a kernel line to a rank."""

    index: int
    uuid: str
    pci: str
    """Domain, bus and device, `0000:3b:00`, lower case."""


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A raw fact that happened at a moment on a node; its meaning is diagnosis's business."""

    id: str
    """Unique for ever: boot id, agent epoch and a counter."""
    kind: str
    """`kernel_line`, `source_failed`, …"""
    text: str
    age_seconds: float
    """Since it happened, when the frame was made."""
    monotonic_ns: int
    realtime_ns: int
    fields: dict[str, str] = {}
    is_drill: bool = False
    """The fact was injected on purpose, and says so wherever it shows."""


class Sample(Struct, frozen=True, kw_only=True):
    """One reading of a source: name with unit, labels, value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Dictionary(Struct, frozen=True, kw_only=True):
    """The series of one agent, in the order of a frame's values. Sent once; named by its hash afterwards."""

    hash: str
    series: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


class Frame(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything one node says at one tick."""

    version: tuple[int, int] = FRAME_VERSION
    cluster: str
    node: str
    boot_id: str
    agent_epoch: str
    """New at every start of the agent; with `sequence` it makes a frame's identity."""
    sequence: int
    anchor: ClockAnchor
    dictionary_hash: str = ""
    values: bytes = b""
    """Little-endian float64, one per series of the dictionary; NaN is *no reading*."""
    ranks: tuple[RankReport, ...] = ()
    gpus: tuple[GpuReport, ...] | None = None
    """The node's GPUs; None when they were not looked at in this frame."""
    events: tuple[Event, ...] = ()


class StackFrame(Struct, frozen=True, kw_only=True):
    """One Python frame, innermost first in its list."""

    function: str
    file: str
    line: int


class ThreadStack(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thread of a process as py-spy saw it."""

    name: str
    is_main: bool
    is_active: bool
    owns_gil: bool
    frames: tuple[StackFrame, ...]


class RankDump(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Evidence taken on order from one rank; what could not be had is said in `missing`."""

    report: RankReport
    stacks: tuple[ThreadStack, ...] = ()
    answers: bool | None = None
    """Whether the rank's own Python answered within the limit; False with a live process suggests a held GIL."""
    flight_recorder: str = ""
    """JSON text as torch wrote it, untrusted; empty when there was none."""
    flight_recorder_pickle: bytes = b""
    """A dump as torch wrote it to a file, untrusted: only for a reader that knows plain values and nothing else."""
    missing: tuple[str, ...] = ()
    """One sentence for each thing that could not be had."""


class NodeOrder(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the server asks the agent of one node to do about one attempt of a run."""

    id: int
    run: str
    attempt: int
    action: str
    """`dump`; an agent passes over what it does not know."""
    deadline_seconds: float = 5.0
    """Left when the order was sent; later nobody waits for the answer."""


class NodeOrders(Struct, frozen=True, kw_only=True):
    """Orders for one node, oldest first."""

    orders: tuple[NodeOrder, ...]
    epoch: str = ""
    """Of the server that numbered them: `after` a number of another epoch means nothing."""


class NodeDump(Struct, frozen=True, kw_only=True):
    """An agent's answer to a `dump` order: evidence of every rank of that attempt on its node, perhaps of none."""

    node: str
    order: int
    run: str
    attempt: int
    dumps: tuple[RankDump, ...]
