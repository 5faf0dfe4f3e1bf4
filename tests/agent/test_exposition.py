"""The agent's page: its text, its bounds, the second names, and what promtool says of it."""

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fake_accelerator import FakeAccelerator
from hypothesis import given
from hypothesis import strategies as st
from instep_agent.columns import Column, column_of
from instep_agent.exposition.dcgm_names import RENAMED, second_names
from instep_agent.exposition.page import Page
from instep_agent.exposition.server import Exposition
from instep_agent.metric import counter, gauge
from instep_agent.running.runner import Runner, Snapshot
from instep_agent.sources import all_sources
from instep_agent.sources.gpu_inventory import GpuInventory
from instep_agent.sources.host import Host
from instep_agent.sources.kernel_log import KernelLog
from instep_agent.sources.rank_records import RankRecords
from instep_agent.uplink.sender import UPLINK_METRICS
from instep_agent.wire import GpuReport, RankReport, Sample
from made_nodes import RECORDED, Clock, node_at
from prometheus_client.parser import text_string_to_metric_families

from tests import services

TEMPERATURE = gauge("instep_x_celsius", "Temperature.", alias="DCGM_FI_DEV_GPU_TEMP")
ECC = counter("instep_x_ecc_errors_total", "Errors.", alias="DCGM_FI_DEV_ECC_DBE_VOL_TOTAL")
UTIL = gauge("instep_x_busy_ratio", "Busy.", alias="DCGM_FI_DEV_GPU_UTIL", alias_scale=100.0)
ERRORS = counter("instep_x_errors_total", 'Errors \\ of a "thing".')
HIDDEN = gauge("instep_x_hidden_bytes", "Only in frames.", is_on_page=False)


def sample(name, value=1.0, **labels):
    return Sample(name=name, labels=tuple(labels.items()), value=value)


def seen(*samples, **parts):
    return Snapshot(columns=(column_of(samples),), **parts)


def lines(page, *samples, **parts):
    text = page.render(seen(*samples, **parts)).decode()
    return [line for line in text.splitlines() if not line.startswith(("instep_agent_page", "#"))]


def parsed(text):
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_every_family_has_its_help_and_type():
    text = Page([ERRORS]).render(seen(sample(ERRORS.name, 3.0, port="1"))).decode()
    assert '# HELP instep_x_errors_total Errors \\\\ of a "thing".\n' in text
    assert "# TYPE instep_x_errors_total counter\n" in text
    assert 'instep_x_errors_total{port="1"} 3.0\n' in text


def test_what_is_for_frames_only_or_no_reading_is_not_shown():
    page = Page([HIDDEN, ERRORS])
    assert lines(page, sample(HIDDEN.name), sample(ERRORS.name, float("nan")), sample("instep_of_nobody")) == []


def test_all_that_frames_have_is_shown_when_asked_for():
    page = Page([HIDDEN, ERRORS], is_full=True)
    assert lines(page, sample(HIDDEN.name)) == ["instep_x_hidden_bytes 1.0"]


def test_a_page_follows_what_sources_say_since_the_last_one():
    page, heat = Page([ERRORS, TEMPERATURE]), sample(TEMPERATURE.name, 42.0, gpu="0")
    first = seen(sample(ERRORS.name, 3.0, port="1"), sample(TEMPERATURE.name, 41.0, gpu="0"))
    again = Snapshot(columns=(Column(first.columns[0].series, [4.0, float("nan")]),))
    more = seen(heat, sample(ERRORS.name, 5.0, port="1"), sample(ERRORS.name, 6.0, port="2"))
    pages = (
        (first, {"1": 3.0, "": 41.0}),
        (again, {"1": 4.0}),
        (first, {"1": 3.0, "": 41.0}),
        (more, {"1": 5.0, "2": 6.0, "": 42.0}),
    )
    for snapshot, expected in pages:
        shown = parsed(page.render(snapshot).decode())
        own = {dict(labels).get("port", ""): value for (name, labels), value in shown.items() if name[:8] == "instep_x"}
        assert own == expected


