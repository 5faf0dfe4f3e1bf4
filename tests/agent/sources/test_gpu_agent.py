"""The whole agent over the NVML stand-in: what a GPU does arrives at the server; a stuck driver stops nothing else."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
from ingest_server import IngestServer
from instep_agent.sources import GPU_SOURCES
from nvml_scenario import Scenario, pci, uuid

COMMAND = [sys.executable, "-c", "import sys; from instep_agent.cli import main; sys.exit(main(sys.argv[1:]))"]


class Observed:
    """A server that an agent with two GPUs tells, and the scenario of these GPUs."""

    def __init__(self, library, folder):
        self.server = IngestServer()
        self.scenario = Scenario(folder / "scenario.txt")
        self.scenario.healthy(2)
        for name in ("dev", "proc"):
            (folder / name).mkdir()
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "INSTEP_NVML_SCENARIO": str(self.scenario.path),
            "INSTEP_TOKEN": "secret",
        }
        options = ["--node", "n1", "--server", self.server.url, "--root", folder, "--proc", "/proc", "--interval", 0.2]
        self.process = subprocess.Popen([*COMMAND, *map(str, options)], env=environment, stderr=subprocess.DEVNULL)

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        self.server.close()

    def readings(self, name, *, after=0):
        """Give a metric's readings by GPU, of each frame that has any, from the frame with this number on."""
        found = []
        for frame in self.server.frames[after:]:
            series = self.server.dictionaries[frame.dictionary_hash].series if frame.dictionary_hash else ()
            numbered = zip(series, memoryview(frame.values).cast("d"), strict=True)
            mine = [(dict(labels), number) for (known, labels), number in numbered if known == name]
            pairs = [(labels.get("gpu", ""), number) for labels, number in mine if not math.isnan(number)]
            if pairs:
                found.append(dict(pairs))
        return found

    def event(self, kind):
        """Wait for an event of this kind, and give it."""
        self.server.wait_for(lambda _: self.events(kind))
        return self.events(kind)[0]

    def events(self, kind):
        """Give the events of this kind that arrived."""
        return [event for frame in self.server.frames for event in frame.events if event.kind == kind]

    def wait_for(self, condition):
        self.server.wait_for(lambda _: condition())


@pytest.fixture
def observed(nvml_library, tmp_path):
    observed = Observed(nvml_library, tmp_path)
    yield observed
    observed.close()


NAMES = [source.name for source in GPU_SOURCES]
POWER, LOST = "instep_gpu_power_watts", "instep_gpu_is_lost"
BOTH = {"0": 650.0, "1": 650.0}


def test_what_gpus_do_arrives_at_the_server(observed):
    observed.wait_for(lambda: BOTH in observed.readings(POWER))
    assert not observed.events("gpu_lost")
    observed.scenario.event(1, 79)
    event = observed.event("gpu_event")
    assert event.fields == {"type": "xid", "code": "79", "gpu": "1", "uuid": uuid(1), "pci": pci(1)}
    observed.scenario.add("1.lost 1")
    assert observed.event("gpu_lost").fields["uuid"] == uuid(1)
    after = len(observed.server.frames)
    observed.wait_for(lambda: {"0": 0.0, "1": 1.0} in observed.readings(LOST, after=after))
    observed.wait_for(lambda: {"0": 650.0} in observed.readings(POWER, after=after))
    assert len(observed.events("gpu_lost")) == 1


def test_a_driver_that_hangs_is_named_with_its_call_while_other_sources_go_on(observed):
    observed.wait_for(lambda: BOTH in observed.readings(POWER))
    observed.scenario.add("1.hang nvmlDeviceGetPowerUsage")
    event = observed.event("source_stuck")
    assert event.fields["source"] == "gpu_state"
    assert event.fields["call"] == "nvmlDeviceGetPowerUsage gpu 1"
    after = len(observed.server.frames)
    observed.wait_for(lambda: observed.readings("instep_host_load1", after=after))
    assert observed.readings(POWER, after=after) == []
    observed.scenario.healthy(2)
    assert observed.event("source_recovered").fields["source"] == "gpu_state"
    observed.wait_for(lambda: BOTH in observed.readings(POWER, after=after))


def test_asked_once_the_agent_shows_what_every_gpu_source_says(nvml_library, tmp_path):
    scenario = Scenario(tmp_path / "scenario.txt")
    scenario.healthy(2)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(nvml_library), "INSTEP_NVML_SCENARIO": str(scenario.path)}
    command = [*COMMAND, "--node", "n1", "--root", str(tmp_path), "--proc", "/proc", "--once", "--json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    sources = json.loads(run.stdout)["sources"]
    outcomes = {name: source["outcome"] for name, source in sources.items() if name in NAMES}
    assert outcomes == dict.fromkeys(NAMES, "ok")
    assert all(sources[name]["samples"] for name in NAMES)
