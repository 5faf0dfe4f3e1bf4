"""Every mismatch with every rank guilty in turn, read from files: whatever the files and the groups are called."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instep_diagnosis.files.dumps import read_dump_folder
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.finding import Finding
from instep_diagnosis.wait_graph.judge import localise

STEP = (("all_reduce", 64, "Float"), ("all_gather", 32, "Float"), ("reduce_scatter", 16, "BFloat16"))
WRONG = {
    "operation": lambda op, size, dtype: ("broadcast", size, dtype),
    "size": lambda op, size, dtype: (op, size + 1, dtype),
    "dtype": lambda op, size, dtype: (op, size, "Double"),
}
KINDS = (*WRONG, "order")


def calls(kind: str, place: int, *, steps: int) -> list[tuple[str, int, str]]:
    """What a rank calls up to its wrong call, the last of these steps."""
    found = [*STEP * steps, *STEP[:place]]
    return [*found, STEP[(place + 1) % 3] if kind == "order" else WRONG[kind](*STEP[place])]


def dump(called: list[tuple[str, int, str]], members: list[int], *, first: int, pg_id: int, name: str) -> dict:
    entries = [
        {
            "record_id": number, "pg_id": pg_id, "process_group": [name, "dp"], "collective_seq_id": number,
            "op_id": number, "profiling_name": f"nccl:{op}", "input_sizes": [[size]], "output_sizes": [[size]],
            "input_dtypes": [dtype], "output_dtypes": [dtype], "is_p2p": False,
            "state": "completed" if number < first + len(called) - 1 else "scheduled",
            "retired": number < first + len(called) - 1,
        }
        for number, (op, size, dtype) in enumerate(called, first)
    ]  # fmt: skip
    config = {name: {"name": name, "desc": "dp", "ranks": str(members)}}
    return {"version": "2.10", "pg_config": config, "pg_status": {}, "entries": entries}


def judged(
    folder: Path, kind: str, place: int, *, ranks: list[int], guilty: int, steps: int, random: Random
) -> Finding:
    """The verdict on a job in which one of these ranks calls wrongly; files in any order, groups under any name."""
    folder.mkdir()
    first = random.randrange(1, 1000)
    for rank in random.sample(ranks, len(ranks)):
        right = [*STEP * steps, *STEP[: place + 1]]
        called = calls(kind, place, steps=steps) if rank == guilty else right
        pg_id = random.randrange(9)
        found = dump(called, ranks, first=first, pg_id=pg_id, name=str(pg_id + random.randrange(50)))
        (folder / f"{random.randrange(10**6)}.rank{rank}.json").write_text(json.dumps(found))
    read = read_dump_folder(folder)
    return localise(assemble(read.dumps, read.unreadable, read.notes))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_past_the_exact_rank_is_named_in_any_size_of_group(tmp_path, kind, size):
    for guilty in range(size):
        for place in range(3):
            folder = tmp_path / f"{guilty}-{place}"
            finding = judged(
                folder, kind, place, ranks=list(range(size)), guilty=guilty, steps=3, random=Random(guilty)
            )
            assert (finding.culprits, finding.is_tied) == ((guilty,), False), (place, finding.verdict)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_past_it_is_the_majority_that_tells_and_of_two_both_are_tied(tmp_path, kind, size):
    for guilty in range(size):
        finding = judged(
            tmp_path / str(guilty), kind, 0, ranks=list(range(size)), guilty=guilty, steps=0, random=Random(guilty)
        )
        expected = ((0, 1), True) if size == 2 else ((guilty,), False)
        assert (finding.culprits, finding.is_tied) == expected, finding.verdict


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 30),
    kind=st.sampled_from(KINDS),
    place=st.integers(0, 2),
    ranks=st.lists(st.integers(0, 40), min_size=3, max_size=6, unique=True),
)
def test_file_order_local_ids_names_and_numbers_of_ranks_change_nothing(tmp_path_factory, seed, kind, place, ranks):
    random = Random(seed)
    guilty = random.choice(ranks)
    finding = judged(
        tmp_path_factory.mktemp("job") / "dumps", kind, place, ranks=ranks, guilty=guilty, steps=2, random=random
    )
    assert (finding.culprits, finding.is_tied) == ((guilty,), False), finding.verdict


@pytest.mark.parametrize("damage", [b"", b"\x80\x04garbage", b'{"entries": ['])
def test_one_damaged_file_of_an_innocent_rank_accuses_nobody_else(tmp_path, damage):
    for guilty in range(5):
        folder = tmp_path / str(guilty)
        judged(folder, "operation", 1, ranks=list(range(5)), guilty=guilty, steps=3, random=Random(guilty))
        victim = next(iter(folder.glob(f"*.rank{(guilty + 1) % 5}.json")))
        victim.write_bytes(damage)
        read = read_dump_folder(folder)
        finding = localise(assemble(read.dumps, read.unreadable, read.notes))
        assert (finding.culprits, finding.is_tied) == ((guilty,), False), finding.verdict
