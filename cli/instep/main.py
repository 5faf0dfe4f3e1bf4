"""The dispatcher: `instep VERB …` finds VERB among the installed entry points and hands the rest of the line to it."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return its exit status: 0 fine, 1 found something, 2 used wrongly, 3 could not look."""
    words = sys.argv[1:] if arguments is None else arguments
    verbs = {point.name: point for point in entry_points(group="instep.commands")}
    if not words or words[0] in ("-h", "--help"):
        print("usage: instep VERB …\n\nverbs: " + ", ".join(sorted(verbs)))
        return 0 if words else 2
    if words[0] not in verbs:
        print(f"instep: there is no verb {words[0]!r}; verbs are {', '.join(sorted(verbs))}.", file=sys.stderr)
        return 2
    try:
        command = verbs[words[0]].load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("instep"):
            raise
        print(f"instep {words[0]}: module {error.name!r} is missing: install the extra that brings it, "
              f"such as pip install 'instep[all]'.", file=sys.stderr)
        return 3
    return int(command(words[1:]) or 0)
