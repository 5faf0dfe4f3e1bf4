"""Log files of jobs that grow, turn, shrink and lie; and which of their lines leave the node."""

import os
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.errors import Absent, SourceFailed
from instep_agent.lines import tail
from instep_agent.lines.log_patterns import LINE_BYTES_MAX, log_patterns
from instep_agent.sources import log_lines
from instep_agent.sources.log_lines import LogLines
from instep_agent.wire import Sample
from instep_diagnosis import catalogues
from made_nodes import Clock, node_at

WATCHDOG = (
    "[rank3]:[E512 10:20:30.1 ProcessGroupNCCL.cpp:607] [Rank 3] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=1729, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600021 milliseconds"
)
WARNING = "node-7:4242:4301 [5] transport/net_ib.cc:1302 NCCL WARN NET/IB : mlx5_2:1 async fatal event: port error"


class Logs:
    """A folder of logs beneath a root, their reader, and its clock."""

    def __init__(self, root, *patterns):
        self.clock = Clock()
        self.folder = root / "var/log/job"
        self.folder.mkdir(parents=True)
        self.node = node_at(root, self.clock)
        self.source = LogLines(patterns or ("/var/log/job/*.log",))

    def write(self, name, *lines, end="\n"):
        with (self.folder / name).open("a") as file:
            file.writelines(line + end for line in lines)

    def turn(self, after_seconds=1.0):
        """Give facts, and samples by name."""
        self.clock.seconds += after_seconds
        readings = list(self.source.collect(self.node))
        samples = {(one.name, one.labels): one.value for one in readings if isinstance(one, Sample)}
        return [one for one in readings if not isinstance(one, Sample)], samples

    def texts(self, after_seconds=1.0):
        return [fact.text for fact in self.turn(after_seconds)[0]]


@pytest.fixture
def logs(tmp_path):
    logs = Logs(tmp_path)
    yield logs
    logs.source.close()


@pytest.fixture
def running(logs):
    """One file that was there before the reader."""
    logs.write("a.log", WATCHDOG + " before the agent")
    assert logs.texts() == []
    return logs


def test_is_absent_when_no_files_are_named_and_then_needs_no_process(tmp_path):
    source = LogLines()
    with pytest.raises(Absent, match="set log_files in the agent's configuration"):
        list(source.collect(node_at(tmp_path)))
    assert source.child == ""
    assert LogLines(["/x"]).child == "logs"


def test_is_absent_while_no_file_is_there(logs):
    with pytest.raises(Absent, match="There is no file"):
        logs.turn()


def test_a_line_leaves_as_it_stands_with_its_fields(running):
    running.write("a.log", "step 12 loss 3.4", WATCHDOG, WARNING)
    (first, second), samples = running.turn()
    assert (first.kind, first.text, first.is_drill) == ("log_line", WATCHDOG, False)
    assert first.fields == {
        "pattern": "torch_watchdog",
        "file": "/var/log/job/a.log",
        "rank": "3",
        "seq": "1729",
        "op": "ALLREDUCE",
        "milliseconds": "600021",
    }
    assert second.fields["pattern"] == "nccl_warn"
    assert {name: second.fields[name] for name in ("host", "pid", "thread", "device")} == {
        "host": "node-7",
        "pid": "4242",
        "thread": "4301",
        "device": "5",
    }
    assert samples["instep_log_lines_total", (("pattern", "nccl_warn"),)] == 1
    assert samples["instep_log_files", ()] == 1
    assert {name for name, _ in samples} <= {metric.name for metric in LogLines.metrics}


@pytest.mark.parametrize(
    ("text", "pattern", "field"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. GPU 3 has a total capacity of", "out_of_memory", ("device", "3")),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", "cuda_error", None),
        ("[rank1]: torch.distributed.DistBackendError: NCCL error in: x.cpp", "nccl_error", ("rank", "1")),
        ("torch.distributed.DistNetworkError: gone", "torch_distributed", ("error", "DistNetworkError")),
        ("ncclUnhandledCudaError: Call to CUDA function failed.", "nccl_error", ("error", "ncclUnhandledCudaError")),
        ("Comm 0x55d0c0 rank 3 is in abort state", "nccl_error", ("communicator", "0x55d0c0")),
        ("RuntimeError: [gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:1", "torch_distributed", None),
        ("Fatal Python error: Segmentation fault", "process_fault", None),
    ],
)
def test_sorts_of_lines_are_named(running, text, pattern, field):
    running.write("a.log", text)
    ((fact,), _) = running.turn()
    assert fact.fields["pattern"] == pattern
    assert field is None or fact.fields[field[0]] == field[1]


