"""`instep diagnose stacks DIR`: the main threads of all ranks as one tree, and the ranks that are by themselves."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from instep_diagnosis.detectors.stacks import (
    StackNode,
    in_words,
    main_thread,
    merge_stacks,
    odd_ranks,
    stack_tree_lines,
)
from instep_diagnosis.exit_status import FINE, FOUND
from instep_diagnosis.files.stacks import read_stack_folder


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = commands.add_parser(
        "stacks",
        help="merge the stacks of many ranks, and show where they part",
        description="The stacks of all ranks as one tree, and in one line the ranks that are by themselves.",
    )
    parser.add_argument("folder", metavar="DIR", help="what py-spy dump --json wrote, one file for each rank")
    parser.add_argument("--innermost", action="store_true", help="merge from the innermost frame instead")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the tree. Raises `EvidenceError` where the folder holds no stacks."""
    threads, notes = read_stack_folder(Path(options.folder))
    stacks = {rank: stack for rank, found in threads.items() if (stack := main_thread(found)) is not None}
    tree = merge_stacks(stacks, is_innermost_first=options.innermost)
    odd, words = odd_ranks(tree)
    without = [f"Rank {rank} shows no main thread." for rank in sorted(set(threads) - set(stacks))]
    for note in (*notes, *without):
        print(note, file=sys.stderr)
    if options.json:
        print(
            json.dumps({"odd_ranks": odd, "verdict": words, "lines": stack_tree_lines(tree), "splits": _splits(tree)})
        )
    else:
        print("\n".join([*([words] if words else []), *stack_tree_lines(tree)]))
    return FOUND if odd else FINE


def _splits(tree: StackNode) -> list[dict[str, object]]:
    """Where stacks part, outermost first, with the ranks on each side."""
    found: list[dict[str, object]] = []
    pending = [tree]
    for node in pending:
        pending.extend(node.children)
        sides = [{"frame": in_words(c.frame), "ranks": list(c.ranks)} for c in node.children if c.frame]
        if node.ending and node.children:
            sides.append({"frame": "", "ranks": list(node.ending)})
        if len(sides) > 1:
            found.append({"after": in_words(node.frame) if node.frame else "", "sides": sides})
    return found
