"""`instep incidents`, `instep plans`, `instep nodes`: what the server knows, as text or JSON.

Exit codes: 0 fine, 1 open incidents were found (`incidents list --check` only), 2 used wrongly, 3 could not look.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instep_remediation.client import DEFAULT_SERVER, Client, find_token, quoted
from instep_remediation.errors import ClientError

Show = Callable[[Client, argparse.Namespace], int]


def incidents(arguments: list[str] | None = None) -> int:
    """Run `instep incidents …`."""
    parser, verbs = _parser("incidents", "What is wrong, where, since when, how sure, and what was done.")
    listing = _verb(verbs, "list", "every incident, newest first", _list_incidents)
    listing.add_argument(
        "--state",
        action="append",
        choices=("suspect", "open", "resolved", "withdrawn", "merged"),
        help="only these states; may be given more than once",
    )
    listing.add_argument("--check", action="store_true", help="exit with 1 when an incident is open")
    _verb(verbs, "show", "one incident with its evidence", _show_incident).add_argument("id")
    export = _verb(verbs, "export", "one incident as a zip of JSON files", _export_incident)
    export.add_argument("id")
    export.add_argument("file", metavar="FILE.zip")
    return _run(parser, arguments)


def plans(arguments: list[str] | None = None) -> int:
    """Run `instep plans …`."""
    parser, verbs = _parser("plans", "What was planned, done and proposed.")
    _verb(verbs, "list", "every plan, newest first", _list_plans)
    _verb(verbs, "show", "one plan as it was printed", _show_plan).add_argument("id", type=int)
    return _run(parser, arguments)


def nodes(arguments: list[str] | None = None) -> int:
    """Run `instep nodes …`."""
    parser, verbs = _parser("nodes", "Nodes whose agents have sent frames.")
    _verb(verbs, "list", "every node", _list_nodes)
    return _run(parser, arguments)


def _parser(noun: str, text: str) -> tuple[argparse.ArgumentParser, Any]:
    parser = argparse.ArgumentParser(prog=f"instep {noun}", description=text)
    return parser, parser.add_subparsers(dest="verb", required=True)


def _verb(verbs: Any, name: str, text: str, show: Show) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument(
        "--server",
        default=os.environ.get("INSTEP_SERVER", DEFAULT_SERVER),
        metavar="URL",
        help=f"the server (default INSTEP_SERVER or {DEFAULT_SERVER})",
    )
    made.add_argument("--token-file", metavar="FILE", help="the token (default INSTEP_TOKEN or INSTEP_TOKEN_FILE)")
    made.set_defaults(show=show)
    return made


def _run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    options = parser.parse_args(arguments)
    try:
        show: Show = options.show
        return show(Client(options.server, find_token(options.token_file)), options)
    except ClientError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 3


def _list_incidents(client: Client, options: argparse.Namespace) -> int:
    query = "&".join(f"state={state}" for state in options.state or ())
    found = client.get(f"/api/v1/incidents?{query}")["incidents"]
    _print(
        options,
        found,
        [
            ("ID", "id"),
            ("KIND", "kind"),
            ("STATE", "state"),
            ("JOB", "job"),
            ("SURE", "confidence"),
            ("SUMMARY", "summary"),
        ],
    )
    return 1 if options.check and any(incident["state"] == "open" for incident in found) else 0


def _show_incident(client: Client, options: argparse.Namespace) -> int:
    incident = client.get(f"/api/v1/incidents/{quoted(options.id)}")
    print(json.dumps(incident, indent=1) if options.json else incident_text(incident))
    return 0


def _export_incident(client: Client, options: argparse.Namespace) -> int:
    data = client.get_bytes(f"/api/v1/incidents/{quoted(options.id)}/bundle")
    try:
        Path(options.file).write_bytes(data)
    except OSError as error:
        raise ClientError(
            f"Cannot write {options.file} ({error.strerror}): name a file that can be written."
        ) from error
    told = {"file": options.file, "bytes": len(data)}
    print(json.dumps(told) if options.json else f"{options.file}: {len(data)} bytes")
    return 0


def _list_plans(client: Client, options: argparse.Namespace) -> int:
    _print(
        options,
        client.get("/api/v1/plans")["plans"],
        [
            ("ID", "id"),
            ("STATE", "state"),
            ("JOB", "job"),
            ("INCIDENT", "incident"),
            ("CREATED", "created_at"),
            ("REASON", "reason"),
        ],
    )
    return 0


def _show_plan(client: Client, options: argparse.Namespace) -> int:
    plan = client.get(f"/api/v1/plans/{options.id}")
    print(json.dumps(plan, indent=1) if options.json else plan_text(plan))
    return 0


def _list_nodes(client: Client, options: argparse.Namespace) -> int:
    _print(
        options,
        client.get("/api/v1/nodes")["nodes"],
        [("NODE", "node"), ("CLUSTER", "cluster"), ("HEARD AGO (s)", "heard_age_seconds"), ("BOOT", "boot_id")],
    )
    return 0


def _print(options: argparse.Namespace, rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]]) -> None:
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    table = [[title for title, _ in columns], *([_cell(row[key]) for _, key in columns] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    """Return a value for a terminal: one line, without control characters that a hostile name could bring."""
    text = "-" if value is None or value == "" else f"{value:.2f}" if isinstance(value, float) else str(value)
    return printable(text)


def printable(text: str) -> str:
    """Return text with control characters made visible.

    >>> printable("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def incident_text(incident: dict[str, Any]) -> str:
    """Return an incident as it is read at 3 a.m.: what, since when, how sure, why, done, next."""
    late = incident["latencies"]
    lines = [
        f"{incident['id']}  {incident['kind']}  {incident['state']}" + ("  DRILL" if incident["is_drill"] else ""),
        printable(incident["summary"]),
        "",
        f"since     {incident['timeline']['onset_at']}",
        f"how sure  {_cell(incident['confidence'])}, owner {incident['owner']}",
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
        f"seconds   onset to alarm {_cell(late['onset_to_alarm_seconds'])}, alarm to verdict "
        f"{_cell(late['alarm_to_verdict_seconds'])}, verdict to next kept step "
        f"{_cell(late['verdict_to_step_kept_seconds'])}"
    ]
    return "\n".join(lines)


def plan_text(plan: dict[str, Any]) -> str:
    """Return a plan as it was printed, with what became of each action."""
    lines = [f"plan {plan['id']}  {plan['state']}", "\n".join(printable(line) for line in plan["text"].split("\n"))]
    return "\n".join(
        [
            *lines,
            *(
                f"     {action['position'] + 1}. {action['state']} {printable(action['detail'])}".rstrip()
                for action in plan["actions"]
            ),
        ]
    )
