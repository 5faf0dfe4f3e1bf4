"""Flight recorders on order: torch's own evidence server in a rank, and torch's pipe and file; nothing is trusted."""

import importlib.util
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.node import Node
from instep_agent.ranks import flight_recorder
from instep_agent.ranks.flight_recorder import RecorderFiles, newest_entries, recorder_of
from instep_agent.ranks.orders import take_dumps
from ranks_at_work import Ranks

DUMP = pickle.dumps({"version": "2.10", "entries": [{"collective_seq_id": 7}]})
ME = os.geteuid()


@pytest.fixture
def node(tmp_path):
    (tmp_path / "records/node-a/run/0").mkdir(parents=True)
    return Node("node-a", tmp_path, tmp_path / "records")


def ask(node, files=None, *, owner=ME, bytes_max=1 << 20):
    files = files or RecorderFiles(pipe_prefix="/tmp/pipe_", file_prefix="/tmp/dump_")
    return recorder_of(node, "run", 0, 3, owner=owner, files=files, bytes_max=bytes_max)


class Server:
    """Something that listens where a rank's evidence server would; `answer` is sent to every request."""

    def __init__(self, node, answer):
        self.requests = []
        self._listener = socket.socket(socket.AF_UNIX)
        here = os.open(node.record_root / "node-a/run/0", os.O_RDONLY)
        self._listener.bind(f"/proc/self/fd/{here}/3.sock")
        os.close(here)
        self._listener.listen()
        self._answer = answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(4096).split()[1].decode())
                self._answer(connection, self._stop)

    def close(self):
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def serve(node):
    servers = []

    def start(answer):
        servers.append(Server(node, answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def says(text, status="200 OK"):
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n"
    return lambda connection, _stop: connection.sendall((head + text).encode())


def test_a_rank_with_an_evidence_server_gives_its_recorder(node, serve):
    server = serve(says('{"entries": []}'))
    recorder = ask(node)
    assert (recorder.text, recorder.pickle, recorder.answers, recorder.missing) == ('{"entries": []}', b"", True, ())
    assert server.requests == ["/handler/dump_traceback", "/handler/fr_trace_json"]


def test_a_server_of_another_user_is_not_asked(node, serve):
    server = serve(says("{}"))
    recorder = ask(node, RecorderFiles(), owner=ME + 1)
    assert server.requests == []
    assert recorder.text == ""


def test_a_server_that_hangs_is_given_up_and_said_so(node, serve, monkeypatch):
    monkeypatch.setattr(flight_recorder, "ANSWER_SECONDS_MAX", 0.2)
    serve(lambda _connection, stop: stop.wait(20))
    recorder = ask(node)
    assert recorder.answers is False
    assert recorder.missing == ("The flight recorder did not answer (timed out).",)


def test_a_server_that_answers_byte_by_byte_is_given_up(node, serve, monkeypatch):
    monkeypatch.setattr(flight_recorder, "ANSWER_SECONDS_MAX", 0.3)

    def drip(connection, stop):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            while not stop.wait(0.02):
                connection.sendall(b"x")
        except OSError:
            return

    serve(drip)
    assert ask(node).missing == ("The flight recorder did not answer (timed out).",)


def test_a_server_that_refuses_is_said_so(node, serve):
    serve(says("", "500 Broken"))
    recorder = ask(node)
    assert recorder.answers is False
    assert recorder.missing == ("The flight recorder did not answer (handler fr_trace_json answered 500).",)


def test_of_a_large_recorder_the_newest_entries_are_kept(node, serve):
    whole = json.dumps({"version": "2.10", "entries": [{"collective_seq_id": seq} for seq in range(1000)]})
    serve(says(whole))
    recorder = ask(node, bytes_max=10_000)
    kept = [entry["collective_seq_id"] for entry in json.loads(recorder.text)["entries"]]
    assert kept[-1] == 999
    assert len(recorder.text) <= 10_000
    assert recorder.missing == (
        f"The flight recorder was too large: only its newest {len(kept)} of 1000 entries are here.",
    )


@given(st.lists(st.integers(), max_size=60), st.integers(40, 2000))
def test_what_is_kept_is_the_end_of_the_recorder_and_fits(entries, bytes_max):
    text, missing = newest_entries(json.dumps({"version": "2.10", "entries": entries}), bytes_max)
    kept = json.loads(text)["entries"] if text else []
    assert len(text) <= bytes_max
    assert kept == entries[len(entries) - len(kept) :]
    assert bool(missing) == (kept != entries)


@pytest.mark.parametrize("text", ["x" * 100, '"' + "y" * 100 + '"', '{"entries": 3, "z": "' + "z" * 99 + '"}'])
def test_a_large_answer_that_is_no_recorder_is_left_out(text):
    assert newest_entries(text, 50)[0] == ""


class Torch:
    """What torch does with its pipe: waits for a byte, and then writes its dump."""

    def __init__(self, root, data=DUMP):
        (root / "tmp").mkdir()
        self.dump = root / "tmp/dump_3"
        os.mkfifo(root / "tmp/pipe_3.pipe")
        self._pipe = os.open(root / "tmp/pipe_3.pipe", os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self._pipe, True)
        self._data = data
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._writer = os.open(root / "tmp/pipe_3.pipe", os.O_WRONLY)
        self._thread.start()

    def _run(self):
        if os.read(self._pipe, 1) == b"1":
            self.dump.write_bytes(self._data[:5])
            self.dump.write_bytes(self._data)

    def close(self):
        os.write(self._writer, b"0")
        self._thread.join(10)
        os.close(self._writer)
        os.close(self._pipe)


def test_a_rank_of_a_foreign_job_dumps_through_torchs_pipe(node, monkeypatch):
    monkeypatch.setattr(flight_recorder, "DUMP_SECONDS_MAX", 20.0)
    torch = Torch(node.root)
    recorder = ask(node)
    torch.close()
    assert (recorder.pickle, recorder.text, recorder.answers, recorder.missing) == (DUMP, "", None, ())


def test_an_older_dump_is_given_and_told_as_such(node, monkeypatch):
    monkeypatch.setattr(flight_recorder, "DUMP_SECONDS_MAX", 0.1)
    (node.root / "tmp").mkdir()
    (node.root / "tmp/dump_3").write_bytes(DUMP)
    recorder = ask(node)
    assert recorder.pickle == DUMP
    assert "There is no pipe" in recorder.missing[0]
    assert "s before it was asked for" in recorder.missing[1]
    alone = ask(node, RecorderFiles(file_prefix="/tmp/dump_"))
    assert [sentence[:35] for sentence in alone.missing] == ["The flight recorder of rank 3 was w"]


def test_a_pipe_that_nobody_reads_is_said_so(node):
    (node.root / "tmp").mkdir()
    os.mkfifo(node.root / "tmp/pipe_3.pipe")
    recorder = ask(node)
    assert recorder.pickle == b""
    assert "Nobody takes orders from" in recorder.missing[0]
    assert "There is no flight recorder in" in recorder.missing[1]


def test_a_rank_that_does_not_dump_in_time_is_said_so(node, monkeypatch):
    monkeypatch.setattr(flight_recorder, "DUMP_SECONDS_MAX", 0.1)
    torch = Torch(node.root, data=b"\x80nothing whole")
    recorder = ask(node)
    torch.close()
    assert recorder.pickle == b""
    assert "within 0.1 s of the order" in recorder.missing[0]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"", "is no whole dump"), (b"{}", "is no whole dump"), (DUMP[:-1], "is no whole dump"), (DUMP * 99, "fetch /")],
)
def test_what_is_no_dump_or_too_large_is_not_handed_on(node, data, sentence):
    (node.root / "tmp").mkdir()
    (node.root / "tmp/dump_3").write_bytes(data)
    recorder = ask(node, RecorderFiles(file_prefix="/tmp/dump_"), bytes_max=2000)
    assert recorder.pickle == b""
    assert sentence in recorder.missing[-1]


