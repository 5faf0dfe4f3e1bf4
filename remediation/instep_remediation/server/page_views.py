"""Gathers what each page shows from the store and from what is live. Reads only."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any, TypedDict

from instep_collector.boards import RankBoard
from instep_collector.judging import job_steps
from instep_collector.page import IncidentPage, JobPanel, NodePage, Overview, PlanPage
from instep_collector.page.heat_map import heat_map
from instep_collector.registry import RunState
from instep_collector.store import audit, cordons, incidents, nodes, plans, steps
from instep_collector.store.models import ActionRow, Incident, Node, PlanRow
from instep_diagnosis.detectors.pair import pair_difference
from instep_diagnosis.incidents import Family
from sqlalchemy.orm import Session

from instep_remediation.actions import ACTIONS, read_action
from instep_remediation.node_executor import Step
from instep_remediation.proceedings import steps_of
from instep_remediation.repairs import latched_nodes
from instep_remediation.server.runtime import Runtime, hang_settings
from instep_remediation.server.sessions import Session as BrowserSession
from instep_remediation.server.views import (
    audit_view,
    fact_view,
    incident_view,
    job_view,
    lasting_drills,
    latch_view,
    node_view,
    plan_view,
)

JOBS_SHOWN = 20
RECENT_SHOWN = 15
PLANS_SHOWN = 20
AUDIT_SHOWN = 50
FACTS_SHOWN = 20
STEPS_RECENT = 10
FAILED_SHOWN_SECONDS = 86_400.0
"""A plan that failed stays on the first page so long."""
NODE_ACTIONS = frozenset(action.name for action in ACTIONS if action.is_about_nodes)
OFFERS: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]], ...] = (
    ("proposed", (), (("approve", "Approve"), ("reject", "Reject"))),
    ("approved", ("executing",), (("cancel", "Cancel"),)),
    ("failed", (), (("execute", "Go on from the failed step"),)),
)
"""State of a node action, others that count likewise → what may be decided, each as (verb, the button's words)."""

log = logging.getLogger(__name__)


class Frame(TypedDict):
    """What every page has."""

    now: str
    open: list[dict[str, Any]]
    holder: str
    form_token: str
    problem: str


def frame(runtime: Runtime, session: Session, browser: BrowserSession | None, problem: str = "") -> Frame:
    """Return what every page has, for the session that asks."""
    return {
        "now": datetime.fromtimestamp(runtime.clock.realtime(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "open": [shown(runtime, row) for row in reversed(incidents.active(session))],
        "holder": browser.holder if browser else "",
        "form_token": browser.form_token if browser and browser.may_decide else "",
        "problem": problem,
    }


# Pages ---------------------------------------------------------------------------------------------------------------


def overview(runtime: Runtime, session: Session, browser: BrowserSession | None) -> Overview:
    """Return the first page."""
    now = runtime.clock.monotonic()
    runs = sorted(runtime.registry.runs.values(), key=lambda run: (run.is_finished, now - run.heard_at))
    slow = {row.run for row in incidents.active(session) if row.family == Family.STRAGGLER}
    settled = incidents.recent(session, limit=RECENT_SHOWN, states=("resolved",))
    return Overview(
        **frame(runtime, session, browser),
        jobs=[panel(runtime, run, now, is_slow_told=run.run in slow) for run in runs[:JOBS_SHOWN]],
        recent=[shown(runtime, row) for row in settled],
        plans=[plan_shown(runtime, session, row) for row in _plans_to_show(runtime, session)],
        nodes=nodes_shown(runtime, session, nodes.nodes(session)),
    )


def incident_page(runtime: Runtime, session: Session, browser: BrowserSession | None, id: str) -> IncidentPage | None:
    """Return the page of one incident; a merged one leads to the one it is a part of."""
    row = incidents.get(session, id)
    if row is None:
        return None
    made = [plan_shown(runtime, session, plan) for plan in plans.of_incident(session, row.id)]
    return IncidentPage(**frame(runtime, session, browser), incident=shown(runtime, row), plans=made)


def node_page(runtime: Runtime, session: Session, browser: BrowserSession | None, name: str) -> NodePage | None:
    """Return the page of one node."""
    row = nodes.get(session, name)
    if row is None:
        return None
    about = [plan_shown(runtime, session, plan) for plan in plans.about_node(session, name, limit=PLANS_SHOWN)]
    lines = audit.find(session, subject=f"node {name}", limit=AUDIT_SHOWN)
    return NodePage(
        **frame(runtime, session, browser),
        node=nodes_shown(runtime, session, [row])[0],
        latched=[latch_view(latch) for latch in runtime.latches.standing(name)],
        said=[fact_view(fact) for fact in nodes.events(session, node=name, limit=FACTS_SHOWN)],
        faults=[shown(runtime, one) for one in reversed(incidents.active(session)) if name in _nodes_of(one)],
        ranks=_ranks_on(runtime, name),
        plans=about,
        audit=[audit_view(line) for line in lines],
    )


def plan_page(
    runtime: Runtime, session: Session, browser: BrowserSession | None, id: int, problem: str = ""
) -> PlanPage | None:
    """Return the page of one plan."""
    row = plans.get(session, id)
    if row is None:
        return None
    lines = audit.find(session, subject=f"plan {row.id}", limit=AUDIT_SHOWN)
    return PlanPage(
        **frame(runtime, session, browser, problem),
        plan=plan_shown(runtime, session, row),
        audit=[audit_view(line) for line in lines],
    )


# Incidents -----------------------------------------------------------------------------------------------------------


def shown(runtime: Runtime, row: Incident) -> dict[str, Any]:
    """Return an incident with how long it lasts or lasted, and whom it troubles."""
    end = row.resolved_at if row.resolved_at is not None else runtime.clock.realtime()
    return incident_view(row, runbook_base=runtime.config.runbook_url) | {
        "since_seconds": max(0.0, end - row.onset_at),
        "is_trouble": row.state == "open" and row.family != Family.GPU_FAULT,
        "waits_for": waits_for(runtime, row),
    }


def waits_for(runtime: Runtime, row: Incident) -> str:
    """Return what an incident waits for that holds up no job any more; empty for any other.

    A fault of a device stays open when the job has kept its next step, until its node is repaired.
    """
    if row.state != "open" or row.family != Family.GPU_FAULT:
        return ""
    run = runtime.registry.runs.get(row.run)
    is_running = run is not None and not run.is_finished
    if row.step_kept_at is None and is_running:
        return ""  # The job may still fail over it.
    words = "The job is over" if run is not None and run.is_finished else "No job is held up by it"
    if row.step_kept_at is not None:
        words = f"The job goes on since step {row.step_kept}"
    found = _nodes_of(row)
    return f"{words}; node {', '.join(found)} waits for repair." if found else ""


def _nodes_of(row: Incident) -> list[str]:
    """Return the nodes that an incident blames, or that it is about; each once."""
    blamed = [str(suspect["node"]) for suspect in (row.verdict or {}).get("suspects", ()) if suspect.get("node")]
    return list(dict.fromkeys(blamed or filter(None, [row.labels.get("node")])))


# Plans ---------------------------------------------------------------------------------------------------------------


def _plans_to_show(runtime: Runtime, session: Session) -> list[PlanRow]:
    """Return the plans that are not over, those that wait for a person first, and those that failed lately."""
    since = runtime.clock.realtime() - FAILED_SHOWN_SECONDS
    failed = plans.recent(session, limit=PLANS_SHOWN, states=("failed",))
    found = [*plans.pending(session), *(row for row in failed if (row.ended_at or 0.0) >= since)]
    return sorted(found, key=lambda row: (row.state != "waiting", -row.id))[:PLANS_SHOWN]


def plan_shown(runtime: Runtime, session: Session, row: PlanRow) -> dict[str, Any]:
    """Return a plan with its steps as they were or would be carried out, and what may be decided about it."""
    actions = list(plans.actions(session, row.id))
    view = plan_view(row, actions, list(steps.of_plan(session, row.id)))
    about_nodes = [action for action in actions if action.name in NODE_ACTIONS]
    for made, action in zip(view["actions"], actions, strict=True):
        made["words"] = action_words(action)
        made["steps"] = [*_begun(made["steps"]), *([] if made["steps"] else planned(runtime, action))]
    offers, hindrance = decisions(about_nodes, row, runtime)
    is_proposed = any(action.state == "proposed" for action in about_nodes) and row.state != "closed"
    return view | {"offers": offers, "hindrance": hindrance, "is_proposed": is_proposed}


def decisions(actions: Sequence[ActionRow], row: PlanRow, runtime: Runtime) -> tuple[list[tuple[str, str]], str]:
    """Return what may be decided about a plan, and why the rest may not."""
    states = {action.state for action in actions}
    if row.state in ("closed", "rejected"):
        return [], ""
    offers = next((list(verbs) for state, more, verbs in OFFERS if states & {state, *more}), [])
    if offers and not runtime.nodes.is_changing:
        allowed = [offer for offer in offers if offer[0] in ("reject", "cancel")]
        sentence = f'The executor "{runtime.nodes.name}" changes nothing: with it no plan can be carried out from here.'
        return allowed, sentence
    return offers, ""


def action_words(action: ActionRow) -> str:
    """Return an action in a few words; the plan has the reason."""
    words = action.name.replace("_", " ")
    if action.name in NODE_ACTIONS:
        return f"{words.removesuffix(' node')} node {action.arguments.get('node')}"
    return read_action(action.name, action.arguments).describe()


def planned(runtime: Runtime, action: ActionRow) -> list[dict[str, Any]]:
    """Return the steps that a node action would have, or will have; none of what was decided against."""
    if action.name not in NODE_ACTIONS or action.state not in ("proposed", "approved"):
        return []
    try:
        made: Sequence[Step] = steps_of(runtime.nodes, action)
    except Exception:  # Whatever an executor of somebody else raises: the page stays up, the log has it.
        log.exception("The executor %s cannot tell the steps of %s.", runtime.nodes.name, action.name)
        return [_step_shown("its steps cannot be told: the server's log says why", "unknown")]
    return [_step_shown(step_words(step.name, step.node, step.arguments), "planned") for step in made]


def step_words(name: str, node: str, arguments: dict[str, Any]) -> str:
    """Return a step in one line, without what it tells people: the plan says that.

    >>> step_words("taint", "node-b", {"plan": "plan-3-1", "message": "Rank 3 was killed."})
    'taint node-b (plan plan-3-1)'
    """
    return Step(name, node, "", {key: value for key, value in arguments.items() if key != "message"}).describe()


def _step_shown(text: str, state: str) -> dict[str, Any]:
    return {"text": text, "state": state, "detail": "", "tries": 0}


def _begun(made: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [step | {"text": f"{step['name']} {step['node']}"} for step in made]


# Nodes and jobs ------------------------------------------------------------------------------------------------------


def nodes_shown(runtime: Runtime, session: Session, rows: Sequence[Node]) -> list[dict[str, Any]]:
    """Return nodes, with the drills that last on each, and whether a fault of it waits for repair."""
    now, ours = runtime.clock.monotonic(), {row.node: row for row in cordons.all_nodes(session)}
    faulty = {node for one in incidents.active(session) if one.state == "open" for node in latched_nodes(one)}
    drills = lasting_drills(session, now=runtime.clock.realtime())
    return [
        node_view(row, runtime.registry.nodes.get(row.node), now, ours.get(row.node))
        | {"is_faulty": row.node in faulty, "drills": [drill for drill in drills if drill["node"] == row.node]}
        for row in rows
    ]


def _ranks_on(runtime: Runtime, node: str) -> list[dict[str, Any]]:
    """Return the ranks of each running job on a node."""
    found = []
    for run in runtime.registry.runs.values():
        ranks = [report.rank for report, _ in run.current().reports.values() if report.node == node]
        if ranks and not run.is_finished:
            found.append({"job": run.job, "run": run.run, "ranks": sorted(ranks)})
    return found


def panel(runtime: Runtime, run: RunState, now: float, *, is_slow_told: bool) -> JobPanel:
    """Return one run as the page shows it; an incident tells of a slow rank already where `is_slow_told`."""
    board = run.current()
    view = job_view(run, runtime.registry, now)
    recent = [step.wall_seconds for steps_ in board.steps.values() for step in list(steps_)[-STEPS_RECENT:]]
    return JobPanel(
        job=run.job,
        run=run.run,
        attempt=run.attempt,
        state=view["state"],
        step=board.step(),
        world_size=run.world_size,
        step_seconds=median(recent) if recent else None,
        heard_age_seconds=view["heard_age_seconds"],
        restarts=f"{run.restarts_used} of {run.max_restarts} restarts used",
        unknown_ranks=[] if run.is_finished else unknown_ranks(board, runtime, now),
        nodes=sorted(run.nodes()),
        standby=sorted(run.standby),
        heat_map=heat_map(board.steps, {rank: report.node for rank, (report, _) in board.reports.items()}),
        remark="" if is_slow_told or run.is_finished else _remark(run, board),
    )


def _remark(run: RunState, board: RankBoard) -> str:
    """Return what two ranks differ by where nobody can be named for it."""
    found = pair_difference(job_steps(run, board)) if run.world_size == 2 else None
    return "" if found is None else found.words


def unknown_ranks(board: RankBoard, runtime: Runtime, now: float) -> list[int]:
    """Return the ranks whose last report is too old to say anything of them, as the hang detector sees it."""
    limit = hang_settings(runtime.config.hang).report_age_seconds_max
    return [report.rank for report, age in board.ranks_now(now) if age > limit]
