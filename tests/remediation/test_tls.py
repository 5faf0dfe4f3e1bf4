"""The server over TLS: whom a client trusts, whom the server lets in, and certificates that cannot be used."""

import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import trustme
from instep_collector.errors import StartError
from instep_remediation.server.cli import tls_context
from instep_remediation.server.config import ServerConfig

from tests.remediation.test_server_death import real_server

pytestmark = pytest.mark.real


@pytest.fixture
def authority(tmp_path):
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    made.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    return made


def settings(folder, *lines):
    (folder / "server.toml").write_text("\n".join((f'tls_certificate = "{folder / "server.pem"}"', *lines)))
    return "--config", str(folder / "server.toml")


def ask(url, context):
    with urllib.request.urlopen(f"{url}/healthz", context=context, timeout=10) as answer:
        return json.loads(answer.read())


def test_who_trusts_its_authority_talks_to_the_server_and_nobody_else_does(tmp_path, authority):
    with real_server(tmp_path / "state", *settings(tmp_path)) as (process, ready):
        assert ready, process.stderr.read()
        assert ready["url"].startswith("https://") and ready["page_link"].startswith("https://")
        assert ask(ready["url"], ssl.create_default_context(cafile=tmp_path / "ca.pem")) == {"status": "alive"}
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(ready["url"], ssl.create_default_context())
        command = [sys.executable, "-m", "instep", "nodes", "list", "--server", ready["url"], "--json"]
        command += ["--token-file", ready["token_file"]]
        listed = subprocess.run(
            command, capture_output=True, text=True, env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")}, timeout=60
        )
        assert (listed.returncode, json.loads(listed.stdout)) == (0, [])


def test_mutual_tls_lets_nobody_in_without_a_certificate(tmp_path, authority):
    options = settings(tmp_path, f'tls_client_ca = "{tmp_path / "ca.pem"}"')
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    with real_server(tmp_path / "state", *options) as (process, ready):
        assert ready, process.stderr.read()
        with pytest.raises(OSError):
            ask(ready["url"], context)
        authority.issue_cert("node-a").configure_cert(context)
        assert ask(ready["url"], context) == {"status": "alive"}


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_used_is_one_sentence(tmp_path, content):
    file = tmp_path / "server.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StartError, match=r"Cannot use the certificates in .*server\.pem"):
        tls_context(ServerConfig(tls_certificate=file))
