"""Long healthy jobs: nobody is named, whatever else goes on in them, and the time is counted."""

import pytest
from instep_diagnosis.simulation import alarms
from instep_diagnosis.simulation.alarms import KINDS, healthy_case
from instep_diagnosis.simulation.report import report_lines
from instep_diagnosis.simulation.steps import FAULTS, StepFault, step_case


@pytest.mark.parametrize("seed", range(4))
def test_a_long_healthy_job_names_nobody(seed):
    case = healthy_case(seed)
    assert case["alarms"] == 0
    assert case["healthy_steps"] > alarms.STEPS
    assert case["healthy_seconds"] > 0.05 * alarms.STEPS
    assert case == healthy_case(seed)


def test_only_what_is_no_fault_is_drawn():
    assert not set(KINDS) & set(FAULTS)


def test_an_alarm_is_counted_once_and_told_with_its_rate(monkeypatch):
    slow = step_case(1, ranks=4, fault=StepFault.SLOW, ratio=1.5, sigma=0.004)
    monkeypatch.setattr(alarms, "step_case", lambda *_, **__: slow)
    case = healthy_case(1)
    assert (case["alarms"], case["answers"]["instep"]["named"]) == (1, [slow.rank])
    (line,) = [line for line in report_lines([case], seed=1) if line.startswith("healthy-simulated")]
    assert "1 alarms in" in line
    assert "95 % bound" in line
