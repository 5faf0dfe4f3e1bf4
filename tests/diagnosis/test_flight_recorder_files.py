"""`instep diagnose flight-recorder DIR` on real dumps, on written ones, and on hostile ones."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instep_diagnosis.cli import main
from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.files.dumps import read_dump_folder
from instep_diagnosis.files.restricted_unpickler import RefusedPickle, load_plain
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.judge import localise

Plain = dict[str, object]


def entry(record: int, seq: int, op: str = "all_reduce", *, state: str = "completed", **more: object) -> Plain:
    """One entry as torch writes it."""
    return {
        "record_id": record,
        "pg_id": 0,
        "process_group": ("0", "default_pg"),
        "collective_seq_id": seq,
        "p2p_seq_id": 0,
        "op_id": seq,
        "profiling_name": f"nccl:{op}",
        "time_created_ns": 1_758_580_155_793_872_443 + record,
        "input_sizes": [[1024]],
        "input_dtypes": ["Float"],
        "output_sizes": [[1024]],
        "output_dtypes": ["Float"],
        "state": state,
        "time_discovered_started_ns": None,
        "time_discovered_completed_ns": None,
        "retired": state == "completed",
        "timeout_ms": 600_000,
        "is_p2p": False,
        **more,
    }


def dump(entries: list[Plain], size: int = 4) -> Plain:
    """One rank's dump."""
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": str(list(range(size)))}}
    return {"version": "2.10", "pg_config": config, "pg_status": {}, "entries": entries}


def hang(size: int = 4, late: int = 2) -> dict[int, Plain]:
    """A job in which one rank never enters seq 9."""
    return {
        rank: dump(
            [*(entry(seq, seq) for seq in range(1, 9)), *([entry(9, 9, state="scheduled")] if rank != late else [])],
            size,
        )
        for rank in range(size)
    }


def write(folder: Path, dumps: dict[int, Plain], name: str = "nccl_trace_rank_{}", form: str = "pickle") -> Path:
    for rank, value in dumps.items():
        path = folder / name.format(rank)
        path.write_bytes(pickle.dumps(value, protocol=2) if form == "pickle" else json.dumps(value).encode())
    return folder


