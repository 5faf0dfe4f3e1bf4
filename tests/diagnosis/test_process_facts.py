"""What is said of a rank's own process is evidence for that rank, and for nobody else on its node."""

import pytest
from instep_diagnosis.detectors.crash import judge_crash
from instep_diagnosis.detectors.hang import localise_hang
from instep_diagnosis.detectors.stall import HangSettings, detect_stall
from instep_diagnosis.process_facts import LINES_CITED_MAX
from instep_diagnosis.verdict import Cause, Owner

from tests.diagnosis.scenarios import XID_79, Scenario

CONTAINER = "Memory cgroup out of memory: Killed process {pid} (python) total-vm:9800000kB, anon-rss:8000000kB"
WHOLE_NODE = "Out of memory: Killed process {pid} (python) total-vm:9800000kB, anon-rss:8000000kB, file-rss:0kB"
IN_NCCL = "python[{pid}]: segfault at 8 ip 00007f2c00000000 sp 00007ffc00000000 error 4 in libnccl.so.2[7f2c0+8000]"
RANK_2 = {"job": "gpt", "run": "run-1", "attempt": "1", "rank": "2"}


def crash(line, code=-9, node="node-b", pid=98765, **fields):
    """Rank 2 on node-b has ended, and the kernel of a node has said something of a process."""
    fields = {"pid": str(pid), **fields}
    return judge_crash(Scenario().exited(2, code, ago=0.3).kernel_line(node, line.format(pid=pid), **fields).job())


def kernel_lines(verdict):
    return [item for item in verdict.evidence if item.source == "kernel-log"]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (CONTAINER, -9, "the kernel killed rank 2 for want of memory: its container reached its limit"),
        (WHOLE_NODE, -9, "the kernel killed rank 2 for want of memory on its node"),
        (WHOLE_NODE, 137, "the kernel killed rank 2 for want of memory on its node"),
        (IN_NCCL, -11, "rank 2 crashed inside NCCL"),
    ],
)
def test_a_crash_cites_what_the_kernel_did_to_that_rank(line, code, words):
    verdict = crash(line, code, **RANK_2)
    assert verdict.summary.endswith(f"; {words}.")
    assert (verdict.cause, verdict.owner, verdict.is_node_at_fault) == (Cause.DEAD, Owner.JOB, False)
    (cited,) = kernel_lines(verdict)
    assert (cited.rank, cited.node, cited.text) == (2, "node-b", f"{words[0].upper()}{words[1:]}.")


def test_without_a_rank_the_number_of_the_process_tells():
    assert "killed rank 2" in crash(CONTAINER, pid=4242).summary


@pytest.mark.parametrize(
    "other",
    [
        {},
        {**RANK_2, "rank": "3"},
        {**RANK_2, "run": "run-0"},
        {**RANK_2, "attempt": "0"},
        {**RANK_2, "node": "node-a"},
    ],
    ids=["no rank", "another rank", "another run", "an earlier attempt", "another node"],
)
@pytest.mark.parametrize(("line", "code"), [(CONTAINER, -9), (WHOLE_NODE, -9), (IN_NCCL, -11)])
def test_what_happens_to_another_process_is_no_evidence_against_the_rank(line, code, other):
    healthy = judge_crash(Scenario().exited(2, code, ago=0.3).job())
    assert crash(line, code, **other) == healthy


def test_a_kill_explains_no_exit_with_an_error():
    assert "memory" not in crash(CONTAINER, code=1, **RANK_2).summary


def test_a_lost_gpu_outweighs_the_kill():
    job = Scenario().exited(2, -9, ago=0.3).kernel_line("node-b", XID_79, ago=0.5, gpu="GPU-2")
    job.kernel_line("node-b", CONTAINER.format(pid=9), **RANK_2)
    verdict = judge_crash(job.job())
    assert (verdict.cause, verdict.owner, verdict.is_node_at_fault) == (Cause.GPU_FAULT, Owner.NODE, True)
    assert len(kernel_lines(verdict)) == 2


def test_an_applications_xid_counts_for_the_rank_that_it_names():
    line = "NVRM: Xid (PCI:0000:3b:00): 31, pid={pid}, name=python, Ch 00000010"
    assert len(kernel_lines(crash(line, **RANK_2))) == 1
    assert kernel_lines(crash(line, **{**RANK_2, "rank": "3"})) == []


def hang(scenario):
    job = scenario.job()
    return localise_hang(job, detect_stall(job, HangSettings()))


def late(**changes):
    return Scenario().waits(0, 1, 3).sits(2, phase="forward", process="running", **changes)


def said(verdict):
    return [(item.rank, item.source) for item in verdict.evidence if item.source in ("job-log", "nccl-ras")]


WATCHDOG = "[rank{rank}]:[E] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=511, OpType=ALLREDUCE)"


def test_a_hang_cites_the_watchdog_and_nccl_and_blames_as_before():
    job = late()
    before = hang(job)
    job.told("node-a", "log_line", WATCHDOG.format(rank=0), ago=3.0, pattern="torch_watchdog", rank="0")
    job.told("node-b", "nccl_rank_unresponsive", "Rank 5 of communicator 0xa did not answer.", ago=1.0, pid="4242")
    verdict = hang(job)
    assert said(verdict) == [(2, "nccl-ras"), (0, "job-log")], "newest first"
    assert (verdict.suspects, verdict.owner, verdict.summary) == (before.suspects, before.owner, before.summary)


@pytest.mark.parametrize(
    ("node", "kind", "fields"),
    [
        ("node-b", "log_line", {"pattern": "torch_watchdog", "rank": "0"}),
        ("node-a", "log_line", {"pattern": "torch_watchdog", "rank": "7"}),
        ("node-a", "log_line", {"pattern": "torch_watchdog"}),
        ("node-a", "log_line", {"pattern": "nccl_warn", "rank": "0"}),
        ("node-a", "log_line", {"pattern": "nccl_warn", "pid": "77", "rank": "0"}),
        ("node-a", "nccl_rank_error", {"pid": "4240", "host": "node-x"}),
        ("node-a", "nccl_rank_back", {"pid": "4240"}),
        ("node-a", "source_failed", {"rank": "0"}),
    ],
)
def test_lines_of_others_are_not_cited(node, kind, fields):
    assert said(hang(late().told(node, kind, "something", ago=1.0, **fields))) == []


def test_lines_from_long_before_the_onset_are_not_cited():
    line = {"pattern": "torch_watchdog", "rank": "0"}
    assert said(hang(late().told("node-a", "log_line", "x", ago=500.0, **line))) == []


def test_a_storm_of_lines_is_cited_within_a_bound_and_each_sort_once():
    job = late()
    for number in range(40):
        rank = number % 2
        job.told("node-a", "log_line", "x", ago=1 + number / 100, pattern=f"sort-{number // 4}", rank=str(rank))
    cited = said(hang(job))
    assert len(cited) == LINES_CITED_MAX


def test_a_crash_cites_the_lines_of_its_ranks():
    job = Scenario().exited(2, 1, ago=0.3)
    job.told("node-b", "log_line", "[rank2]: RuntimeError: NCCL error", ago=0.5, pattern="torch_distributed", rank="2")
    verdict = judge_crash(job.job())
    assert said(verdict) == [(2, "job-log")]
    assert not verdict.is_node_at_fault
