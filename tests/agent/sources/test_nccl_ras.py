"""NCCL RAS over real sockets: both formats, what counts as news, and services that misbehave."""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.errors import Absent, SourceFailed
from instep_agent.nccl import ras_client
from instep_agent.nccl.ras_answer import Place
from instep_agent.nccl.ras_json import parse_json
from instep_agent.nccl.ras_text import parse_text
from instep_agent.network.namespaces import Network, inside, networks_of_ranks
from instep_agent.node import Node
from instep_agent.sources import nccl_ras
from instep_agent.sources.nccl_ras import NcclRas
from instep_agent.wire import Sample
from made_nodes import Clock, node_at
from ras_peer import TEXT_HEALTHY, TEXT_TROUBLED, RasPeer, communicator, document, missing, rank

NAME = "00009a8b7c6d5e4f"
NOT_OURS = "192.0.2.7"
"""An address for documentation: no machine has it."""


class Asking:
    """A source and the clock of its node."""

    def __init__(self, root, *peers):
        self.clock = Clock()
        self.node = node_at(root, self.clock)
        self.source = NcclRas([peer.address for peer in peers])

    def turn(self, after_seconds=10.0):
        """Give samples by name and labels, and the facts of one turn."""
        self.clock.seconds += after_seconds
        readings = list(self.source.collect(self.node))
        samples = [one for one in readings if isinstance(one, Sample)]
        facts = [one for one in readings if not isinstance(one, Sample)]
        return {(one.name, one.labels): one.value for one in samples}, facts

    def facts(self, after_seconds=10.0):
        return [(fact.kind, fact.fields) for fact in self.turn(after_seconds)[1]]


@pytest.fixture
def peer():
    peer = RasPeer()
    yield peer
    peer.close()


@pytest.fixture
def old_peer():
    peer = RasPeer(knows_json=False)
    peer.answer = TEXT_HEALTHY
    yield peer
    peer.close()


@pytest.fixture
def asking(peer, tmp_path):
    return Asking(tmp_path, peer)


def value(samples, name, **labels):
    return samples.get((f"instep_nccl_{name}", tuple(sorted(labels.items()))))


def test_is_absent_when_nothing_listens(peer, tmp_path):
    asking = Asking(tmp_path, peer)
    peer.close()
    with pytest.raises(Absent, match="No NCCL RAS service listens"):
        asking.turn()


def test_a_healthy_job_gives_samples_and_no_facts(peer, asking):
    ranks = [rank(number) for number in range(4)]
    peer.answer = document(communicator(ranks), communicator(ranks[:2], name="0xff"))
    samples, facts = asking.turn()
    assert facts == []
    assert value(samples, "ras_communicators", status="running") == 2
    assert value(samples, "ras_ranks_missing", kind="dead") == 0
    assert value(samples, "ras_ranks_in_error") == 0
    assert value(samples, "ras_collection_seconds") == 0.25
    assert value(samples, "communicator_ranks", communicator=NAME, state="running") == 4
    assert value(samples, "communicator_launches_min", communicator=NAME, op="AllReduce") == 100
    assert value(samples, "communicator_launches_max", communicator=NAME, op="AllReduce") == 100
    assert value(samples, "communicator_launches_max", communicator=NAME, op="Broadcast") is None
    assert {name for name, _ in samples} <= {metric.name for metric in NcclRas.metrics}
    assert peer.heard == ["CLIENT PROTOCOL 2", "TIMEOUT 3", "SET FORMAT json", "VERBOSE STATUS"]


def test_a_dead_rank_is_told_once_and_again_when_it_is_back(peer, asking):
    peer.answer = document(communicator([rank(0), rank(1)], [missing(2, dead=True)]), timeouts=1)
    samples, (fact,) = asking.turn()
    assert fact.kind == "nccl_rank_dead"
    assert fact.text == f"NCCL RAS considers Rank 2 of communicator {NAME} on 127.0.0.1, GPU 2 dead."
    place = {"host": "127.0.0.1", "gpu": "2", "pid": "1002"}
    assert fact.fields == {"communicator": NAME, "communicator_rank": "2"} | place
    assert value(samples, "ras_ranks_missing", kind="dead") == 1
    assert value(samples, "communicator_ranks", communicator=NAME, state="missing") == 1
    assert value(samples, "ras_timeouts") == 1
    assert asking.facts() == []
    peer.answer = document(communicator([rank(0), rank(1), rank(2)]))
    assert asking.facts() == [("nccl_rank_back", {"communicator": NAME, "communicator_rank": "2"})]
    assert asking.facts() == []


