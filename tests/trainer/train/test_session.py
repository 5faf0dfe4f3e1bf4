"""`instep_trainer.session()` in a script of its own: phases, steps, and exact resume through the slots."""

import subprocess
import sys

import instep_trainer
import pytest
from instep_trainer import phases


class Listener(phases.NoRecorder):
    def __init__(self):
        self.heard = []

    def annotate(self):
        self.heard.append("annotate")

    def enter_phase(self, phase):
        self.heard.append(phase)
        return "user"

    def leave_phase(self, previous):
        self.heard.append(f"back to {previous}")

    def finish_step(self, step, tokens, tokens_squared, is_skipped):
        self.heard.append((step, tokens, tokens_squared, is_skipped))


@pytest.fixture
def listener():
    before = phases.recorder()
    heard = Listener()
    phases.install(heard)
    yield heard
    phases.install(before)


@pytest.fixture
def launched(monkeypatch, tmp_path):
    for name, value in {
        "INSTEP_RECORD_ROOT": str(tmp_path),
        "INSTEP_NODE_NAME": "node-a",
        "INSTEP_RUN": "r1",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "node-a" / "r1" / "checkpoint"


def test_phases_steps_and_tokens_reach_the_recorder(listener):
    with instep_trainer.session() as session:
        for _batch in session.steps(["x", "y"]):
            session.tokens([3, 4])
            with session.phase("forward"):
                pass
    step = ["data", "back to user", "forward", "back to user"]
    assert listener.heard == ["annotate", *step, (1, 7, 25, False), *step, (2, 7, 25, False), "data", "back to user"]


def test_a_phase_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'lunch' is not a phase"), phases.phase("lunch"):
        pass


def test_outside_the_launcher_nothing_is_kept_and_torch_is_not_imported():
    body = (
        "import sys, instep_trainer\n"
        "with instep_trainer.session() as s:\n"
        "    assert s.resume({}) == 0\n"
        "    assert [b for b in s.steps([1, 2])] == [1, 2]\n"
        "    s.keep({}, 2)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", body], check=True)


def test_a_kept_state_comes_back_bit_for_bit(launched, listener):
    torch = pytest.importorskip("torch")

    state = {"weight": torch.randn(5, 3), "step": torch.zeros((), dtype=torch.int64)}
    with instep_trainer.session() as session:
        assert session.resume(state) == 0
        for step, _batch in enumerate(session.steps([1, 2, 3]), 1):
            state["weight"].mul_(1.01)
            state["step"] += 1
            session.keep(state, step)
    again = {"weight": torch.zeros(5, 3), "step": torch.zeros((), dtype=torch.int64)}
    with instep_trainer.session() as session:
        assert session.resume(again) == 3
        assert torch.equal(again["weight"], state["weight"]) and int(again["step"]) == 3
        list(session.steps([4]))
    assert listener.heard[-3:-2] == [(4, 0, 0, False)]
    assert sorted(path.name for path in launched.iterdir()) == ["0.0", "0.1"]
