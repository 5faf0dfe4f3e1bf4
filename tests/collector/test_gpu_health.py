"""Health readings frame by frame: what says nothing new costs one look; what a counter did is told with its time."""

import math
import struct

import pytest
from instep_agent.uplink.frames import make_dictionary
from instep_agent.wire import ClockAnchor, Frame
from instep_collector import gpu_health
from instep_collector.gpu_health import GpuHealth

COUNTED, ASKED = "instep_gpu_ecc_uncorrected_volatile_total", "instep_gpu_recovery_action"
GPU = (("gpu", "0"), ("uuid", "GPU-a"))
DICTIONARY = make_dictionary(((COUNTED, GPU), (ASKED, GPU), ("instep_host_load1", ())))


def frame(seconds, counted=math.nan, asked=math.nan):
    """One frame of a node: a counter is read every 10 s, the action every 2 s, the load every second."""
    values = {COUNTED: counted, ASKED: asked, "instep_host_load1": float(seconds)}
    ns = int(seconds * 1e9)
    return Frame(
        cluster="",
        node="n",
        boot_id="b",
        agent_epoch="e",
        sequence=seconds,
        anchor=ClockAnchor(boot_id="b", monotonic_ns=ns, realtime_ns=ns, uncertainty_ns=1),
        dictionary_hash=DICTIONARY.hash,
        values=struct.pack("<3d", *(values[name] for name, _ in DICTIONARY.series)),
    )


def healthy(seconds, counted=3.0):
    return frame(seconds, counted if seconds % 10 == 0 else math.nan, 0.0 if seconds % 2 == 0 else math.nan)


@pytest.fixture
def looked(monkeypatch):
    """At which frames readings were gone through."""
    looked = []
    told = gpu_health.faults_told
    monkeypatch.setattr(gpu_health, "faults_told", lambda readings: looked.append(1) or told(readings))
    return looked


def test_frames_with_and_without_the_same_readings_are_gone_through_once_each(looked):
    health = GpuHealth()
    for seconds in range(1, 32):
        assert health.events(healthy(seconds), DICTIONARY) == ()
    gone_through = len(looked)
    for seconds in range(32, 200):
        assert health.events(healthy(seconds), DICTIONARY) == ()
    assert len(looked) == gone_through <= 6


def test_a_count_that_rises_and_begins_anew_is_told_each_time_with_the_time_since_its_last_reading(looked):
    health = GpuHealth()
    told = []
    for seconds in range(1, 301):
        counted = 3.0 if seconds < 95 else 4.0 if seconds < 195 else 3.0
        told += [(seconds, event.text) for event in health.events(healthy(seconds, counted), DICTIONARY)]
    words = "Within 10 s GPU 0 counted errors that could not be corrected"
    assert told == [(100, f"{words}: {COUNTED} by 1 to 4."), (200, f"{words}: {COUNTED} by 3 to 3.")]
    assert len(looked) < 20
