"""What one rank's clockwork writes of its own accord."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from instep_agent.rank_record import Op, RankIdentity, RankRecordWriter, read_record
from instep_trainer.observe import recorder as module
from instep_trainer.observe.recorder import RankRecorder


@pytest.fixture
def writer(tmp_path: Path) -> RankRecordWriter:
    identity = RankIdentity(job="gpt", run="r", attempt=0, rank=0, local_rank=0, world_size=1, node="node-a")
    return RankRecordWriter.create(tmp_path, identity)


def test_every_step_tells_how_fast_the_core_was(writer: RankRecordWriter) -> None:
    recorder = RankRecorder(writer)
    for step in (1, 2):
        recorder.finish_step(step, is_skipped=step == 2)
    steps = read_record(writer.path).steps
    assert [step.is_skipped for step in steps] == [False, True]
    for step in steps:
        assert step.yardstick_seconds is not None and step.yardstick_seconds > 0.0


def test_a_core_is_timed_once_a_step_before_the_rank_first_waits(
    writer: RankRecordWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    nanoseconds = itertools.count(1_000, 1_000)
    monkeypatch.setattr(module, "_yardstick_ns", lambda: next(nanoseconds))
    recorder = RankRecorder(writer)
    group = writer.declare_group([0], "dp")
    for step in (1, 2):
        for seq in (1, 2):
            recorder.completed(recorder.entered(group, 2 * step + seq, int(Op.all_reduce), 8))
        recorder.finish_step(step)
    told = [step.yardstick_seconds for step in read_record(writer.path).steps]
    assert told == [pytest.approx(1e-6), pytest.approx(2e-6)]
    assert next(nanoseconds) == 3_000
