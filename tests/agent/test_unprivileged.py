"""The agent as a user without rights: what it may not read is failing and names what is lacking, never healthy."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from instep_agent.node import rights_of
from instep_agent.sources import all_sources
from made_nodes import RECORDED
from made_records import new_writer
from sysfs_trees import Tree

NOBODY = 65534
PROGRAM = f"""
import encodings.idna, importlib, os, pkgutil, sys
import instep_agent, pynvml
for module in pkgutil.walk_packages(instep_agent.__path__, "instep_agent."):
    if "benchmarks" not in module.name:
        importlib.import_module(module.name)
from instep_agent import cli
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.exit(cli.main(sys.argv[1:]))
"""
"""`instep agent` without root. What it imports is imported before, for the interpreter may be where nobody can read."""
RIGHTS = "permission denied"
CLOSED_FAILS = {
    "kernel_log", "rank_records", "gpu_inventory", "gpu_count", "host", "disk_io", "mounts", "node_processes",
    "rdma_ports", "rdma_counters", "pcie", "ethernet",
}  # fmt: skip
"""What fails where folders are closed: everything that reads files of the node."""
FILES_FAIL = CLOSED_FAILS - {"mounts", "ethernet"}
"""What fails where the files are closed. Mounts are those of the process itself; an interface is told by its link."""
ELSEWHERE = ("clock", "log_lines", "nccl_ras", "rank_cpu", "instep_agent")
"""They ask the kernel and the network, or say in words that no rank can be seen."""


@pytest.fixture
def node():
    """A node with a GPU, an adapter, an interface and a rank; in a folder that everybody may pass through."""
    if os.geteuid() != 0:
        pytest.skip("Only root can become a user without rights: run this test as root.")
    folder = Path(tempfile.mkdtemp(prefix="instep-rights-", dir="/tmp"))
    folder.chmod(0o755)
    root = folder / "root"
    shutil.copytree(RECORDED / "a100", root)
    tree = Tree(root)
    tree.hca()
    tree.pci("0000:1a:00.0", kind="0x030200")
    (root / "sys/class/net").mkdir(parents=True)
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev/kmsg").touch()
    writer = new_writer(folder / "records")
    yield folder
    writer.close()
    shutil.rmtree(folder)


def seen_by_nobody(folder, *arguments):
    places = ["--node", "node-a", "--root", str(folder / "root"), "--record-root", str(folder / "records")]
    command = [sys.executable, "-c", PROGRAM, *places, "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def measured(seen):
    """The names of what was measured, by source."""
    of_source = {metric.name: source.name for source in all_sources() for metric in source.metrics}
    found = {}
    for one in seen["samples"]:
        found.setdefault(of_source.get(one["name"], "instep_agent"), set()).add(one["name"])
    return found


def check_failing(seen, names):
    rights = {source.name: rights_of(source) for source in all_sources()}
    for name in sorted(names):
        row = seen["sources"][name]
        assert row["outcome"] == "failed", (name, row)
        assert RIGHTS in row["detail"].lower() or "may not be read" in row["detail"], (name, row)
        assert "Error" not in row["detail"], "said in words, with what is to be done"
        assert rights[name] or name in ("host", "disk_io", "mounts"), name


def test_folders_that_may_not_be_entered_are_failures_and_nothing_is_made_up(node):
    for folder in (node / "records", node / "root/sys", node / "root/proc", node / "root/dev"):
        folder.chmod(0o700)
    code, seen = seen_by_nobody(node, "--once")
    assert code == 0, "it printed what it saw"
    check_failing(seen, CLOSED_FAILS)
    assert seen["ranks"] == []
    assert seen["gpus"] == []
    assert set(measured(seen)) <= set(ELSEWHERE), "nothing that could not be read has a value"


def test_files_that_may_not_be_read_are_failures_too(node):
    for path in (node / "root").rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
    code, seen = seen_by_nobody(node, "--once")
    assert code == 0
    check_failing(seen, FILES_FAIL)
    found = measured(seen)
    assert found["rank_records"] == {
        "instep_rank_records", "instep_rank_records_invalid", "instep_rank_records_late"
    }  # fmt: skip
    assert found["rdma_ports"] <= {"instep_rdma_device_present", "node_infiniband_info", "instep_rdma_port_info"}
    assert "instep_rdma_counters_blind" not in found["rdma_counters"], "a counter that nobody read is not fine"
    assert "host" not in found and "pcie" not in found


def test_check_names_the_right_that_each_lacks(node):
    (node / "root/dev/kmsg").chmod(0o600)
    code, rows = seen_by_nobody(node, "check")
    by_name = {row["source"]: row for row in rows}
    assert code == 3, "one could not look"
    assert by_name["kernel_log"]["verdict"] == by_name["rank_records"]["verdict"] == "failing"
    assert "CAP_SYSLOG" in by_name["kernel_log"]["needs"]
    assert "root" in by_name["rank_records"]["needs"], "records are for their owner's eyes"
    assert by_name["host"]["verdict"] == by_name["rdma_ports"]["verdict"] == "present"


def test_a_run_that_may_not_be_looked_into_is_failing_and_an_empty_one_is_not(node):
    (run,) = (node / "records/node-a").iterdir()
    shutil.rmtree(run / "0")
    run.chmod(0o755)
    _, rows = seen_by_nobody(node, "check")
    (empty,) = [row for row in rows if row["source"] == "rank_records"]
    assert empty["verdict"] == "present", "there is a run, and no rank in it"
    run.chmod(0o700)
    code, rows = seen_by_nobody(node, "check")
    (closed,) = [row for row in rows if row["source"] == "rank_records"]
    assert (code, closed["verdict"]) == (3, "failing")
    assert closed["detail"] == f"Cannot look into {run} (permission denied): run the agent as root, or as their owner."
