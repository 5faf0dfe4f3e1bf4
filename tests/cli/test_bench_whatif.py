"""`instep bench whatif`: prints every part with its spread, and holds a bar where one is given."""

import json

import pytest
from instep.bench import whatif


def test_every_part_is_measured_and_the_made_trace_has_its_slow_worker(capsys):
    assert whatif.main(["--repeats", "3", "--engine", "numpy", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    parts = {"read", "lay_out", "graph_and_weights", "simulate_and_decompose", "whole"}
    assert {name: len(values) for name, values in results["cpu_milliseconds"].items()} == dict.fromkeys(parts, 3)
    assert results["slowdown"] > 1.5


def test_a_bar_that_is_not_reached_ends_with_one(capsys):
    assert whatif.main(["--repeats", "3", "--engine", "numpy", "--whole-ms-max", "0"]) == 1
    assert "simulate_and_decompose" in capsys.readouterr().out


def test_a_trace_that_cannot_be_read_is_said_in_one_line(tmp_path, capsys):
    assert whatif.main([str(tmp_path / "none.parquet"), "--meta", str(tmp_path / "none.yaml")]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_trace_without_its_meta_file_is_a_wrong_use(capsys):
    with pytest.raises(SystemExit) as ended:
        whatif.main(["trace.parquet"])
    assert ended.value.code == 2
    assert "--meta" in capsys.readouterr().err
