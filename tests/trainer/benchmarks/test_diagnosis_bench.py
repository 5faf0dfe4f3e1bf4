"""`instep bench diagnosis`: cases are kept whatever happens, and a real job's sleeper is named."""

import json
from random import Random

import numpy as np
import pytest
from instep_diagnosis.detectors.stall import Stall
from instep_diagnosis.simulation.programs import STEPS, training
from instep_trainer.benchmarks.diagnosis import command
from instep_trainer.benchmarks.diagnosis.campaign import EPISODES, Order
from instep_trainer.benchmarks.diagnosis.command import Journal, main
from instep_trainer.benchmarks.diagnosis.paced_rank import BENIGN_SECONDS, Plan, PlannedFault
from instep_trainer.benchmarks.diagnosis.real_hangs import real_hangs
from instep_trainer.benchmarks.diagnosis.real_jobs import real_job
from instep_trainer.benchmarks.diagnosis.recorder_analyser import first_finding


def test_cases_add_up_over_runs_and_a_damaged_line_costs_one_case(tmp_path, capsys):
    arguments = ["--hangs", "0", "--stragglers", "0", "--simulated", "4", "--resume", str(tmp_path), "--json"]
    main([*arguments, "--seed", "11"])
    first = (tmp_path / "cases.jsonl").read_text()
    (tmp_path / "cases.jsonl").write_text(first + '{"kind": "hang-simu')
    main([*arguments, "--seed", "11"])
    captured = capsys.readouterr()
    assert "a damaged line" in captured.err
    kept = (tmp_path / "cases.jsonl").read_text()
    assert kept.startswith(first)
    printed = [json.loads(line) for line in captured.out.splitlines()]
    assert sum(case["kind"] == "hang-simulated" for case in printed[len(printed) // 2 :]) == 4


def test_a_case_added_after_a_cut_line_stands_alone(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text('{"kind": "hang-real", "seed": 1}\n{"kind"')
    journal = Journal(path)
    journal.open()
    journal.add({"kind": "hang-real", "seed": 2})
    again = Journal(path)
    again.open()
    assert again.seeds("hang-real") == {1, 2}


def test_waiting_jobs_run_beside_one_another_and_computing_ones_alone(monkeypatch, tmp_path):
    """… and no more of them than were asked for, also when a run goes on."""
    begun = []

    def carried(orders, work, *, workers):
        running = []
        while order := orders(running):
            begun.append((work.keywords["kind"], workers, order.seed))
            for _ in range(EPISODES):
                answers = {"instep": {"named": [], "delay_steps": None}}
                yield {
                    "kind": f"straggler-{work.keywords['kind']}",
                    "seed": order.seed,
                    "truth": [],
                    "answers": answers,
                }

    monkeypatch.setattr(command, "carry_out", carried)
    arguments = ["--hangs", "0", "--simulated", "0", "--workers", "3", "--json", "--resume", str(tmp_path)]
    main([*arguments, "--stragglers", "8"])
    assert begun == [("paced", 3, 1), ("paced", 3, 2), ("cpu", 1, 1)]
    main([*arguments, "--stragglers", "12"])
    assert begun[3:] == [("paced", 3, 3), ("cpu", 1, 2)]


def test_healthy_jobs_are_made_up_until_there_are_so_many_hours(tmp_path):
    arguments = ["--hangs", "0", "--simulated", "0", "--stragglers", "0", "--resume", str(tmp_path), "--json"]
    main([*arguments, "--healthy-hours", "0.01"])
    first = (tmp_path / "cases.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in first] == ["healthy-simulated"]
    main([*arguments, "--healthy-hours", "0.01"])
    assert (tmp_path / "cases.jsonl").read_text().splitlines() == first


def test_too_few_cases_to_fit_on_are_said(tmp_path, capsys):
    none = ["--hangs", "0", "--stragglers", "0", "--simulated", "0"]
    assert main([*none, "--fit", str(tmp_path / "out.json")]) == 3
    assert "too few to fit on" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ("missing ranks: {2, 3}\nCulprit rank 1; x", (2, 3)),
        ("Culprit rank 1; x\nmissing ranks: {2}", (1,)),
        ("nothing", None),
    ],
)
def test_what_the_recorders_analyser_says_first_is_its_answer(said, ranks):
    assert first_finding(said) == ranks


def plan(*faults, steps):
    job = training(Random(5), world_size_max=4, layout="ddp")
    programs = tuple(program[: len(program) // STEPS] for program in job.programs)
    return Plan(job.groups, programs, steps, [[0.01] * len(programs)] * steps, faults)


def test_a_rank_that_sleeps_is_named_and_the_job_goes_on_when_it_wakes():
    fault = PlannedFault("sleep", rank=1, step=20)
    with real_job(plan(fault, steps=25)) as job:
        stall = job.wait()
        assert isinstance(stall, Stall)
        assert [suspect.rank for suspect in job.verdict(stall).suspects] == [1]
        assert set(job.dumps()) == set(range(len(job.ranks)))
        job.take_back("sleep", 1)
        assert job.wait() == "done"


def test_a_rank_that_saves_for_a_while_raises_nothing():
    assert BENIGN_SECONDS > 2.0
    with real_job(plan(PlannedFault("checkpoint", rank=1, step=20), steps=25)) as job:
        assert job.wait() == "done"


def test_every_fault_of_a_real_job_is_one_case_with_the_answers_of_all_methods_and_its_dumps(tmp_path):
    order = Order(3, "ddp", ("sleep", "skip"), ranks_max=4)
    cases = real_hangs(order, lambda seed, steps, ranks: np.ones((steps, ranks)), dumps=tmp_path)
    case = next(cases)
    cases.close()
    assert set(case["answers"]) == {"instep", "instep flight-recorder", "torchfrtrace"}
    assert case["answers"]["instep"]["named"] == case["answers"]["instep flight-recorder"]["named"] == case["truth"]
    assert (case["fault"], case["alike_in_dumps"]) == ("sleep", case["truth"])
    (kept,) = tmp_path.iterdir()
    assert json.loads((kept / "truth.json").read_text())["truth"] == case["truth"]
    assert len(list((kept / "flight-recorder").iterdir())) == case["world_size"] == 4
