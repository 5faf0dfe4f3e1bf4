"""Faults of a node over a real agent process: each arrives at the server as its raw fact, marked; without, nothing."""

import signal

import pytest
from nvml_scenario import pci

PCI = pci(1)
LINES = {
    "xid": (("--pci", PCI, "--code", 79), f"NVRM: Xid (PCI:{PCI}): 79,"),
    "sxid": (("--pci", "0000:0a:00.0"), "SXid (PCI:0000:0a:00.0): 20034,"),
    "oom": (("--pid", 4242), "Out of memory: Killed process 4242 (python)"),
}
READINGS = {
    "ecc-corrected": ("instep_gpu_ecc_corrected_volatile_total", ("--count", 5), 2.0, 7.0),
    "ecc-uncorrected": ("instep_gpu_ecc_uncorrected_volatile_total", (), 0.0, 1.0),
    "remap-pending": ("instep_gpu_row_remap_is_pending", (), 0.0, 1.0),
    "remap-failed": ("instep_gpu_row_remap_has_failed", (), 0.0, 1.0),
    "thermal": ("instep_gpu_temperature_celsius", (), 41.0, 95.0),
}
"""Metric, options, the healthy value and that of the drill."""


def test_a_healthy_node_tells_of_no_drill(node):
    kinds = ("kernel_line", "gpu_event", "source_stuck", "link_down", "link_flap", "rdma_counter_blind", "drill_began")
    for name in kinds:
        assert node.events(name) == []
    for metric, _, healthy, _ in READINGS.values():
        node.wait_for(lambda metric=metric: node.values(metric, gpu="1"))
        assert set(node.values(metric, gpu="1")) == {healthy}
        assert node.values(metric, is_drill=True) == []


@pytest.mark.parametrize("fault", LINES)
def test_a_fault_of_the_kernel_log_arrives_as_its_line(node, fault):
    options, text = LINES[fault]
    assert node.inject(fault, *options).wait(20) == 0
    node.wait_for(lambda: any(text in event.text for event in node.events("kernel_line")))
    assert all(event.is_drill for event in node.events("kernel_line"))


@pytest.mark.parametrize("is_simulated", [False, True], ids=["over the readings", "in the stand-in"])
@pytest.mark.parametrize("fault", READINGS)
def test_a_fault_of_a_gpu_arrives_as_its_reading_under_a_series_of_its_own(node, fault, is_simulated):
    metric, options, healthy, wrong = READINGS[fault]
    after = len(node.server.frames)
    place = ("--scenario", node.scenario.path) if is_simulated else ()
    drill = node.inject(fault, "--gpu", 1, *options, *place)
    node.wait_for(lambda: wrong in node.values(metric, after=after, is_drill=True, gpu="1"))
    during = [frame for frame in node.series(metric, after=after) if any(("drill", "true") in key for key in frame)]
    gpus = [sorted((dict(key)["gpu"], "drill" in dict(key)) for key in frame) for frame in during]
    assert all(each == [("0", False), ("1", True)] for each in gpus), "the other GPU's goes on, the real one pauses"
    drill.send_signal(signal.SIGINT)
    assert drill.wait(20) == 0
    node.wait_for(lambda: node.events("drill_ended", after=after))
    ended = len(node.server.frames)
    node.wait_for(lambda: healthy in node.values(metric, after=ended, gpu="1"))
    assert {event.fields["fault"] for event in node.events("drill_ended", after=after)} == {fault}
    assert wrong not in node.values(metric, gpu="1"), "what was injected never stands in the real series"


PORT = {"device": "mlx5_0", "port": "1"}
PORT_FAULTS = {
    "link-down": ("node_infiniband_state_id", (), 1.0, "link_down"),
    "link-flap": ("instep_rdma_port_downs_total", ("--count", 3), None, "link_flap"),
    "counter-jump": ("node_infiniband_symbol_error_total", ("--count", 500), None, ""),
    "counter-saturated": ("node_infiniband_symbol_error_total", (), 65535.0, "rdma_counter_blind"),
}
"""Metric, options, the drill's value where it is always the same, and the fact that comes with it."""


