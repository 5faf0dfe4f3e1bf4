"""Where no majority tells whose calls are wrong, the ranks' own habits do; and what gloo hides makes a tie."""

import pytest
from instep_diagnosis.simulation.hangs import Fault, hang_case
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.history import Progress, Standing
from instep_diagnosis.wait_graph.judge import localise
from instep_diagnosis.wait_graph.recorder import Entry, GroupName, RecorderDump

WORLD = (GroupName("0", "default_pg", (0, 1, 2)), GroupName("1", "pp", (0, 1, 2)))


def entry(seq, *, op="all_reduce", is_done=True, name=("0", "default_pg"), record=0):
    return Entry(
        record_id=record or seq, pg_id=int(name[0]), name=name[0], description=name[1], seq=seq, op=op,
        progress=Progress.COMPLETED if is_done else Progress.ENTERED, signature=(op, "8 elements", "Float"), op_id=seq,
    )  # fmt: skip


def gloo(*entries, groups=WORLD):
    newest = {e.pg_id: Standing(entered=e.seq) for e in entries}
    return RecorderDump(entries=tuple(entries), groups=groups, statuses=newest, is_gloo=True)


def test_a_receive_from_a_sleeper_as_first_transfer_is_a_tie_below_a_half():
    done = [entry(seq) for seq in range(1, 6)]
    waiting = gloo(*done, entry(6, is_done=False))
    finding = localise(assemble({0: gloo(*done), 1: gloo(*done), 2: waiting}))
    assert finding.culprits == (0, 1)
    assert finding.is_tied
    assert finding.confidence < 0.5


def test_one_sleeper_beside_which_all_wait_is_no_tie():
    done = [entry(seq) for seq in range(1, 6)]
    waiting = gloo(*done, entry(6, is_done=False))
    finding = localise(assemble({0: gloo(*done), 1: waiting, 2: waiting}))
    assert (finding.culprits, finding.is_tied) == ((0,), False)


def test_a_rank_in_a_hidden_receive_from_one_that_left_no_dump_is_one_of_a_tie():
    done = [entry(seq) for seq in range(1, 6)]
    waiting = gloo(*done, entry(6, is_done=False))
    finding = localise(assemble({0: gloo(*done), 2: waiting}))
    assert finding.culprits == (0, 1)
    assert finding.is_tied


def test_without_a_group_for_hidden_transfers_the_rank_that_is_there_is_blamed():
    groups = (WORLD[0],)
    done = [entry(seq) for seq in range(1, 6)]
    waiting = gloo(*done, entry(6, is_done=False), groups=groups)
    finding = localise(assemble({0: gloo(*done, groups=groups), 2: waiting}))
    assert finding.culprits == (0,)


def crossed(ahead, *, ranks):
    """All ranks have always called a, then b; at the end some wait in b, the others in a."""
    groups = (GroupName("0", "a", tuple(range(ranks))), GroupName("1", "b", tuple(range(ranks))))
    dumps = {}
    for rank in range(ranks):
        done = [
            entry(seq, name=name, record=2 * seq + int(name[0]))
            for seq in range(1, 7)
            for name in (("0", "a"), ("1", "b"))
        ]
        last = ("1", "b") if rank in ahead else ("0", "a")
        dumps[rank] = gloo(*done, entry(7, is_done=False, name=last, record=99), groups=groups)
    return localise(assemble(dumps))


@pytest.mark.parametrize("rank", range(2))
def test_of_two_ranks_the_one_that_departs_from_its_habit_is_blamed(rank):
    finding = crossed({rank}, ranks=2)
    assert (finding.culprits, finding.is_tied) == ((rank,), False)
    assert "never called so before" in finding.verdict


def test_of_many_ranks_the_one_that_alone_waits_elsewhere_is_blamed():
    assert crossed({3}, ranks=5).culprits == (3,)


@pytest.mark.parametrize("seed", [40, 140, 240, 340])
def test_an_unstarted_device_is_blamed_also_beside_ranks_without_a_dump(seed):
    drawn = range(seed, seed + 99)
    cases = (hang_case(s, fault=Fault.DEVICE_UNSTARTED, layout="ddp", world_size_max=16) for s in drawn)
    case = next(case for case in cases if case.world_size >= 4)
    gone = next(rank for rank in range(case.world_size) if rank not in case.culprits)
    some = {rank: dump for rank, dump in case.dumps.items() if rank != gone}
    assert localise(assemble(some)).culprits == case.culprits
