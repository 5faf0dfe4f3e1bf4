"""Used wrongly, or without what it needs, `instep run` says one clear sentence, ends other than 0, starts nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from instep.local.ports import free_port
from instep_trainer.run.cli import main

from tests.trainer.run import supervisors
from tests.trainer.run.fake_server import TOKEN, fake_server
from tests.trainer.run.supervisors import FAST, WAITS

pytestmark = pytest.mark.real
HIDES_TORCH = """
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, *more: None if name.split(".")[0] == "torch" else find(name, *more)
"""


@pytest.fixture
def node(tmp_path: Path):
    with supervisors.node(tmp_path) as one:
        yield one


def refused(node, run, code: int = 3) -> str:
    """The one sentence of a supervisor that started nothing."""
    assert run.ends() == code
    assert "Traceback" not in run.said, run.said
    assert not node.was_started
    assert run.last_line.endswith(".")
    return run.last_line.removeprefix("instep run: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nnodes", "2", "--rdzv-endpoint", "127.0.0.1:1"], "every supervisor needs the same --rdzv-id."),
        (["--nnodes", "2", "--rdzv-id", "r"], "the supervisors need a common --rdzv-endpoint HOST:PORT."),
        (["--nnodes", "two"], "--nnodes two is neither a number nor MIN:MAX, such as 2 or 2:3."),
        (["--nnodes", "3:2"], "the minimum must be at least 1 and not above the maximum."),
        (["--nnodes", "0"], "the minimum must be at least 1 and not above the maximum."),
        (["--nproc-per-node", "0"], "is neither a number above 0 nor auto, gpu or cpu."),
        (["--rdzv-endpoint", "node-a"], "--rdzv-endpoint node-a is not HOST:PORT, such as node-a:29400."),
        (["--rdzv-endpoint", "node-a:70000"], "is not HOST:PORT, such as node-a:29400."),
        (["--server", "server:8650"], "--server server:8650 is not an address such as http://server.example:8650."),
        (["--job", "a/b"], "--job 'a/b' cannot be a name"),
        (["--token-file", "nowhere"], "Cannot read --token-file nowhere (No such file or directory)"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(capfd, options: list[str], words: str) -> None:
    assert main([*options, str(WAITS)]) == 2
    said = capfd.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["nowhere.py"], "Script nowhere.py is not a file: give the path of the training script."),
        (["--no-python", "no-such-program"], "Program no-such-program is not found or not executable: give its path."),
    ],
)
def test_a_missing_script_is_one_sentence(capfd, command: list[str], words: str) -> None:
    assert main(command) == 2
    assert capfd.readouterr().err == f"instep run: {words}\n"


@contextlib.contextmanager
def foreign_listener(answer: bytes) -> Iterator[int]:
    """Something on a port that is no coordinator; it answers, or it says nothing."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                if answer:
                    self.request.sendall(answer)
                while self.request.recv(4096):
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["talks", "is silent"])
def test_a_port_that_something_foreign_holds_is_one_sentence(node, answer: bytes) -> None:
    with foreign_listener(answer) as port:
        said = refused(node, node.waiting(options=("--rdzv-endpoint", f"127.0.0.1:{port}")))
    assert said == (
        f"Port {port} on 127.0.0.1 is in use by something that is not an Instep coordinator: "
        "choose another --rdzv-endpoint."
    )


def test_an_endpoint_that_cannot_be_resolved_is_one_sentence(node) -> None:
    said = refused(node, node.waiting(options=("--rdzv-endpoint", "no-such-host.invalid:29400")))
    assert "Cannot listen on no-such-host.invalid:29400 (" in said


