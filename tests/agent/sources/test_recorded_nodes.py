"""Sources that read a recorded tree: GPU inventory and host."""

import shutil

import pytest
from instep_agent import sources
from instep_agent.errors import Absent, SourceFailed
from instep_agent.sources.gpu_inventory import GpuInventory
from instep_agent.sources.host import Host
from instep_agent.wire import GpuReport
from made_nodes import RECORDED, node_at


def test_gives_index_uuid_and_address_of_every_gpu():
    assert list(GpuInventory().collect(node_at(RECORDED / "a100"))) == [
        GpuReport(index=0, uuid="GPU-5f6f1d1c-3a6e-9d5b-6b5e-0e2f8c7d6a01", pci="0000:3b:00"),
        GpuReport(index=1, uuid="GPU-0b2f4c3d-77aa-4f0e-8a53-9f2b6a1c5d02", pci="0000:86:00"),
    ]


def test_a_node_without_the_driver_has_no_gpus(tmp_path):
    with pytest.raises(Absent, match="no NVIDIA driver"):
        list(GpuInventory().collect(node_at(tmp_path)))


def test_gives_load_memory_and_pressure():
    samples = {(sample.name, sample.labels): sample.value for sample in Host().collect(node_at(RECORDED / "a100"))}
    pressure, waited = "instep_host_pressure_ratio", "instep_host_pressure_seconds_total"
    assert samples == {
        ("instep_host_load1", ()): 3.52,
        ("instep_host_memory_total_bytes", ()): 1056000000 * 1024,
        ("instep_host_memory_available_bytes", ()): 800000000 * 1024,
        (pressure, (("kind", "some"), ("resource", "cpu"))): pytest.approx(0.015),
        (pressure, (("kind", "some"), ("resource", "memory"))): 0.0,
        (pressure, (("kind", "full"), ("resource", "memory"))): 0.25,
        (waited, (("kind", "some"), ("resource", "cpu"))): pytest.approx(0.123456),
        (waited, (("kind", "some"), ("resource", "memory"))): 0.0,
        (waited, (("kind", "full"), ("resource", "memory"))): 0.0,
        ("instep_host_oom_kills_total", ()): 1.0,
    }


def test_counts_kills_where_the_kernel_does(tmp_path):
    shutil.copytree(RECORDED / "a100", tmp_path / "node")
    for text, kills in (("nr_free_pages 1\noom_kill 3\noom_kill_other 9\n", 3.0), ("nr_free_pages 1\n", None)):
        (tmp_path / "node/proc/vmstat").write_text(text)
        samples = {sample.name: sample.value for sample in Host().collect(node_at(tmp_path / "node"))}
        assert samples.get("instep_host_oom_kills_total") == kills


def test_a_kernel_without_pressure_is_no_failure(tmp_path):
    shutil.copytree(RECORDED / "a100", tmp_path / "node")
    shutil.rmtree(tmp_path / "node/proc/pressure")
    names = {sample.name for sample in Host().collect(node_at(tmp_path / "node"))}
    assert "instep_host_load1" in names
    assert "instep_host_pressure_ratio" not in names


def test_a_missing_proc_is_a_failure(tmp_path):
    with pytest.raises(SourceFailed, match="mount the node's /proc"):
        list(Host().collect(node_at(tmp_path)))


def test_the_list_of_sources_is_complete():
    from pathlib import Path

    files = {path.stem for path in Path(sources.__file__).parent.glob("*.py")} - {"__init__"}
    assert {source.name for source in sources.SOURCES} == files
    assert [source.name for source in sources.all_sources()] == [source.name for source in sources.SOURCES]
    assert all(source.__doc__ and source.interval_seconds > 0 for source in sources.SOURCES)