@pytest.mark.parametrize("is_simulated", [False, True], ids=["over the readings", "in the tree"])
@pytest.mark.parametrize("fault", PORT_FAULTS)
def test_a_fault_of_a_port_arrives_as_its_reading_and_its_fact(node, fault, is_simulated):
    metric, options, value, kind = PORT_FAULTS[fault]
    after = len(node.server.frames)
    assert node.values(metric, **PORT), "there is a healthy series"
    healthy = node.values(metric, **PORT)[-1]
    place = ("--root", node.root) if is_simulated else ()
    drill = node.inject(fault, "--device", "mlx5_0", *options, *place)
    expected = healthy + options[1] if value is None else value
    node.wait_for(lambda: expected in node.values(metric, after=after, is_drill=True, **PORT))
    if kind:
        node.wait_for(lambda: node.events(kind, after=after))
    drill.terminate()
    assert drill.wait(20) == 0
    ended = len(node.server.frames)
    node.wait_for(lambda: node.values(metric, after=ended, **PORT))
    kinds = ("link_down", "link_up", "link_flap", "rdma_counter_blind", "rdma_counters_reset")
    assert all(event.is_drill for each in kinds for event in node.events(each, after=after))


def test_a_full_disk_arrives_as_its_reading(node):
    after = len(node.server.frames)
    drill = node.inject("disk-full", "--mount", "/")
    node.wait_for(lambda: 0.0 in node.values("instep_mount_available_bytes", after=after, is_drill=True, path="/"))
    drill.terminate()
    assert drill.wait(20) == 0
    ended = len(node.server.frames)
    node.wait_for(lambda: node.values("instep_mount_available_bytes", after=ended, path="/"))
    assert all(node.values("instep_mount_available_bytes", path="/"))


def test_the_event_of_a_gpu_that_goes_with_an_xid_is_a_drill_too(node):
    after = len(node.server.frames)
    options = ("--pci", PCI, "--code", 48, "--gpu", 1, "--scenario", node.scenario.path)
    assert node.inject("xid", *options).wait(20) == 0
    node.wait_for(lambda: node.events("gpu_event", after=after))
    (event,) = node.events("gpu_event", after=after)
    assert (event.fields["code"], event.fields["pci"], event.is_drill) == ("48", PCI, True)


@pytest.mark.parametrize("is_simulated", [False, True], ids=["a stopped child", "a call that blocks"])
def test_a_driver_that_hangs_is_found_by_the_agent_itself_and_recovers(node, is_simulated):
    after = len(node.server.frames)
    place = ("--scenario", node.scenario.path) if is_simulated else ()
    drill = node.inject("driver-hang", *place)
    node.wait_for(lambda: node.events("source_stuck", after=after))
    assert all(event.is_drill for event in node.events("source_stuck", after=after))
    during = len(node.server.frames)
    node.wait_for(lambda: 3.0 in node.values("instep_agent_source_state", after=after, is_drill=True))
    node.wait_for(lambda: node.values("instep_host_load1", after=during))
    drill.terminate()
    assert drill.wait(20) == 0
    node.wait_for(lambda: node.events("source_recovered", after=after))
    assert all(event.is_drill for event in node.events("source_recovered", after=after))
    recovered = len(node.server.frames)
    node.wait_for(lambda: node.values("instep_gpu_power_watts", after=recovered))


def test_a_drill_whose_command_was_killed_ends_by_itself(node):
    after = len(node.server.frames)
    drill = node.inject("thermal", "--gpu", 0, "--for", 1)
    drill.kill()
    drill.wait(20)
    node.wait_for(lambda: node.events("drill_ended", after=after))
    ended = len(node.server.frames)
    node.wait_for(lambda: 41.0 in node.values("instep_gpu_temperature_celsius", after=ended, gpu="0"))


def test_a_real_event_during_a_drill_is_no_drill(node):
    after = len(node.server.frames)
    drill = node.inject("thermal", "--gpu", 0)
    node.wait_for(lambda: node.events("drill_began", after=after))
    node.scenario.add("event 99 0 13 8")
    node.wait_for(lambda: node.events("gpu_event", after=after))
    assert [event.is_drill for event in node.events("gpu_event", after=after)] == [False]
    drill.terminate()
    assert drill.wait(20) == 0
