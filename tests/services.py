"""Real servers from Debian's packages, for tests: started on free ports, ended with the test.

A missing one is skipped with one sentence on a laptop, and fails the build server's run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from instep.local.ports import free_port

READY_SECONDS_MAX = 60.0


def needed(package: str, *commands: str) -> None:
    """Skip the test, or fail it on the build server, unless every command is there."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        cannot(f"{', '.join(missing)} is missing: apt-get install {package}.")


def cannot(sentence: str) -> NoReturn:
    """Skip the test with the reason; on the build server, where the suite must be whole, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


@contextmanager
def process(command: list[str], log: Path, ready_url: str) -> Iterator[subprocess.Popen]:
    """A server that answers at `ready_url` when the block begins, and is gone when it ends."""
    with log.open("ab") as output:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_until_ready(running, ready_url, log)
        yield running
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_until_ready(running: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        if running.poll() is not None:
            pytest.fail(f"{running.args[0]} ended with {running.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=1.0) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"{running.args[0]} did not answer at {url}: {log.read_text()[-2000:]}")


@contextmanager
def alertmanager(folder: Path, configuration: str) -> Iterator[str]:
    """A real Alertmanager over a configuration; gives its address."""
    needed("prometheus-alertmanager", "prometheus-alertmanager", "amtool")
    (folder / "am.yml").write_text(configuration)
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus-alertmanager", f"--config.file={folder / 'am.yml'}", f"--storage.path={folder / 'am'}"]
    command += [f"--web.listen-address={address}", "--cluster.listen-address="]
    with process(command, folder / "am.log", f"http://{address}/-/ready"):
        yield f"http://{address}"


class Postgresql(NamedTuple):
    """A PostgreSQL that runs: its URL without a database's name at the end, and the folder it lies in."""

    url: str
    folder: Path


@contextmanager
def postgresql() -> Iterator[Postgresql]:
    """A real PostgreSQL over an empty cluster, whose one database is `postgres`.

    It refuses to run as root; then its own user does, in a folder outside pytest's, which are for root's eyes.
    """
    needed("postgresql-15", "pg_createcluster")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))[-1]
    user = {"user": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="instep-tests-postgresql-") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, "postgres")
        with _postgresql(programs, folder, user) as url:
            yield Postgresql(url, folder)


@contextmanager
def _postgresql(programs: Path, folder: Path, user: dict[str, Any]) -> Iterator[str]:
    data, port = folder / "data", free_port()
    initdb = [programs / "initdb", "-D", data, "-A", "trust", "-U", "instep", "--no-sync", "-E", "UTF8"]
    made = subprocess.run([*initdb, "--locale=C.UTF-8"], capture_output=True, text=True, cwd="/", timeout=120, **user)
    if made.returncode != 0:
        pytest.fail(f"No cluster of PostgreSQL could be made: {made.stderr[-2000:]}")
    command = [programs / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
    log = folder / "log"
    with log.open("ab") as output:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", **user)
    try:
        is_ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-U", "instep", "-d", "postgres"]
        deadline = time.monotonic() + READY_SECONDS_MAX
        while subprocess.run(is_ready, capture_output=True, check=False).returncode != 0:
            if running.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield f"postgresql+psycopg://instep@127.0.0.1:{port}"
    finally:
        running.send_signal(signal.SIGINT)  # its fast shutdown: connections are cut
        running.wait(30)
