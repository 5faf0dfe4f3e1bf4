"""Holds what Instep said against the truth: pure, so that a wrong verdict is proved to fail the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instep.demo.acts import Act, Fault

KINDS = {Fault.SLOW: {"straggler"}, Fault.FROZEN: {"hang"}, Fault.KILLED: {"crash", "gpu-fault"}}


@dataclass(frozen=True, slots=True)
class Row:
    """One act's line in the table."""

    act: Act
    incident: str
    onset_to_alarm_seconds: float | None
    alarm_to_verdict_seconds: float | None
    verdict_to_kept_seconds: float | None
    steps_lost: int | None
    wrong: tuple[str, ...]
    """What was not as it must be; empty is right."""


@dataclass(frozen=True, slots=True)
class Score:
    """The whole evening."""

    rows: tuple[Row, ...]
    wrong: tuple[str, ...]
    """What belongs to no act: innocents accused, losses that differ."""

    @property
    def is_right(self) -> bool:
        """Every culprit right, nobody innocent accused, every loss equal."""
        return not self.wrong and not any(row.wrong for row in self.rows)


@dataclass(frozen=True, slots=True)
class Played:
    """What there is to score."""

    acts: Sequence[Act]
    incidents: Sequence[Mapping[str, Any]]
    """Of the disturbed run and its nodes, as the API gives them."""
    undisturbed_incidents: Sequence[Mapping[str, Any]]
    losses: Mapping[int, Sequence[float]]
    """step → every loss that was logged for it."""
    undisturbed_losses: Mapping[int, Sequence[float]]
    steps: int
    lost: Mapping[Fault, int] = field(default_factory=dict)
    """Committed steps that had to be made again, by act."""
    nodes_after: Sequence[str] = ()
    """Nodes that hold ranks at the end."""
    is_finished: bool = True


def score(played: Played) -> Score:
    """Return the table and whatever else is wrong."""
    taken: set[str] = set()
    rows = tuple(_row(act, played, taken) for act in played.acts)
    wrong = [
        f"an incident accuses the innocent: {incident['summary']}"
        for incident in played.incidents
        if str(incident["id"]) not in taken
    ]
    wrong += [
        f"the undisturbed run has an incident: {incident['summary']}" for incident in played.undisturbed_incidents
    ]
    wrong += compare_losses(played)
    if not played.is_finished:
        wrong.append("a run did not finish")
    return Score(rows, tuple(wrong))


def _row(act: Act, played: Played, taken: set[str]) -> Row:
    mine = [
        incident
        for incident in played.incidents
        if incident["kind"] in KINDS[act.fault] and str(incident["id"]) not in taken and _is_about(act, incident)
    ]
    if not mine:
        return Row(act, "", None, None, None, played.lost.get(act.fault), ("it was not named",))
    incident = mine[0]
    taken.add(str(incident["id"]))
    wrong = [*_wrong_suspects(act, incident), *_wrong_extras(act, incident, played)]
    lost = played.lost.get(act.fault)
    if lost:
        wrong.append(f"{lost} committed steps were lost")
    return Row(
        act,
        str(incident["summary"]),
        _between(act.began_at, incident.get("alarm_at")),
        _between(incident.get("alarm_at"), incident.get("verdict_at")),
        _between(incident.get("verdict_at"), incident.get("step_kept_at")),
        lost,
        tuple(wrong),
    )


def _is_about(act: Act, incident: Mapping[str, Any]) -> bool:
    """Whether the incident came in the time of the act; who is blamed in it is judged after."""
    alarm_at = incident.get("alarm_at")
    return act.began_at is not None and alarm_at is not None and alarm_at >= act.began_at - 1.0


def _wrong_suspects(act: Act, incident: Mapping[str, Any]) -> list[str]:
    blamed = {(suspect.get("rank"), suspect.get("node")) for suspect in incident["suspects"]}
    if blamed == {(act.rank, act.node)}:
        return []
    return [f"blamed {sorted(blamed, key=str)} and not rank {act.rank} on {act.node}"]


def _wrong_extras(act: Act, incident: Mapping[str, Any], played: Played) -> list[str]:
    wrong = []
    if act.fault is Fault.KILLED:
        text = str(incident["summary"]) + " ".join(str(item.get("text")) for item in incident.get("evidence", []))
        wrong += [
            f"its evidence does not name {word}" for word in ("Xid 79", act.node, f"ank {act.rank}") if word not in text
        ]
        wrong += [f"{node} still holds ranks" for node in act.gone_from if node in played.nodes_after]
        if not any(
            action.get("name") == "drain_node" for plan in incident.get("plans", []) for action in plan["actions"]
        ):
            wrong.append("draining the node was not proposed")
    elif act.fault is Fault.SLOW and not incident.get("owner"):
        wrong.append("it has no owner")
    return wrong


def compare_losses(played: Played) -> list[str]:
    """Return what differs between the two runs' losses: equal means bit for bit, every time a step was made."""
    wrong = []
    for step in range(1, played.steps + 1):
        made, undisturbed = set(played.losses.get(step, ())), set(played.undisturbed_losses.get(step, ()))
        if not made or not undisturbed:
            wrong.append(f"step {step} is missing from {'the disturbed' if not made else 'the undisturbed'} run")
        elif made != undisturbed or len(made) != 1:
            wrong.append(f"the loss of step {step} differs: {sorted(made)} against {sorted(undisturbed)}")
    return wrong[:5]


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else max(0.0, end - begin)
