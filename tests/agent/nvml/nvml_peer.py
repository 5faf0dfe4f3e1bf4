"""A process of its own in which the GPU sources run over the real `pynvml`: the library is found before it starts.

Run as a program it reads one JSON order a line, `{"do": "collect", "source": "gpu_state"}`, and answers with one.
"""

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path

from instep_agent.wire import GpuReport, Sample

ANSWER_SECONDS_MAX = 60.0


class Answer(dict):
    """What a source said: `samples` by name and labels, `facts`, and `absent` or `failed` with its sentence."""

    def values(self, name: str, **labels: str) -> dict[str, float]:
        """Give the values of a metric by GPU index, of the series that carry these labels."""
        found = {}
        for sample_name, pairs, value in self["samples"]:
            known = dict(pairs)
            if sample_name == name and all(known.get(key) == text for key, text in labels.items()):
                found[known.get("gpu", "")] = value
        return found

    def names(self, gpu: int | None = None) -> set[str]:
        """Give the metrics that there are, of all or of one GPU."""
        return {name for name, pairs, _ in self["samples"] if gpu is None or dict(pairs).get("gpu") == str(gpu)}


class Peer:
    """The other end; a context manager, since a process that hangs in a driver must be killed."""

    def __init__(self, library: Path | None, scenario: Path | None) -> None:
        environment = dict(os.environ)
        if library is not None:
            environment["LD_LIBRARY_PATH"] = str(library)
        if scenario is not None:
            environment["INSTEP_NVML_SCENARIO"] = str(scenario)
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.process.stdout, selectors.EVENT_READ)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        self.process.kill()
        self.process.communicate()

    def order(self, **order: object) -> None:
        """Send an order without waiting for its answer."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def has_answer(self, seconds: float) -> bool:
        """Whether an answer comes within this time."""
        return bool(self._selector.select(seconds))

    def answer(self) -> Answer:
        """Give the next answer."""
        assert self.has_answer(ANSWER_SECONDS_MAX), "the process does not answer"
        line = self.process.stdout.readline()
        assert line, "the process ended"
        return Answer(json.loads(line))

    def ask(self, **order: object) -> Answer:
        """Send an order and give its answer."""
        self.order(**order)
        return self.answer()

    def collect(self, source: str, *, later_seconds: float = 0.0) -> Answer:
        """Let a source take its turn, with the node's clock moved on first."""
        return self.ask(do="collect", source=source, later_seconds=later_seconds)


class _Worker:
    """What runs in the process: sources over one driver, and a clock that moves when it is told to."""

    def __init__(self) -> None:
        from instep_agent.node import Node

        self.now_ns = 10**12
        clocks = {"monotonic_ns": lambda: self.now_ns, "realtime_ns": lambda: 10**18 + self.now_ns}
        self.new_node = lambda record_root: Node(name="n1", record_root=Path(record_root), **clocks)
        self.calls: list[str] = []
        self.driver, self.sources = None, {}
        self.reset()

    def reset(self, record_root: str = "/nowhere") -> dict:
        """Begin anew, as a fresh process would; on a node with these rank records."""
        from instep_agent.gpu import nvml
        from instep_agent.sources import gpu_sources
        from instep_agent.sources.gpu_recovery import GpuRecovery

        if self.driver is not None:
            self.driver.close()
        nvml.announce = self.calls.append
        nvml.announce_encoded = lambda call: self.calls.append(call.decode())
        self.node = self.new_node(record_root)
        self.driver = nvml.Driver()
        self.sources = {source.name: source for source in gpu_sources(self.driver)}
        self.sources["gpu_recovery"] = GpuRecovery(self.driver, monotonic_ns=lambda: self.now_ns)
        return {}

    def collect(self, source: str, later_seconds: float = 0.0) -> dict:
        """Take a turn of one source."""
        self.now_ns += int(later_seconds * 1e9)
        answer = self._take(self.sources[source].collect(self.node))
        return answer | {"rest_seconds": getattr(self.sources[source], "rest_seconds", 0.0)}

    def wait(self, seconds: float) -> dict:
        """Let time pass on the node's clock."""
        self.now_ns += int(seconds * 1e9)
        return {}

    def watch(self, source: str, seconds: float) -> dict:
        """Wait for what happens."""
        return self._take(self.sources[source].watch(self.node, seconds))

    def _take(self, readings) -> dict:
        from instep_agent.errors import Absent, SourceFailed
        from instep_agent.node import Fact

        self.calls.clear()
        answer: dict = {"samples": [], "facts": [], "gpus": []}
        try:
            for reading in readings:
                if isinstance(reading, Sample):
                    answer["samples"].append([reading.name, list(reading.labels), reading.value])
                elif isinstance(reading, Fact):
                    fact = {"kind": reading.kind, "text": reading.text, "fields": reading.fields}
                    answer["facts"].append(fact | {"monotonic_ns": reading.monotonic_ns})
                elif isinstance(reading, GpuReport):
                    answer["gpus"].append([reading.index, reading.uuid, reading.pci])
        except Absent as error:
            answer["absent"] = str(error)
        except SourceFailed as error:
            answer["failed"] = str(error)
        return answer | {"calls": list(self.calls)}

    def cost(self, source: str, turns: int) -> dict:
        """Measure: CPU seconds and calls of one turn, samples included."""
        import time

        self.collect(source, 60.0)
        used, started = 0, time.process_time()
        for _ in range(turns):
            self.now_ns += int(self.sources[source].interval_seconds * 1e9)
            used += sum(1 for _ in self.sources[source].collect(self.node))
        spent = time.process_time() - started
        calls = self.collect(source)["calls"]
        return {"cpu_seconds": spent / turns, "calls": len(calls), "readings": used / turns}


def main() -> None:
    """Answer orders until there are no more."""
    worker = _Worker()
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(worker, order.pop("do"))(**order)), flush=True)


if __name__ == "__main__":
    main()
