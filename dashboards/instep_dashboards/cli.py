"""`instep dashboards`: writes the generated files, checks them, and publishes the dashboards to a Grafana.

Exit codes: 0 fine, 1 files differ (`generate --check` only), 2 used wrongly, 3 could not look.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instep_dashboards.errors import DashboardsError, Misused
from instep_dashboards.generated import BOARDS, DOCS_URL, differing, write
from instep_dashboards.panels import as_json

FOLDER_DEFAULT = "Instep"
OUT_DEFAULT = Path("dashboards/generated")

Show = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str]) -> int:
    """Run `instep dashboards …`."""
    options = build_parser().parse_args(list(arguments))
    try:
        show: Show = options.show
        return show(options)
    except DashboardsError as error:
        print(f"instep dashboards: {error}", file=sys.stderr)
        return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="instep dashboards",
        description="Grafana dashboards and Prometheus rules: write them, or publish them to a Grafana.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    generating = _verb(verbs, "generate", "write the dashboards (JSON) and the alert rules (YAML)", _generate)
    generating.add_argument(
        "--out", type=Path, default=OUT_DEFAULT, metavar="DIR", help=f"folder to write (default {OUT_DEFAULT})"
    )
    generating.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file differs")
    publishing = _verb(verbs, "publish", "create or update the dashboards in a Grafana", _publish)
    publishing.add_argument("--url", required=True, help="address of Grafana's own page")
    publishing.add_argument(
        "--token-file", type=Path, required=True, metavar="FILE", help="token of a service account (role Editor)"
    )
    publishing.add_argument(
        "--folder", default=FOLDER_DEFAULT, help=f"folder, made when there is none (default {FOLDER_DEFAULT})"
    )
    publishing.add_argument("--message", help="note in the dashboards' history")
    publishing.add_argument(
        "--overwrite", action="store_true", help="replace what somebody changed meanwhile, or gave the same name"
    )
    publishing.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    return parser


def _verb(verbs: Any, name: str, text: str, show: Show) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    made.add_argument(
        "--docs-url",
        default=DOCS_URL,
        metavar="URL",
        help=f"where the documentation stands, for the links in panels and alerts (default {DOCS_URL})",
    )
    made.set_defaults(show=show)
    return made


def _generate(options: argparse.Namespace) -> int:
    if not options.check:
        for path in write(options.out, options.docs_url):
            print(path)
        return 0
    found = differing(options.out, options.docs_url)
    for path in found:
        print(f"{path} is missing or differs: run instep dashboards generate.", file=sys.stderr)
    return 1 if found else 0


def _publish(options: argparse.Namespace) -> int:
    from instep_dashboards.publish import MESSAGE_DEFAULT, Grafana, publish  # requests is slow to import

    grafana = Grafana(options.url.rstrip("/"), _token(options.token_file))
    boards = [as_json(board, options.docs_url) for board in BOARDS]
    for done in publish(
        grafana,
        boards,
        folder=options.folder,
        message=options.message or MESSAGE_DEFAULT,
        is_overwriting=options.overwrite,
        is_dry=options.dry_run,
    ):
        would = "would be " if options.dry_run and done.outcome != "unchanged" else ""
        print(f"{done.what}: {would}{done.outcome}", flush=True)
    return 0


def _token(path: Path) -> str:
    """Return the token in a file. Raise Misused when there is none."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise Misused(f"Cannot read the token in {path} ({reason}): give a readable --token-file.") from error
    if len(words) != 1 or not words[0].isascii():
        raise Misused(f"{path} does not hold one token: put the token of a service account in it, and nothing else.")
    return words[0]
