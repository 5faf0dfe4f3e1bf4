"""A receiver that answers oddly is one failed delivery with a sentence: nothing is lost, and no secret is told."""

import http.server
import threading
from contextlib import contextmanager

import pytest
from instep_collector.store import incidents
from instep_remediation.alerts import alertmanager, webhook
from instep_remediation.errors import DeliveryError

from tests.remediation.alerts.test_alertmanager import ADDRESS, Receiver, attach, crash
from tests.remediation.bench import play, server
from tests.remediation.fake_job import FakeJob


@contextmanager
def receiver(answer):
    """A real HTTP server that answers with these bytes; gives its address and the requests that it took."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.command, self.path, self.headers["Authorization"]))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(answer)
            self.close_connection = True

        def do_GET(self):
            asked.append((self.command, self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", asked
        finally:
            running.shutdown()
            thread.join()


def deliver(way, address):
    if way == "alertmanager":
        alertmanager.post(address, "token-of-the-receiver", [{}])
    else:
        webhook.post(address, "key", {})


WAYS = pytest.mark.parametrize("way", ["alertmanager", "webhook"])


@WAYS
@pytest.mark.parametrize("answer", [b"\x15\x03\x01\x00\x02\x02", b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_what_is_no_http_is_a_failed_delivery(way, answer):
    with receiver(answer) as (address, _asked), pytest.raises(DeliveryError):
        deliver(way, address)


@WAYS
def test_a_way_to_a_login_page_is_no_delivery_and_takes_no_token_along(way):
    answer = b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"
    with receiver(answer) as (address, asked):
        with pytest.raises(DeliveryError, match="302"):
            deliver(way, address)
        assert [method for method, *_ in asked] == ["POST"]


@WAYS
def test_an_answer_of_200_is_a_delivery(way):
    with receiver(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (address, asked):
        deliver(way, address)
        assert len(asked) == 1


@pytest.mark.parametrize("text", [b"first-secret\nsecond-secret\n", b"secret-\xff\xfe"])
def test_a_token_file_that_holds_no_token_is_a_sentence_without_the_secret(tmp_path, caplog, text):
    async def story():
        file = tmp_path / "am-token"
        file.write_bytes(text)
        async with server(tmp_path, alertmanager=(ADDRESS,), alertmanager_token_file=file) as bench:
            taken, job = Receiver(), FakeJob()
            alerts = attach(bench, taken)
            await crash(bench, job)
            assert await alerts.look() == 0
            assert taken.taken == []

    play(story)
    assert "am-token" in caplog.text
    assert "secret" not in caplog.text


def test_a_thousand_incidents_are_told_once_a_hundred_at_a_time_and_written_only_then(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(alertmanager, "alert", lambda row, **_: written.append(row.id) or {"labels": {"id": row.id}})

    async def story():
        async with server(tmp_path, alertmanager=(ADDRESS,)) as bench:
            taken = Receiver()
            alerts = attach(bench, taken)
            await crash(bench, FakeJob())
            with bench.runtime.store.begin() as session:
                (row,) = incidents.recent(session)
                fields = {key: value for key, value in vars(row).items() if not key.startswith("_")}
                for number in range(999):
                    session.add(type(row)(**fields | {"id": f"inc-{number}", "identity": f"other/{number}"}))
            assert [await alerts.look() for _ in range(12)] == [100] * 10 + [0, 0]
            assert len(taken.taken) == len(written) == len(set(written)) == 1000

    play(story)


def test_what_ended_never_pushes_out_what_still_stands(tmp_path):
    async def story():
        async with server(tmp_path, alertmanager=(ADDRESS,)) as bench:
            await crash(bench, FakeJob())
            now = bench.clock.realtime()
            with bench.runtime.store.begin() as session:
                (row,) = incidents.recent(session)
                fields = {key: value for key, value in vars(row).items() if not key.startswith("_")}
                for number in range(3):
                    ended = fields | {"id": f"inc-{number}", "identity": f"other/{number}", "state": "resolved"}
                    session.add(type(row)(**ended | {"resolved_at": now, "opened_at": now + 1.0}))
            with bench.runtime.store.begin() as session:
                told = incidents.told(session, ended_after=now - 60.0, limit=2)
                assert [found.state for found in told] == ["open", "resolved"]

    play(story)
