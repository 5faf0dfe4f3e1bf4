"""The demo's score: right only when everything is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from instep.demo.acts import WORLD_SIZE, Fault, draw_acts, node_of
from instep.demo.cli import main
from instep.demo.score import Played, score

STEPS = 6


def evening(change: Callable[[dict[str, Any]], None] = lambda parts: None) -> Played:
    """An evening on which everything went as it must, and then one thing may be changed."""
    acts = draw_acts(3)
    for number, act in enumerate(acts):
        act.began_at = 100.0 * (number + 1)
    kinds = {Fault.SLOW: "straggler", Fault.FROZEN: "hang", Fault.KILLED: "crash"}
    incidents = [
        {
            "id": act.fault.value,
            "kind": kinds[act.fault],
            "alarm_at": act.began_at + 1,
            "verdict_at": act.began_at + 2,
            "step_kept_at": act.began_at + 3,
            "owner": "node",
            "summary": f"Rank {act.rank} on {act.node}, Xid 79",
            "suspects": [{"rank": act.rank, "node": act.node}],
            "evidence": [],
            "plans": [{"actions": [{"name": "drain_node"}]}] if act.fault is Fault.KILLED else [],
        }
        for act in acts
    ]
    losses = {step: [1.0 / step] for step in range(1, STEPS + 1)}
    parts: dict[str, Any] = {
        "acts": acts,
        "incidents": incidents,
        "undisturbed_incidents": [],
        "losses": losses,
        "undisturbed_losses": dict(losses),
        "steps": STEPS,
        "lost": dict.fromkeys(Fault, 0),
        "nodes_after": [node for node in ("node-a", "node-b", "node-c") if node not in acts[2].gone_from],
        "is_finished": True,
    }
    change(parts)
    return Played(**parts)


def test_an_evening_on_which_all_went_well_is_right() -> None:
    scored = score(evening())
    assert scored.is_right, scored
    assert [row.onset_to_alarm_seconds for row in scored.rows] == [1.0, 1.0, 1.0]


def blame_another(parts: dict[str, Any]) -> None:
    culprit = parts["incidents"][1]["suspects"][0]
    culprit["rank"] = (culprit["rank"] + 1) % WORLD_SIZE


def blame_one_more(parts: dict[str, Any]) -> None:
    parts["incidents"][0]["suspects"].append({"rank": 99, "node": "node-a"})


def forget_one(parts: dict[str, Any]) -> None:
    del parts["incidents"][1]


def accuse_an_innocent(parts: dict[str, Any]) -> None:
    parts["incidents"].append({**parts["incidents"][0], "id": "another"})


def disturb_the_calm(parts: dict[str, Any]) -> None:
    parts["undisturbed_incidents"] = [{"id": "x", "summary": "Rank 0 is slow"}]


def change_a_loss(parts: dict[str, Any]) -> None:
    parts["losses"] = {**parts["losses"], 3: [1.0 / 3 + 1e-16]}


def make_a_step_twice_differently(parts: dict[str, Any]) -> None:
    parts["losses"] = {**parts["losses"], 3: [1.0 / 3, 0.5]}


def miss_a_step(parts: dict[str, Any]) -> None:
    parts["losses"] = {step: made for step, made in parts["losses"].items() if step != 4}


def lose_a_step(parts: dict[str, Any]) -> None:
    parts["lost"] = {**parts["lost"], Fault.FROZEN: 1}


def stay_on_the_bad_node(parts: dict[str, Any]) -> None:
    parts["nodes_after"] = [*parts["nodes_after"], *parts["acts"][2].gone_from]


def propose_no_drain(parts: dict[str, Any]) -> None:
    parts["incidents"][2]["plans"] = []


def not_join_the_xid(parts: dict[str, Any]) -> None:
    parts["incidents"][2]["summary"] = "Rank 1 was killed"


def not_finish(parts: dict[str, Any]) -> None:
    parts["is_finished"] = False


@pytest.mark.parametrize(
    "change",
    [
        blame_another,
        blame_one_more,
        forget_one,
        accuse_an_innocent,
        disturb_the_calm,
        change_a_loss,
        make_a_step_twice_differently,
        miss_a_step,
        lose_a_step,
        stay_on_the_bad_node,
        propose_no_drain,
        not_join_the_xid,
        not_finish,
    ],
)
def test_one_thing_wrong_makes_the_evening_wrong(change: Callable[[dict[str, Any]], None]) -> None:
    assert not score(evening(change)).is_right


def test_the_ranks_and_steps_come_from_the_seed() -> None:
    drawn = {tuple((act.rank, act.step) for act in draw_acts(seed)) for seed in range(30)}
    assert len(drawn) > 20
    assert all(act.node == node_of(act.rank) for seed in range(30) for act in draw_acts(seed))


def test_a_data_folder_that_is_missing_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "missing or empty" in capsys.readouterr().err