def test_an_unresponsive_rank_is_told_at_once(peer, asking):
    peer.answer = document(communicator([rank(0)], [missing(1)]))
    ((kind, fields),) = asking.facts()
    assert (kind, fields["communicator_rank"]) == ("nccl_rank_unresponsive", "1")


@pytest.mark.parametrize(
    ("status", "words"),
    [({"error": 6}, "remote process error"), ({"init": 2}, "system error"), ({"error": 42}, "ncclResult 42")],
)
def test_an_error_of_a_rank_is_told_in_nccls_words(peer, asking, status, words):
    peer.answer = document(communicator([rank(0), rank(1, **status)]))
    samples, (fact,) = asking.turn()
    assert (fact.kind, fact.fields["error"], fact.fields["communicator_rank"]) == ("nccl_rank_error", words, "1")
    assert value(samples, "ras_ranks_in_error") == 1


def test_a_rank_that_is_still_initialising_is_no_error(peer, asking):
    peer.answer = document(communicator([rank(0), rank(1, init=7, error=7)]))
    samples, facts = asking.turn()
    assert facts == []
    assert value(samples, "ras_communicators", status="running") == 1
    assert value(samples, "communicator_ranks", communicator=NAME, state="init") == 1


def test_launches_that_differ_once_are_normal(peer, asking):
    peer.answer = document(communicator([rank(0, launches=101), rank(1, launches=100)]))
    samples, facts = asking.turn()
    assert facts == []
    assert value(samples, "communicator_launches_min", communicator=NAME, op="AllReduce") == 100
    peer.answer = document(communicator([rank(0, launches=201), rank(1, launches=200)]))
    assert asking.facts() == []
    peer.answer = document(communicator([rank(0, launches=301), rank(1, launches=301)]))
    assert asking.facts() == []


def test_launches_that_differ_unchanged_name_who_is_behind(peer, asking):
    peer.answer = document(communicator([rank(0, launches=101), rank(1, launches=99), rank(2, launches=100)]))
    assert asking.facts() == []
    (fact,) = asking.facts()
    assert fact == (
        "nccl_launches_differ",
        {
            "communicator": NAME,
            "op": "AllReduce",
            "launches_min": "99",
            "launches_max": "101",
            "behind_count": "2",
            "communicator_ranks": "1,2",
            "places": "127.0.0.1/1,127.0.0.1/2",
            "seconds": "10.0",
        },
    )
    assert asking.facts() == []


def test_a_rank_that_left_its_communicator_counts_when_it_is_so_twice(peer, asking):
    peer.answer = document(communicator([rank(0)], [missing(1, unresponsive=False)]))
    assert asking.facts() == []
    assert [kind for kind, _ in asking.facts()] == ["nccl_rank_left"]


def test_two_jobs_that_share_a_port_are_told_apart_by_their_communicators(peer, asking):
    stuck = document(communicator([rank(0, launches=5), rank(1, launches=4)]))
    other = document(communicator([rank(0), rank(1)], name="0xbeef"))
    peer.answer = stuck
    assert asking.facts() == []
    peer.answer = other
    assert asking.facts() == []
    peer.answer = stuck
    assert [(kind, fields["seconds"]) for kind, fields in asking.facts()] == [("nccl_launches_differ", "20.0")]


def test_what_is_known_is_handed_on_and_not_told_again(peer, asking):
    peer.answer = document(communicator([rank(0), rank(2)], [missing(1, dead=True)]))
    assert [kind for kind, _ in asking.facts()] == ["nccl_rank_dead"]
    memory = asking.source.memory()
    asking.source = NcclRas([peer.address])
    asking.source.recall(memory)
    assert asking.facts() == []
    assert asking.source.rest_seconds == 0.0


