"""`instep agent`: puts the parts together, runs them until told to stop, and answers in exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from instep_agent.config import AgentConfig, load_config
from instep_agent.errors import AgentError, ConfigurationInvalid
from instep_agent.exposition import Exposition
from instep_agent.keeping import Sweeper
from instep_agent.node import Node
from instep_agent.orders import OrderKeeper
from instep_agent.runner import Runner, Snapshot
from instep_agent.sources import all_sources
from instep_agent.spool import Spool
from instep_agent.uplink import Uplink
from instep_agent.wire import Dictionary, Frame

FINE, USED_WRONGLY, COULD_NOT_LOOK = 0, 2, 3
STOP_CHECK_SECONDS = 0.2

log = logging.getLogger("instep.agent")

_EPILOG = """exit codes: 0 ended as asked, 2 used wrongly (a setting is missing or wrong, a port is in use),
3 the server refused the token at its first answer, or with --once a source could not look."""


def main(arguments: list[str]) -> int:
    """Run the agent and give its exit code: 0 fine, 2 used wrongly, 3 could not look."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="instep agent: %(message)s")
    try:
        config = effective_config(options)
        node = Node(
            _node_name(config), Path(config.root), Path(config.record_root), Path(config.proc) if config.proc else None
        )
        return run_once(config, node, is_json=options.json) if options.once else run(config, node)
    except AgentError as error:
        sys.stderr.write(f"instep agent: {error}\n")
        return USED_WRONGLY if isinstance(error, ConfigurationInvalid) else COULD_NOT_LOOK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="instep agent",
        description="Watch this node and tell the server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--server", metavar="URL", help="where frames go, http://HOST:PORT")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token (default: INSTEP_TOKEN)")
    parser.add_argument("--node", metavar="NAME", help="name of this node (default: INSTEP_NODE_NAME)")
    parser.add_argument("--cluster", metavar="NAME", help="name of the cluster")
    parser.add_argument("--record-root", metavar="DIR", help="folder of the rank records (default /dev/shm/instep)")
    parser.add_argument("--proc", metavar="DIR", help="folder of the process table (default ROOT/proc)")
    parser.add_argument("--root", metavar="DIR", help="root of the file system to read (default /)")
    parser.add_argument(
        "--spool", metavar="DIR", help="folder that keeps unacknowledged frames (default: a temporary one)"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="serve /metrics there (default: off)")
    parser.add_argument("--interval", metavar="SECONDS", type=float, help="between frames (default 0.5)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings in TOML; options overrule them")
    parser.add_argument("--once", action="store_true", help="ask every source once, print what it said, and end")
    parser.add_argument("--json", action="store_true", help="with --once: print JSON")
    return parser


_OPTION_OF_KEY = {
    "server_url": "server",
    "token_file": "token_file",
    "node_name": "node",
    "cluster": "cluster",
    "record_root": "record_root",
    "root": "root",
    "proc": "proc",
    "spool_folder": "spool",
    "listen": "listen",
    "frame_interval_seconds": "interval",
}


def effective_config(options: argparse.Namespace) -> AgentConfig:
    """Give the settings of file and options together."""
    config = load_config(options.config) if options.config else AgentConfig()
    given: dict[str, Any] = {
        key: getattr(options, option) for key, option in _OPTION_OF_KEY.items() if getattr(options, option) is not None
    }
    try:
        return msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(config, **given)), AgentConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationInvalid(f"An option is out of range: {error}.") from error


def _node_name(config: AgentConfig) -> str:
    name = config.node_name or os.environ.get("INSTEP_NODE_NAME", "")
    if not name or "/" in name or name.startswith("."):
        raise ConfigurationInvalid(
            "The name of this node is not set: give --node NAME or INSTEP_NODE_NAME, the same for "
            "agent and supervisor (the host name is not used)."
        )
    return name


def token_reader(config: AgentConfig) -> Callable[[], str]:
    """Give a function that reads the token; a file is read each time, so that the token can be changed in it."""
    if config.token_file:
        path = Path(config.token_file)
        _read_token(path)
        return lambda: _read_token(path)
    token = os.environ.get("INSTEP_TOKEN", "").strip()
    if not token:
        raise ConfigurationInvalid("There is no token for the server: give --token-file FILE or INSTEP_TOKEN.")
    return lambda: token


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationInvalid(
            f"Cannot read the token file {path} ({getattr(error, 'strerror', error)})."
        ) from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigurationInvalid(f"The token file {path} does not hold one token on one line.")
    return token


