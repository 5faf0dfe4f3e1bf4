"""Makes the test vector of format 1.0: a record written with fixed clocks, process and boot, and what it says.

Run `python tests/agent/rank_record/vectors/make_vectors.py` for a new minor version, under a new name: that the old
file still reads the same is what a vector is for.
"""

import contextlib
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import msgspec
from instep_agent import wire
from instep_agent.rank_record import CompletedSource, Op, Phase, RankIdentity, RankRecordWriter, read_record, report

HERE = Path(__file__).parent
BOOT_ID = "6fd3c1de-5a3e-4cf4-9d0c-0d0b0f0a0908"
START_NS = 1_000_000_000_000
READ_NS = START_NS + 5_000_000_000


@contextlib.contextmanager
def fixed_surroundings():
    """Every clock reading is one millisecond after the one before; the process is number 4242, started at tick 777."""
    ticks = itertools.count(START_NS, 1_000_000)
    anchor = wire.ClockAnchor(
        boot_id=BOOT_ID, monotonic_ns=START_NS, realtime_ns=1_700_000_000_000_000_000, uncertainty_ns=80
    )
    create, writer = "instep_agent.rank_record.create", "instep_agent.rank_record.writer"
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch(f"{writer}._now", lambda: next(ticks)))
        stack.enter_context(mock.patch(f"{writer}.os.getpid", lambda: 4242))
        stack.enter_context(mock.patch(f"{create}.read_anchor", lambda: anchor))
        stack.enter_context(mock.patch(f"{create}.boot_id", lambda: BOOT_ID))
        stack.enter_context(mock.patch(f"{create}.start_ticks", lambda pid: 777))
        stack.enter_context(mock.patch(f"{create}.pid_namespace", lambda: 4026531836))
        yield


def write_record(root):
    identity = RankIdentity(
        cluster="c",
        job="gpt",
        run="r-1",
        attempt=2,
        rank=3,
        local_rank=1,
        world_size=4,
        node="node-b",
        gpu="GPU-1",
        is_annotated=True,
    )
    with fixed_surroundings():
        writer = RankRecordWriter.create(root, identity, groups=2, steps=4, collectives=4)
        writer.update_identity(mesh=(("dp", 1), ("pp", 0)), unobserved=("p2p",))
        dp = writer.declare_group([1, 3], "dp", 0)
        writer.declare_group(range(4), "world", 1)
        for seq in (1, 2):
            token = writer.enter(dp, seq, Op.all_reduce, 4096)
            writer.returned(token)
            writer.completed(token, CompletedSource.wait)
        writer.finish_step(
            41,
            0.25,
            data_seconds=0.01,
            forward_seconds=0.08,
            backward_seconds=0.1,
            optimizer_seconds=0.02,
            wait_seconds=0.04,
            cpu_seconds=0.2,
            tokens=2048,
            tokens_squared=1 << 20,
            micro_steps=2,
        )
        writer.finish_step(42, 0.5, is_skipped=True)
        writer.enter(dp, 3, Op.reduce_scatter_tensor, 1 << 20)
        writer.heartbeat(42, 1, Phase.wait, cpu_ns=9_000_000_000)
        writer.close()
    return writer.path


def reading_of(path):
    """What the record says at READ_NS, as plain values; the process is looked for where there is none."""
    said = report(read_record(path), now_monotonic_ns=READ_NS, boot_id=BOOT_ID, proc=Path("/nonexistent"))
    return json.loads(msgspec.json.encode(said))


if __name__ == "__main__":
    folder = tempfile.mkdtemp()
    shutil.copyfile(write_record(folder), HERE / "record-1.0.bin")
    (HERE / "record-1.0.json").write_text(json.dumps(reading_of(HERE / "record-1.0.bin"), indent=2) + "\n")
    shutil.rmtree(folder)