def test_the_node_of_another_rank_0_keeps_quiet_and_looks_again_later(peer, asking):
    troubled = [missing(1, host=NOT_OURS, dead=True)]
    peer.answer = document(communicator([rank(0, host=NOT_OURS), rank(2)], troubled))
    samples, facts = asking.turn()
    assert facts == []
    assert {name for name, _ in samples} == {"instep_nccl_ras_networks_unseen", "instep_nccl_ras_unanswered"}
    heard = len(peer.heard)
    assert asking.turn() == ({}, [])
    assert len(peer.heard) == heard, "it is not asked again so soon"
    peer.answer = document(communicator([rank(2)], [missing(0, host=NOT_OURS, dead=True), *troubled]))
    assert [kind for kind, _ in asking.facts(nccl_ras.QUIET_SECONDS)] == ["nccl_rank_dead", "nccl_rank_dead"]


def test_the_largest_communicators_have_samples_and_all_are_counted(peer, asking):
    peer.answer = document(
        *(communicator([rank(0)], name=hex(number)) for number in range(1, 60)), communicator([rank(0), rank(1)])
    )
    samples, _ = asking.turn()
    named = {dict(labels)["communicator"] for name, labels in samples if name == "instep_nccl_communicator_ranks"}
    assert len(named) == nccl_ras.COMMUNICATORS_MAX
    assert NAME in named
    assert value(samples, "ras_communicators", status="running") == 60


def test_facts_of_one_turn_are_bounded(peer, asking):
    lost = [missing(number, dead=True) for number in range(1, 200)]
    peer.answer = document(communicator([rank(0)], lost))
    samples, facts = asking.turn()
    assert len(facts) == nccl_ras.FACTS_MAX
    assert value(samples, "ras_ranks_missing", kind="dead") == 199


def test_an_old_service_is_read_as_text(old_peer, tmp_path):
    asking = Asking(tmp_path, old_peer)
    samples, facts = asking.turn()
    assert facts == []
    assert value(samples, "ras_communicators", status="running") == 9
    assert value(samples, "ras_collection_seconds") == 0.12
    assert asking.turn() == ({}, []), "all nodes ask an old service, so each does it less often"
    old_peer.answer = TEXT_TROUBLED
    _, facts = asking.turn(nccl_ras.TEXT_QUIET_SECONDS)
    assert sorted(fact.kind for fact in facts) == [
        "nccl_rank_dead",
        "nccl_rank_error",
        "nccl_rank_unresponsive",
        "nccl_rank_unresponsive",
    ]
    assert [kind for kind, _ in asking.facts(nccl_ras.TEXT_QUIET_SECONDS)] == ["nccl_launches_differ"]


def test_text_tells_places_errors_and_launches():
    answer = parse_text(TEXT_TROUBLED)
    assert (answer.nccl_version, answer.timeouts, answer.collection_seconds) == ("2.26.2", 2, 5.02)
    assert answer.communicators_by_state == {"running": 1, "finalize": 2}
    found = {(one.kind, one.communicator, one.place, one.error) for one in answer.troubles}
    assert found == {
        ("unresponsive", "", Place(-1, "10.0.0.21", 5, 3487984), ""),
        ("dead", "", Place(-1, "10.0.0.22", 6, 3487999), ""),
        ("unresponsive", NAME, Place(13, "10.0.0.21", 5, 3487984), ""),
        ("error", "0000000000abcdef", Place(2, "10.0.0.23", 4, 77), "system error"),
    }
    (lag,) = answer.lags
    assert (lag.communicator, lag.op, lag.launches_min, lag.launches_max) == (NAME, "AllReduce", 0, 650)
    assert [place.rank for place in lag.behind] == [4, 3]


def test_text_names_ranks_below_what_it_says_of_all_of_them():
    body = TEXT_HEALTHY + (
        b"#0-0 (00009a8b7c6d5e4f) MISMATCH\n"
        b"  Communicator ranks have different collective operation counts\n"
        b"  26 ranks have launched up to operation 6650\n"
        b"  2 ranks have launched up to operation 6649\n"
        b"  Rank 6 -- GPU 6 managed by process 11 on node 10.0.0.20\n"
        b"  Rank 7 -- [process information not found]\n"
        b"  Communicator ranks have different status\n"
        b"  Rank 9 has status NOCOMM -- GPU 1 managed by process 12 on node 10.0.0.21\n"
    )
    answer = parse_text(body)
    (lag,) = answer.lags
    assert (lag.op, lag.launches_min, lag.launches_max) == ("collective", 6649, 6650)
    assert lag.behind == (Place(6, "10.0.0.20", 6, 11), Place(7))
    assert [(one.kind, one.place.rank) for one in answer.troubles] == [("left", 9)]


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("close", "closed the connection before"),
        ("garbage", "is not NCCL RAS"),
        ("nothing", "closed the connection before"),
        ("half", "JSON of NCCL RAS could not be understood"),
    ],
)
def test_a_service_that_misbehaves_is_a_failure_and_the_next_turn_is_fine(peer, asking, behaviour, sentence):
    peer.behaviour = behaviour
    with pytest.raises(SourceFailed, match=sentence):
        asking.turn()
    peer.behaviour = "well"
    assert value(asking.turn()[0], "ras_communicators", status="running") == 1