def test_of_some_metrics_only_the_series_that_people_act_on_are_shown():
    held = gauge("instep_x_held", "Held.", page_labels=("hot",))
    samples = [sample(held.name, reason=reason) for reason in ("hot", "idle")]
    assert lines(Page([held]), *samples) == ['instep_x_held{reason="hot"} 1.0']
    assert len(lines(Page([held], is_full=True), *samples)) == 2


def test_a_second_name_has_the_labels_that_dashboards_know():
    gpu = GpuReport(index=3, uuid="GPU-1", pci="0000:3b:00")
    page = Page([TEMPERATURE, UTIL], node="node-a")
    samples = sample(TEMPERATURE.name, 41.0, gpu="3"), sample(UTIL.name, 0.5, gpu="3")
    shown = parsed("\n".join(lines(page, *samples, gpus=(gpu,))))
    labels = (
        ("Hostname", "node-a"),
        ("UUID", "GPU-1"),
        ("device", "nvidia3"),
        ("gpu", "3"),
        ("pci_bus_id", "00000000:3B:00.0"),
    )
    assert shown == {
        ("instep_x_celsius", (("gpu", "3"),)): 41.0,
        ("instep_x_busy_ratio", (("gpu", "3"),)): 0.5,
        ("DCGM_FI_DEV_GPU_TEMP", labels): 41.0,
        ("DCGM_FI_DEV_GPU_UTIL", labels): 50.0,
    }


def test_the_new_generation_has_base_units_and_takes_the_place_of_the_old_one():
    page = Page([TEMPERATURE, UTIL, ECC], node="node-a", dcgm_names="new")
    samples = (sample(one.name, 0.5, gpu="3", pci="0000:3b:00") for one in (TEMPERATURE, UTIL, ECC))
    shown = parsed("\n".join(lines(page, *samples)))
    second = {key[0]: (value, dict(key[1])) for key, value in shown.items() if key[0].startswith("DCGM_")}
    labels = {"device": "nvidia3", "gpu": "3", "hostname": "node-a", "pci_bus_id": "00000000:3B:00.0"}
    assert second == {
        "DCGM_FI_DEV_GPU_TEMP_CELSIUS": (0.5, labels),
        "DCGM_FI_DEV_GPU_UTIL_RATIO": (0.5, labels),
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": (0.5, labels),
    }


def test_every_second_name_of_a_source_that_is_renamed_has_our_unit_or_the_one_in_its_name():
    aliased = [metric for source in all_sources() for metric in source.metrics if metric.alias]
    assert RENAMED.keys() <= {metric.alias for metric in aliased}, "a name that nobody has is renamed"
    for metric in aliased:
        assert metric.alias in RENAMED or metric.alias_scale == 1.0, "a scaled value has a unit that its name must tell"
    new = [one.name for one in second_names(aliased, "new").values()]
    assert len(set(new)) == len(new) == len(aliased)


def test_a_second_name_is_shown_although_our_own_is_in_frames_only():
    sent = gauge("instep_x_bytes_per_second", "Sent.", alias="DCGM_FI_PROF_PCIE_TX_BYTES", is_on_page=False)
    assert lines(Page([sent], node="n"), sample(sent.name, gpu="3")) == [
        'DCGM_FI_PROF_PCIE_TX_BYTES{Hostname="n",device="nvidia3",gpu="3"} 1.0'
    ]


def test_second_names_can_be_left_out():
    assert lines(Page([TEMPERATURE], dcgm_names="off"), sample(TEMPERATURE.name, gpu="3")) == [
        'instep_x_celsius{gpu="3"} 1.0'
    ]


def test_too_many_series_are_left_out_from_the_end_and_counted():
    page = Page([ERRORS, TEMPERATURE], series_max=7)
    many = [each for n in "0123" for each in (sample(TEMPERATURE.name, gpu=n), sample(ERRORS.name, port=n))]
    text = page.render(seen(*many)).decode()
    assert text.count("instep_x_errors_total{") == 4, "stated first"
    assert text.count("instep_x_celsius{") == 1, "after the page's own series"
    assert "DCGM" not in text
    assert "instep_agent_page_series_dropped 7.0\n" in text