def test_a_record_root_that_cannot_be_written_is_one_sentence(node, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "root"
    said = refused(node, node.waiting(options=("--record-root", str(root))))
    assert said == f"Cannot write {root}/node-a (Not a directory): give a writable --record-root in shared memory."


def test_torch_missing_is_one_sentence(node, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDES_TORCH)
    run = node.start(WAITS, str(tmp_path), PYTHONPATH=str(tmp_path / "hidden"))
    assert refused(node, run).startswith("PyTorch is missing: install it into this environment, such as pip install ")


def test_another_token_or_run_at_the_coordinator_is_one_sentence(node) -> None:
    endpoint = ("--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    first = node.waiting(options=endpoint, INSTEP_TOKEN="one")
    first.says("coordinates run")
    other = node.waiting(options=(*endpoint, "--node-name", "node-b"), INSTEP_TOKEN="two")
    assert refused(node, other) == (
        "The token differs from the coordinator's: give every supervisor of a run the same --token-file."
    )
    other = node.waiting(options=(*endpoint, "--node-name", "node-b", "--rdzv-id", "run-2"), INSTEP_TOKEN="one")
    assert "This endpoint belongs to run run-1 of job waits, not to run run-2" in refused(node, other)
    first.process.send_signal(signal.SIGINT)
    assert first.ends() == 130


def test_a_wrong_token_for_the_server_is_one_sentence(node) -> None:
    with fake_server() as server:
        said = refused(node, node.waiting(options=server.options, INSTEP_TOKEN="not-it"))
    assert said == "The token is not known here: give the one that the server wrote."


def test_a_job_name_that_the_server_knows_to_be_held_is_one_sentence(node) -> None:
    with fake_server() as server:
        server.refusal = (409, "Job 'waits' is held by run 'run-0': end that run first.")
        said = refused(node, node.waiting(options=server.options, INSTEP_TOKEN=TOKEN))
    assert said == "Job 'waits' is held by run 'run-0': end that run first."


def test_a_server_that_is_not_there_keeps_no_run_from_starting(node) -> None:
    run = node.waiting(options=("--server", f"http://127.0.0.1:{free_port()}"))
    node.pids(0)
    node.end()
    assert run.ends() == 0


def test_a_second_run_under_the_same_job_name_on_the_node_is_one_sentence(node) -> None:
    first = node.waiting()
    node.pids(0)
    second = node.waiting(options=("--rdzv-id", "run-2"))
    assert second.ends() == 3
    assert second.said == (
        f"instep run: Job waits already runs on node-a as run run-1 (supervisor pid {first.process.pid}): wait for it, "
        "end it, or give this one another --job.\n"
    )
    node.end()
    assert first.ends() == 0


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """Shared memory with room for records, and not for a checkpoint."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("A small tmpfs has to be mounted, which needs root with CAP_SYS_ADMIN.")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_shared_memory_too_small_for_the_checkpoint_is_one_sentence(node, small_memory: Path, tmp_path: Path) -> None:
    run = node.start(
        "instep_trainer.train",
        "--width",
        "256",
        "--out",
        str(tmp_path / "out"),
        options=("--nproc-per-node", "2", "--record-root", str(small_memory), "-m"),
        PYTHONFAULTHANDLER="1",
    )
    assert run.ends() == 1
    assert "Traceback" not in run.said, run.said
    sentences = [line for line in run.said.splitlines() if "too small for the checkpoint" in line]
    assert len(sentences) == 1
    assert sentences[0].startswith(f"instep train: {small_memory} too small for the checkpoint: 4 slots of ")
    assert "train a smaller model." in sentences[0]
    assert not (tmp_path / "out" / "losses.jsonl").exists()


def test_a_busy_port_of_this_run_is_joined_and_not_refused(node) -> None:
    """The healthy twin of a foreign listener: a second supervisor of the run."""
    port = free_port()
    endpoint = ("--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--nproc-per-node", "1", *FAST)
    first = node.start(WAITS, str(node.folder), options=endpoint)
    first.says("coordinates run")
    second = node.start(WAITS, str(node.folder), options=(*endpoint, "--node-name", "node-b"))
    node.pids(0)
    node.end()
    assert (first.ends(), second.ends()) == (0, 0)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
