"""What one supervisor is asked to do: the command line, checked and typed."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import secrets
import shutil
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instep_trainer.errors import UsageError
from instep_trainer.run.parser import build_parser

PORT_MAX = 65_535


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
    if form == "exec" and shutil.which(parsed.script) is None:
        raise UsageError(f"Program {parsed.script} is not found or not executable: give its path.")
    if form == "script" and not Path(parsed.script).is_file():
        raise UsageError(f"Script {parsed.script} is not a file: give the path of the training script.")
    return RunOptions(
        job=_name("--job", parsed.job or Path(parsed.script).stem),
        run=_name("--rdzv-id", run),
        node=_name("--node-name", node),
        node_rank=parsed.node_rank,
        nodes_min=nodes_min,
        nodes_max=nodes_max,
        slots=_slots(parsed.nproc_per_node),
        endpoint=endpoint,
        is_endpoint_given=is_given,
        address=parsed.local_addr,
        max_restarts=parsed.max_restarts,
        form=form,
        argv=argv,
        is_preloaded=parsed.rank_start == "preload" and form != "exec",
        record_root=Path(parsed.record_root),
        log_dir=Path(parsed.log_dir) if parsed.log_dir else None,
        server=_server(parsed.server.rstrip("/")),
        token=_token(parsed),
        verdict_wait_seconds=parsed.verdict_wait_seconds,
        server_silence_seconds=parsed.server_silence_seconds,
        stop_grace_seconds=parsed.stop_grace_seconds,
        rejoin_seconds=parsed.rejoin_seconds,
        is_observed=parsed.observe == "on",
        are_drills_allowed=parsed.allow_drills,
        keeps_records=parsed.keep_records,
    )


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
    text = parsed.rdzv_endpoint or (
        f"{parsed.master_addr}:{parsed.master_port}" if parsed.master_addr and parsed.master_port else ""
    )
    if not text or parsed.standalone:
        if nodes_max > 1:
            raise UsageError("--nnodes is more than one, so the supervisors need a common --rdzv-endpoint HOST:PORT.")
        return ("127.0.0.1", 0), False
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > PORT_MAX:
        raise UsageError(f"--rdzv-endpoint {text} is not HOST:PORT, such as node-a:29400.")
    return (host, int(port)), True


def _server(text: str) -> str:
    """Nothing of the run would be seen behind an address that cannot be one."""
    with contextlib.suppress(ValueError):
        url = urllib.parse.urlsplit(text)
        if not text or (url.scheme in ("http", "https") and url.hostname and url.port != 0):
            return text
    raise UsageError(f"--server {text} is not an address such as http://server.example:8650.")


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
    if (
        not text
        or len(text) > 100
        or not all(letter.isalnum() or letter in "-_." for letter in text)
        or text.startswith(".")
    ):
        raise UsageError(
            f"{flag} {text!r} cannot be a name: use up to 100 letters, digits, '-', '_' and '.', not starting with '.'."
        )
    return text


def _token(parsed: argparse.Namespace) -> str:
    if not parsed.token_file:
        return os.environ.get("INSTEP_TOKEN", "")
    try:
        return Path(parsed.token_file).read_text().strip()
    except OSError as error:
        raise UsageError(
            f"Cannot read --token-file {parsed.token_file} ({error.strerror}): give the file that the server wrote."
        ) from error
