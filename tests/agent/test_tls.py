"""The uplink over TLS: whom the agent trusts, who it says it is, and certificates that are changed while it runs."""

import ssl

import pytest
import trustme
from ingest_server import DEADLINE_SECONDS, IngestServer
from instep_agent.errors import ConfigurationInvalid
from instep_agent.node import Fact, Node
from instep_agent.uplink.connection import Tls
from instep_agent.uplink.frames import FrameBuilder, Tick
from instep_agent.uplink.sender import Uplink
from instep_agent.uplink.spool import Spool


class Authority:
    """A certificate authority, its own certificate in a file, and servers that it vouches for."""

    def __init__(self, folder):
        self._ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)
        self._folder = folder

    def server_context(self, *, wants_client=False):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert("127.0.0.1").configure_cert(context)
        if wants_client:
            self._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_file(self):
        issued = self._ca.issue_cert("node-a.example")
        path = self._folder / "client.pem"
        path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        return path


@pytest.fixture
def authority(tmp_path):
    (tmp_path / "pki").mkdir()
    return Authority(tmp_path / "pki")


@pytest.fixture
def sending(tmp_path):
    """Starts an uplink with one event in its spool; ends it and the servers."""
    ends = []

    def start(server, tls):
        uplink = Uplink(server.url, lambda: "secret", Spool(tmp_path / "spool"), random_unit=lambda: 0.0, tls=tls)
        builder = FrameBuilder(Node("node-a"))
        uplink.put(builder.build(Tick(facts=[Fact("kernel_line", "Xid", 1, 1)]), []), builder.dictionary)
        uplink.start()
        ends.extend([uplink.close, server.close])
        return uplink

    yield start
    for end in ends:
        end()


def wait_failures(uplink, count):
    import time

    deadline = time.monotonic() + DEADLINE_SECONDS
    while uplink.failures_total < count:
        assert time.monotonic() < deadline, "it never failed"
        time.sleep(0.005)


def test_a_server_of_a_trusted_authority_gets_the_frames(authority, sending):
    server = IngestServer(tls=authority.server_context())
    sending(server, Tls(str(authority.ca_file)))
    server.wait_for(lambda it: it.frames)


def test_a_server_of_another_authority_gets_nothing_until_it_is_trusted(authority, sending, tmp_path, caplog):
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    server = IngestServer(tls=other.server_context())
    uplink = sending(server, Tls(str(authority.ca_file)))
    wait_failures(uplink, 1)
    assert server.requests == [], "not even the token was sent"
    assert f"The certificate of the server at {server.url} is not trusted" in caplog.text
    assert "--ca-file" in caplog.text
    authority.ca_file.write_bytes(authority.ca_file.read_bytes() + other.ca_file.read_bytes())
    server.wait_for(lambda it: it.frames)


def test_a_server_that_asks_who_we_are_is_told(authority, sending):
    server = IngestServer(tls=authority.server_context(wants_client=True))
    sending(server, Tls(str(authority.ca_file), str(authority.client_file())))
    server.wait_for(lambda it: it.frames)


def test_without_a_certificate_of_our_own_such_a_server_takes_nothing(authority, sending, caplog):
    server = IngestServer(tls=authority.server_context(wants_client=True))
    uplink = sending(server, Tls(str(authority.ca_file)))
    wait_failures(uplink, 2)
    assert server.frames == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_holds_no_certificate_is_refused_at_the_start(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    with pytest.raises(ConfigurationInvalid, match=f"Cannot use the certificates in {path}"):
        Uplink("https://127.0.0.1:1", lambda: "t", Spool(tmp_path / "spool"), tls=Tls(str(path)))