def test_links_and_files_of_others_are_not_taken_for_a_dump(node):
    (node.root / "tmp").mkdir()
    secret = node.root / "secret"
    secret.write_bytes(DUMP)
    (node.root / "tmp/dump_3").symlink_to(secret)
    files = RecorderFiles(file_prefix="/tmp/dump_")
    assert ask(node, files).pickle == b""
    (node.root / "tmp/dump_3").unlink()
    secret.rename(node.root / "tmp/dump_3")
    assert ask(node, files).pickle == DUMP
    assert "no regular file of the rank's user" in ask(node, files, owner=ME + 1).missing[0]


def test_without_server_and_files_it_says_what_to_set(node):
    assert "flight_recorder_file_prefix is not set" in ask(node, RecorderFiles()).missing[0]


def test_an_order_brings_the_dump_of_a_rank_at_work(tmp_path):
    ranks = Ranks()
    try:
        ranks.start(tmp_path)
        (tmp_path / "dump_0").write_bytes(DUMP)
        node = Node("node-a", tmp_path, tmp_path, Path("/proc"))
        (dump,) = take_dumps(node, "run", 0, RecorderFiles(file_prefix="/dump_"))
        assert dump.flight_recorder_pickle == DUMP
    finally:
        ranks.close()


_RANK = """
import sys
sys.path[:0] = sys.argv[1:2]
import torch, torch.distributed as dist, torch.distributed.debug._handlers
from made_records import new_writer
from instep_agent.rank_record import Phase
writer = new_writer(sys.argv[2], 0)
writer.heartbeat(1, 0, Phase.forward)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for _ in range(3):
    dist.all_reduce(torch.ones(2))
server = torch._C._distributed_c10d._WorkerServer(str(writer.path) + ".sock", -1)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="Needs torch: its own server is asked.")
def test_a_real_gloo_rank_gives_what_torch_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(flight_recorder, "ANSWER_SECONDS_MAX", 20.0)
    here = str(Path(__file__).parent / "rank_record")
    command = [sys.executable, "-c", _RANK, here, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        (dump,) = take_dumps(Node("node-a", record_root=tmp_path), "run", 0)
        process.kill()
    assert dump.answers is True
    assert dump.missing == ()
    entries = json.loads(dump.flight_recorder)["entries"]
    assert [entry["profiling_name"] for entry in entries][-3:] == ["gloo:all_reduce"] * 3
