"""A simulated node with a real agent that tells a server, and the command that injects faults into it."""

import math
import os
import signal
import subprocess
import sys

from ingest_server import IngestServer
from nvml_scenario import Scenario
from sysfs_trees import Tree

AGENT = [sys.executable, "-c", "import sys; from instep_agent.cli import main; sys.exit(main(sys.argv[1:]))"]
INJECT = [sys.executable, "-c", "import sys; from instep_trainer.inject.cli import main; sys.exit(main(sys.argv[1:]))"]
NODE = "n1"


class DrilledNode:
    """Two GPUs, a kernel log, and whatever tree the test lays beneath `root` before `start`."""

    def __init__(self, library, folder):
        self.root, self.drills = folder / "root", folder / "drills"
        self.scenario = Scenario(folder / "scenario.txt")
        self.scenario.healthy(2)
        (self.root / "dev").mkdir(parents=True)
        (self.root / "dev/kmsg").touch()
        Tree(self.root).hca()
        self.server = IngestServer()
        self._library, self._commands = library, []
        self.process = None

    def start(self, *options):
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self._library),
            "INSTEP_NVML_SCENARIO": str(self.scenario.path),
            "INSTEP_TOKEN": "secret",
        }
        options = ["--node", NODE, "--server", self.server.url, "--root", self.root, "--proc", "/proc", *options]
        options += ["--drills", self.drills, "--interval", 0.2]
        self.process = subprocess.Popen([*AGENT, *map(str, options)], env=environment, stderr=subprocess.DEVNULL)
        self.server.wait_for(lambda _: self.values("instep_gpu_power_watts"))

    def close(self):
        for command in self._commands:
            command.kill()
            command.communicate()
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        self.server.close()

    def inject(self, fault, *options):
        """Begin a drill; the command goes on until its end."""
        command = [*INJECT, fault, "--node", NODE, "--drills", self.drills, "--kernel-log", self.root / "dev/kmsg"]
        process = subprocess.Popen([*map(str, command), *map(str, options)], stdout=subprocess.PIPE, text=True)
        self._commands.append(process)
        assert process.stdout.readline(), "the command failed"
        return process

    def series(self, name, *, after=0):
        """Give the readings of a metric by labels, of each frame with values from this one on."""
        for frame in self.server.frames[after:]:
            if not frame.dictionary_hash:
                continue
            series = self.server.dictionaries[frame.dictionary_hash].series
            values = zip(series, memoryview(frame.values).cast("d"), strict=True)
            yield {labels: value for (known, labels), value in values if known == name and not math.isnan(value)}

    def values(self, name, *, after=0, is_drill=False, **labels):
        """Give every value of these labels, of a drill or not."""
        found = []
        for frame in self.series(name, after=after):
            for key, value in frame.items():
                own = dict(key)
                if (own.pop("drill", "") == "true") is is_drill and labels.items() <= own.items():
                    found.append(value)
        return found

    def events(self, kind, *, after=0):
        return [event for frame in self.server.frames[after:] for event in frame.events if event.kind == kind]

    def wait_for(self, condition):
        self.server.wait_for(lambda _: condition())
