"""Writes the reference page of the command line: every verb with its printed `--help`.

`python -m instep.reference docs/reference/cli.md` writes the page; the tests compare it with what the commands print.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

HELP_TIMEOUT_SECONDS = 60.0
HELP_COLUMNS = 100

_SUBCOMMANDS = re.compile(r"\{([a-z][a-z0-9_,-]*)\}\s+\.\.\.")
"""argparse's own notation for sub-commands, in the usage."""

_OPENING = """\
# Command line

Every verb with the help it prints. This page is written by `make docs`; a test compares it with the commands.

Exit status: 0 fine, 1 found something, 2 used wrongly, 3 could not look.
"""


def main(arguments: list[str]) -> int:
    """Write the page to the path given, or to standard output."""
    try:
        text = page()
    except RuntimeError as error:
        print(f"instep.reference: {error}", file=sys.stderr)
        return 3
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def page() -> str:
    """Return the page; raise RuntimeError when a verb cannot print its help."""
    verbs = sorted(point.name for point in entry_points(group="instep.commands"))
    return "\n".join([_OPENING, *(section(words, printed) for verb in verbs for words, printed in helps((verb,)))])


def helps(words: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """Return the help of a verb and of each of its sub-commands, as (words, text)."""
    printed = help_text(words)
    found = [(words, printed)]
    for names in _SUBCOMMANDS.findall(usage(printed)):
        for name in names.split(","):
            found += helps((*words, name))
    return found


def section(words: tuple[str, ...], printed: str) -> str:
    """Return one section of the page; sub-commands stand below their verb."""
    return f"{'#' * (len(words) + 1)} `instep {' '.join(words)}`\n\n```\n{printed.rstrip()}\n```\n"


def usage(printed: str) -> str:
    """Return the first paragraph, in which argparse names the sub-commands.

    >>> usage("usage: instep plans [-h] {list,show} ...\\n\\nPlans.")
    'usage: instep plans [-h] {list,show} ...'
    """
    return printed.split("\n\n", 1)[0]


def help_text(words: tuple[str, ...]) -> str:
    """Return what `instep WORDS --help` prints, at a fixed width and without colours."""
    command = [str(Path(sys.executable).with_name("instep")), *words, "--help"]
    typed = " ".join(["instep", *command[1:]])
    environment = {**os.environ, "COLUMNS": str(HELP_COLUMNS), "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    try:
        run = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HELP_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"`{typed}` did not end within {HELP_TIMEOUT_SECONDS:.0f} s.") from error
    if run.returncode or not run.stdout.strip():
        said = (run.stderr.strip() or "nothing was printed").splitlines()[-1]
        raise RuntimeError(f"`{typed}` failed with exit status {run.returncode}: {said}")
    return run.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
