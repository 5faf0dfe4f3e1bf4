"""`instep config show NAME`: the settings in effect, and where each came from.

The parts own their settings. Each names, in the entry-point group `instep.configs`, a function that describes them;
this module finds it, calls it and prints what it says, so that the dispatcher imports no part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

FINE, USED_WRONGLY, COULD_NOT_LOOK = 0, 2, 3

Row = Mapping[str, Any]
"""One setting: `key`, `value` (as in JSON; secrets withheld), `source`, `help`, `range`."""

Describe = Callable[[str | None], Sequence[Row]]
"""Takes a file's path, or None for the usual one; raises ValueError or OSError with one clear sentence."""


def main(arguments: list[str]) -> int:
    """Run `instep config …` and return its exit status: 0 fine, 2 used wrongly, 3 could not look."""
    configs = {point.name: point for point in entry_points(group="instep.configs")}
    options = _parser(sorted(configs)).parse_args(arguments)
    try:
        describe = _describe(configs[options.name])
    except LookupError as error:
        print(f"instep config: {error}", file=sys.stderr)
        return COULD_NOT_LOOK
    try:
        rows = describe(options.file)
    except (ValueError, OSError) as error:
        print(f"instep config: {error}", file=sys.stderr)
        return USED_WRONGLY
    print(_as_json([dict(row) for row in rows], indent=2) if options.json else table(rows))
    return FINE


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out in columns; what each setting is for is in the output of `--json`.

    >>> print(table([{"key": "interval_seconds", "value": 1.0, "source": "default", "help": "", "range": "0.1 to 60"}]))
    KEY               VALUE  SOURCE   RANGE
    interval_seconds  1.0    default  0.1 to 60
    """
    columns = ("key", "value", "source", "range")
    lines = [[column.upper() for column in columns]]
    lines += [[row["key"], _as_json(row["value"]), row["source"], row.get("range") or ""] for row in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _as_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, default=str, ensure_ascii=False)


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep config", description="Settings in effect, and where each came from.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{show}")
    purpose = "Print every setting of one daemon."
    show = verbs.add_parser("show", help=purpose, description=purpose)
    show.add_argument("name", choices=names, help="whose settings")
    show.add_argument("--file", metavar="PATH", help="the configuration file (default: the daemon's own)")
    show.add_argument("--json", action="store_true", help="print JSON, with what each setting is for")
    return parser


def _describe(point: EntryPoint) -> Describe:
    """Load a part's function; raise LookupError with one sentence when the part or what it needs is not installed."""
    try:
        describe: Describe = point.load()
    except ModuleNotFoundError as error:
        remedy = "install the extra that brings it, such as pip install 'instep[all]'."
        raise LookupError(f"cannot describe the {point.name}: module {error.name!r} is missing: {remedy}") from error
    except AttributeError as error:
        raise LookupError(f"cannot describe the {point.name}: {point.value} does not load ({error}).") from error
    return describe
