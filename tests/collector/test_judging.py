"""What the server adds to a hang's evidence before it judges: pickled flight recorders, read as plain values only."""

import os
import pickle

import msgspec
import pytest
from instep_collector import judging
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import detect_stall
from instep_diagnosis.settings import HangSettings

from tests.diagnosis.scenarios import Scenario

SETTINGS = HangSettings()


class Attack:
    """What runs a command in whoever unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def dump_of(seq):
    """A dump as torch pickles it: protocol 2, the group as (name, description)."""
    entry = {"collective_seq_id": seq, "profiling_name": "nccl:all_reduce", "process_group": ("0", "default")}
    return pickle.dumps({"version": "2.10", "entries": [entry], "pg_config": {}}, protocol=2)


def localised(**pickles):
    """The state and verdict of a job whose rank 2 is late, with these pickles by rank (`rank2=...`)."""
    scenario = Scenario().waits(0, 1, 3).sits(2, phase="forward", process="running")
    for rank in range(4):
        scenario.dumped(rank, ("all_reduce", "train.py", 3))
        data = pickles.get(f"rank{rank}", b"")
        scenario.dumps[rank] = msgspec.structs.replace(scenario.dumps[rank], flight_recorder_pickle=data)
    job = scenario.job()
    return judging.localise(job, detect_stall(job, SETTINGS), SETTINGS, scenario.dumps)


def cited(verdict):
    return [item.text for item in verdict.evidence if item.source == "flight-recorder"]


def test_pickled_flight_recorders_are_a_second_witness():
    job, verdict = localised(rank0=dump_of(511), rank2=dump_of(510))
    assert cited(verdict) == [
        "Rank 2's flight recorder ends with all_reduce seq 510 of group default, rank 0's with all_reduce seq 511."
    ]
    assert localise_hang(job, detect_stall(job, SETTINGS), SETTINGS) == verdict, "the bundle says the same"


@pytest.mark.parametrize("name", ["attack", "cut", "empty dictionary", "a number", "too large"])
def test_a_hostile_pickle_gives_nothing_and_is_said(tmp_path, name):
    hostile = {
        "attack": pickle.dumps(Attack(tmp_path / "was-here"), protocol=2),
        "cut": dump_of(510)[:20],
        "empty dictionary": pickle.dumps({"entries": {"a": "b"}}, protocol=2),
        "a number": pickle.dumps(7, protocol=2),
        "too large": dump_of(510) + bytes(6 << 20),
    }
    job, verdict = localised(rank0=dump_of(511), rank2=hostile[name])
    assert [suspect.rank for suspect in verdict.suspects] == [2]
    assert cited(verdict) == []
    (sentence,) = job.ranks[2].missing
    assert sentence.startswith("The flight recorder of rank 2 cannot be read: ") and sentence.endswith(".")
    assert not (tmp_path / "was-here").exists()


def test_without_pickles_nothing_is_read_and_nothing_missing():
    job, verdict = localised()
    assert (cited(verdict), {state.missing for state in job.ranks}) == ([], {()})
