"""Real ranks over gloo for the tests of the trainer."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from instep.local.ports import free_port

RANKS = 4
SHAPE = ["--layers", "2", "--width", "32", "--heads", "2", "--sequence-length", "16", "--batch-size", "2"]
ATTEMPT_SECONDS_MAX = 60.0


@dataclass
class Outcome:
    """How one attempt ended."""

    codes: list[int]
    log: str


class Zygote:
    """Forks ranks that have torch imported."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._read() == {"ready": 1}

    def start(self, ranks) -> list[int]:
        return self._ask({"ranks": ranks})["pids"]

    def wait(self, pids, seconds) -> list[int | None]:
        codes = self._ask({"wait": pids, "seconds": seconds})["codes"]
        return [codes[str(pid)] for pid in pids]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def _ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self):
        return json.loads(self._process.stdout.readline())


@dataclass
class Job:
    """A 4-rank training run over several attempts."""

    zygote: Zygote
    out: Path
    data: Path
    steps: int
    folders: list[Path | None]
    """Memory folder of each rank's node."""
    attempts: int = 0
    arguments: list[str] = field(default_factory=list)

    def attempt(self, *, faults=None, environment=None) -> Outcome:
        """Run one attempt to its end; a rank that stops itself ends it too, by SIGKILL of all."""
        log = self.out.parent / f"{self.out.name}.{self.attempts}.log"
        port = free_port()
        ranks = [self._rank(rank, port, log, (faults or {}).get(rank), environment or {}) for rank in range(RANKS)]
        pids = self.zygote.start(ranks)
        self.attempts += 1
        codes = self._watch(pids)
        return Outcome(codes, log.read_text())

    def _watch(self, pids) -> list[int]:
        end = time.monotonic() + ATTEMPT_SECONDS_MAX
        while time.monotonic() < end:
            codes = self.zygote.wait(pids, 0.02)
            if None not in codes:
                return codes
            if any(code is None and is_stopped(pid) for pid, code in zip(pids, codes, strict=True)) or any(codes):
                break
        for pid, code in zip(pids, codes, strict=True):
            if code is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        late = self.zygote.wait([pid for pid, code in zip(pids, codes, strict=True) if code is None], 10)
        return [late.pop(0) if code is None else code for code in codes]

    def _rank(self, rank, port, log, fault, environment):
        folder = self.folders[rank]
        arguments = [*SHAPE, "--data", str(self.data), "--out", str(self.out), "--steps", str(self.steps)]
        arguments += self.arguments
        arguments += ["--checkpoint-memory", str(folder)] if folder else []
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "INSTEP_ATTEMPT": str(self.attempts),
        }
        return {"environment": {**place, **environment}, "arguments": arguments, "log": str(log), "fault": fault}


def is_stopped(pid) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


@pytest.fixture(scope="session")
def zygote():
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("".join(f"{n} sheep and {n * n % 97} goats went up the hill.\n" for n in range(400)))
    return folder


@pytest.fixture
def make_job(zygote, corpus_folder, tmp_path):
    def make(steps=16, *, folders=None, arguments=()):
        folders = folders or [tmp_path / "memory"] * RANKS
        return Job(zygote, tmp_path / "out", corpus_folder, steps, list(folders), arguments=list(arguments))

    return make


@pytest.fixture(scope="session")
def undisturbed(zygote, corpus_folder, tmp_path_factory):
    """The losses of a run to which nothing happens."""
    from instep_trainer.train.losses import read_losses

    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(zygote, folder / "out", corpus_folder, 50, [None] * RANKS, arguments=["--checkpoint-every-disk", "0"])
    outcome = job.attempt()
    assert outcome.codes == [0] * RANKS, outcome.log
    return read_losses(folder / "out" / "losses.jsonl")
