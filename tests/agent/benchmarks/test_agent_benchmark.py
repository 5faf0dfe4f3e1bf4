"""`instep bench agent` over a real agent: what it measures is there, and the page of the node it stands on is sound."""

import os
import subprocess
import sys

import pytest
from instep_agent.benchmarks import agent
from instep_agent.benchmarks.faults import FaultTimes, Storm, measure_faults, quantile
from instep_agent.benchmarks.simulated_node import SimulatedNode, series_of
from instep_agent.benchmarks.stand_ins import NAME
from instep_agent.benchmarks.usage import cpu_seconds, group_of, memory
from instep_agent.config import PAGE_SERIES_MAX
from instep_agent.errors import ConfigurationInvalid

from tests import services


@pytest.fixture(scope="module")
def node():
    services.needed("gcc libc6-dev", "gcc")
    try:
        with SimulatedNode() as node:
            yield node
    except ConfigurationInvalid as error:
        if "nvidia-nvml-dev" not in str(error):
            raise
        services.cannot(str(error))


def test_a_node_with_8_gpus_8_adapters_and_8_ranks_fits_on_the_page(node):
    page = node.page()
    assert series_of(page) <= PAGE_SERIES_MAX
    assert page.count("instep_gpu_power_watts{") == 8
    assert page.count("instep_rank_step{") == 8


def test_promtool_has_nothing_to_say_of_our_names(node):
    services.needed("prometheus", "promtool")
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(command, input=node.page(), capture_output=True, text=True, timeout=60)
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if line.startswith(("instep_", "node_"))] == []
    assert all(line.startswith("DCGM_") for line in said if line), "names of another exporter stay as people know them"


def test_the_agent_and_its_children_are_counted_together(node):
    pids = group_of(node.agent.pid)
    assert len(pids) > 2, "agent, keeper and children"
    assert all(cpu_seconds(pid) > 0.0 for pid in pids)
    used = memory(pids)
    assert 0 < used.pss_bytes <= used.rss_bytes
    assert used.pss_bytes <= used.alone_bytes <= used.rss_bytes


def test_faults_of_both_ways_are_timed_and_none_is_lost(node):
    found = measure_faults(node, 4)
    assert (len(found.kernel_line), len(found.nvml_event), found.lost) == (2, 2, 0)
    assert "p99" in found.text()


def test_the_bars_are_held_against_what_was_measured():
    assert FaultTimes([0.1], [0.1], 0).is_within
    assert not FaultTimes([0.1], [0.1], 1).is_within
    assert not FaultTimes([0.1] * 50 + [3.0], [0.1], 0).is_within
    assert Storm(lines=10, counted=10, events=2, pss_bytes=1, seconds=60.0).is_within
    assert not Storm(lines=10, counted=9, events=2, pss_bytes=1, seconds=60.0).is_within
    assert not Storm(lines=10, counted=10, events=31, pss_bytes=1, seconds=60.0).is_within
    assert quantile([float(each) for each in range(1, 101)], 0.99) == 99.0


def test_a_library_that_is_not_there_is_said_in_one_sentence(tmp_path, capsys):
    assert agent.main(["--nvml", str(tmp_path), "--minutes", "0.1"]) == 2
    assert f"There is no {NAME} in {tmp_path}" in capsys.readouterr().err


def test_the_benchmark_is_reached_by_its_name():
    command = [sys.executable, "-m", "instep", "bench", "agent", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, "--storm" in done.stdout) == (0, True)