def run(config: AgentConfig, node: Node) -> int:
    """Collect and send until SIGTERM or SIGINT."""
    stop = threading.Event()
    temporary = "" if config.spool_folder else tempfile.mkdtemp(prefix="instep-agent-")
    uplink: Uplink | None = None
    runner: Runner | None = None
    exposition: Exposition | None = None
    helpers: list[OrderKeeper | Sweeper] = [Sweeper(node, keep_seconds=config.keep_seconds)]
    try:
        if config.server_url:
            spool = Spool(
                Path(config.spool_folder or temporary),
                bytes_max=config.spool_bytes_max,
                age_seconds_max=config.spool_age_seconds_max,
            )
            uplink = Uplink(config.server_url, token_reader(config), spool)
            helpers.append(OrderKeeper(config.server_url, token_reader(config), node))
        runner = _new_runner(config, node, uplink.put if uplink else lambda _frame, _dictionary: None)
        if config.listen:
            exposition = Exposition(config.listen, _snapshot_of(runner))
        if uplink is None and exposition is None:
            raise ConfigurationInvalid("The agent would tell nobody: give --server URL, --listen HOST:PORT, or --once.")
        _stop_on_signals(stop)
        for helper in helpers:
            helper.start()
        return _watch(runner, uplink, stop)
    finally:
        for helper in helpers:
            helper.close()
        if runner is not None:
            runner.close()
        if uplink is not None:
            uplink.close()
        if exposition is not None:
            exposition.close()
        shutil.rmtree(temporary, ignore_errors=True) if temporary else None


def _watch(runner: Runner, uplink: Uplink | None, stop: threading.Event) -> int:
    if uplink is not None:
        uplink.start()
    while not stop.is_set():
        wait_seconds = runner.run_due()
        if uplink is not None and uplink.refused_at_start.is_set():
            return COULD_NOT_LOOK
        runner.wait(min(wait_seconds, STOP_CHECK_SECONDS))
    return FINE


def _new_runner(config: AgentConfig, node: Node, deliver: Callable[[Frame, Dictionary], None]) -> Runner:
    sources = all_sources(
        ranks_interval_seconds=config.ranks_interval_seconds,
        discovery_interval_seconds=config.ranks_discovery_interval_seconds,
    )
    return Runner(node, sources, deliver, interval_seconds=config.frame_interval_seconds, cluster=config.cluster)


def _snapshot_of(runner: Runner) -> Callable[[], Snapshot]:
    return lambda: runner.snapshot


def _stop_on_signals(stop: threading.Event) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)


def run_once(config: AgentConfig, node: Node, *, is_json: bool) -> int:
    """Ask every source once and print what it said."""
    frames: list[Frame] = []
    runner = _new_runner(config, node, lambda frame, _dictionary: frames.append(frame))
    try:
        runner.run_due()
    finally:
        runner.close()
    sources = {state.source.name: {"outcome": state.outcome, "detail": state.detail} for state in runner.states}
    snapshot = runner.snapshot
    if is_json:
        shown = {
            "node": node.name,
            "sources": sources,
            "ranks": snapshot.ranks,
            "gpus": snapshot.gpus,
            "events": [event for frame in frames for event in frame.events],
            "samples": [
                {"name": each.name, "labels": dict(each.labels), "value": each.value} for each in snapshot.samples
            ],
        }
        sys.stdout.write(json.dumps(msgspec.to_builtins(shown), indent=2) + "\n")
    else:
        for name, state in sources.items():
            sys.stdout.write(f"{name:16} {state['outcome']:8} {state['detail']}\n")
        for rank in snapshot.ranks:
            sys.stdout.write(
                f"rank {rank.rank} of {rank.job} attempt {rank.attempt}: step {rank.step}, {rank.phase}, "
                f"{rank.process_state}, {rank.heartbeat_age_seconds:.1f} s ago\n"
            )
    return COULD_NOT_LOOK if any(state["outcome"] == "failed" for state in sources.values()) else FINE
