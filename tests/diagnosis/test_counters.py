"""`instep diagnose counters FILE.json`: who is behind, from counts alone, and from NCCL's RAS."""

from __future__ import annotations

import json
from itertools import combinations, product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instep_diagnosis.cli import main
from instep_diagnosis.wait_graph.counters import read_counters
from instep_diagnosis.wait_graph.judge import localise

Plain = dict[str, object]
EXAMPLE = Path(__file__).parents[2] / "docs" / "reference" / "hang-evidence.md"


def diagnosed(capsys: pytest.CaptureFixture[str], tmp_path: Path, value: object) -> Plain:
    path = tmp_path / "counters.json"
    path.write_text(json.dumps(value))
    status = main(["counters", str(path), "--json"])
    found: Plain = json.loads(capsys.readouterr().out)
    assert status == (1 if found["is_hang"] else 0)
    return found


def counts(
    enqueued: int | None = None, started: int | None = None, completed: int | None = None, **more: object
) -> Plain:
    known = {"enqueued": enqueued, "started": started, "completed": completed}
    return {name: count for name, count in known.items() if count is not None} | more


GRID = {"dp0": {"members": [0, 2]}, "dp1": {"members": [1, 3]}, "tp0": {"members": [0, 1]}, "tp1": {"members": [2, 3]}}


def test_the_root_of_nested_groups_is_named_and_its_victims_are_not(capsys, tmp_path):
    # Rank 3 is late in tp1; rank 2 waits for it there and is late in dp0, where rank 0 waits.
    ranks = {
        "0": {"dp0": counts(10, 10, 9), "tp0": counts(5, 5, 5)},
        "1": {"dp1": counts(10, 10, 9), "tp0": counts(5, 5, 5)},
        "2": {"dp0": counts(9, 9, 9), "tp1": counts(7, 7, 6)},
        "3": {"dp1": counts(9, 9, 9), "tp1": counts(6, 6, 6)},
    }
    found = diagnosed(capsys, tmp_path, {"groups": GRID, "ranks": ranks})
    assert (found["culprits"], found["kind"], found["waiting"]) == ([3], "host", [0, 1, 2])


def test_a_device_that_has_not_completed_what_the_others_have_is_named(capsys, tmp_path):
    ranks = {str(rank): counts(12, 12, 11) for rank in range(4)} | {"1": counts(12, 10, 9)}
    found = diagnosed(capsys, tmp_path, ranks)
    assert (found["culprits"], found["kind"]) == ([1], "device")


def test_a_device_that_alone_has_not_begun_is_named(capsys, tmp_path):
    ranks = {str(rank): counts(12, 12, 11) for rank in range(4)} | {"2": counts(12, 11, 11)}
    found = diagnosed(capsys, tmp_path, ranks)
    assert (found["culprits"], found["kind"]) == ([2], "device")


def test_equal_counts_of_an_open_operation_name_nobody(capsys, tmp_path):
    found = diagnosed(capsys, tmp_path, {str(rank): counts(12, 12, 11) for rank in range(4)})
    assert (found["culprits"], found["kind"], found["cause"]) == ([], "device", "unknown")


def test_equal_counts_with_nothing_open_are_no_hang(capsys, tmp_path):
    found = diagnosed(capsys, tmp_path, {str(rank): counts(12, 12, 12) for rank in range(4)})
    assert (found["culprits"], found["is_hang"]) == ([], False)


@pytest.mark.parametrize(
    "known", [("enqueued", "started", "completed"), ("enqueued", "completed"), ("enqueued",), ("started",)]
)
def test_any_of_the_counters_may_be_missing(capsys, tmp_path, known):
    whole = {str(rank): counts(12, 12, 11) for rank in range(4)} | {"3": counts(11, 11, 11)}
    ranks = {rank: {name: row[name] for name in known} for rank, row in whole.items()}
    found = diagnosed(capsys, tmp_path, ranks)
    assert (found["culprits"], found["kind"]) == ([3], "host")


COUNTERS = ("enqueued", "started", "completed")
SOME = [known for count in (1, 2, 3) for known in combinations(COUNTERS, count)]


