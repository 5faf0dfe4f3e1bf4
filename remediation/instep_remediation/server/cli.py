"""`instep server`: starts the server and serves until SIGTERM or Ctrl-C. Exit codes: 0 ended, 2 used wrongly, 3 could
not start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import uvicorn
from instep_collector.clock import SystemClock
from instep_collector.errors import StartError

from instep_remediation.errors import PolicyError
from instep_remediation.policy import Policy
from instep_remediation.server.app import make_application
from instep_remediation.server.config import ServerConfig
from instep_remediation.server.runtime import Runtime
from instep_remediation.toml_file import checked, read_toml

OPTIONS = ("listen", "state_dir", "database", "token_file", "webhook", "alertmanager", "policy", "metrics_open")
"""Settings that the command line overrules."""
SHUTDOWN_SECONDS = 1
"""Connections that wait for orders are answered at once; whatever else is open is cut off after this."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        prog="instep server",
        description="Takes frames and reports in, finds what is wrong, and gives orders to the jobs' supervisors.",
    )
    made.add_argument(
        "--listen", metavar="HOST:PORT", help="address to listen on (default 127.0.0.1:7070; port 0 picks one)"
    )
    made.add_argument(
        "--state-dir", metavar="DIR", help="journal, database and token live here (default ./instep-state)"
    )
    made.add_argument("--database", metavar="URL", help="SQLAlchemy URL (default: SQLite in the state folder)")
    made.add_argument(
        "--token-file", metavar="FILE", help="the administrator's token (default: made in the state folder)"
    )
    made.add_argument("--webhook", metavar="URL", help="one POST for each incident goes here")
    made.add_argument(
        "--alertmanager", metavar="URL", action="append", help="an Alertmanager to tell of incidents; may be repeated"
    )
    made.add_argument("--config", metavar="FILE", help="TOML file with the same settings and more")
    made.add_argument("--policy", metavar="FILE", help="TOML file that says which verdict leads to what")
    made.add_argument("--metrics-open", action="store_true", default=None, help="answer /metrics without a token")
    made.add_argument("--json-ready", action="store_true", help="print one JSON line on stdout once the server accepts")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    options = parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        config = read_config(options)
        policy = read_toml(config.policy, Policy) if config.policy else Policy()
        listener = listen(config)
    except PolicyError as error:
        return _fail(str(error), 2)
    except StartError as error:
        return _fail(str(error), 3)
    try:
        return _serve(
            config.model_copy(update={"listen": _address(config, listener)}),
            policy,
            listener,
            is_json=options.json_ready,
        )
    except StartError as error:
        return _fail(str(error), 3)
    finally:
        listener.close()


def read_config(options: argparse.Namespace) -> ServerConfig:
    """Return the file's settings overruled by the command line; raises PolicyError with one sentence."""
    config = read_toml(Path(options.config), ServerConfig) if options.config else ServerConfig()
    given: dict[str, Any] = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    return checked({**config.model_dump(exclude_unset=True), **given}, ServerConfig, place="command line")


def listen(config: ServerConfig) -> socket.socket:
    """Return the listening socket; raises StartError when the address cannot be had."""
    host, port = config.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Event loops turn Nagle's delay off only for a socket that names its protocol.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(1024)
    except OSError as error:
        made.close()
        raise StartError(
            f"Cannot listen on {config.listen} ({error.strerror or error}): choose another --listen HOST:PORT, "
            "or end what uses this one."
        ) from error
    return made


def _address(config: ServerConfig, listener: socket.socket) -> str:
    host = config.listen.rpartition(":")[0]
    return f"{host}:{listener.getsockname()[1]}"


class _Server(uvicorn.Server):
    """Says once that it accepts, and answers whoever waits for orders before it ends."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime, *, is_json: bool) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._is_json = is_json

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then announce."""
        await super().startup(sockets=sockets)
        if self.started:
            announce(self._runtime, is_json=self._is_json)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        self._runtime.release()
        await super().shutdown(sockets=sockets)


def announce(runtime: Runtime, *, is_json: bool) -> None:
    """Print where the server is, where its token is, and the page's one-time link."""
    url = runtime.config.url
    told = {"url": url, "token_file": str(runtime.token_file.absolute()), "page_link": runtime.page_link()}
    if is_json:
        print(json.dumps(told), flush=True)
        return
    print(
        f"Instep server listens on {url}\nAdministrator's token: {told['token_file']}\n"
        f"Status page (works once): {told['page_link']}",
        flush=True,
    )


def _serve(config: ServerConfig, policy: Policy, listener: socket.socket, *, is_json: bool) -> int:
    tls = tls_context(config)
    runtime = Runtime(config, policy, SystemClock())
    settings = uvicorn.Config(
        make_application(runtime),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
        timeout_keep_alive=75,
    )
    settings.load()
    settings.ssl = tls
    server = _Server(settings, runtime, is_json=is_json)
    try:
        runtime.open()
        signal.signal(signal.SIGTERM, _end)  # What uvicorn falls back to when it has ended.
        with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))
    except KeyboardInterrupt:
        return 0
    finally:
        runtime.close()
    return 0 if server.started else 3


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """Return what the server's connections are secured with, None for plain HTTP; raises StartError."""
    if config.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
        if config.tls_client_ca is not None:
            context.load_verify_locations(config.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        files = [str(file) for file in (config.tls_certificate, config.tls_key, config.tls_client_ca) if file]
        raise StartError(
            f"Cannot use the certificates in {', '.join(files)} ({error.strerror or error}): tls_certificate, tls_key "
            "and tls_client_ca are PEM files that the server may read."
        ) from error
    return context


def _end(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def _fail(sentence: str, code: int) -> int:
    print(f"instep server: {sentence}", file=sys.stderr)
    return code