@pytest.mark.parametrize("behaviour", ["hang", "drip"])
def test_a_service_that_hangs_is_given_up(peer, asking, behaviour, monkeypatch):
    monkeypatch.setattr(nccl_ras, "ONE_SECONDS_MAX", 0.3)
    peer.behaviour = behaviour
    with pytest.raises(SourceFailed, match="did not finish its answer in time"):
        asking.turn()


def test_a_service_that_never_stops_talking_is_cut_off(peer):
    peer.behaviour = "flood"
    address = ras_client.parse_address(peer.address)
    with pytest.raises(SourceFailed, match="said more than 1000000 bytes"):
        ras_client.ask(address, until_seconds=time.monotonic() + 30, bytes_max=1_000_000)
    assert peer.sent_bytes < 100 << 20


def test_one_service_that_hangs_hides_no_other(peer, tmp_path, monkeypatch):
    monkeypatch.setattr(nccl_ras, "ONE_SECONDS_MAX", 1.5)
    stuck = RasPeer()
    stuck.behaviour = "hang"
    samples, _ = Asking(tmp_path, stuck, peer).turn()
    stuck.close()
    assert value(samples, "ras_communicators", status="running") == 1
    assert value(samples, "ras_unanswered") == 1


@pytest.mark.parametrize("text", ["", "localhost", "localhost:", ":28028", "localhost:0", "localhost:70000", "a:b"])
def test_an_address_that_is_none_is_refused_with_a_sentence(text):
    with pytest.raises(ValueError, match="is no address of NCCL RAS: write HOST:PORT"):
        NcclRas([text])


@given(st.binary(max_size=400))
def test_no_bytes_break_the_readers(body):
    for parse in (parse_json, parse_text):
        for whole in (body, TEXT_TROUBLED[:900] + body, document(communicator([rank(0)]))[:300] + body):
            try:
                parse(whole)
            except SourceFailed as error:
                assert str(error).endswith(".")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_ranks_changes_nothing(launches, random):
    ranks = [rank(number, launches=count) for number, count in enumerate(launches)]
    answer = parse_json(document(communicator(ranks)))
    random.shuffle(ranks)
    assert parse_json(document(communicator(ranks))) == answer
    assert bool(answer.lags) == (len(set(launches)) > 1)


_LISTENER = """
import socket, sys, ctypes
if ctypes.CDLL(None).unshare(0x40000000): sys.exit("no")
import fcntl, struct
probe = socket.socket()
fcntl.ioctl(probe, 0x8914, struct.pack("16sH14s", b"lo", 0x49, b""))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    lines = connection.makefile("rb")
    for line in lines:
        if b"STATUS" in line:
            connection.sendall(sys.argv[2].encode())
            break
        connection.sendall(b"SERVER PROTOCOL 2\\n" if b"CLIENT" in line else b"OK\\n")
    lines.close()
    connection.close()
"""


