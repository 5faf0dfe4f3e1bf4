"""The uplink against a real HTTP server: nothing acknowledged is lost, and what the server says is obeyed."""

import threading
import time

import msgspec
import pytest
from ingest_server import DEADLINE_SECONDS, IngestServer
from instep_agent.columns import column_of
from instep_agent.errors import ConfigurationInvalid
from instep_agent.node import Fact, Node
from instep_agent.uplink.connection import REQUEST_TIMEOUT_SECONDS
from instep_agent.uplink.frames import FrameBuilder, Tick, make_dictionary
from instep_agent.uplink.sender import Uplink
from instep_agent.uplink.spool import Spool
from instep_agent.wire import Sample

SAMPLE = Sample(name="instep_host_load1", labels=(), value=1.5)


@pytest.fixture
def server():
    server = IngestServer()
    yield server
    server.close()


@pytest.fixture
def started(tmp_path):
    """Starts uplinks and closes them."""
    uplinks = []

    def start(url, token="secret", folder=tmp_path / "spool", **bounds):
        uplink = Uplink(url, lambda: token, Spool(folder, **bounds), random_unit=lambda: 0.0)
        uplink.start()
        uplinks.append(uplink)
        return uplink

    yield start
    for uplink in uplinks:
        uplink.close()


class Agent:
    """Makes frames as the agent does."""

    def __init__(self):
        self.builder = FrameBuilder(Node("node-a"))

    def put(self, uplink, *texts, samples=(SAMPLE,)):
        facts = [Fact("kernel_line", text, time.monotonic_ns(), time.time_ns()) for text in texts]
        frame = self.builder.build(Tick(facts=facts), [column_of(samples)])
        uplink.put(frame, self.builder.dictionary)
        return frame


def sequences(server):
    return [frame.sequence for frame in server.frames]


def test_sends_the_dictionary_when_the_server_does_not_know_it(server, started):
    agent, uplink = Agent(), started(server.url)
    agent.put(uplink)
    agent.put(uplink)
    server.wait_for(lambda it: len(it.frames) == 2)
    assert server.requests == ["/ingest/v1/frames", "/ingest/v1/dictionary", *["/ingest/v1/frames"] * 2]
    assert server.dictionaries[server.frames[0].dictionary_hash].series == (("instep_host_load1", ()),)
    assert server.frames[0].values == b"\x00\x00\x00\x00\x00\x00\xf8?"


def test_new_series_make_a_new_dictionary(server, started):
    agent, uplink = Agent(), started(server.url)
    agent.put(uplink)
    agent.put(uplink, samples=(SAMPLE, Sample(name="instep_x_bytes", labels=(("port", "1"),), value=2.0)))
    server.wait_for(lambda it: len(it.frames) == 2)
    assert len(server.dictionaries) == 2


def test_frames_made_while_the_server_is_away_arrive_in_order_when_it_is_back(started):
    first = IngestServer()
    agent, uplink = Agent(), started(first.url)
    agent.put(uplink)
    first.wait_for(lambda it: len(it.frames) == 1)
    first.close()
    for number in range(5):
        agent.put(uplink, f"event {number}")
    second = IngestServer(first.port)
    try:
        second.wait_for(lambda it: len(it.frames) >= 5)
        assert sequences(second) == [2, 3, 4, 5, 6], "and the new server was told the dictionary anew"
    finally:
        second.close()


def test_frames_outlive_the_agent(server, started, tmp_path):
    spool = Spool(tmp_path / "kept")
    early = Uplink(server.url, lambda: "secret", spool)  # never started: the agent was killed
    agent = Agent()
    for number in range(3):
        agent.put(early, f"event {number}")
    started(server.url, folder=tmp_path / "kept")
    server.wait_for(lambda it: len(it.frames) == 3)
    assert [event.text for frame in server.frames for event in frame.events] == ["event 0", "event 1", "event 2"]


@pytest.mark.parametrize("status", [429, 500, 503, 426, 404])
def test_an_answer_that_asks_to_come_again_loses_nothing(server, started, status):
    server.answers = [status, status]
    agent, uplink = Agent(), started(server.url)
    agent.put(uplink)
    server.wait_for(lambda it: it.frames)
    assert uplink.failures_total == 2
    assert uplink.refused_total == 0


def test_a_frame_refused_for_good_does_not_block_the_next(server, started, caplog):
    server.answers = [413]
    agent, uplink = Agent(), started(server.url)
    agent.put(uplink)
    agent.put(uplink)
    server.wait_for(lambda it: it.frames)
    assert sequences(server) == [2]
    assert uplink.refused_total == 1
    assert "413: As told." in caplog.text


def test_a_wrong_token_at_the_first_answer_is_told_apart(server, started, caplog):
    agent, uplink = Agent(), started(server.url, token="wrong")
    agent.put(uplink)
    assert uplink.refused_at_start.wait(DEADLINE_SECONDS)
    assert server.frames == []


def test_a_token_that_becomes_wrong_is_tried_again(server, started, caplog):
    agent, uplink = Agent(), started(server.url)
    agent.put(uplink)
    server.wait_for(lambda it: it.frames)
    server.token = "changed"
    agent.put(uplink)
    server.wait_for(lambda it: len(it.requests) >= 6)
    assert "does not accept the agent's token (The token is not known.)" in caplog.text
    server.token = "secret"
    server.wait_for(lambda it: len(it.frames) == 2)
    assert not uplink.refused_at_start.is_set()


def test_closing_does_not_wait_for_a_server_that_never_answers(started):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        uplink = started(f"http://127.0.0.1:{silent.getsockname()[1]}")
        Agent().put(uplink)
        connection, _ = silent.accept()
        before = time.monotonic()
        uplink.close()
        assert time.monotonic() - before < REQUEST_TIMEOUT_SECONDS, "it was not waited for"
        connection.close()


def test_putting_never_waits_for_a_server_that_never_answers(started):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        uplink, agent, put = started(f"http://127.0.0.1:{silent.getsockname()[1]}"), Agent(), threading.Event()

        def put_many():
            for _ in range(50):
                agent.put(uplink)
            put.set()

        threading.Thread(target=put_many, daemon=True).start()
        assert put.wait(4.0), "less than one request's time limit"


@pytest.mark.parametrize("url", ["", "server:8000", "ftp://server", "http://"])
def test_a_url_that_is_none_is_refused(tmp_path, url):
    with pytest.raises(ConfigurationInvalid, match="use http://HOST:PORT"):
        Uplink(url, lambda: "t", Spool(tmp_path))


def test_equal_series_have_equal_hashes():
    series = (("a_bytes", (("port", "1"),)),)
    assert make_dictionary(series).hash == make_dictionary(series).hash != make_dictionary(()).hash
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(make_dictionary(series)))["series"] == [
        ["a_bytes", [["port", "1"]]]
    ]