@pytest.mark.parametrize(
    "text",
    [
        "step 100 loss 2.31 tokens/s 12000",
        "node-7:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM",
        "[rank0]: W1029 UserWarning: lr_scheduler before optimizer",
        "Using device cuda:0, memory allocated 3.2 GB",
    ],
)
def test_ordinary_lines_stay(running, text):
    running.write("a.log", text)
    assert running.texts() == []


def test_every_line_that_diagnosis_knows_leaves_the_node():
    data = tomllib.loads((Path(catalogues.__file__).parent / "nccl.toml").read_text())
    examples = [example for row in data["row"] for example in row["examples"]]
    assert len(examples) > 20
    assert [one for one in examples if log_patterns().match(one.encode()) is None] == []


def test_a_file_that_appears_later_is_read_from_its_beginning(running):
    running.write("b.log", WATCHDOG)
    assert running.texts(log_lines.DISCOVERY_SECONDS) == [WATCHDOG]


def test_a_line_that_is_not_finished_waits_for_its_end(running):
    running.write("a.log", WATCHDOG[:50], end="")
    assert running.texts() == []
    running.write("a.log", WATCHDOG[50:])
    assert running.texts() == [WATCHDOG]


def test_a_progress_bar_hides_no_line(running):
    running.write("a.log", "12%|###   |\r13%|###   |\r" + WATCHDOG)
    assert running.texts() == [WATCHDOG]


def test_a_rotated_file_is_read_to_its_end_and_the_new_one_from_its_beginning(running):
    running.write("a.log", WATCHDOG)
    (running.folder / "a.log").rename(running.folder / "a.log.1")
    running.write("a.log", WARNING)
    assert running.texts() + running.texts() == [WATCHDOG, WARNING]


def test_a_file_cut_short_is_read_from_its_beginning(running):
    running.write("a.log", WATCHDOG + " and much longer")
    assert len(running.texts()) == 1
    os.truncate(running.folder / "a.log", 0)
    running.write("a.log", WARNING)
    assert running.texts() == [WARNING]


def test_a_removed_file_is_forgotten_and_found_again(running):
    (running.folder / "a.log").unlink()
    running.turn()
    with pytest.raises(Absent):
        running.turn()
    running.write("a.log", WATCHDOG)
    assert running.texts(log_lines.DISCOVERY_SECONDS) == [WATCHDOG]


def test_lines_that_differ_in_numbers_only_are_counted_and_told_at_the_end(running):
    running.write("a.log", *[f"NCCL WARN Call to recv failed after {number} tries" for number in range(5)])
    facts, samples = running.turn()
    assert [fact.text for fact in facts] == ["NCCL WARN Call to recv failed after 0 tries"]
    assert samples["instep_log_lines_unsent_total", ()] == 4
    (fact,), _ = running.turn(log_lines.WINDOW_SECONDS)
    assert fact.fields["repeats"] == "4"
    assert running.texts(log_lines.WINDOW_SECONDS) == []


def test_the_same_line_of_two_ranks_is_two_facts(running):
    running.write("b.log", "nothing")
    running.turn(log_lines.DISCOVERY_SECONDS)
    running.write("a.log", WARNING)
    running.write("b.log", WARNING)
    assert sorted(fact.fields["file"] for fact in running.turn()[0]) == ["/var/log/job/a.log", "/var/log/job/b.log"]


