"""The command line of `instep run` as a table: torchrun's flags, and ours."""

from __future__ import annotations

import argparse
import os
from typing import Any

DEFAULT_ROOT = "/dev/shm/instep"
ACCEPTED_AND_IGNORED = [
    "--rdzv-backend",
    "--rdzv-conf",
    "--monitor-interval",
    "--start-method",
    "--role",
    "--log-line-prefix-template",
    "--local-ranks-filter",
    "--logs-specs",
    "--event-log-handler",
    "--numa-binding",
    "--signals-to-handle",
    "--redirects",
    "-r",
    "--tee",
    "-t",
    "--duplicate-stdout-filters",
    "--duplicate-stderr-filters",
]

Flag = tuple[str, dict[str, Any]]

AS_TORCHRUN: tuple[Flag, ...] = (
    ("--nnodes", {"default": "1", "help": "nodes, or MIN:MAX: MIN nodes train, the rest stand by (default 1)"}),
    ("--nproc-per-node", {"default": "1", "help": "ranks per node: a number, auto, gpu or cpu (default 1)"}),
    (
        "--rdzv-endpoint",
        {
            "default": "",
            "metavar": "HOST:PORT",
            "help": "where the run's coordinator listens; the supervisor that can listen there is it",
        },
    ),
    (
        "--rdzv-id",
        {
            "default": "",
            "metavar": "RUN",
            "help": "id of the run: the same for each of its supervisors, and to resume it",
        },
    ),
    (
        "--max-restarts",
        {
            "type": int,
            "default": 0,
            "metavar": "N",
            "help": "restarts before the run fails (default 0: verdict and report only)",
        },
    ),
    ("--node-rank", {"type": int, "default": -1, "metavar": "N", "help": "place of this node among the nodes"}),
    (
        "--local-addr",
        {"default": "127.0.0.1", "metavar": "HOST", "help": "address at which other nodes reach this one"},
    ),
    ("--master-addr", {"default": "", "metavar": "HOST", "help": "with --master-port: same as --rdzv-endpoint"}),
    ("--master-port", {"type": int, "default": 0, "metavar": "PORT", "help": "see --master-addr"}),
    (
        "--log-dir",
        {
            "default": "",
            "metavar": "DIR",
            "help": "the ranks' output, a file each; without it they write to this terminal",
        },
    ),
    ("--standalone", {"action": "store_true", "help": "one node; nothing is listened to outside it"}),
    ("--no-python", {"action": "store_true", "help": "run the program itself, without Python in front of it"}),
    ("--run-path", {"action": "store_true", "help": "accepted: scripts are always run by path"}),
)

OURS: tuple[Flag, ...] = (
    ("--job", {"default": "", "metavar": "NAME", "help": "name of the job (default: the script's name)"}),
    (
        "--server",
        {
            "default": os.environ.get("INSTEP_SERVER", ""),
            "metavar": "URL",
            "help": "the Instep server (INSTEP_SERVER); without it the supervisors judge by themselves",
        },
    ),
    ("--token-file", {"default": "", "metavar": "FILE", "help": "the server's token (or INSTEP_TOKEN)"}),
    (
        "--node-name",
        {
            "default": os.environ.get("INSTEP_NODE_NAME", ""),
            "metavar": "NAME",
            "help": "this node's name (INSTEP_NODE_NAME); the same as its agent's",
        },
    ),
    (
        "--record-root",
        {
            "default": os.environ.get("INSTEP_RECORD_ROOT", DEFAULT_ROOT),
            "metavar": "DIR",
            "help": f"shared-memory folder of records and checkpoints (default {DEFAULT_ROOT})",
        },
    ),
    (
        "--rank-start",
        {
            "choices": ["preload", "exec"],
            "default": "preload",
            "help": "preload: ranks are forked from a "
            "process that has imported torch (restarts in tenths of a second); exec: a fresh interpreter each",
        },
    ),
    (
        "--verdict-wait-seconds",
        {
            "type": float,
            "default": 1.5,
            "metavar": "S",
            "help": "how long a crash waits for the server's order (default 1.5)",
        },
    ),
    (
        "--server-silence-seconds",
        {
            "type": float,
            "default": 5.0,
            "metavar": "S",
            "help": "after so long without the server the supervisors judge hangs themselves (default 5)",
        },
    ),
    (
        "--stop-grace-seconds",
        {
            "type": float,
            "default": 2.0,
            "metavar": "S",
            "help": "between SIGTERM and SIGKILL when ranks are ended (default 2)",
        },
    ),
    (
        "--rejoin-seconds",
        {
            "type": float,
            "default": 60.0,
            "metavar": "S",
            "help": "how long a supervisor looks for a lost coordinator (default 60)",
        },
    ),
    (
        "--observe",
        {
            "choices": ["on", "off"],
            "default": "on",
            "help": "off: ranks write no record, so nothing but exits is seen (to measure its cost)",
        },
    ),
    ("--allow-drills", {"action": "store_true", "help": "let `instep inject` reach this run's ranks"}),
    (
        "--keep-records",
        {"action": "store_true", "help": "leave records and checkpoints in shared memory after a run that finished"},
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; torchrun's underscore spellings are accepted beside the hyphens."""
    parser = argparse.ArgumentParser(
        prog="instep run",
        allow_abbrev=False,
        description="Start a training script as torchrun does, watch every rank, and bring the job back after a fault. "
        "One supervisor runs on each node; --nnodes MIN:MAX keeps the world at MIN nodes and lets the others stand by.",
    )
    _add(parser.add_argument_group("as torchrun"), AS_TORCHRUN)
    _add(parser.add_argument_group("of Instep"), OURS)
    _add(parser, tuple((flag, {"default": "", "help": argparse.SUPPRESS}) for flag in ACCEPTED_AND_IGNORED))
    parser.add_argument("-m", "--module", action="store_true", help="the script is a module name")
    parser.add_argument("script", help="script, module (-m) or program (--no-python)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    return parser


def _add(group: argparse._ActionsContainer, flags: tuple[Flag, ...]) -> None:
    for flag, settings in flags:
        spellings = [flag]
        if flag.startswith("--") and "-" in flag[2:]:
            spellings.append("--" + flag[2:].replace("-", "_"))
        group.add_argument(*spellings, **settings)
