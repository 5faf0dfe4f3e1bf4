"""`instep simulate`: what it writes is read by `instep diagnose`, which finds the truth that stands beside it."""

import json

import pytest
from instep_diagnosis.files.dumps import read_dump_folder
from instep_diagnosis.simulation.command import main
from instep_diagnosis.simulation.hangs import Fault, hang_case
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.counters import read_counters
from instep_diagnosis.wait_graph.judge import localise


@pytest.mark.parametrize("fault", [f.value for f in Fault])
def test_the_written_dumps_tell_what_the_simulated_ones_tell(tmp_path, fault):
    assert main(["hang", str(tmp_path / "job"), "--seed", "7", "--fault", fault, "--ranks", "16"]) == 0
    truth = json.loads((tmp_path / "job/truth.json").read_text())
    read = read_dump_folder(tmp_path / "job/flight-recorder")
    case = hang_case(7, world_size_max=16, fault=Fault(fault))
    found = localise(assemble(read.dumps, read.unreadable, read.notes))
    assert found.culprits == localise(assemble(case.dumps)).culprits
    assert set(truth["culprits"]) <= set(found.culprits)


def test_the_written_counters_name_a_stopped_rank(tmp_path):
    arguments = ["--seed", "9", "--fault", "stopped", "--layout", "ddp", "--ranks", "16"]
    assert main(["hang", str(tmp_path / "job"), *arguments]) == 0
    truth = json.loads((tmp_path / "job/truth.json").read_text())
    history = read_counters(json.loads((tmp_path / "job/counters.json").read_text()))
    assert list(localise(history).culprits) == truth["culprits"]


def test_the_written_steps_hold_every_rank_and_the_series_every_step(tmp_path):
    arguments = ["--fault", "slow-compute", "--ranks", "5", "--ratio", "1.3"]
    assert main(["steps", str(tmp_path / "job"), *arguments]) == 0
    truth = json.loads((tmp_path / "job/truth.json").read_text())
    reports = [json.loads(line) for line in (tmp_path / "job/reports.jsonl").read_text().splitlines()]
    series = (tmp_path / "job/series.csv").read_text().splitlines()
    assert [row["rank"] for row in reports] == [0, 1, 2, 3, 4]
    assert len(series) == 1 + 5 * len(reports[0]["steps"])
    assert truth["culprits"] == [truth["culprits"][0]]
    assert truth["ratio"] == 1.3


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main(["hang", str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("ranks", ["1", "8193"])
def test_ranks_beyond_the_limits_are_refused(tmp_path, capsys, ranks):
    with pytest.raises(SystemExit, match="2"):
        main(["steps", str(tmp_path / "job"), "--ranks", ranks])
    assert "2 to 8192" in capsys.readouterr().err