def test_a_flood_of_different_lines_is_bounded(running, monkeypatch):
    monkeypatch.setattr(log_lines, "SENT_MAX", 10)
    words = [f"{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(300)]
    running.write("a.log", *[f"NCCL WARN {word}" for word in words])
    facts, samples = running.turn()
    assert len(facts) == 10
    assert samples["instep_log_lines_total", (("pattern", "nccl_warn"),)] == 300
    assert samples["instep_log_lines_unsent_total", ()] == 290


def test_of_a_file_that_grows_too_fast_only_the_newest_is_read(running, monkeypatch):
    monkeypatch.setattr(tail, "BACKLOG_BYTES_MAX", 4096)
    running.write("a.log", WARNING, *["x" * 99] * 1000, WATCHDOG)
    facts, samples = running.turn()
    assert [fact.text for fact in facts] == [WATCHDOG]
    assert samples["instep_log_skipped_bytes_total", ()] > 90_000


def test_a_turn_reads_no_more_than_its_bound_and_goes_on_with_the_next(running, monkeypatch):
    monkeypatch.setattr(log_lines, "FILE_BYTES_PER_TURN_MAX", 1 << 16)
    running.write("a.log", *["x" * 999] * 100, WATCHDOG)
    assert running.texts() == []
    assert running.texts() == [WATCHDOG]


def test_a_line_without_end_is_cut(running):
    line = "NCCL WARN " + "x" * 20_000
    running.write("a.log", line, WATCHDOG)
    first, second = running.texts()
    assert first == line[:LINE_BYTES_MAX]
    assert second == WATCHDOG


def test_a_line_that_grows_without_end_is_given_once(running):
    for _ in range(5):
        running.write("a.log", "NCCL WARN " + "y" * 5000, end="")
    texts = running.texts() + running.texts()
    running.write("a.log", "NCCL WARN its end")
    running.write("a.log", WATCHDOG)
    assert [len(text) for text in texts] == [LINE_BYTES_MAX]
    assert running.texts() == [WATCHDOG]


def test_links_and_pipes_are_not_read_and_said_to_be_unreadable(running, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(WATCHDOG + "\n")
    (running.folder / "link.log").symlink_to(secret)
    os.mkfifo(running.folder / "pipe.log")
    facts, samples = running.turn(log_lines.DISCOVERY_SECONDS)
    assert facts == []
    assert samples["instep_log_files_unreadable", ()] == 2
    (running.folder / "a.log").unlink()
    running.turn()
    with pytest.raises(SourceFailed, match="is no regular file"):
        running.turn()


@pytest.mark.skipif(os.geteuid() == 0, reason="Root may read every file.")
def test_a_file_that_may_not_be_read_is_a_failure(logs):
    logs.write("a.log", "x")
    (logs.folder / "a.log").chmod(0)
    with pytest.raises(SourceFailed, match=r"Cannot read the log file .*a\.log \(permission denied\)"):
        logs.turn()


def test_a_drill_says_so(running):
    running.write("a.log", WARNING + " instep-drill")
    assert running.turn()[0][0].is_drill


def test_the_number_of_files_is_bounded_to_the_newest(logs, monkeypatch):
    monkeypatch.setattr(log_lines, "FILES_MAX", 3)
    for number in range(6):
        logs.write(f"{number}.log", "x")
        os.utime(logs.folder / f"{number}.log", (number, number))
    assert logs.turn()[1]["instep_log_files", ()] == 3
    logs.write("0.log", WATCHDOG)
    logs.write("5.log", WARNING)
    assert logs.texts() == [WARNING]


@given(st.lists(st.binary(max_size=80), max_size=12), st.integers(1, 40))
def test_how_a_file_is_cut_into_reads_changes_nothing(pieces, size):
    data = b"\n".join([*pieces, b"NCCL WARN last"]) + b"\n"
    whole = list(log_lines._split(log_lines._Open(None), data))
    one = log_lines._Open(None)
    parts = [line for at in range(0, len(data), size) for line in log_lines._split(one, data[at : at + size])]
    matched = [line for line in whole if log_patterns().match(line)]
    assert matched[-1] == b"NCCL WARN last"
    assert [line for line in parts if log_patterns().match(line)] == matched


def test_no_pattern_can_be_made_to_try_for_long():
    data = log_patterns()
    expressions = [*data.prefixes, *(each for pattern in data.patterns for each in pattern.fields)]
    assert len(expressions) > 10
    for expression in expressions:
        bare = re.sub(r"\\.|\[[^\]]*\]", "", expression.pattern)
        assert not re.search(r"[+*]|\{\d+,\}", bare), f"{expression.pattern}: give each repetition its bound"