def test_only_the_newest_attempt_of_a_rank_is_shown():
    ranks = [
        RankReport(
            job="j", run="r", attempt=n, rank=0, local_rank=0, world_size=1, pid=1, node="n", step=n, phase="forward"
        )
        for n in (2, 1)
    ]
    shown = lines(Page([]), ranks=tuple(ranks))
    assert shown == [
        'instep_rank_step{job="j",rank="0"} 2.0',
        'instep_rank_heartbeat_age_seconds{job="j",rank="0"} 0.0',
        'instep_rank_phase{job="j",phase="forward",rank="0"} 1.0',
    ]


def test_a_loop_that_is_held_up_shows():
    text = Page([], clock_seconds=lambda: 107.5).render(Snapshot(made_at_seconds=100.0)).decode()
    assert "instep_agent_page_age_seconds 7.5\n" in text


@given(st.dictionaries(st.text(max_size=20), st.floats(allow_nan=False), max_size=20))
def test_whatever_a_label_holds_the_page_reads_back(found):
    samples = tuple(sample(ERRORS.name, value, port=port) for port, value in found.items())
    shown = parsed(Page([ERRORS]).render(seen(*samples)).decode())
    assert {key[1][0][1]: value for key, value in shown.items() if key[0] == ERRORS.name} == found


def test_an_accelerator_in_a_child_reaches_the_page(tmp_path):
    clock = Clock()
    source = FakeAccelerator(tmp_path / "fake")
    runner = Runner(node_at(tmp_path, clock), [source], lambda *_: None, clock_seconds=lambda: clock.seconds)
    try:
        runner.run_due()
        while runner.states[0].turns_total < 1:
            runner.wait(20)
            runner.run_due()
        clock.seconds += 1
        runner.run_due()
        shown = lines(Page(source.metrics, node="n"), *runner.snapshot.samples)
    finally:
        runner.close()
    assert 'instep_fake_temperature_celsius{device="3"} 41.0' in shown
    assert 'DCGM_FI_DEV_GPU_TEMP{Hostname="n",device="3"} 41.0' in shown
    assert 'instep_agent_source_success{source="fake_state"} 1.0' in shown


def test_there_is_one_page(tmp_path):
    exposition = Exposition("127.0.0.1:0", lambda: b"instep_up 1\n")
    try:
        url = f"http://127.0.0.1:{exposition.port}"
        with urllib.request.urlopen(f"{url}/metrics?x=1", timeout=5) as answer:
            assert answer.read() == b"instep_up 1\n"
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(url, timeout=5)
        refused.value.close()
    finally:
        exposition.close()


def promtool():
    """Where promtool is. Missing it is a failure where the tests must all run."""
    services.needed("prometheus", "promtool")
    return shutil.which("promtool")


def test_promtool_has_nothing_to_say_about_any_metric():
    """Every metric that is stated, with a value, whether this node has it or not."""
    program = promtool()
    sources = all_sources()
    metrics = [*UPLINK_METRICS, *(metric for source in sources for metric in source.metrics)]
    page = Page(metrics, node="n", dcgm_names="off", is_full=True)
    everything = {**page._metrics}
    samples = tuple(sample(name, 1.0) for name in everything)
    checked = subprocess.run(
        [program, "check", "metrics"],
        input=page.render(seen(*samples)),
        capture_output=True,
        timeout=60,
    )
    lines = (checked.stdout + checked.stderr).decode().splitlines()
    assert [line for line in lines if line.startswith(("instep_", "node_"))] == []


def test_the_page_of_a_recorded_node_is_the_one_that_was_recorded(tmp_path):
    """Rewrite it with INSTEP_REWRITE=1."""
    golden = Path(__file__).parent / "sources/recorded/a100.metrics"
    node = node_at(RECORDED / "a100", record_root=tmp_path)
    sources = [KernelLog(), RankRecords(), GpuInventory(), Host()]
    runner = Runner(node, sources, lambda *_: None, clock_seconds=lambda: 5.0)
    runner.run_due()
    page = Page([metric for source in sources for metric in source.metrics], node="node-a", clock_seconds=lambda: 5.0)
    text = page.render(runner.snapshot).decode()
    kept = "".join(line for line in text.splitlines(keepends=True) if "source_duration_seconds{" not in line)
    if os.environ.get("INSTEP_REWRITE"):
        golden.write_text(kept)
    assert kept == golden.read_text()
