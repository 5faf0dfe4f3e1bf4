"""The agreement on where to resume, as a pure function."""

from hypothesis import given
from hypothesis import strategies as st
from instep_trainer.checkpoint.agree import agree, committed, resume_step
from instep_trainer.checkpoint.slots import Entry


def at(*steps, attempt=0):
    return [Entry(step, attempt) for step in steps]


NO_DISK = dict.fromkeys(range(4))


def test_the_committed_step_is_the_largest_that_every_current_rank_has_complete():
    assert resume_step({0: at(9, 8), 1: at(9, 8), 2: at(8, 7), 3: at(9, 8)}) == 8


def test_a_rank_moved_to_another_node_receives_the_state_from_a_holder():
    agreement = agree({0: at(9, 8), 1: at(9, 8), 2: [], 3: at(4, 3)}, NO_DISK)
    assert (agreement.entry, agreement.source) == (Entry(9, 0), "memory")
    assert (agreement.holders, agreement.receivers) == ((0, 1), (2, 3))


def test_a_rank_whose_newest_state_was_damaged_holds_all_to_its_older_one():
    assert resume_step({0: at(9, 8), 1: at(8), 2: at(9, 8), 3: at(9, 8)}) == 8


def test_ranks_that_lost_different_slots_resume_from_what_the_slowest_has():
    agreement = agree({0: at(9), 1: at(8), 2: [], 3: at(9)}, NO_DISK)
    assert (agreement.entry.step, agreement.holders) == (8, (1,))


def test_memory_goes_before_disk_unless_disk_is_ahead_by_more_than_a_step():
    memory = {rank: at(9, 8) for rank in range(4)}
    assert agree(memory, {**NO_DISK, 0: Entry(10, 0)}).source == "memory"
    assert agree(memory, {**NO_DISK, 0: Entry(11, 0)}).source == "disk"


def test_without_memory_the_newest_disk_checkpoint_is_handed_out_by_who_reads_it():
    agreement = agree({rank: [] for rank in range(4)}, {0: None, 1: Entry(6, 0), 2: Entry(3, 0), 3: None})
    assert (agreement.entry, agreement.source, agreement.holders) == (Entry(6, 0), "disk", (1,))
    assert agreement.receivers == (0, 2, 3)


def test_nothing_anywhere_starts_at_step_0():
    agreement = agree({rank: [] for rank in range(4)}, NO_DISK)
    assert (agreement.entry, agreement.source, agreement.receivers) == (Entry(0, 0), "start", ())
    assert resume_step({}) is None


def test_a_step_that_an_abandoned_attempt_reached_is_not_resumed_from():
    # Attempt 0 kept step 10 on rank 2 only; attempt 1 resumed at 9 and kept 10 anew; then rank 2's old node came back.
    held = {0: at(10, attempt=1) + at(9), 1: at(10, attempt=1) + at(9), 2: at(10, 9), 3: at(10, attempt=1) + at(9)}
    assert committed(held) == Entry(9, 0)
    held[2] = at(11, 10)
    assert committed(held) == Entry(10, 1)


steps = st.lists(st.builds(Entry, st.integers(0, 12), st.integers(0, 3)), max_size=2, unique=True)


@given(st.dictionaries(st.integers(0, 7), steps), st.permutations(range(8)))
def test_renaming_ranks_changes_nothing_and_the_result_is_held_by_somebody(held, order):
    entry = committed(held)
    assert entry == committed({order[rank]: entries[::-1] for rank, entries in held.items()})
    if any(held.values()):
        assert any(entry in entries for entries in held.values())
    else:
        assert entry is None


@given(st.integers(1, 50), st.lists(st.integers(0, 1), min_size=2, max_size=8))
def test_after_any_crash_of_one_run_the_step_that_all_have_finished_is_resumed(step, ahead):
    held = {rank: at(step + more, step + more - 1) for rank, more in enumerate(ahead)}
    assert resume_step(held) == step + min(ahead)