def diagnosed(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, object]:
    status = main(["flight-recorder", str(folder), "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    assert status == (1 if found["is_hang"] else 0)
    return found


@pytest.fixture
def recorded() -> Path:
    root = Path(os.environ.get("INSTEP_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
    folder = root / "flight-recorder" / "one-hang"
    if not folder.is_dir():
        pytest.skip(f"no recorded dumps in {folder}")
    return folder


def test_names_the_two_ranks_whose_devices_were_made_to_fail_in_a_real_job(capsys, recorded):
    found = diagnosed(capsys, recorded)
    assert (found["culprits"], found["kind"], found["cause"]) == ([9, 14], "device", "device")
    assert float(str(found["confidence"])) > 0.9


def test_any_two_missing_dumps_of_the_real_job_leave_the_verdict_right(recorded):
    dumps = read_dump_folder(recorded).dumps
    for lost in combinations(dumps, 2):
        finding = localise(assemble({rank: dumps[rank] for rank in dumps if rank not in lost}))
        known = {9, 14} - set(lost)
        assert set(finding.culprits) == (known or {9, 14}), (lost, finding.verdict)


def test_the_real_dumps_tell_their_ranks_under_names_without_numbers(capsys, recorded, tmp_path):
    names = [f"dump-{letter}" for letter in "qwertyuiopasdfgh"]
    Random(3).shuffle(names)
    for path, name in zip(sorted(recorded.glob("_dump_*")), names, strict=True):
        shutil.copyfile(path, tmp_path / name)
    assert diagnosed(capsys, tmp_path)["culprits"] == [9, 14]


@pytest.mark.parametrize("form", ["pickle", "json"])
@pytest.mark.parametrize("name", ["{}", "_dump_{}", "nccl_trace_rank_{}.json", "host-17_rank{}_1758580155.pkl"])
def test_reads_both_forms_under_any_name(capsys, tmp_path, form, name):
    found = diagnosed(capsys, write(tmp_path, hang(), name, form))
    assert (found["culprits"], found["kind"]) == ([2], "host")
    assert found["waiting"] == [0, 1, 3]


def test_a_job_in_which_nothing_is_open_is_no_hang(capsys, tmp_path):
    healthy = {rank: dump([entry(seq, seq) for seq in range(1, 9)]) for rank in range(4)}
    found = diagnosed(capsys, write(tmp_path, healthy))
    assert (found["culprits"], found["is_hang"]) == ([], False)


def test_an_operation_that_all_entered_names_nobody(capsys, tmp_path):
    stuck = {rank: dump([entry(1, 1), entry(2, 2, state="started")]) for rank in range(4)}
    found = diagnosed(capsys, write(tmp_path, stuck))
    assert (found["culprits"], found["kind"], found["confidence"]) == ([], "device", 0.0)


@pytest.mark.parametrize("guilty", range(4))
def test_the_one_device_that_has_not_begun_is_named_where_timing_is_on(capsys, tmp_path, guilty):
    timed = {"time_discovered_started_ns": 7, "time_discovered_completed_ns": 9}
    stuck = {
        rank: dump([entry(1, 1, **timed), entry(2, 2, state="scheduled" if rank == guilty else "started")])
        for rank in range(4)
    }
    found = diagnosed(capsys, write(tmp_path, stuck))
    assert (found["culprits"], found["kind"]) == ([guilty], "device")
    # Its twin: without times nobody's silence about a start says anything.
    for value in stuck.values():
        for row in list(value["entries"]):  # type: ignore[call-overload]
            row.update(time_discovered_started_ns=None, time_discovered_completed_ns=None)
    assert diagnosed(capsys, write(tmp_path, stuck))["culprits"] == []


def test_the_rank_without_a_dump_that_all_wait_for_is_named(capsys, tmp_path):
    dumps = hang()
    del dumps[2]
    found = diagnosed(capsys, write(tmp_path, dumps))
    assert (found["culprits"], found["silent"]) == ([2], [2])
    assert "no dump" in str(found["verdict"])


def test_the_last_rank_without_a_dump_is_known_from_the_groups(capsys, tmp_path):
    dumps = hang(late=3)
    del dumps[3]
    assert diagnosed(capsys, write(tmp_path, dumps))["culprits"] == [3]


def test_a_dump_that_a_job_of_another_size_left_is_said_and_accuses_nobody(capsys, tmp_path):
    dumps = hang(8, late=5)
    dumps[1] = hang(4, late=2)[1]
    found = diagnosed(capsys, write(tmp_path, dumps))
    assert (found["culprits"], found["kind"], found["silent"]) == ([5], "host", [1])
    words = "nccl_trace_rank_1 was left out: it is of a job with other ranks"
    assert any(words in str(line) for line in list(found["evidence"]))  # type: ignore[call-overload]


def test_dumps_of_two_jobs_in_equal_numbers_are_refused(capsys, tmp_path):
    write(tmp_path, hang(2, late=1), "a{}.pkl")
    write(tmp_path, {rank: hang(3)[rank] for rank in range(2)}, "b{}.pkl")
    assert main(["flight-recorder", str(tmp_path), "--json"]) == 3
    said = capsys.readouterr().err
    assert "their default groups have 2 and 3 ranks" in said and said.count("\n") == 1


def test_entries_of_a_form_that_nobody_knows_are_no_sign_of_a_rank_that_called_nothing(capsys, tmp_path):
    dumps = hang(late=2)
    dumps[1]["entries"] = [{"operation": 7}, {}]
    found = diagnosed(capsys, write(tmp_path, dumps))
    assert (found["culprits"], found["silent"]) == ([2], [1])


@pytest.mark.parametrize("word", ["dead", "stopped", "killed"])
def test_a_word_in_the_name_of_a_damaged_dump_says_nothing_of_its_rank(capsys, tmp_path, word):
    write(tmp_path, hang(late=2))
    (tmp_path / "nccl_trace_rank_1").rename(tmp_path / f"{word}-node_rank_1")
    (tmp_path / f"{word}-node_rank_1").write_bytes(b"\x80\x02}")
    assert diagnosed(capsys, tmp_path)["culprits"] == [2]


def test_a_damaged_dump_is_said_and_its_rank_counts_as_silent(capsys, tmp_path):
    write(tmp_path, hang())
    damaged = tmp_path / "nccl_trace_rank_2"
    damaged.write_bytes(damaged.read_bytes()[:87])
    found = diagnosed(capsys, tmp_path)
    assert found["culprits"] == [2]
    assert any("nccl_trace_rank_2 cannot be read: it ends early" in str(line) for line in list(found["evidence"]))  # type: ignore[call-overload]


def test_a_damaged_dump_of_a_victim_changes_nothing(capsys, tmp_path):
    write(tmp_path, hang())
    (tmp_path / "nccl_trace_rank_1").write_bytes(b"")
    assert diagnosed(capsys, tmp_path)["culprits"] == [2]


def test_a_rank_whose_dump_is_empty_is_waiting_in_nothing_and_is_blamed(capsys, tmp_path):
    dumps = hang()
    dumps[2] = dump([])
    found = diagnosed(capsys, write(tmp_path, dumps))
    assert (found["culprits"], found["kind"]) == ([2], "host")


def test_a_ring_that_lost_its_old_entries_makes_nobody_missing(capsys, tmp_path):
    dumps = hang()
    dumps[0]["entries"] = list(dumps[0]["entries"])[-2:]  # type: ignore[call-overload]
    assert diagnosed(capsys, write(tmp_path, dumps))["culprits"] == [2]


@pytest.mark.parametrize("guilty", range(4))
@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"profiling_name": "nccl:all_gather"}, "operation"),
        ({"input_sizes": [[1000]]}, "size"),
        ({"input_dtypes": ["Half"]}, "dtype"),
    ],
)
def test_each_rank_that_calls_something_else_is_named(capsys, tmp_path, guilty, wrong, what):
    dumps = {rank: dump([entry(1, 1), entry(2, 2, state="scheduled")]) for rank in range(4)}
    dumps[guilty] = dump([entry(1, 1), entry(2, 2, state="scheduled", **wrong)])
    found = diagnosed(capsys, write(tmp_path, dumps))
    assert (found["culprits"], found["kind"], found["cause"]) == ([guilty], "host", "mismatched-collective")
    assert f"Wrong {what}" in str(found["verdict"])


