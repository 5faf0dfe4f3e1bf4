"""What a run that nobody adopted left behind is removed when the next supervisor starts on its node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.trainer.run import supervisors

pytestmark = pytest.mark.real
LONG_AGO_SECONDS = 1_000_000_000  # 2001: before any machine that runs this was booted


@pytest.fixture
def node(tmp_path: Path):
    with supervisors.node(tmp_path) as one:
        yield one


def left(node: supervisors.Node, run: str, *, is_old: bool) -> Path:
    """The checkpoint of a run that died."""
    slot = node.root / "node-a" / run / "checkpoint" / "0.0"
    slot.parent.mkdir(parents=True)
    slot.write_bytes(b"state")
    for path in (slot, slot.parent, slot.parent.parent):
        if is_old:
            os.utime(path, (LONG_AGO_SECONDS, LONG_AGO_SECONDS))
    return slot


def test_a_supervisor_removes_what_nobody_adopted_and_keeps_its_own_and_the_young(node) -> None:
    abandoned = left(node, "abandoned", is_old=True)
    adopted = left(node, "run-1", is_old=True)  # adopted by this very supervisor
    young = left(node, "young", is_old=False)
    run = node.waiting()
    node.pids(0)
    assert not abandoned.parent.parent.exists()
    assert adopted.exists()
    assert young.exists()
    node.end()
    assert run.ends() == 0
