"""`instep incidents`, `plans`, `nodes`, `jobs`, `audit`, `policy`, `page`: what the server knows and what people
decide, as text or JSON. All of them are clients of its API.

Exit codes: 0 fine, 1 open incidents were found (`incidents list --check`) or the server refused a decision, 2 used
wrongly, 3 could not look. What changes nodes shows what it would do and needs `--apply`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instep_remediation.client import DEFAULT_SERVER, Client, find_token, quoted
from instep_remediation.errors import ClientError, PolicyError, Refusal
from instep_remediation.policy import Policy
from instep_remediation.tables import (
    dry_run_text,
    incident_text,
    job_text,
    labelled_row,
    node_text,
    plan_text,
    policy_text,
    print_rows,
    toml_lines,
)
from instep_remediation.toml_file import read_toml

Show = Callable[[Client, argparse.Namespace], int]

FINE, FOUND, USED_WRONGLY, COULD_NOT_LOOK = 0, 1, 2, 3
DECISIONS_REFUSED = (409, 412)
"""The server was asked and understood, and the state of things does not allow it."""


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
    _decision(verbs, "acknowledge", "say that you look after an incident", _acknowledge).add_argument("id")
    for name in ("bundle", "export"):
        bundle = _verb(verbs, name, "one incident as a zip of JSON files", _export_incident)
        bundle.add_argument("id")
        bundle.add_argument("file", metavar="FILE.zip")
    return _run(parser, arguments)


def plans(arguments: list[str] | None = None) -> int:
    """Run `instep plans …`."""
    parser, verbs = _parser("plans", "What was planned, done and proposed; and what people decide about it.")
    listing = _verb(verbs, "list", "every plan, newest first", _list_plans)
    listing.add_argument("--state", action="append", help="only these states; may be given more than once")
    _verb(verbs, "show", "one plan as it was printed", _show_plan).add_argument("id", type=int)
    dry = _verb(verbs, "dry-run", "the steps as they would be carried out; nothing is done", _dry_run_plan)
    dry.add_argument("id", type=int)
    for name, text in (
        ("approve", "allow what it proposes: it is carried out as soon as the guards let it"),
        ("reject", "refuse what it proposes"),
        ("cancel", "begin no further step; what was done stays done"),
        ("execute", "carry it out now; a failed one goes on from the step that failed"),
    ):
        made = _decision(verbs, name, text, _execute_plan if name == "execute" else _decide_plan)
        made.add_argument("id", type=int)
        made.add_argument("--version", type=int, metavar="N", help="only if the plan is still of this version")
        if name == "execute":
            _needs_apply(made)
    return _run(parser, arguments)


def nodes(arguments: list[str] | None = None) -> int:
    """Run `instep nodes …`."""
    parser, verbs = _parser("nodes", "Nodes whose agents have sent frames, and changes of them by hand.")
    _verb(verbs, "list", "every node", _list_nodes)
    _verb(verbs, "show", "one node and what is planned about it", _show_node).add_argument("node")
    for name, text in (
        ("cordon", "let no new work be placed on it"),
        ("uncordon", "give it back to the scheduler"),
        ("drain", "cordon it and evict what runs there"),
        ("repaired", "say that it is mended: its latched faults are over, and it is uncordoned"),
    ):
        made = _decision(verbs, name, text, _change_node)
        made.add_argument("node")
        _needs_apply(made)
    return _run(parser, arguments)


def jobs(arguments: list[str] | None = None) -> int:
    """Run `instep jobs …`."""
    parser, verbs = _parser("jobs", "Runs that the server knows.")
    _verb(verbs, "list", "every run", _list_jobs)
    _verb(verbs, "show", "one run with its attempts", _show_job).add_argument("run")
    return _run(parser, arguments)


def audit(arguments: list[str] | None = None) -> int:
    """Run `instep audit …`."""
    parser, verbs = _parser("audit", "Who changed what, and why.")
    listing = _verb(verbs, "list", "audit lines, newest first", _list_audit)
    listing.add_argument("--subject", default="", metavar="TEXT", help="such as 'plan 7' or 'node node-b'")
    listing.add_argument("--actor", default="", metavar="NAME", help="the name of a token")
    listing.add_argument("--limit", type=int, default=200, metavar="N", help="so many at most (default 200)")
    return _run(parser, arguments)


def policy(arguments: list[str] | None = None) -> int:
    """Run `instep policy …`."""
    parser, verbs = _parser("policy", "Which verdict leads to what.", first="show")
    _verb(verbs, "show", "the policy in effect, and the breaker", _show_policy)
    _decision(verbs, "reset-breaker", "let automatic plans be carried out again", _reset_breaker)
    text = "read a policy file as the server would, and print what would be in effect"
    check = verbs.add_parser("check", help=text, description=text)
    check.add_argument("file", metavar="FILE")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(local=_check_policy)
    return _run(parser, arguments)


def page(arguments: list[str] | None = None) -> int:
    """Run `instep page …`."""
    parser, verbs = _parser("page", "The status page in a browser.", first="link")
    _verb(
        verbs,
        "link",
        "a link that opens the page once; with a token of scope operate plans can be approved there, for two hours",
        _link_page,
    )
    return _run(parser, arguments)


def _parser(noun: str, text: str, *, first: str = "list") -> tuple[argparse.ArgumentParser, Any]:
    parser = argparse.ArgumentParser(
        prog=f"instep {noun}", description=text, epilog=f"Without a verb it is `instep {noun} {first}`."
    )
    parser.set_defaults(local=None, first=first)
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


def _decision(verbs: Any, name: str, text: str, show: Show) -> argparse.ArgumentParser:
    made = _verb(verbs, name, text, show)
    made.add_argument("--reason", required=True, metavar="TEXT", help="why; it stands in the audit log")
    return made


def _needs_apply(made: argparse.ArgumentParser) -> None:
    made.add_argument("--apply", action="store_true", help="do it; without this it only says what would be done")


def _run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = [parser.get_default("first"), *words]
    options = parser.parse_args(words)
    try:
        if options.local is not None:
            return int(options.local(options))
        show: Show = options.show
        return show(Client(options.server, find_token(options.token_file)), options)
    except Refusal as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return FOUND if error.status in DECISIONS_REFUSED else COULD_NOT_LOOK
    except ClientError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return COULD_NOT_LOOK
    except PolicyError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return USED_WRONGLY


def _print(options: argparse.Namespace, answer: Any, text: Callable[[Any], str]) -> int:
    print(json.dumps(answer, indent=1) if options.json else text(answer))
    return FINE


# Incidents -----------------------------------------------------------------------------------------------------------


def _list_incidents(client: Client, options: argparse.Namespace) -> int:
    found = client.get(f"/api/v1/incidents?{_query(state=options.state)}")["incidents"]
    columns = [("ID", "id"), ("KIND", "kind"), ("STATE", "state"), ("JOB", "job"), ("SURE", "confidence")]
    shown = found if options.json else [labelled_row(row, "summary") for row in found]
    print_rows(shown, [*columns, ("SUMMARY", "summary")], is_json=options.json)
    return FOUND if options.check and any(incident["state"] == "open" for incident in found) else FINE


def _show_incident(client: Client, options: argparse.Namespace) -> int:
    return _print(options, client.get(f"/api/v1/incidents/{quoted(options.id)}"), incident_text)


def _acknowledge(client: Client, options: argparse.Namespace) -> int:
    path = f"/api/v1/incidents/{quoted(options.id)}/acknowledge"
    return _print(options, client.post(path, {"reason": options.reason}), incident_text)


def _export_incident(client: Client, options: argparse.Namespace) -> int:
    data = client.get_bytes(f"/api/v1/incidents/{quoted(options.id)}/bundle")
    try:
        Path(options.file).write_bytes(data)
    except OSError as error:
        raise ClientError(
            f"Cannot write {options.file} ({error.strerror}): name a file that can be written."
        ) from error
    told = {"file": options.file, "bytes": len(data)}
    return _print(options, told, lambda _: f"{options.file}: {len(data)} bytes")


# Plans ---------------------------------------------------------------------------------------------------------------


def _list_plans(client: Client, options: argparse.Namespace) -> int:
    found = client.get(f"/api/v1/plans?{_query(state=options.state)}")["plans"]
    columns = [("ID", "id"), ("STATE", "state"), ("JOB", "job"), ("INCIDENT", "incident"), ("CREATED", "created_at")]
    shown = found if options.json else [labelled_row(row, "reason") for row in found]
    print_rows(shown, [*columns, ("REASON", "reason")], is_json=options.json)
    return FINE


def _show_plan(client: Client, options: argparse.Namespace) -> int:
    return _print(options, client.get(f"/api/v1/plans/{options.id}"), plan_text)


def _dry_run_plan(client: Client, options: argparse.Namespace) -> int:
    return _print(options, client.post(f"/api/v1/plans/{options.id}/dry-run", {}), dry_run_text)


def _decide_plan(client: Client, options: argparse.Namespace) -> int:
    path = f"/api/v1/plans/{options.id}/{options.verb}"
    return _print(options, client.post(path, {"reason": options.reason}, version=options.version), plan_text)


def _execute_plan(client: Client, options: argparse.Namespace) -> int:
    if options.apply:
        return _decide_plan(client, options)
    code = _dry_run_plan(client, options)
    return _say_not_done(code)


# Nodes ---------------------------------------------------------------------------------------------------------------


def _list_nodes(client: Client, options: argparse.Namespace) -> int:
    found = client.get("/api/v1/nodes")["nodes"]
    columns = [("NODE", "node"), ("CLUSTER", "cluster"), ("HEARD AGO (s)", "heard_age_seconds"), ("BOOT", "boot_id")]
    shown = found if options.json else [row | {"service": "out" if row["cordoned"] else "in"} for row in found]
    print_rows(shown, [*columns, ("SERVICE", "service")], is_json=options.json)
    return FINE


def _show_node(client: Client, options: argparse.Namespace) -> int:
    return _print(options, client.get(f"/api/v1/nodes/{quoted(options.node)}"), node_text)


def _change_node(client: Client, options: argparse.Namespace) -> int:
    path = f"/api/v1/nodes/{quoted(options.node)}/{options.verb}"
    answer = client.post(path, {"reason": options.reason, "dry_run": not options.apply})
    if not options.apply:
        return _say_not_done(_print(options, answer, dry_run_text))
    return _print(options, answer, _repaired_text if options.verb == "repaired" else plan_text)


def _repaired_text(answer: dict[str, Any]) -> str:
    over = ", ".join(answer["resolved"]) or "none"
    by_hand = "The server's executor changes nothing: uncordon it by hand."
    plan = plan_text(answer["plan"]) if answer["plan"] else by_hand
    later = [f"incidents that end with their job's stop: {', '.join(answer['remembered'])}"]
    return "\n".join([f"incidents that are over: {over}", *(later if answer["remembered"] else []), plan])


def _say_not_done(code: int) -> int:
    print("Nothing was done: add --apply to do it.", file=sys.stderr)
    return code


# Jobs, audit, policy -------------------------------------------------------------------------------------------------


def _list_jobs(client: Client, options: argparse.Namespace) -> int:
    columns = [("RUN", "run"), ("JOB", "job"), ("STATE", "state"), ("ATTEMPT", "attempt"), ("STEP", "step")]
    found = client.get("/api/v1/jobs")["jobs"]
    print_rows(found, [*columns, ("RANKS", "world_size"), ("RESTARTS", "restarts_used")], is_json=options.json)
    return FINE


def _show_job(client: Client, options: argparse.Namespace) -> int:
    return _print(options, client.get(f"/api/v1/jobs/{quoted(options.run)}"), job_text)


def _list_audit(client: Client, options: argparse.Namespace) -> int:
    query = _query(subject=options.subject, actor=options.actor, limit=options.limit)
    columns = [("AT", "at"), ("ACTOR", "actor"), ("ACTION", "action"), ("SUBJECT", "subject"), ("REASON", "reason")]
    print_rows(client.get(f"/api/v1/audit?{query}")["audit"], columns, is_json=options.json)
    return FINE


def _show_policy(client: Client, options: argparse.Namespace) -> int:
    effective, breaker = client.get("/api/v1/policy"), client.get("/api/v1/breaker")
    return _print(options, effective | {"breaker": breaker}, lambda _: policy_text(effective, breaker))


def _reset_breaker(client: Client, options: argparse.Namespace) -> int:
    answer = client.post("/api/v1/breaker/reset", {"reason": options.reason})
    return _print(options, answer, lambda _: "The breaker is closed.")


def _check_policy(options: argparse.Namespace) -> int:
    checked = read_toml(Path(options.file), Policy).model_dump(mode="json")
    return _print(options, checked, lambda found: "\n".join(toml_lines(found)[1:]))


def _link_page(client: Client, options: argparse.Namespace) -> int:
    return _print(options, client.post("/api/v1/page-links", {}), lambda answer: str(answer["page_link"]))


def _query(**values: Any) -> str:
    return urllib.parse.urlencode({name: value for name, value in values.items() if value}, doseq=True)
