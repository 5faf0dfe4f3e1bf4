"""One incident for each cause: ids stay, symptoms join, and saying it twice changes nothing."""

from datetime import UTC, datetime, timedelta

from instep_diagnosis.detectors.crash import judge_crash
from instep_diagnosis.detectors.gpu_fault import detect_gpu_faults
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import HangSettings, detect_stall
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.incidents import HISTORY_MAX, Join, Status, join, merged, opened, resolved, updated
from instep_diagnosis.verdict import Kind

from tests.diagnosis.scenarios import XID_79, Scenario
from tests.diagnosis.training import job_steps, own_work

NOW = datetime(2025, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=5)


def hang(scenario=None):
    job = (scenario or Scenario().waits(0, 1, 3).sits(2, phase="forward", process="stopped")).job()
    return localise_hang(job, detect_stall(job, HangSettings()))


def crash():
    return judge_crash(Scenario().exited(2, -9, ago=0.3).job())


def crash_with_xid():
    return judge_crash(Scenario().exited(2, -9, ago=0.3).kernel_line("node-b", XID_79, gpu="GPU-2").job())


def gpu_fault():
    (verdict,) = detect_gpu_faults(Scenario().kernel_line("node-b", XID_79, gpu="GPU-2").facts)
    return verdict


def slow(ratio=1.3):
    own_TR = own_work()
    own_TR[30:, 2] *= ratio
    (verdict,) = detect_stragglers(job_steps(own_TR))
    return verdict


def test_the_first_verdict_opens_and_the_second_updates():
    assert join([], hang()).action is Join.OPEN
    incident = opened("i1", hang(), now=NOW)
    decision = join([incident], hang())
    assert (decision.action, decision.incident_id) == (Join.UPDATE, "i1")
    assert updated(incident, hang(), now=LATER) == incident


def test_a_crash_after_a_hang_of_the_same_attempt_is_the_same_incident():
    incident = opened("i1", hang(), now=NOW)
    assert join([incident], crash()).incident_id == "i1"
    assert updated(incident, crash(), now=LATER).kind is Kind.HANG


def test_crash_xid_and_fault_of_the_gpu_are_one_incident_with_the_older_id():
    fault, stop = opened("i1", gpu_fault(), now=NOW), opened("i2", crash(), now=LATER)
    decision = join([fault, stop], crash_with_xid())
    assert (decision.action, decision.incident_id, decision.absorbed) == (Join.MERGE, "i1", ("i2",))
    after = [updated(fault, crash_with_xid(), now=LATER), merged(stop, "i1", now=LATER)]
    assert after[1].merged_into == "i1"


def test_a_fault_of_the_gpu_joins_the_stop_that_it_explains():
    stop = opened("i1", crash_with_xid(), now=NOW)
    assert join([stop], gpu_fault()).incident_id == "i1"
    assert join([opened("i1", crash(), now=NOW)], gpu_fault()).action is Join.OPEN


def test_a_resolved_incident_is_not_opened_again_by_a_late_copy():
    incident = resolved(opened("i1", hang(), now=NOW), "step 41 was kept", now=LATER)
    decision = join([incident], hang())
    assert (decision.action, decision.incident_id) == (Join.UPDATE, "i1")
    assert updated(incident, hang(), now=LATER).status is Status.RESOLVED


def test_a_suspicion_becomes_confirmed():
    suspicion = hang(Scenario().waits(0, 1, 3).sits(2, phase="unknown"))
    incident = opened("i1", suspicion, now=NOW)
    assert incident.status is Status.OPEN
    assert updated(incident, hang(), now=LATER).status is Status.CONFIRMED


def test_a_weaker_verdict_does_not_replace_a_stronger_one():
    incident = opened("i1", crash_with_xid(), now=NOW)
    assert updated(incident, crash(), now=LATER).verdict == crash_with_xid()


def test_a_straggler_is_one_incident_while_it_lasts_and_ends_with_its_recovery():
    incident = opened("i1", slow(), now=NOW)
    assert join([incident], slow(1.4)).incident_id == "i1"
    own_TR = own_work()
    own_TR[10:50, 2] *= 1.3
    (recovered,) = detect_stragglers(job_steps(own_TR))
    assert join([], recovered).action is Join.IGNORE
    assert updated(incident, recovered, now=LATER).status is Status.RESOLVED


def test_stragglers_and_stops_stay_apart():
    assert join([opened("i1", slow(), now=NOW)], hang()).action is Join.OPEN


def test_history_is_bounded():
    incident = opened("i1", hang(), now=NOW)
    for _ in range(HISTORY_MAX + 50):
        incident = merged(incident, "i0", now=LATER)
    assert len(incident.history) == HISTORY_MAX
    assert incident.history[0][1].startswith("Opened")