def test_where_there_is_no_majority_the_tied_set_is_named(capsys, tmp_path):
    ops = ["all_reduce", "all_reduce", "all_gather", "all_gather"]
    dumps = {rank: dump([entry(1, 1), entry(2, 2, op, state="scheduled")]) for rank, op in enumerate(ops)}
    found = diagnosed(capsys, write(tmp_path, dumps))
    assert (found["culprits"], found["is_tied"]) == ([0, 1, 2, 3], True)


def test_shapes_of_equal_content_are_no_mismatch(capsys, tmp_path):
    dumps = {
        rank: dump([entry(1, 1, state="scheduled", input_sizes=[[4, 256]] if rank else [[1024]])]) for rank in range(3)
    }
    assert diagnosed(capsys, write(tmp_path, dumps))["culprits"] == [3]


def gloo(seq: int, *, retired: bool) -> Plain:
    return entry(seq, seq, state="scheduled", profiling_name="gloo:all_reduce", retired=retired)


def test_gloo_marks_of_completion_that_lag_mislead_nobody(capsys, tmp_path):
    # The rank in its own code has the older entry still unmarked; so has a rank that is already in the next one.
    late, ahead = (
        [gloo(1, retired=True), gloo(2, retired=False)],
        [gloo(1, retired=True), gloo(2, retired=False), gloo(3, retired=False)],
    )
    dumps = {rank: dump(late if rank == 1 else ahead) for rank in range(4)}
    found = diagnosed(capsys, write(tmp_path, dumps, form="json"))
    assert (found["culprits"], found["kind"]) == ([1], "host")


