"""The benchmark runs and measures; its limits are checked where the machine is quiet, not here."""

import json

from instep_agent.rank_record import benchmark


def test_prints_every_number_as_json(tmp_path, capsys):
    assert benchmark.main(["--repeats", "2", "--root", str(tmp_path), "--json"]) in (0, 1)
    results = json.loads(capsys.readouterr().out)
    assert {"heartbeat_nanoseconds", "step_records_microseconds", "read_8_ranks_milliseconds"} <= set(results)
    assert all(0 < row["min"] <= row["median"] <= row["max"] for row in results.values())


def test_is_over_budget_when_a_median_is():
    fine = {"median": 1.0}
    results = dict.fromkeys(
        (
            "heartbeat_nanoseconds",
            "collective_update_nanoseconds",
            "finish_step_nanoseconds",
            "step_records_microseconds",
        ),
        fine,
    )
    assert benchmark.is_within_budget(results)
    assert not benchmark.is_within_budget(results | {"step_records_microseconds": {"median": 20.1}})
    assert not benchmark.is_within_budget(results | {"heartbeat_nanoseconds": {"median": 1001.0}})