@pytest.mark.parametrize(
    ("whole", "guilty"),
    [
        ([(12, 12, 12)] * 3, None),
        ([(12, 12, 11)] * 3, None),
        ([(12, 12, 11), (12, 12, 11), (11, 11, 11)], 2),
        ([(12, 12, 11), (12, 12, 11), (12, 10, 9)], 2),
        ([(12, 12, 11), (12, 12, 11), (12, 11, 11)], 2),
    ],
    ids=["healthy", "all launched", "late on the host", "late on the device", "not begun on the device"],
)
def test_whatever_each_rank_leaves_out_nobody_innocent_is_named(whole, guilty):
    named = 0
    for known in product(SOME, repeat=3):
        rows = [dict(zip(COUNTERS, row, strict=True)) for row in whole]
        said = {str(rank): {name: rows[rank][name] for name in known[rank]} for rank in range(3)}
        history = read_counters(said)
        assert history is not None
        found = localise(history)
        assert set(found.culprits) <= {guilty}, (known, found.verdict)
        assert found.is_hang or not found.culprits
        named += bool(found.culprits)
    assert (guilty is None) == (named == 0)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_no_victim_is_named_where_what_it_waits_in_is_missing(random, is_late):
    whole = {
        "0": {"dp0": (10, 10, 9), "tp0": (5, 5, 5)},
        "1": {"dp1": (10, 10, 9), "tp0": (5, 5, 5)},
        "2": {"dp0": (9, 9, 9), "tp1": (7, 7, 6)},
        "3": {"dp1": (9, 9, 9), "tp1": (6, 6, 6)},
    }
    if not is_late:
        whole = {rank: dict.fromkeys(rows, (9, 9, 9)) for rank, rows in whole.items()}
    said = {
        rank: {
            group: {name: count for name, count in zip(COUNTERS, row, strict=True) if random.random() < 0.8}
            for group, row in rows.items()
            if random.random() < 0.9
        }
        for rank, rows in whole.items()
    }
    history = read_counters({"groups": GRID, "ranks": said})
    if history is not None:
        found = localise(history)
        assert set(found.culprits) <= ({3} if is_late else set()) or not set(found.culprits) & set(history.ranks)


def test_a_rank_that_says_nothing_of_one_group_is_not_late_in_it(capsys, tmp_path):
    groups = {"dp": {"members": [0, 1, 2, 3]}, "tp": {"members": [2, 3]}}
    ranks = {str(rank): {"dp": counts(10, 10, 9)} for rank in range(3)} | {"3": {"tp": counts(5, 5, 5)}}
    found = diagnosed(capsys, tmp_path, {"groups": groups, "ranks": ranks})
    assert (found["culprits"], found["is_hang"], found["confidence"]) == ([], True, 0.0)


def test_completions_alone_name_the_one_behind(capsys, tmp_path):
    found = diagnosed(capsys, tmp_path, {str(rank): {"completed": 7 if rank == 1 else 8} for rank in range(4)})
    assert found["culprits"] == [1]
    assert diagnosed(capsys, tmp_path, {str(rank): {"completed": 8} for rank in range(4)})["is_hang"] is False


@pytest.mark.parametrize("missing", [None, {}, "absent"])
def test_a_rank_without_counters_that_all_wait_for_is_named(capsys, tmp_path, missing):
    ranks: Plain = {str(rank): counts(12, 12, 11) for rank in range(4)}
    if missing == "absent":
        del ranks["2"]
    else:
        ranks["2"] = missing
    found = diagnosed(capsys, tmp_path, {"world_size": 4, "ranks": ranks})
    assert (found["culprits"], found["kind"]) == ([2], "host")


def test_what_a_process_is_seen_doing_tells_the_cause(capsys, tmp_path):
    for process, cause in (
        ("stopped", "stopped"),
        ("T", "stopped"),
        ("D", "uninterruptible"),
        ("in its data loader", "data"),
    ):
        ranks = {str(rank): counts(12, 12, 11) for rank in range(4)} | {"0": counts(11, 11, 11)}
        value = {"ranks": {rank: {"groups": {"world": row}} for rank, row in ranks.items()}}
        value["ranks"]["0"]["process"] = process  # type: ignore[assignment]
        found = diagnosed(capsys, tmp_path, value)
        assert (found["culprits"], found["cause"]) == ([0], cause)


