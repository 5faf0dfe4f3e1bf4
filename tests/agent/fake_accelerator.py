"""A stand-in for an accelerator's source: its driver answers, hangs, crashes and calls out as a test tells it.

What a test tells lies in files, because the source runs in another process.
"""

import os
import signal
import time

from instep_agent.announce import announce
from instep_agent.errors import Absent, SourceFailed
from instep_agent.metric import counter, gauge
from instep_agent.node import Fact
from instep_agent.wire import Sample

WATCHED = "watched"


class FakeAccelerator:
    """One device whose temperature is in `<folder>/temperature`; `<folder>/mode` says how the driver behaves."""

    interval_seconds = 1.0
    deadline_seconds = 2.0
    metrics = (
        gauge("instep_fake_temperature_celsius", "Temperature of the device.", alias="DCGM_FI_DEV_GPU_TEMP"),
        counter("instep_fake_turns_total", "Turns in this process."),
    )

    def __init__(self, folder, name="fake_state", child="fake"):
        self.folder, self.name, self.child, self.turns = folder, name, child, 0
        folder.mkdir(exist_ok=True)
        self.set("mode", "fine")
        self.set("temperature", "41")

    def set(self, name, text):
        partial = self.folder / f".{name}"
        partial.write_text(text)
        partial.rename(self.folder / name)

    def pid(self):
        return int((self.folder / f"{self.name}.pid").read_text())

    def collect(self, node):
        self.turns += 1
        self.set(f"{self.name}.pid", str(os.getpid()))
        mode = (self.folder / "mode").read_text()
        if mode in ("absent", "failed"):
            raise {"absent": Absent, "failed": SourceFailed}[mode](f"The driver is {mode}.")
        announce("fakeDeviceGetTemperature device 3")
        if mode == f"hang {self.name}":
            signal.pause()
        if mode == f"crash {self.name}":
            os.kill(os.getpid(), signal.SIGSEGV)
        labels = (("device", "3"),)
        temperature = float((self.folder / "temperature").read_text())
        yield Sample(name="instep_fake_temperature_celsius", labels=labels, value=temperature)
        yield Sample(name="instep_fake_turns_total", labels=labels, value=float(self.turns))


class RememberingAccelerator(FakeAccelerator):
    """One that is rarely asked and hands on how many turns it has taken, unless its device is hot."""

    interval_seconds = 30.0

    def memory(self):
        return None if (self.folder / "temperature").read_text() == "99" else b"%d" % self.turns

    def recall(self, memory):
        self.turns = int(memory)


class WatchingAccelerator(FakeAccelerator):
    """Its driver also calls out: whatever is written into `<folder>/call`, once."""

    def watch(self, node, timeout_seconds):
        announce("fakeEventSetWait")
        until = time.monotonic() + timeout_seconds
        while time.monotonic() < until:
            if (self.folder / "call").exists():
                text = (self.folder / "call").read_text()
                (self.folder / "call").unlink()
                if text == "crash":
                    os.kill(os.getpid(), signal.SIGABRT)
                yield Fact("fake_event", text, time.monotonic_ns(), time.time_ns())
            time.sleep(0.005)
