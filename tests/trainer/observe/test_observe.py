"""What the record sees of a script that knows nothing of Instep."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer import launch

SCRIPTS = Path(__file__).parent / "scripts"
pytestmark = pytest.mark.real
POINT_TO_POINT = {"send", "recv"}
FLIGHT_RECORDER_NAMES = {
    # torch's gloo recorder writes what the operation is made of; the record keeps what was called
    "all_gather_into_tensor": {"all_gather", "_all_gather_base", "all_gather_into_tensor"},
    "reduce_scatter_tensor": {"all_reduce", "reduce_scatter", "_reduce_scatter_base", "reduce_scatter_tensor"},
}


@pytest.fixture(scope="module", params=["preload", "exec"])
def paths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(f"paths-{request.param}")
    with launch.record_root() as root:
        done = launch.run(
            root, SCRIPTS / "paths.py", str(folder), options=("--nproc-per-node", "2", "--rank-start", request.param)
        )
    assert done.returncode == 0, done.stderr
    return launch.answers(folder)


def test_every_path_of_a_collective_is_recorded_as_the_flight_recorder_has_it(paths) -> None:
    for rank, seen in paths.items():
        for path, both in seen.items():
            if path == "point to point":
                continue
            assert len(both["record"]) == len(both["flight_recorder"]) > 0, (rank, path, both)
            for ours, theirs in zip(both["record"], both["flight_recorder"], strict=True):
                assert theirs in FLIGHT_RECORDER_NAMES.get(ours, {ours}), (rank, path, both)


def test_point_to_point_is_recorded_although_the_flight_recorder_has_none_of_it(paths) -> None:
    assert paths[0]["point to point"] == {"record": ["send", "recv"], "flight_recorder": []}
    assert paths[1]["point to point"] == {"record": ["recv", "send"], "flight_recorder": []}


@pytest.mark.parametrize("start", ["preload", "exec"])
def test_children_of_a_rank_never_write_and_an_existing_sitecustomize_keeps_working(start: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import os\nos.environ['FROM_SITE'] = 'kept'\n")
    with launch.record_root() as root:
        done = launch.run(
            root,
            SCRIPTS / "children.py",
            str(tmp_path),
            options=("--nproc-per-node", "2", "--rank-start", start),
            PYTHONPATH=str(site),
        )
        assert done.returncode == 0, done.stderr
        found = launch.records(root)
    for answer in launch.answers(tmp_path).values():
        assert answer == {"silent": [True, True], "batches": 8, "marker": "kept"}
    assert set(found) == {0, 1}
    assert all(
        len({entry.token for entry in record.collectives}) == len(record.collectives) > 0 for record in found.values()
    )


def test_a_step_is_all_optimizers_since_the_last_forward() -> None:
    with launch.record_root() as root:
        done = launch.run(root, SCRIPTS / "steps.py", options=("--nproc-per-node", "2"))
        assert done.returncode == 0, done.stderr
        found = launch.records(root)
    for record in found.values():
        assert [step.micro_steps for step in record.steps] == [2, 1, 1, 1, 1]
        assert [step.is_skipped for step in record.steps] == [False, False, False, False, True]
        assert all(step.backward_seconds > 0 for step in record.steps)
        assert record.heartbeat is not None
        assert record.heartbeat.phase.name == "finished"


def test_transfers_of_groups_that_are_alike_have_numbers_of_their_own_and_the_same_at_both_ends() -> None:
    with launch.record_root() as root:
        done = launch.run(root, SCRIPTS / "transfers.py", options=("--nproc-per-node", "2"))
        assert done.returncode == 0, done.stderr
        found = launch.records(root)
    numbers = {
        rank: [
            (record.groups[entry.group].group.key, entry.seq)
            for entry in record.collectives
            if entry.op.name in POINT_TO_POINT
        ]
        for rank, record in found.items()
    }
    first, *second = numbers[0]
    assert numbers[0] == numbers[1]
    assert ([first[1]], [seq for _key, seq in second]) == ([1], [1, 2])
    assert len({key for key, _seq in numbers[0]}) == 2
