"""`instep bench agent` over a real agent: what it measures is there, and the page of the node it stands on is sound."""

import os
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
from instep_agent.benchmarks import agent
from instep_agent.benchmarks.faults import FaultTimes, measure_faults, quantile
from instep_agent.benchmarks.ports import series_of, value_of
from instep_agent.benchmarks.simulated_node import SimulatedNode
from instep_agent.benchmarks.stand_ins import NAME
from instep_agent.benchmarks.storm import Storm
from instep_agent.benchmarks.usage import cpu_seconds, ended_children_seconds, group_of, memory
from instep_agent.columns import column_of
from instep_agent.config import PAGE_SERIES_MAX
from instep_agent.errors import ConfigurationInvalid
from instep_agent.exposition.page import Page
from instep_agent.network.rdma_counter_table import COUNTERS
from instep_agent.running.runner import Snapshot
from instep_agent.sources.pcie import Pcie
from instep_agent.sources.rdma_counters import RdmaCounters
from instep_agent.sources.rdma_ports import RdmaPorts
from instep_agent.wire import Sample
from made_nodes import node_at
from sysfs_trees import Tree

from tests import services

USUAL_SERIES_MAX = 1400
VALUES_MAX = 700


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
    assert series_of(page) <= USUAL_SERIES_MAX
    assert value_of(page, "instep_agent_page_series_dropped") == 0, "it fits because of what is chosen, not cut"
    assert page.count("instep_gpu_power_watts{") == 8
    assert page.count("instep_rank_step{") == 8


def test_it_fits_with_every_counter_that_its_adapters_can_have_too(node, tmp_path):
    """GPUs and ranks as on the simulated node; adapters, bridges and bus of a larger one."""
    tree = Tree(tmp_path)
    for number in range(8):
        tree.pci(f"0000:{0x1A + 0x11 * number:02x}:00.0", kind="0x030200")
        hca = tree.hca(f"mlx5_{number}", f"0000:{0x18 + 0x11 * number:02x}:00.0")
        for one in COUNTERS:
            tree.set(hca, f"{one.folder}/{one.file}", 1)
    sources = [RdmaPorts(), RdmaCounters(), Pcie()]
    metrics = [metric for source in sources for metric in source.metrics]
    read = [each for source in sources for each in source.collect(node_at(tmp_path)) if isinstance(each, Sample)]
    larger = Page(metrics).render(Snapshot(columns=(column_of(read),))).decode()
    names = tuple(f"{metric.name}{{" for metric in metrics)
    others = [line for line in node.page().splitlines() if not line.startswith(("#", *names))]
    assert value_of(larger, "instep_agent_page_series_dropped") == 0
    assert len(others) + series_of(larger) <= PAGE_SERIES_MAX


def test_frames_have_at_most_700_readings_each_second_and_the_rest_more_rarely(node):
    with node.receiver.changed:
        seen = len(node.receiver.values_counts) + 2  # what is read for the first time comes with those
        assert node.receiver.changed.wait_for(lambda: len(node.receiver.values_counts) >= seen + 11, timeout=120)
        counts = node.receiver.values_counts[seen : seen + 11]
    assert statistics.median(counts) <= VALUES_MAX
    assert node.receiver.series_total > VALUES_MAX, "the rest is there, and comes more rarely"


COMPLAINTS = {
    "label names should be written in 'snake_case' not 'camelCase'",  # modelName, as dcgm-exporter has it
    'counter metrics should have "_total" suffix',
    "metric name should not include type 'counter'",  # DCGM_FI_DEV_PCIE_REPLAY_COUNTER
}
"""What promtool says of names that are dcgm-exporter's, and stay as people's dashboards know them."""


def test_promtool_complains_of_the_names_of_another_exporter_alone(node):
    services.needed("prometheus", "promtool")
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(command, input=node.page(), capture_output=True, text=True, timeout=60)
    said = [line.split(" ", 1) for line in (done.stdout + done.stderr).splitlines() if line]
    assert [" ".join(words) for words in said if not words[0].startswith("DCGM_FI_")] == []
    assert {words[1] for words in said} == COMPLAINTS


def test_the_agent_and_its_children_are_counted_together(node):
    pids = group_of(node.agent.pid)
    assert len(pids) > 2, "agent, keeper and children"
    assert all(cpu_seconds(pid) > 0.0 for pid in pids)
    used = memory(pids)
    assert 0 < used.pss_bytes <= used.rss_bytes
    assert used.pss_bytes <= used.alone_bytes <= used.rss_bytes


def test_a_child_that_has_ended_counts_with_the_process_that_started_it():
    before = ended_children_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.1: pass"], check=True)
    assert ended_children_seconds(os.getpid()) - before >= 0.09


def test_faults_of_both_ways_are_timed_and_none_is_lost(node):
    found = measure_faults(node, 4)
    assert (len(found.kernel_line), len(found.nvml_event), found.lost) == (2, 2, 0)
    assert "p99" in found.text()


def test_the_bars_are_held_against_what_was_measured():
    assert FaultTimes([0.1], [0.1], 0, 0).is_within
    assert not FaultTimes([0.1], [0.1], 1, 0).is_within
    assert not FaultTimes([0.1], [0.1], 0, 1).is_within
    assert not FaultTimes([0.1] * 50 + [3.0], [0.1], 0, 0).is_within
    assert quantile([float(each) for each in range(1, 101)], 0.99) == 99.0
    storm = Storm(lines=10, read=10, counted=10, skipped=5, lost=5, events=2, pss_bytes=1, rss_bytes=1, seconds=60.0)
    assert storm.is_within
    for broken in ({"read": 9}, {"counted": 9}, {"lost": 0}, {"events": 31}, {"rss_bytes": 1 << 30}):
        assert not replace(storm, **broken).is_within


def test_a_library_that_is_not_there_is_said_in_one_sentence(tmp_path, capsys):
    assert agent.main(["--nvml", str(tmp_path), "--minutes", "0.1"]) == 2
    assert f"There is no {NAME} in {tmp_path}" in capsys.readouterr().err


def test_the_benchmark_is_reached_by_its_name():
    command = [sys.executable, "-m", "instep", "bench", "agent", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, "--storm" in done.stdout) == (0, True)
