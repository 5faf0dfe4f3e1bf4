"""What the command line prints: tables, incidents and plans as text, with nothing in them that a terminal obeys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from instep_remediation.plans import labelled


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]], *, is_json: bool) -> None:
    """Print rows as a table of (title, key), or as JSON."""
    if is_json:
        print(json.dumps(rows, indent=1))
        return
    table = [[title for title, _ in columns], *([cell(row[key]) for _, key in columns] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        print("  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip())


def cell(value: Any) -> str:
    """Return a value for a terminal: one line, without control characters that a hostile name could bring."""
    text = "-" if value is None or value == "" else f"{value:.2f}" if isinstance(value, float) else str(value)
    return printable(text)


def printable(text: str) -> str:
    """Return text with control characters made visible.

    >>> printable("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def labelled_row(row: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the row of an incident or plan with the word before its sentence, where it is a drill."""
    return row | {key: labelled(str(row[key]), is_drill=bool(row["is_drill"]))}


def incident_text(incident: dict[str, Any]) -> str:
    """Return an incident as it is read at 3 a.m.: what, since when, how sure, why, done, next."""
    late = incident["latencies"]
    lines = [
        f"{incident['id']}  {incident['kind']}  {incident['state']}" + ("  DRILL" if incident["is_drill"] else ""),
        printable(incident["summary"]),
        "",
        f"since     {incident['timeline']['onset_at']}",
        f"how sure  {cell(incident['confidence'])}, owner {incident['owner']}",
    ]
    evidence = (incident["verdict"] or {}).get("evidence", [])
    lines += [f"evidence  {printable(entry['text'])}" for entry in evidence]
    lines += [f"done      {printable(sentence)}" for sentence in incident["done"]]
    lines += (
        [f"ended     {printable(incident['resolution'])}"]
        if incident["resolution"]
        else [f"next      {incident['next']}", f"runbook   {incident['runbook']}"]
    )
    lines += [
        f"seconds   onset to alarm {cell(late['onset_to_alarm_seconds'])}, alarm to verdict "
        f"{cell(late['alarm_to_verdict_seconds'])}, verdict to next kept step "
        f"{cell(late['verdict_to_step_kept_seconds'])}"
    ]
    return "\n".join(lines)


def plan_text(plan: dict[str, Any]) -> str:
    """Return a plan as it was printed, with what became of each action and step."""
    drill = "  DRILL" if plan["is_drill"] else ""
    text = "\n".join(printable(line) for line in plan["text"].split("\n"))
    lines = [f"plan {plan['id']}  {plan['state']}{drill}", text]
    if plan["decided_by"]:
        lines.append(f"decided   {printable(plan['decided_by'])}: {printable(plan['decision'])}")
    for action in plan["actions"]:
        lines.append(f"     {action['position'] + 1}. {action['state']} {printable(action['detail'])}".rstrip())
        lines += [
            f"        {step['step'] + 1}. {step['state']} {printable(step['name'])} {printable(step['node'])} "
            f"{printable(step['detail'])}".rstrip()
            for step in action["steps"]
        ]
    return "\n".join(lines)


def dry_run_text(answer: dict[str, Any]) -> str:
    """Return what would be done, step by step."""
    lines = [f"  {number}. {printable(step['text'])}" for number, step in enumerate(answer["steps"], 1)]
    if not answer["is_changing"]:
        lines.append(f"The server's executor ({answer['executor']}) changes nothing.")
    return "\n".join(lines or ["Nothing about nodes is in it."])


def node_text(node: dict[str, Any]) -> str:
    """Return one node with what is planned about it."""
    ours = node["cordoned"]
    lines = [
        f"{printable(node['node'])}  {len(node['gpus'])} GPUs",
        f"cluster   {cell(node['cluster'])}",
        f"heard     {cell(node['heard_age_seconds'])} s ago, boot {cell(node['boot_id'])}",
        "service   in service"
        if ours is None
        else f"service   out since {ours['since']} (plan {ours['plan']}, {printable(ours['actor'])}): "
        f"{printable(ours['reason'])}",
    ]
    lines += [f"DRILL     {printable(drill['fault'])} since {drill['since']}" for drill in node["drills"]]
    return "\n".join([*lines, *(plan_text(plan) for plan in node["plans"])])


def job_text(job: dict[str, Any]) -> str:
    """Return one run with its attempts."""
    lines = [f"{printable(job['run'])}  {printable(job['state'])}"]
    if "job" in job:
        lines.append(f"job       {cell(job['job'])}, step {job['step']}, {job['world_size']} ranks")
        lines.append(f"restarts  {job['restarts_used']} of {job['max_restarts']} used")
    lines += [
        f"attempt {attempt['attempt']}  {attempt['opened_at']} to {cell(attempt['ended_at'])}  "
        f"{cell(attempt['outcome'])}"
        for attempt in job["attempts"]
    ]
    return "\n".join(lines)


def policy_text(effective: dict[str, Any], breaker: dict[str, Any]) -> str:
    """Return the policy in effect, as its file would say it."""
    is_changing = "changes nodes" if effective["executor"]["is_changing"] else "changes nothing"
    lines = [f"# from {effective['source']}; the executor {effective['executor']['name']} {is_changing}"]
    lines += toml_lines(effective["policy"])
    counted = f"{breaker['failures']} of {breaker['failures_max']} failures"
    since = f"open since {breaker['opened_at']}: {printable(breaker['reason'])}"
    return "\n".join([*lines, "", f"# breaker {since if breaker['is_open'] else f'closed, {counted}'}"])


def toml_lines(policy: dict[str, dict[str, Any]]) -> list[str]:
    """Return a policy as lines of TOML.

    >>> toml_lines({"nodes": {"drain": "off", "exclude": True}})
    ['', '[nodes]', 'drain = "off"', 'exclude = true']
    """
    lines: list[str] = []
    for section, values in policy.items():
        lines += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return lines
