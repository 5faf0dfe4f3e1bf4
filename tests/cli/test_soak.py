"""The soak: what healthy jobs go through, what is counted as a false alarm, and the scripts that pause."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
from instep.bench.disturbances import (
    CALM_SECONDS_MIN,
    NODES,
    SCRIPTS,
    WORLD_SIZE,
    End,
    Outage,
    calm_seconds,
    draw_jobs,
)
from instep.bench.false_alarms import Row, Said, attribute, table
from instep.bench.losses import Made
from instep.bench.soak import longest_pause_seconds, main, report
from instep.local.ports import free_port

SEEDS = range(20)


def rows():
    return [
        Row("annotated script", "soak-marked", "slow first step", 100.0),
        Row("annotated script", "soak-marked", "loader pause", 200.0),
        Row("foreign script", "soak-foreign", "agent killed", 300.0),
    ]


def said(at, state="resolved", alarm=True, run="soak-marked"):
    incident = {"kind": "straggler", "run": run, "state": state, "onset_at": at, "alarm_at": at if alarm else None}
    return Said(incident | {"summary": "Rank 1 is slow.", "resolution": "", "labels": {}, "evidence": []}, {})


# The plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_every_soak_holds_every_benign_disturbance(seed):
    trainer, outages, marked, foreign = draw_jobs(seed)
    assert "--evaluate-every" in trainer.script
    assert {one.outage for one in outages.disturbances} == set(Outage)
    assert {one.outage for one in foreign.disturbances if one.outage} == set(Outage)
    for job in (marked, foreign):
        pauses = [one.pause for one in job.disturbances if one.pause]
        asked = {(pause["kind"], "ranks" in pause) for pause in pauses}
        assert asked == {
            ("evaluation", False),
            ("evaluation", True),
            ("checkpoint", False),
            ("loader", False),
            ("loader", True),
            ("accumulation", False),
        }
        assert next(pause["seconds"] for pause in pauses if pause["kind"] == "checkpoint") >= 10.0
        assert float(job.script[job.script.index("--compile-seconds") + 1]) >= 8.0
        assert all(set(pause.get("ranks", ())) <= set(range(WORLD_SIZE)) for pause in pauses)
    agents_away = [one for one in outages.disturbances + foreign.disturbances if one.outage and one.outage.is_of_agent]
    assert len(agents_away) == 4 and all(one.node in NODES for one in agents_away)


def test_order_ranks_and_nodes_come_from_the_seed():
    assert draw_jobs(3) == draw_jobs(3)
    assert len({tuple(one.name for job in draw_jobs(seed) for one in job.disturbances) for seed in SEEDS}) > 10


def test_the_calm_between_fills_the_time_and_is_never_too_short():
    jobs = draw_jobs(1)
    count = sum(len(job.disturbances) + 1 for job in jobs)
    assert calm_seconds(jobs, 3600.0) * count + sum(job.seconds for job in jobs) == pytest.approx(3600.0)
    assert calm_seconds(jobs, 60.0) == CALM_SECONDS_MIN


def test_jobs_end_in_every_benign_way():
    assert {job.end for job in draw_jobs(1)} == set(End)


# The count ------------------------------------------------------------------------------------------------------------


def test_the_longest_pause_tells_that_the_job_paused_and_went_on():
    made = [Made(step, 0, at) for step, at in enumerate([10.0, 10.1, 10.2, 15.2, 15.3], 1)]
    assert longest_pause_seconds(made, 10.05) == pytest.approx(5.0)
    assert longest_pause_seconds(made, 15.25) == pytest.approx(0.1)
    assert longest_pause_seconds(made, 20.0) == 0.0
    assert longest_pause_seconds([], 0.0) == 0.0


def test_a_calm_soak_is_right(capsys):
    calm = rows()
    attribute(calm, [], {"soak-marked": 1, "soak-foreign": 1})
    assert report(calm, [], []) == []
    assert "false alarms: 0; restarts: 0" in capsys.readouterr().out


def test_an_alarm_counts_at_the_disturbance_that_had_begun_last():
    counted = rows()
    attribute(counted, [said(210.0), said(320.0, state="open"), said(50.0)], {})
    assert [row.alarms for row in counted] == [1, 1, 1]
    assert report(counted, [], []) == ["3 false alarms"]


def test_a_withdrawn_suspect_is_no_alarm_and_is_told_apart(capsys):
    counted, suspects = rows(), [said(210.0, state="withdrawn", alarm=False), said(330.0, state="suspect", alarm=False)]
    attribute(counted, suspects, {})
    assert [row.suspects for row in counted] == [0, 1, 1]
    assert report(counted, suspects, []) == []
    assert "suspect (withdrawn): straggler in soak-marked" in capsys.readouterr().out


def test_a_suspect_that_was_once_an_alarm_is_one():
    counted = rows()
    attribute(counted, [said(210.0, state="withdrawn", alarm=True)], {})
    assert [row.alarms for row in counted] == [0, 1, 0]


def test_a_restart_counts_once():
    counted = rows()
    counted[1].restarts = 1  # seen in the losses
    attribute(counted, [], {"soak-marked": 2, "soak-foreign": 2})
    assert [row.restarts for row in counted] == [0, 1, 1]
    assert report(counted, [], []) == ["2 restarts"]


def test_a_job_that_failed_and_a_process_left_over_are_wrong():
    counted = rows()
    counted[2].wrong.append("run-soak-foreign-node-a ended with 1")
    assert report(counted, [], [4711]) == [
        "foreign script, agent killed: run-soak-foreign-node-a ended with 1",
        "process 4711 was left over",
    ]


def test_the_table_has_a_line_for_each_disturbance_under_its_job():
    lines = table(rows()).splitlines()
    assert [line.split("  ")[0].strip() or line.strip().split("  ")[0] for line in lines] == [
        "disturbance",
        "annotated script:",
        "slow first step",
        "loader pause",
        "foreign script:",
        "agent killed",
    ]


def test_it_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--minutes", "ten"])
    assert ended.value.code == 2
    assert "--minutes" in capsys.readouterr().err


# The scripts ----------------------------------------------------------------------------------------------------------


def test_the_foreign_script_has_never_heard_of_instep():
    assert "instep" not in (SCRIPTS / "foreign.py").read_text().lower()


def train(script, out, steps=()):
    """Two ranks, without any launcher."""
    port = str(free_port())
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(SCRIPTS / script), "--out", str(out), *steps],
                    env=os.environ
                    | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank}
                    | {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in ("0", "1")
        ]
        said = [rank.communicate(timeout=90)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
    return [json.loads(line)["step"] for line in (out / "losses.jsonl").read_text().splitlines()]


@pytest.mark.real
@pytest.mark.parametrize("script", ["foreign.py", "annotated.py"])
def test_a_script_pauses_as_it_is_asked_ends_early_without_an_error_and_resumes_its_own_checkpoint(script, tmp_path):
    asked = [
        {"kind": "checkpoint", "step": 4, "seconds": 0.1},
        {"kind": "evaluation", "step": 6, "seconds": 0.1, "ranks": [1]},
        {"kind": "loader", "step": 7, "seconds": 0.1},
        {"kind": "accumulation", "step": 8, "steps": 2, "micro_steps": 3},
        {"kind": "finish", "step": 12},
    ]
    (tmp_path / "pauses.jsonl").write_text("\n".join(map(json.dumps, asked)))
    assert train(script, tmp_path) == list(range(1, 13))
    if script == "foreign.py":
        assert train(script, tmp_path)[12:] == list(range(5, 13))
