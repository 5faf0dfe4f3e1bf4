"""The command line of `instep run`: torchrun's flags, and ours."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instep_trainer.errors import UsageError

DEFAULT_ROOT = "/dev/shm/instep"  # noqa: S108  the shared-memory root is part of the record's contract
IGNORED_FLAGS = ("--rdzv-backend", "--rdzv-conf", "--monitor-interval", "--start-method", "--role", "--log-line-prefix-template",
                 "--local-ranks-filter", "--logs-specs", "--event-log-handler", "--numa-binding", "--signals-to-handle",
                 "--redirects", "-r", "--tee", "-t", "--duplicate-stdout-filters", "--duplicate-stderr-filters")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything one supervisor needs to know."""

    job: str
    run: str
    node: str
    node_rank: int
    nodes_min: int
    nodes_max: int
    slots: int
    endpoint: tuple[str, int]
    is_endpoint_given: bool
    address: str
    max_restarts: int
    form: str
    """`script`, `module` or `exec`, as `zygote.Task.form`."""
    argv: tuple[str, ...]
    is_preloaded: bool
    record_root: Path
    log_dir: Path | None
    server: str
    token: str
    verdict_wait_seconds: float
    server_silence_seconds: float
    stop_grace_seconds: float
    rejoin_seconds: float
    is_observed: bool
    are_drills_allowed: bool
    keeps_records: bool

    @property
    def folder(self) -> Path:
        """This run's folder in shared memory on this node."""
        return self.record_root / self.node / self.run

    @property
    def key(self) -> str:
        """What proves to the coordinator that this supervisor holds the same token; never the token itself."""
        return hashlib.sha256(f"{self.run}\0{self.token}".encode()).hexdigest()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; torchrun's underscore spellings are accepted beside the hyphens."""
    parser = argparse.ArgumentParser(
        prog="instep run", allow_abbrev=False,
        description="Start a training script as torchrun does, watch every rank, and bring the job back after a fault. "
                    "One supervisor runs on each node; --nnodes MIN:MAX keeps the world at MIN nodes and lets the others stand by.")
    torchrun = parser.add_argument_group("as torchrun")
    _add(torchrun, "--nnodes", default="1", help="nodes, or MIN:MAX: MIN nodes train and the rest stand by (default 1)")
    _add(torchrun, "--nproc-per-node", default="1", help="ranks per node: a number, auto, gpu or cpu (default 1)")
    _add(torchrun, "--rdzv-endpoint", default="", help="HOST:PORT of the run's coordinator; the supervisor that can listen there is it")
    _add(torchrun, "--rdzv-id", default="", help="id of the run; the same for every supervisor of it, and to resume it")
    _add(torchrun, "--max-restarts", type=int, default=0, help="restarts before the run fails (default 0: verdict and report only)")
    _add(torchrun, "--node-rank", type=int, default=-1, help="place of this node among the nodes")
    _add(torchrun, "--local-addr", default="127.0.0.1", help="address at which other nodes reach this one")
    _add(torchrun, "--master-addr", default="", help="with --master-port: same as --rdzv-endpoint")
    _add(torchrun, "--master-port", type=int, default=0, help="see --master-addr")
    _add(torchrun, "--log-dir", default="", help="folder for the ranks' output, a file each; without it they write to this terminal")
    torchrun.add_argument("--standalone", action="store_true", help="one node; nothing is listened to outside it")
    torchrun.add_argument("-m", "--module", action="store_true", help="the script is a module name")
    _add(torchrun, "--no-python", action="store_true", help="run the program itself, without Python in front of it")
    _add(torchrun, "--run-path", action="store_true", help="accepted: scripts are always run by path")
    for flag in IGNORED_FLAGS:
        _add(torchrun, flag, default="", help=argparse.SUPPRESS)
    _add_own(parser)
    parser.add_argument("script", help="script, module (-m) or program (--no-python)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    return parser


def _add_own(parser: argparse.ArgumentParser) -> None:
    ours = parser.add_argument_group("of Instep")
    _add(ours, "--job", default="", help="name of the job (default: the script's name)")
    _add(ours, "--server", default=os.environ.get("INSTEP_SERVER", ""), help="URL of the Instep server (INSTEP_SERVER); without it the "
         "supervisors judge by themselves")
    _add(ours, "--token-file", default="", help="file with the server's token (or INSTEP_TOKEN)")
    _add(ours, "--node-name", default=os.environ.get("INSTEP_NODE_NAME", ""), help="this node's name (INSTEP_NODE_NAME); the same as its agent's")
    _add(ours, "--record-root", default=os.environ.get("INSTEP_RECORD_ROOT", DEFAULT_ROOT), help=f"shared-memory folder of records and checkpoints (default {DEFAULT_ROOT})")
    _add(ours, "--rank-start", choices=["preload", "exec"], default="preload", help="preload: ranks are forked from a process that has "
         "imported torch (restarts in tenths of a second); exec: a fresh interpreter each")
    _add(ours, "--verdict-wait-seconds", type=float, default=1.5, help="how long a crash waits for the server's order (default 1.5)")
    _add(ours, "--server-silence-seconds", type=float, default=5.0, help="after so long without the server the supervisors judge hangs themselves (default 5)")
    _add(ours, "--stop-grace-seconds", type=float, default=2.0, help="between SIGTERM and SIGKILL when ranks are ended (default 2)")
    _add(ours, "--rejoin-seconds", type=float, default=60.0, help="how long a supervisor looks for a lost coordinator (default 60)")
    _add(ours, "--observe", choices=["on", "off"], default="on", help="off: ranks write no record, so nothing but exits is seen (to measure its cost)")
    _add(ours, "--allow-drills", action="store_true", help="let `instep inject` reach this run's ranks")
    _add(ours, "--keep-records", action="store_true", help="leave records and checkpoints in shared memory after a run that finished")


def _add(group: argparse._ArgumentGroup, flag: str, **settings: object) -> None:
    spellings = [flag]
    if flag.startswith("--") and "-" in flag[2:]:
        spellings.append("--" + flag[2:].replace("-", "_"))
    group.add_argument(*spellings, **settings)  # type: ignore[arg-type]


def read_options(arguments: Sequence[str]) -> RunOptions:
    """Return checked options. Raise `UsageError` with one sentence for what cannot be."""
    parsed = build_parser().parse_args(list(arguments))
    nodes_min, nodes_max = _nodes(parsed.nnodes)
    endpoint, is_given = _endpoint(parsed, nodes_max)
    run = parsed.rdzv_id or f"run-{secrets.token_hex(4)}"
    if nodes_max > 1 and not parsed.rdzv_id:
        raise UsageError("--nnodes is more than one, so every supervisor needs the same --rdzv-id.")
    node = parsed.node_name or ("localhost" if nodes_max == 1 else "")
    if not node:
        raise UsageError("The node has no name: set INSTEP_NODE_NAME, or give --node-name, the same as for its agent.")
    form = "exec" if parsed.no_python else "module" if parsed.module else "script"
    argv = (parsed.script, *parsed.arguments)
    if form == "script" and not Path(parsed.script).is_file():
        raise UsageError(f"Script {parsed.script} is not a file: give the path of the training script.")
    return RunOptions(
        job=_name("--job", parsed.job or Path(parsed.script).stem), run=_name("--rdzv-id", run), node=_name("--node-name", node),
        node_rank=parsed.node_rank, nodes_min=nodes_min, nodes_max=nodes_max, slots=_slots(parsed.nproc_per_node),
        endpoint=endpoint, is_endpoint_given=is_given, address=parsed.local_addr, max_restarts=parsed.max_restarts, form=form, argv=argv,
        is_preloaded=parsed.rank_start == "preload" and form != "exec", record_root=Path(parsed.record_root),
        log_dir=Path(parsed.log_dir) if parsed.log_dir else None, server=parsed.server.rstrip("/"), token=_token(parsed),
        verdict_wait_seconds=parsed.verdict_wait_seconds, server_silence_seconds=parsed.server_silence_seconds,
        stop_grace_seconds=parsed.stop_grace_seconds, rejoin_seconds=parsed.rejoin_seconds,
        is_observed=parsed.observe == "on", are_drills_allowed=parsed.allow_drills, keeps_records=parsed.keep_records)


def _nodes(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    try:
        nodes_min, nodes_max = int(low), int(high or low)
    except ValueError as error:
        raise UsageError(f"--nnodes {text} is neither a number nor MIN:MAX, such as 2 or 2:3.") from error
    if not 1 <= nodes_min <= nodes_max:
        raise UsageError(f"--nnodes {text}: the minimum must be at least 1 and not above the maximum.")
    return nodes_min, nodes_max


def _endpoint(parsed: argparse.Namespace, nodes_max: int) -> tuple[tuple[str, int], bool]:
    text = parsed.rdzv_endpoint or (f"{parsed.master_addr}:{parsed.master_port}" if parsed.master_addr and parsed.master_port else "")
    if not text or parsed.standalone:
        if nodes_max > 1:
            raise UsageError("--nnodes is more than one, so the supervisors need a common --rdzv-endpoint HOST:PORT.")
        return ("127.0.0.1", 0), False
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--rdzv-endpoint {text} is not HOST:PORT, such as node-a:29400.")
    return (host, int(port)), True


def _slots(text: str) -> int:
    if text.isdigit() and int(text) > 0:
        return int(text)
    if text not in ("auto", "gpu", "cpu"):
        raise UsageError(f"--nproc-per-node {text} is neither a number above 0 nor auto, gpu or cpu.")
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if text == "gpu" and not gpus:
        raise UsageError("--nproc-per-node gpu: this node has no GPU that its driver knows.")
    return gpus if gpus and text != "cpu" else os.cpu_count() or 1


def _name(flag: str, text: str) -> str:
    """Names become folder names and labels, so they are bounded and plain."""
    if not text or len(text) > 100 or not all(letter.isalnum() or letter in "-_." for letter in text) or text.startswith("."):
        raise UsageError(f"{flag} {text!r} cannot be a name: use up to 100 letters, digits, '-', '_' and '.', not starting with '.'.")
    return text


def _token(parsed: argparse.Namespace) -> str:
    if not parsed.token_file:
        return os.environ.get("INSTEP_TOKEN", "")
    try:
        return Path(parsed.token_file).read_text().strip()
    except OSError as error:
        raise UsageError(f"Cannot read --token-file {parsed.token_file} ({error.strerror}): give the file that the server wrote.") from error
