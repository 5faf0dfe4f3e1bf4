"""Stacks of many ranks merged by frame: the odd rank stands out in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.wire import StackFrame, ThreadStack
from instep_diagnosis.cli import main
from instep_diagnosis.detectors.stacks import StackNode, merge_stacks, odd_ranks, rank_ranges, stack_tree_lines


def stack(*frames: tuple[str, int, str]) -> ThreadStack:
    """A stack from its outermost frame on."""
    inner_first = tuple(StackFrame(function=name, file=file, line=line) for file, line, name in reversed(frames))
    return ThreadStack(name="MainThread", is_main=True, is_active=True, owns_gil=False, frames=inner_first)


OUTER = (("train.py", 12, "main"), ("train.py", 41, "step"))
WAITING = stack(*OUTER, ("loss.py", 9, "backward"), ("torch/distributed/c10d.py", 2501, "all_reduce"))
LOADING = stack(*OUTER, ("data.py", 88, "load_batch"), ("data.py", 31, "read_shard"))


def test_the_odd_rank_is_told_in_one_line():
    tree = merge_stacks({rank: LOADING if rank == 3 else WAITING for rank in range(8)})
    ranks, words = odd_ranks(tree)
    assert ranks == (3,)
    assert words == (
        "Rank 3 is alone: data.py:88 in load_batch, where ranks 0-2,4-7 go another way after train.py:41 in step."
    )


def test_both_sides_of_a_part_stand_in_the_tree_with_their_ranks():
    tree = merge_stacks({rank: LOADING if rank == 3 else WAITING for rank in range(8)})
    assert stack_tree_lines(tree) == [
        "0-7      train.py:12 in main",
        "0-7      train.py:41 in step",
        "0-2,4-7    loss.py:9 in backward",
        "0-2,4-7    c10d.py:2501 in all_reduce",
        "3          data.py:88 in load_batch",
        "3          data.py:31 in read_shard",
    ]


def test_from_the_innermost_frame_ranks_are_sorted_by_what_they_sit_in():
    elsewhere = stack(("serve.py", 1, "main"), ("torch/distributed/c10d.py", 2501, "all_reduce"))
    tree = merge_stacks({0: WAITING, 1: elsewhere, 2: LOADING}, is_innermost_first=True)
    assert [node.ranks for node in tree.children] == [(0, 1), (2,)]


def test_ranks_that_all_stand_alike_or_half_and_half_have_no_odd_one():
    assert odd_ranks(merge_stacks(dict.fromkeys(range(4), WAITING))) == ((), "")
    assert odd_ranks(merge_stacks({0: WAITING, 1: LOADING})) == ((), "")
    assert odd_ranks(merge_stacks({})) == ((), "")


def test_ranks_that_are_each_by_themselves_are_all_told():
    saving = stack(*OUTER, ("save.py", 7, "write"))
    for one, other in ((6, 7), (0, 3)):
        stacks = dict.fromkeys(range(8), WAITING) | {one: LOADING, other: saving}
        ranks, words = odd_ranks(merge_stacks(stacks))
        assert ranks == (one, other)
        assert "data.py:88 in load_batch; save.py:7 in write, where ranks" in words
    assert odd_ranks(merge_stacks({0: WAITING, 1: LOADING, 2: saving})) == ((), "")


def test_a_stack_that_ends_where_others_go_on_is_a_side_too():
    tree = merge_stacks({0: WAITING, 1: WAITING, 2: stack(*OUTER)})
    assert odd_ranks(tree)[0] == (2,)
    assert "2      (ends here)" in stack_tree_lines(tree)


def test_very_deep_stacks_are_merged():
    deep = stack(*(("a.py", line, "f") for line in range(20_000)))
    assert len(stack_tree_lines(merge_stacks({0: deep, 1: deep}))) == 20_000


STACKS = st.dictionaries(
    st.integers(0, 40),
    st.lists(st.tuples(st.sampled_from(["a.py", "b.py"]), st.integers(1, 3), st.just("f")), max_size=5).map(
        lambda frames: stack(*frames)
    ),
    max_size=9,
)


@given(STACKS)
def test_no_rank_is_lost_or_named_twice(stacks):
    def check(node: StackNode) -> None:
        below = [rank for child in node.children for rank in child.ranks]
        assert sorted([*below, *node.ending]) == sorted(node.ranks)
        for child in node.children:
            check(child)

    tree = merge_stacks(stacks)
    check(tree)
    assert tree.ranks == tuple(sorted(stacks))
    assert merge_stacks(dict(reversed(stacks.items()))) == tree


@given(st.sets(st.integers(0, 60)))
def test_ranges_say_which_ranks_they_are(ranks):
    spans = [part.split("-") for part in rank_ranges(tuple(ranks)).split(",") if part]
    assert {rank for span in spans for rank in range(int(span[0]), int(span[-1]) + 1)} == ranks


def written(folder: Path, rank: int, of: ThreadStack) -> None:
    frames = [{"name": f.function, "filename": f.file, "line": f.line, "module": None} for f in of.frames]
    threads = [{"pid": 7, "thread_id": 1, "thread_name": "MainThread", "os_thread_id": 7, "frames": frames}]
    (folder / f"stack_{rank}.json").write_text(json.dumps(threads))


def test_the_command_reads_what_py_spy_writes(capsys, tmp_path):
    for rank in range(4):
        written(tmp_path, rank, LOADING if rank == 1 else WAITING)
    (tmp_path / "notes.txt").write_text("nothing")
    assert main(["stacks", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("Rank 1 is alone: data.py:88 in load_batch, where ranks 0,2-3 go another way")
    assert said.err.startswith("notes.txt was left out: it is no py-spy dump in JSON")
    assert main(["stacks", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["odd_ranks"] == [1]
    assert found["splits"][0]["sides"][1]["ranks"] == [1]


def test_a_second_file_of_one_rank_is_left_out_and_said(capsys, tmp_path):
    for rank in range(4):
        written(tmp_path, rank, LOADING if rank == 1 else WAITING)
    (tmp_path / "stack_again_1.json").write_text((tmp_path / "stack_0.json").read_text())
    assert main(["stacks", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("Rank 1 is alone")
    assert said.err == "stack_again_1.json was left out: stack_1.json is of the same rank 1.\n"


@pytest.mark.parametrize("content", [None, "[[[", "{}"])
def test_a_folder_without_stacks_is_one_sentence_and_status_3(capsys, tmp_path, content):
    if content is not None:
        (tmp_path / "stack_0.json").write_text(content)
    assert main(["stacks", str(tmp_path)]) == 3
    assert capsys.readouterr().err.count("\n") == 1
