"""A resumed run's losses equal those of an undisturbed run bit for bit, on four real ranks, whatever was killed."""

import random
import re
import shutil

import pytest
from instep_trainer.checkpoint.agree import resume_step
from instep_trainer.checkpoint.slots import BOUNDARIES, inventory, slot_path
from instep_trainer.train.losses import read_losses

pytestmark = pytest.mark.real


def losses_of(job):
    return read_losses(job.out / "losses.jsonl")


def first(undisturbed, steps):
    return {step: loss for step, loss in undisturbed.items() if step <= steps}


def resumed_at(outcome):
    match = re.search(r"resumed at step (\d+) from (\w+)", outcome.log)
    assert match, outcome.log
    return int(match[1]), match[2]


def finish(job, **more):
    outcome = job.attempt(**more)
    assert outcome.codes == [0, 0, 0, 0], outcome.log
    return outcome


@pytest.mark.parametrize("seed", [1, 2])
def test_a_rank_killed_at_a_drawn_step_changes_no_loss(make_job, undisturbed, seed):
    draw = random.Random(seed)
    rank, step, point = draw.randrange(4), draw.randrange(2, 15), draw.choice(["forward", "metrics"])
    job = make_job()
    job.attempt(faults={rank: {"point": point, "count": step, "signal": "SIGKILL"}})
    outcome = finish(job)
    assert resumed_at(outcome) == (step - 1, "memory")
    assert losses_of(job) == first(undisturbed, 16)


def test_no_boundary_of_writing_a_slot_loses_a_committed_step_or_loads_a_torn_one(make_job, undisturbed, tmp_path):
    draw = random.Random(5)
    job = make_job(steps=50)
    kept = 0
    for boundary in BOUNDARIES:
        for signal in ("SIGKILL", "SIGSTOP"):
            ahead = draw.randrange(1, 4)
            fault = {"boundary": boundary, "count": ahead, "signal": signal}
            outcome = job.attempt(faults={draw.randrange(4): fault})
            assert any(outcome.codes), outcome.log
            at = kept + ahead
            kept_before, kept = kept, resume_step(inventory(tmp_path / "memory")) or 0
            assert kept == at - 1 or (boundary == "complete" and kept == at), (boundary, signal)
            if kept_before:
                assert resumed_at(outcome) == (kept_before, "memory")
    assert resumed_at(finish(job)) == (kept, "memory")
    assert losses_of(job) == undisturbed


@pytest.mark.parametrize("moved", [(0, 1), (2, 3)])
def test_ranks_moved_to_another_node_receive_the_state_from_those_that_have_it(make_job, undisturbed, tmp_path, moved):
    job = make_job(folders=[tmp_path / "a", tmp_path / "a", tmp_path / "b", tmp_path / "b"])
    job.attempt(faults={moved[0]: {"point": "forward", "count": 9, "signal": "SIGKILL"}})
    for rank in moved:
        job.folders[rank] = tmp_path / "c"
    outcome = finish(job)
    assert resumed_at(outcome) == (8, "memory")
    assert f"received by ranks {moved[0]}, {moved[1]}" in outcome.log
    assert losses_of(job) == first(undisturbed, 16)


def test_a_rank_that_was_renumbered_takes_the_state_of_its_neighbours(make_job, undisturbed, tmp_path):
    """Node a is lost; what were ranks 2 and 3 on node b are now 0 and 1, and a fresh node takes 2 and 3."""
    job = make_job(folders=[tmp_path / "a", tmp_path / "a", tmp_path / "b", tmp_path / "b"])
    job.attempt(faults={0: {"point": "forward", "count": 9, "signal": "SIGKILL"}})
    job.folders = [tmp_path / "b", tmp_path / "b", tmp_path / "c", tmp_path / "c"]
    outcome = finish(job)
    assert resumed_at(outcome) == (8, "memory")
    assert "received by ranks 2, 3" in outcome.log
    assert losses_of(job) == first(undisturbed, 16)


def test_numbering_of_attempts_that_begins_again_voids_nothing(make_job, undisturbed):
    """A run taken up by a new launcher may count its attempts from 0; what it keeps must still go before what was."""
    job = make_job()
    for attempt, step in ((3, 5), (0, 4), (0, 3)):
        job.attempt(
            environment={"INSTEP_ATTEMPT": str(attempt)},
            faults={1: {"point": "forward", "count": step, "signal": "SIGKILL"}},
        )
    assert resumed_at(finish(job, environment={"INSTEP_ATTEMPT": "0"})) == (4 + 3 + 2, "memory")
    assert losses_of(job) == first(undisturbed, 16)


def test_a_flipped_byte_makes_every_rank_use_the_older_state(make_job, undisturbed, tmp_path):
    job = make_job()
    job.attempt(faults={2: {"point": "forward", "count": 9, "signal": "SIGKILL"}})
    flip_newest(tmp_path / "memory", 1)
    outcome = finish(job, environment={"INSTEP_RESUME_STEP": "8"})
    assert resumed_at(outcome) == (7, "memory")
    assert "does not match its digest" in outcome.log
    assert "expected to resume at step 8" in outcome.log
    assert losses_of(job) == first(undisturbed, 16)


def test_without_memory_the_newest_disk_checkpoint_is_used(make_job, undisturbed, tmp_path):
    job = make_job(arguments=["--checkpoint-every-disk", "3"])
    job.attempt(faults={0: {"point": "forward", "count": 9, "signal": "SIGKILL"}})
    shutil.rmtree(tmp_path / "memory")
    assert sorted(path.name for path in (job.out / "checkpoints").iterdir()) == ["step-3.instep", "step-6.instep"]
    assert resumed_at(finish(job)) == (6, "disk")
    assert losses_of(job) == first(undisturbed, 16)


def test_a_loss_line_that_its_writer_did_not_live_to_write_is_completed(make_job, undisturbed, tmp_path):
    job = make_job()
    job.attempt(faults={0: {"boundary": "complete", "count": 6, "signal": "SIGSTOP"}})
    lines = (job.out / "losses.jsonl").read_text().splitlines()
    (job.out / "losses.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:9])
    finish(job)
    assert losses_of(job) == first(undisturbed, 16)


def test_a_finished_run_started_again_ends_at_once(make_job, undisturbed):
    job = make_job(steps=5)
    finish(job)
    assert resumed_at(finish(job)) == (5, "memory")
    assert losses_of(job) == first(undisturbed, 5)


def test_without_the_discarded_passes_a_resume_on_four_ranks_differs(make_job, undisturbed):
    """The comparison above can tell: this is the difference that the passes are there for."""
    job = make_job()
    faults = {rank: {"discarded_passes": 0} for rank in range(4)}
    job.attempt(faults={**faults, 0: {"discarded_passes": 0, "point": "forward", "count": 9, "signal": "SIGKILL"}})
    finish(job, faults=faults)
    assert losses_of(job) != first(undisturbed, 16)


def flip_newest(folder, rank):
    newest = inventory(folder)[rank][0]
    for slot in (0, 1):
        path = slot_path(folder, rank, slot)
        raw = bytearray(path.read_bytes())
        if int.from_bytes(raw[16:24], "little") == newest.step:
            raw[len(raw) // 2] ^= 4
            path.write_bytes(raw)