def test_a_gloo_rank_that_called_transfers_since_is_not_blamed_beside_one_that_did_not(capsys, tmp_path):
    # torch: rank 3 sits in a receive from the sleeping rank 2; gloo's recorder lists no transfers, but counts them.
    dumps = {rank: dump([gloo(1, retired=True), *([gloo(2, retired=False)] if rank < 2 else [])]) for rank in range(4)}
    dumps[3]["pg_status"] = {"0": {"last_enqueued_collective": "2", "last_completed_collective": "1"}}
    dumps[2]["pg_status"] = {"0": {"last_enqueued_collective": "1", "last_completed_collective": "1"}}
    assert diagnosed(capsys, write(tmp_path, dumps, form="json"))["culprits"] == [2]


def test_gloo_jobs_with_transfers_leave_a_tie_where_a_receive_cannot_be_seen(capsys, tmp_path):
    # Both have nothing outstanding on record; one of them may sit in a receive from the other.
    old, new = gloo(1, retired=True) | {"op_id": 3}, gloo(2, retired=False) | {"op_id": 4}
    dumps = {rank: dump([old, *([new] if rank < 2 else [])]) for rank in range(4)}
    found = diagnosed(capsys, write(tmp_path, dumps, form="json"))
    assert (found["culprits"], found["is_tied"]) == ([2, 3], True)
    assert float(str(found["confidence"])) < 0.5


def test_raw_gloo_dumps_that_list_no_members_are_read(capsys, tmp_path):
    dumps = hang()
    for value in dumps.values():
        value["pg_config"] = {"": {"name": "", "desc": "", "ranks": ""}}
        for row in list(value["entries"]):  # type: ignore[call-overload]
            row["profiling_name"] = "gloo:all_reduce"
    assert diagnosed(capsys, write(tmp_path, dumps, form="json"))["culprits"] == [2]


def test_dumps_of_old_versions_that_name_no_groups_are_read(capsys, tmp_path):
    dumps = hang()
    for value in dumps.values():
        value["version"] = "2.1"
        del value["pg_status"]
        for row in list(value["entries"]):  # type: ignore[call-overload]
            row["seq_id"] = row.pop("collective_seq_id")
            del row["process_group"], row["p2p_seq_id"], row["is_p2p"], row["retired"], row["input_dtypes"]
    found = diagnosed(capsys, write(tmp_path, dumps))
    assert (found["culprits"], found["kind"], found["members"]) == ([2], "host", [0, 1, 2, 3])
    assert "seq 9 of group without a name (0-3)" in str(found["verdict"])


def test_other_versions_and_unknown_keys_are_read(capsys, tmp_path):
    dumps = hang()
    for value in dumps.values():
        value["nccl_version"] = value.pop("version")
        value["something_new"] = {"deep": [1, {"x": None}]}
        del value["pg_status"]
        for row in list(value["entries"]):  # type: ignore[call-overload]
            del row["retired"], row["output_sizes"]
    assert diagnosed(capsys, write(tmp_path, dumps))["culprits"] == [2]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30))
def test_neither_file_order_nor_the_numbers_of_groups_matter(tmp_path_factory, seed):
    random = Random(seed)
    dumps = hang(5, late=random.randrange(5))
    truth = localise(assemble(read_dump_folder(write(tmp_path_factory.mktemp("a"), dumps)).dumps))
    for value in dumps.values():
        name, local = str(random.randrange(90)), random.randrange(90)
        value["pg_config"] = {name: {"name": name, "desc": "default_pg", "ranks": str(list(range(5)))}}
        for row in list(value["entries"]):  # type: ignore[call-overload]
            row.update(process_group=(name, "default_pg"), pg_id=local)
    shuffled = dict(random.sample(sorted(dumps.items()), len(dumps)))
    folder = read_dump_folder(write(tmp_path_factory.mktemp("b"), shuffled, "x{}"))
    again = localise(assemble(dict(random.sample(sorted(folder.dumps.items()), 5))))
    assert again.culprits == truth.culprits
    assert (again.verdict, again.kind) == (truth.verdict, truth.kind)


class Evil:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_act_does_not(capsys, tmp_path, protocol):
    write(tmp_path, hang())
    trap = tmp_path.parent / f"{tmp_path.name}-trap-{protocol}"
    (tmp_path / "nccl_trace_rank_1").write_bytes(pickle.dumps({"entries": [Evil(trap)]}, protocol=protocol))
    assert diagnosed(capsys, tmp_path)["culprits"] == [2]
    assert not trap.exists()
    pickle.loads(pickle.dumps(Evil(trap)))
    assert trap.is_dir()


