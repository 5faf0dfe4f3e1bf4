"""Figures from records of cases: what counts as exact, tied, innocent, found in time."""

import pytest
from instep_diagnosis.detectors.calibration import in_use
from instep_diagnosis.simulation.fitting import fit, fit_lines, halves
from instep_diagnosis.simulation.hangs import Fault, hang_case
from instep_diagnosis.simulation.report import hang_grade, innocents_of, report_lines, step_counts, within_bars
from instep_diagnosis.simulation.scoring import degraded, is_hit, judge_hang, watch_case
from instep_diagnosis.simulation.steps import StepFault, step_case


def answer(*named, tied=False, delay=None):
    return {"named": list(named), "is_tied": tied, "delay_steps": delay}


@pytest.mark.parametrize(
    ("given", "grade", "innocents"),
    [
        (answer(1), "exact", 0),
        (answer(1, 2, tied=True), "tied", 0),
        (answer(2, 3, tied=True), "wrong", 0),
        (answer(1, 2), "wrong", 1),
        (answer(), "nobody", 0),
    ],
)
def test_an_answer_about_a_hang_is_graded(given, grade, innocents):
    case = {"truth": [1]}
    assert (hang_grade(case, given), innocents_of(case, given)) == (grade, innocents)


def test_naming_nobody_is_exact_where_nobody_is_to_blame():
    assert hang_grade({"truth": []}, answer()) == "exact"


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        (answer(1, delay=20), (1, 0, 0)),
        (answer(1, delay=21), (0, 1, 0)),
        (answer(1, delay=0), (0, 1, 1)),
        (answer(2, delay=5), (0, 1, 1)),
        (answer(), (0, 1, 0)),
    ],
)
def test_a_slow_rank_is_found_only_alone_and_in_time(given, counts):
    case = {"truth": [1]}
    assert step_counts(case, given) == counts
    assert is_hit(case, given) == bool(counts[0])


@pytest.fixture(scope="module")
def cases():
    hangs = [hang_case(seed, world_size_max=8) for seed in range(60)]
    found = [judge_hang(case) for case in hangs] + [judge_hang(degraded(case), kind="hang-degraded") for case in hangs]
    return found + [watch_case(step_case(seed, ranks=4, fault=StepFault.SLOW, ratio=1.3)) for seed in range(4)]


def test_a_report_tells_rates_intervals_ties_innocents_and_calibration(cases):
    text = "\n".join(report_lines(cases, seed=1))
    for words in ("exact set", "tied, the culprit among them", "innocents", "F1", "3-sigma", "expected error"):
        assert words in text
    assert "of 60" in text


def test_the_bars_are_missed_when_an_innocent_rank_is_called_slow(cases):
    assert within_bars(cases)
    wrong = {
        "kind": "straggler-paced", "seed": 1, "truth": [], "fault": "healthy",
        "answers": {"instep": answer(3, delay=5)},
    }  # fmt: skip
    assert not within_bars([*cases, wrong])


def test_no_job_is_fitted_on_and_tried(cases):
    fitted, tried = halves(cases)
    assert {case["seed"] for case in fitted}.isdisjoint(case["seed"] for case in tried)
    assert len(fitted) + len(tried) == len(cases)


def test_too_few_verdicts_fit_nothing(cases):
    with pytest.raises(ValueError, match="too few"):
        fit(cases[:8], command="test")


def test_a_kind_with_too_few_verdicts_keeps_its_table(cases):
    found = fit(cases, command="test")
    assert found["tables"]["hang"] != in_use()["tables"]["hang"]
    for name in ("hang-live", "straggler"):
        assert found["tables"][name] == in_use()["tables"][name]
        assert found["verdicts"][name] == in_use()["verdicts"][name]
    assert any("the table in use stays" in line for line in fit_lines(cases))


def test_a_fit_is_tried_on_the_other_half(cases):
    few = [case for case in cases if case["kind"].startswith("hang")]
    live = [
        {"kind": "hang-real", "seed": seed, "truth": [0], "fault": "sleep",
         "answers": {"instep": {"named": [0], "is_tied": False, "sure": [0.9], "strength": [0.9]}}}
        for seed in range(60)
    ]  # fmt: skip
    slow = [
        {"kind": "straggler-paced", "seed": seed, "truth": [0], "fault": "slow", "ratio": 1.2,
         "answers": {"instep": {"named": [0], "delay_steps": 8, "sure": [0.9], "strength": [6.0]}}}
        for seed in range(60)
    ]  # fmt: skip
    tables = fit([*few, *live, *slow], command="test")["tables"]
    assert set(tables) == {"hang", "hang-live", "straggler"}
    assert all(row[0] >= 0.0 for table in tables.values() for row in table)
    assert sum("on the other half" in line for line in fit_lines([*few, *live, *slow])) == 3


def test_a_hang_with_less_evidence_is_the_same_hang():
    case = hang_case(3, fault=Fault.STOPPED, layout="ddp", world_size_max=16)
    worse = degraded(case)
    assert worse.culprits == case.culprits
    assert set(worse.dumps) <= set(case.dumps)