def test_an_operation_that_differs_is_a_fault_of_the_script(capsys, tmp_path):
    for field, wrong in (("op", "all_gather"), ("size", 99), ("dtype", "half")):
        row = counts(12, 12, 11, op="all_reduce", size=1024, dtype="float")
        found = diagnosed(
            capsys, tmp_path, {str(rank): row | ({field: wrong} if rank == 2 else {}) for rank in range(4)}
        )
        assert (found["culprits"], found["cause"]) == ([2], "mismatched-collective")


def test_counts_of_a_pipeline_are_left_out_and_said(capsys, tmp_path):
    ranks = {str(r): {"dp": counts(5, 5, 4), "pp": counts(40 + 7 * r, None, 40 + 7 * r)} for r in range(4)}
    ranks["3"]["dp"] = counts(4, 4, 4)
    groups = {name: {"members": [0, 1, 2, 3]} for name in ("dp", "pp")}
    found = diagnosed(capsys, tmp_path, {"groups": groups, "ranks": ranks})
    assert found["culprits"] == [3]
    assert any("Group pp was left out" in str(line) for line in list(found["evidence"]))  # type: ignore[call-overload]


def ras(launches: dict[int, int], dead: tuple[int, ...] = ()) -> Plain:
    rows = [
        {
            "rank": r,
            "host": f"node-{r}",
            "pid": 100 + r,
            "nvml_dev": 0,
            "collective_counts": {"AllReduce": n, "Send": 5 * r},
        }
        for r, n in launches.items()
    ]
    missing = [{"rank": rank, "unresponsive": True, "considered_dead": True} for rank in dead]
    comm = {"hash": "0xab", "size": len(launches) + len(dead), "ranks": rows, "missing_ranks": missing}
    return {"nccl_version": "2.29", "communicators": [comm]}


def test_launches_from_ras_name_the_rank_behind_with_less_trust(capsys, tmp_path):
    found = diagnosed(capsys, tmp_path, ras({0: 70, 1: 69, 2: 70}))
    assert (found["culprits"], found["source"]) == ([1], "ras")
    assert 0.0 < float(str(found["confidence"])) < 0.7


def test_equal_launches_from_ras_show_nothing(capsys, tmp_path):
    assert diagnosed(capsys, tmp_path, ras({0: 70, 1: 70, 2: 70}))["is_hang"] is False


def test_a_rank_that_ras_considers_dead_is_named(capsys, tmp_path):
    found = diagnosed(capsys, tmp_path, ras({0: 70, 1: 70, 2: 70}, dead=(3,)))
    assert (found["culprits"], found["cause"]) == ([3], "dead")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ranks": 7}', "[[[[", '{"0":', "\x00", '{"communicators": [1]}'])
def test_what_holds_no_counters_is_one_sentence_and_status_3(capsys, tmp_path, text):
    path = tmp_path / "counters.json"
    path.write_text(text)
    assert main(["counters", str(path)]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(path) in said
    assert main(["counters", str(tmp_path / "none")]) == 3


def test_the_example_in_the_reference_is_judged_as_the_reference_says(capsys, tmp_path):
    example = EXAMPLE.read_text().split("```json")[1].split("```")[0]
    found = diagnosed(capsys, tmp_path, json.loads(example))
    assert (found["culprits"], found["kind"], found["cause"]) == ([3], "host", "data")


@settings(max_examples=80, deadline=None)
@given(size=st.integers(3, 24), late=st.integers(0, 23), seed=st.integers(0, 1 << 20))
def test_the_order_and_the_numbers_of_ranks_do_not_matter(size, late, seed):
    late %= size
    rows = [(str(rank), counts(9, 9, 9) if rank == late else counts(10, 10, 9)) for rank in range(size)]
    history = read_counters(dict(Random(seed).sample(rows, size)))
    assert history is not None
    assert localise(history).culprits == (late,)


NUMBERS = st.none() | st.integers(-5, 1 << 70) | st.text(max_size=4) | st.floats() | st.lists(st.integers(), max_size=2)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["0", "1", "2", "x", "99999999999"]),
        st.dictionaries(
            st.sampled_from(["a", "b", "enqueued", "completed", "groups"]),
            NUMBERS
            | st.dictionaries(
                st.sampled_from(["enqueued", "started", "completed", "members", "op"]), NUMBERS, max_size=5
            ),
            max_size=4,
        ),
        max_size=4,
    )
)
def test_counters_of_the_wrong_types_never_raise(value):
    history = read_counters(value)
    if history is not None:
        localise(history)