HOSTILE = {
    "a name to import": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
    "an object to build": b"\x80\x02}}b.",
    "an instance": b"\x80\x02(ios\nsystem\n.",
    "a persistent id": b"\x80\x02Pabc\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a gigabyte of text that is not there": b"\x80\x02X" + struct.pack("<I", 1 << 30),
    "an exabyte of bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60),
    "a number of a gigabyte": b"\x80\x02\x8b" + struct.pack("<I", 1 << 30) + b"\xff" * 64 + b".",
    "a memo at two thousand million": b"\x80\x02}r\xff\xff\xff\x7f" + b"j\xfe\xff\xff\x7f.",
    "a memo that was never made": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02.",
    "a mark that is missing": b"\x80\x02]e.",
    "items of a number": b"\x80\x02K\x01(K\x01K\x02u.",
    "a key that is a list": b"\x80\x02}(]K\x01u.",
    "nothing but a header": b"\x80",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_a_hostile_pickle_is_refused_in_one_sentence(what):
    with pytest.raises(RefusedPickle) as refused:
        load_plain(HOSTILE[what])
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_a_billion_laughs_cost_no_more_than_their_bytes(capsys, tmp_path):
    laughs = b"\x80\x02]q\x00X\x02\x00\x00\x00haa" + b"".join(
        b"](" + b"h" + bytes([n]) + (b"h" + bytes([n])) * 9 + b"eq" + bytes([n + 1]) for n in range(40)
    )
    write(tmp_path, hang())
    (tmp_path / "nccl_trace_rank_1").write_bytes(b"\x80\x02}X\x07\x00\x00\x00entries" + laughs[2:] + b"s.")
    assert diagnosed(capsys, tmp_path)["culprits"] == [2]


@pytest.mark.parametrize("opening", [b"[", b'{"entries":'])
def test_deep_nesting_is_no_crash(tmp_path, opening):
    (tmp_path / "dump_0.json").write_bytes(opening * 200_000)
    with pytest.raises(EvidenceError, match="holds no flight-recorder dump that can be read"):
        read_dump_folder(tmp_path)
    (tmp_path / "dump_0.json").write_bytes(b"\x80\x02" + b"](" * 200_000 + b"e" * 200_000 + b".")
    with pytest.raises(EvidenceError, match="holds no flight-recorder dump that can be read"):
        read_dump_folder(tmp_path)


def test_a_folder_without_dumps_is_one_sentence_and_status_3(capsys, tmp_path):
    assert main(["flight-recorder", str(tmp_path)]) == 3
    assert capsys.readouterr().err == (
        f"instep diagnose: {tmp_path} holds no flight-recorder dump that can be read: give one file for each rank.\n"
    )
    assert main(["flight-recorder", str(tmp_path / "nowhere")]) == 3
    assert "No such file" in capsys.readouterr().err


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_the_bytes_the_reader_ends_with_a_value_or_a_refusal(data):
    whole = pickle.dumps(hang()[0], protocol=data.draw(st.sampled_from([2, 4, 5])))
    raw = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 8))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        load_plain(bytes(raw))
    except RefusedPickle as error:
        assert str(error)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(entry(1, 1))), PLAIN), PLAIN, PLAIN)
def test_a_dump_of_the_wrong_types_never_raises(tmp_path_factory, fields, config, status):
    folder = write(tmp_path_factory.mktemp("odd"), hang(), form="json")
    odd = {"entries": [{**entry(1, 1), **fields}, fields, config], "pg_config": {"0": config}, "pg_status": status}
    (folder / "nccl_trace_rank_1").write_text(json.dumps(odd, default=str))
    found = read_dump_folder(folder)
    localise(assemble(found.dumps, found.unreadable, found.notes))


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_what_the_standard_pickler_writes_of_plain_values_is_read_back(value):
    try:
        assert repr(load_plain(pickle.dumps(value, protocol=4))) == repr(value)
    except RefusedPickle as error:
        assert "number of" in str(error)
