"""The campaign of real hangs: an even table, jobs whose wrong calls do hang, workers that cost no case."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest
from instep_diagnosis.simulation.alike import alike
from instep_diagnosis.simulation.programs import STEPS, training
from instep_trainer.benchmarks.diagnosis.campaign import (
    CALL_KINDS,
    CELL_CASES,
    FIRST_LAYOUTS,
    KIND,
    LAYOUTS,
    LOST_MAX,
    PAIR_KIND,
    WAITING_KINDS,
    Case,
    Order,
    carry_out,
    kinds_of,
    next_order,
    pair_order,
    table,
    table_lines,
)


def judged(layout: str, fault: str, *, seed: int = 0, named: int = 1, alike_in_dumps: tuple[int, ...] = (1,)) -> Case:
    answer = {"named": [named], "is_tied": False}
    return {
        "kind": KIND, "seed": seed, "layout": layout, "fault": fault, "world_size": 4, "truth": [1], "outcome": "alarm",
        "alike_in_dumps": list(alike_in_dumps), "answers": {"instep": answer, "instep flight-recorder": answer},
    }  # fmt: skip


def filled(count: int, *, lose: str = "") -> list[Case]:
    """The cases of a campaign of so many; one fault may never come to a judgement."""
    cases: list[Case] = []
    seed = 0
    while sum(bool(case.get("answers")) for case in cases) < count:
        order = next_order(seed, cases)
        for kind in order.kinds:
            case = judged(order.layout, kind, seed=seed)
            cases.append(case if kind != lose else {**case, "outcome": "died", "answers": {}})
        seed += 1
    return cases


def test_three_hundred_and_twenty_faults_are_ten_of_each_in_each_usual_layout():
    cells = table(filled(31 * CELL_CASES))
    assert {(layout, kind): cells[layout, kind] for layout in FIRST_LAYOUTS for kind in kinds_of(layout)} == {
        (layout, kind): CELL_CASES for layout in FIRST_LAYOUTS for kind in kinds_of(layout)
    }


def test_all_layouts_are_even_in_the_end_and_no_job_has_more_than_seven_faults():
    cases = filled(550)
    cells = table(cases)
    counts = [cells[layout, kind] for layout in LAYOUTS for kind in kinds_of(layout)]
    assert min(counts) >= CELL_CASES - 1
    assert max(counts) <= CELL_CASES + 1
    jobs = [[case["fault"] for case in cases if case["seed"] == seed] for seed in {case["seed"] for case in cases}]
    assert all(len(faults) <= 7 and faults[-1] in CALL_KINDS and faults[0] in WAITING_KINDS for faults in jobs)


def test_a_fault_that_never_comes_to_a_judgement_holds_the_others_up_no_more_than_twice():
    cells = table(filled(250, lose="extra"))
    others = [cells[layout, kind] for layout in FIRST_LAYOUTS for kind in kinds_of(layout) if kind != "extra"]
    assert not any(cells[layout, "extra"] for layout in LAYOUTS)
    assert max(others) <= 2 * min(others) + 2


def test_jobs_that_run_are_counted_so_that_two_workers_do_not_do_the_same():
    first = next_order(1, [])
    assert next_order(2, [], [first]).layout != first.layout


def test_a_pair_has_two_ranks_and_ends_with_a_wrong_call():
    for seed in range(20):
        order = pair_order(seed)
        assert order.ranks_max == 2
        assert order.kinds[-1] in CALL_KINDS
        assert order.layout != "pp-dp-tp"


def test_the_table_tells_each_cell_the_bound_and_what_dumps_can_tell():
    cases = [judged("ddp", "sleep"), judged("ddp", "sleep", named=2), judged("pp", "stop", alike_in_dumps=(0, 1))]
    lines = list(table_lines([*cases, {**cases[0], "kind": PAIR_KIND}]))
    ddp = next(line for line in lines if line.startswith("  ddp"))
    assert ddp.split() == ["ddp", "1/2", *["–"] * 7, "1/2"]
    assert any("exact 2 of 3 in 1 jobs: at least 20.8 %" in line for line in lines)
    assert any("determine the rank in 2 of 3 cases, and it is named in 1" in line for line in lines)
    assert list(table_lines([])) == []


def work(order: Order) -> Iterator[Case]:
    for kind in order.kinds:
        if kind == "die":
            os._exit(3)
        yield {"kind": KIND, "seed": order.seed, "fault": kind}


def test_workers_hand_on_every_case_and_one_that_dies_costs_its_job_alone():
    orders = [
        Order(1, "ddp", ("a", "b")),
        Order(2, "ddp", ("a", "die")),
        Order(3, "ddp", ("c",)),
        Order(4, "tp", ("d",)),
    ]
    given = iter(orders)
    cases = list(carry_out(lambda running: next(given, None), work, workers=2))
    found = sorted((case["seed"], case.get("fault", case.get("outcome"))) for case in cases)
    assert found == [(1, "a"), (1, "b"), (2, "a"), (2, "lost"), (3, "c"), (4, "d")]


def test_workers_that_always_die_end_the_campaign():
    cases = list(carry_out(lambda running: Order(7, "ddp", ("die",)), work, workers=4))
    assert LOST_MAX < len(cases) <= LOST_MAX + 4
    assert {case["outcome"] for case in cases} == {"lost"}


def one_step(layout: str, seed: int):
    job = training(Random(seed), world_size_max=4, layout=layout)
    return [program[: len(program) // STEPS] for program in job.programs]


@pytest.mark.parametrize("layout", ["ddp", "fsdp", "tp", "tp-dp", "ep"])
def test_without_transfers_gloos_dumps_tell_every_rank_from_every_other(layout):
    for seed in range(6):
        programs = one_step(layout, seed)
        for rank, program in enumerate(programs):
            assert all(alike(programs, rank, place) == (rank,) for place in range(len(program))), (layout, seed, rank)


def test_before_its_first_collective_no_dump_tells_which_rank_of_a_pipeline_sleeps():
    programs = next(p for seed in range(50) if len(p := one_step("pp", seed)) == 4)
    assert alike(programs, 2, 0) == (0, 1, 2, 3)
    assert alike(programs, 2, len(programs[2]) - 1) == (2,)
    assert alike(programs, 2, len(programs[2]) - 1, silent=(2,)) == (2,)
    assert 2 in alike(programs, 2, 0, silent=(2,))
