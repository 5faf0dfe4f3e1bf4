"""Two ranks that differ from the first step on: nobody is named, and what they differ by is told."""

import json

import numpy as np
import pytest
from instep_agent.wire import StepReport
from instep_diagnosis.cli import main
from instep_diagnosis.detectors.pair import pair_difference
from instep_diagnosis.detectors.straggler import detect_stragglers
from instep_diagnosis.evidence import JobSteps


def job(factors, *, steps=60, noise=0.01, seed=1):
    """Ranks whose work is so many times 0.1 s; who is ahead waits for the slowest."""
    dice = np.random.default_rng(seed)
    work_TR = 0.1 * np.array(factors) * np.exp(noise * dice.standard_normal((steps, len(factors))))
    wall_T = work_TR.max(axis=1) + 0.01
    rows = {
        rank: tuple(
            StepReport(
                step=step,
                wall_seconds=float(wall_T[step]),
                forward_seconds=float(work_TR[step, rank]),
                wait_seconds=float(wall_T[step] - work_TR[step, rank]),
            )
            for step in range(steps)
        )
        for rank in range(len(factors))
    }
    return JobSteps("gpt", "run-1", 0, rows, {rank: f"node-{rank}" for rank in rows})


@pytest.mark.parametrize(("factors", "slower"), [((1.2, 1.0), 0), ((1.0, 1.2), 1), ((1.0, 1.08), 1)])
def test_what_two_ranks_differ_by_is_told_where_nobody_is_named(factors, slower):
    assert detect_stragglers(job(factors)) == []
    found = pair_difference(job(factors))
    assert found is not None
    assert (found.slower, found.faster, found.steps) == (slower, 1 - slower, 60)
    assert found.ratio == pytest.approx(max(factors), abs=0.02)
    assert found.words.startswith(f"Rank {slower} works {found.ratio:.2f} times as long as rank {1 - slower}")
    assert "Nobody is named" in found.words


@pytest.mark.parametrize(
    "healthy",
    [job((1.0, 1.0)), job((1.0, 1.03)), job((1.0, 1.0), noise=0.3), job((1.0, 1.2), steps=7), job((1.0, 1.0, 1.2))],
    ids=["alike", "a habit", "noise", "few steps", "three ranks"],
)
def test_no_difference_is_told_where_there_is_none_or_a_majority(healthy):
    assert pair_difference(healthy) is None


def test_noise_alone_is_no_difference():
    assert [seed for seed in range(300) if pair_difference(job((1.0, 1.0), noise=0.1, seed=seed))] == []


@pytest.mark.parametrize(("shape", "is_pair"), [((1, 2), True), ((1, 3), False), ((2, 2), False)])
@pytest.mark.parametrize("slow", [1.0, 1.2])
def test_the_command_says_what_two_ranks_cannot_tell(tmp_path, capsys, shape, is_pair, slow):
    dice = np.random.default_rng(3)
    seconds = {name: 0.1 * np.exp(0.006 * dice.standard_normal((20, *shape))) for name in ("fwd", "bwd")}
    for values in seconds.values():
        values[:, 0, 1] *= slow
    case = {"pp": shape[0], "dp": shape[1], "mb": 4, "agg": {name: values.tolist() for name, values in seconds.items()}}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case), encoding="utf-8")
    main(["steps", "--json", str(tmp_path / "cases.jsonl")])
    found = json.loads(capsys.readouterr().out)
    assert (found["cause"] == "slow_worker") is (slow > 1.0)
    assert found["caveat"].startswith("Of two ranks neither is the majority") is (is_pair and slow > 1.0)
