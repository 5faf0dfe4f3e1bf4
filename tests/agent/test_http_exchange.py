"""What a server may answer, however it is cut into pieces, and what is no answer."""

import socket
import subprocess
import sys
import threading

import pytest
from instep_agent.uplink.http_exchange import HttpSocket, NotHttp


class Server:
    """Answers each request with the next of its answers, byte by byte where told, and keeps what was asked."""

    def __init__(self, *answers, pieces=False, closes=False):
        self.answers, self.pieces, self.closes, self.asked = answers, pieces, closes, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        left = list(self.answers)
        while left:
            peer, _ = self.listener.accept()
            with peer:
                while left and self._request(peer):
                    answer = left.pop(0)
                    for at in range(0, len(answer), 1 if self.pieces else len(answer)):
                        peer.sendall(answer[at : at + (1 if self.pieces else len(answer))])
                    if self.closes:
                        break

    def _request(self, peer):
        data = b""
        while b"\r\n\r\n" not in data:
            received = peer.recv(65536)
            if not received:
                return False
            data += received
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        while len(body) < int(fields.get("Content-Length", 0)):
            body += peer.recv(65536)
        self.asked.append((head.decode().split("\r\n")[0], fields, body))
        return True


@pytest.fixture
def talk():
    sockets = []

    def talk(server, *, bytes_max=1000):
        http = HttpSocket("127.0.0.1", server.listener.getsockname()[1], 20.0)
        sockets.append((http, server))
        return lambda body=b"x": http.exchange("POST", "/a", body, {"A": "b"}, answer_bytes_max=bytes_max)

    yield talk
    for http, server in sockets:
        http.close()
        server.listener.close()


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes", (200, b"yes")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 409 Conflict\r\ncontent-length:2\r\n\r\n{}", (409, b"{}")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nye\r\n1\r\ns\r\n0\r\nT: t\r\n\r\n",
            (200, b"yes"),
        ),
        (b"HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n", (503, b"")),
    ],
)
def test_an_answer_is_read_whole_and_the_connection_goes_on(talk, answer, expected, pieces):
    server = Server(answer, answer, pieces=pieces)
    ask = talk(server)
    assert [ask(), ask(b"y" * 100_000)] == [expected, expected]
    (line, fields, body), (_, _, second) = server.asked
    assert (line, fields["A"], body, len(second)) == ("POST /a HTTP/1.1", "b", b"x", 100_000)
    assert fields["Host"].startswith("127.0.0.1:")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nyes",
        b"HTTP/1.0 200 OK\r\n\r\nyes",
        b"HTTP/1.1 200 OK\r\n\r\nyes",
    ],
)
def test_a_server_that_closes_is_connected_to_again(talk, answer):
    server = Server(answer, answer, closes=True)
    ask = talk(server)
    assert [ask(), ask()] == [(200, b"yes")] * 2


def test_no_more_is_read_of_an_answer_than_was_allowed(talk):
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b"y" * 500,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nyyyyyyyyy\r\n9\r\nyyyyyyyyy\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes",
    ]
    ask = talk(Server(*answers, closes=True), bytes_max=10)
    assert [ask(), ask(), ask()] == [(200, b"y" * 10), (200, b"y" * 9), (200, b"yes")]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 2xx OK\r\n\r\n",
        b"HTTP/1.1 2000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 200_000,
    ],
)
def test_what_is_no_answer_is_said_to_be_none(talk, answer):
    with pytest.raises(NotHttp):
        talk(Server(answer))()


def test_a_connection_that_ends_in_the_middle_is_an_error(talk):
    with pytest.raises(ConnectionError):
        talk(Server(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nyes", closes=True))()


def test_an_agent_without_tls_loads_neither_openssl_nor_the_codec_for_names_in_other_alphabets():
    program = """
import sys
import instep_agent.cli
from instep_agent.uplink.http_exchange import HttpSocket
try:
    HttpSocket("localhost", 1, 5.0).exchange("GET", "/", None, {}, answer_bytes_max=10)
except ConnectionError:
    print(*sorted({"_hashlib", "_ssl", "encodings.idna"} & sys.modules.keys()))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.returncode) == ("\n", 0), run.stderr


def test_a_name_in_another_alphabet_is_looked_up_by_its_idna_form(monkeypatch):
    asked = []

    def look_up(address, timeout_seconds):
        asked.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", look_up)
    for host in ("server", "bücher.example"):
        with pytest.raises(ConnectionRefusedError):
            HttpSocket(host, 80, 5.0).exchange("GET", "/", None, {}, answer_bytes_max=10)
    assert asked == [b"server", "bücher.example"]