def test_a_rank_in_another_network_is_asked_from_within(peer, tmp_path, monkeypatch):
    answer = document(communicator([rank(0), rank(1)], [missing(2, dead=True)])).decode()
    port = peer.address.partition(":")[2]
    peer.close()
    command = [sys.executable, "-c", _LISTENER, port, answer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if process.stdout.readline() != b"ready\n":
            pytest.skip("Making a network namespace needs CAP_SYS_ADMIN.")
        path = f"/proc/{process.pid}/ns/net"
        network = Network("rank 0 of run r", path, os.stat(path).st_ino)
        monkeypatch.setattr(nccl_ras, "networks_of_ranks", lambda _node: (network,))
        home = os.stat("/proc/self/ns/net").st_ino
        samples, facts = Asking(tmp_path, peer).turn()
        assert os.stat("/proc/self/ns/net").st_ino == home
        process.kill()
    assert [fact.kind for fact in facts] == ["nccl_rank_dead"]
    assert value(samples, "ras_networks_unseen") == 0


_RANK = """
import ctypes, sys
sys.path[:0] = sys.argv[1:2]
if sys.argv[3] == "elsewhere" and ctypes.CDLL(None).unshare(0x40000000): sys.exit("no")
from made_records import new_writer
from instep_agent.rank_record import Phase
writer = new_writer(sys.argv[2], gpu=sys.argv[4])
writer.heartbeat(1, 0, Phase.forward)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("where", "gpu", "found"), [("elsewhere", "0", 1), ("here", "0", 0), ("elsewhere", "", 0)])
def test_the_networks_of_ranks_with_a_gpu_are_found_through_their_records(tmp_path, where, gpu, found):
    command = [sys.executable, "-c", _RANK, str(Path(__file__).parents[1] / "rank_record"), str(tmp_path), where, gpu]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if process.stdout.readline() != b"ready\n":
            pytest.skip("Making a network namespace needs CAP_SYS_ADMIN.")
        networks = networks_of_ranks(Node("node-a", record_root=tmp_path))
        inode = os.stat(f"/proc/{process.pid}/ns/net").st_ino
        process.kill()
    assert [(one.rank, one.inode) for one in networks] == [("rank 0 of run run", inode)] * found


def test_a_network_that_cannot_be_told_is_a_failure_with_the_right_that_is_missing(peer, tmp_path, monkeypatch):
    monkeypatch.setattr(nccl_ras, "networks_of_ranks", lambda _node: (Network("rank 0 of run r", "", 0),))
    samples, _ = Asking(tmp_path, peer).turn()
    assert value(samples, "ras_networks_unseen") == 1, "what answers here is still reported"
    peer.close()
    with pytest.raises(SourceFailed, match=r"in which network rank 0 of run r is: give the agent CAP_SYS_ADMIN"):
        Asking(tmp_path, peer).turn()


def test_a_network_without_the_right_to_enter_is_a_failure(monkeypatch):
    class Libc:
        def setns(self, *_):
            ctypes.set_errno(1)
            return -1

    monkeypatch.setattr("instep_agent.network.namespaces.ctypes.CDLL", lambda *_, **__: Libc())
    network = Network("rank 0", "/proc/self/ns/net", os.stat("/proc/self/ns/net").st_ino)
    with (
        pytest.raises(SourceFailed, match=r"Cannot enter the network of rank 0 \(operation not permitted\)"),
        inside(network),
    ):
        pytest.fail("never inside")


def agent(tmp_path, settings):
    """Run `instep agent --once --json` with these settings; give its exit code, output and talk."""
    config = tmp_path / "agent.toml"
    config.write_text(settings)
    program = "import sys; from instep_agent.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["--config", str(config), "--node", "node-a", "--root", str(tmp_path), "--once", "--json"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_the_agent_asks_the_addresses_and_reads_the_files_of_its_configuration(peer, tmp_path):
    (tmp_path / "rank.log").write_text("nothing yet\n")
    peer.answer = document(communicator([rank(0)], [missing(1, dead=True)]))
    code, seen, _ = agent(tmp_path, f'nccl_ras_addresses = ["{peer.address}"]\nlog_files = ["/rank*.log"]\n')
    assert code == 0
    sources = json.loads(seen)["sources"]
    assert [sources[name]["outcome"] for name in ("nccl_ras", "log_lines")] == ["ok", "ok"]
    kinds = [event["kind"] for event in json.loads(seen)["events"]]
    assert [kind for kind in kinds if kind.startswith("nccl")] == ["nccl_rank_dead"]


def test_with_no_addresses_nobody_is_asked_and_no_process_is_needed(tmp_path):
    with pytest.raises(Absent, match="nccl_ras_addresses is empty"):
        Asking(tmp_path).turn()
    assert NcclRas([]).child == ""


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ('nccl_ras_addresses = ["localhost"]', "'localhost' is no address of NCCL RAS"),
        ('log_files = ["rank.log"]', "log_files"),
    ],
)
def test_wrong_settings_end_the_agent_with_a_sentence(tmp_path, settings, sentence):
    code, _, said = agent(tmp_path, settings)
    assert code == 2
    assert sentence in said
    assert "Traceback" not in said
