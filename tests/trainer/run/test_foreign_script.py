"""A script that knows nothing of Instep trains unchanged, is protected against a hang, and its pauses are no hang."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.trainer.run import supervisors
from tests.trainer.run.supervisors import SCRIPTS, rank_pid, wait_for

pytestmark = pytest.mark.real
OPTIONS = ("--nproc-per-node", "2", "--max-restarts", "2")
STEPS = 60


@pytest.fixture
def node(tmp_path: Path):
    with supervisors.node(tmp_path) as one:
        yield one


def losses(out: Path, attempt: int | None = None) -> dict[int, str]:
    """step → loss, of one attempt or of the last one that made the step."""
    file = out / "losses"
    rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return {int(step): loss for step, loss, made in rows if attempt is None or int(made) == attempt}


def start(node, *arguments: str):
    return node.start(SCRIPTS / "foreign.py", "--out", str(node.folder), *arguments, options=OPTIONS)


def named(run) -> str:
    """What the supervisor said of the culprit when it restarted."""
    found = re.search(r"deciding without the server: restart \((.*)\)", run.said)
    assert found, run.said
    return found[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """A healthy run with long pauses: its supervisor's words, and its losses."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with supervisors.node(folder) as one:
        run = start(one, "--save-seconds", "6", "--evaluation-seconds", "3")
        assert run.ends() == 0, run.said
        return run.said, losses(folder)


def test_long_pauses_of_a_healthy_script_raise_no_alarm_and_restart_nothing(undisturbed) -> None:
    said, lost = undisturbed
    assert "no progress" not in said
    assert "attempt 1" not in said
    assert sorted(lost) == list(range(STEPS))


def test_a_stopped_rank_is_named_and_the_script_goes_on_from_its_own_checkpoint(node, undisturbed) -> None:
    run = start(node)
    wait_for(lambda: 25 in losses(node.folder), "step 25", run.log)
    os.kill(rank_pid(node.root, "node-a", "run-1", 0, 1), signal.SIGSTOP)
    assert run.ends() == 0, run.said
    assert named(run).startswith("Rank 1 on node-a")
    assert min(losses(node.folder, attempt=1)) % 10 == 0
    assert losses(node.folder) == undisturbed[1]
    assert "attempt 2" not in run.said


def test_a_rank_that_never_returns_from_its_forward_is_named_and_the_script_goes_on(node, undisturbed) -> None:
    run = start(node, "--fault", str(node.folder / "fault"))
    assert run.ends() == 0, run.said
    assert named(run).startswith("Rank 1 on node-a")
    assert min(losses(node.folder, attempt=1)) == 20
    assert losses(node.folder) == undisturbed[1]
    assert "attempt 2" not in run.said
