"""`instep agent`: puts the parts together, runs them until told to stop, and answers in exit codes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from instep_agent.config import AgentConfig, load_config
from instep_agent.errors import AgentError, ConfigurationInvalid
from instep_agent.exposition.page import Page
from instep_agent.exposition.server import Exposition
from instep_agent.node import Node, Source
from instep_agent.once import ask_all, print_check, print_seen
from instep_agent.ranks.flight_recorder import RecorderFiles
from instep_agent.ranks.keeping import SWEEP_SECONDS, sweep
from instep_agent.ranks.orders import OrderKeeper
from instep_agent.running.repeating import Repeating
from instep_agent.running.runner import STOP_CHECK_SECONDS, Runner
from instep_agent.sources import all_sources
from instep_agent.uplink.connection import Tls
from instep_agent.uplink.sender import UPLINK_METRICS, Uplink
from instep_agent.uplink.spool import Spool
from instep_agent.wire import Frame

WATCHDOG_SECONDS = 2.0
"""Between two looks whether a source in the agent's own thread is overdue."""

FINE, USED_WRONGLY, COULD_NOT_LOOK = 0, 2, 3

log = logging.getLogger("instep.agent")

_EPILOG = """exit codes: 0 ended as asked, 2 used wrongly (a setting is missing or wrong, a port is in use),
3 the server refused the token at its first answer, or with `check` a source could not look."""
_CHECK = """Ask each source once and explain it: present, absent (no such thing on this node), or failing (it could
not look: why, and what it needs). Exit codes: 0 every source could look, 2 used wrongly, 3 one could not look."""


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
        if options.command == "check":
            return run_check(config, node, is_json=options.json)
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
    parser.add_argument("--server", metavar="URL", help="where frames go, https://HOST:PORT")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token (default: INSTEP_TOKEN)")
    parser.add_argument("--cluster", metavar="NAME", help="name of the cluster")
    _add_places(parser)
    parser.add_argument(
        "--spool", metavar="DIR", help="folder that keeps unacknowledged frames (default: a temporary one)"
    )
    parser.add_argument(
        "--drills", metavar="DIR", help="folder of the drills of `instep inject` (default /run/instep/drills)"
    )
    parser.add_argument(
        "--ca-file", metavar="FILE", help="authorities of the server's certificate (default: the system's)"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="serve /metrics there (default: off)")
    parser.add_argument("--interval", metavar="SECONDS", type=float, help="between frames (default 0.5)")
    parser.add_argument("--once", action="store_true", help="ask every source once, print what it said, and end")
    commands = parser.add_subparsers(dest="command", title="further commands")
    check = commands.add_parser(
        "check", prog="instep agent check", description=_CHECK, help="explain what each source sees, and what it lacks"
    )
    _add_places(check, default=argparse.SUPPRESS)
    return parser


def _add_places(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add what both commands take. A sub-command leaves alone what was given before it."""
    parser.add_argument("--node", metavar="NAME", default=default, help="name of this node (default: INSTEP_NODE_NAME)")
    parser.add_argument(
        "--record-root", metavar="DIR", default=default, help="folder of the rank records (default /dev/shm/instep)"
    )
    parser.add_argument(
        "--proc", metavar="DIR", default=default, help="folder of the process table (default ROOT/proc)"
    )
    parser.add_argument("--root", metavar="DIR", default=default, help="root of the file system to read (default /)")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, default=default, help="settings in TOML; options overrule them"
    )
    is_json = False if default is None else default
    parser.add_argument("--json", action="store_true", default=is_json, help="print JSON (with --once, and with check)")


_OPTION_OF_KEY = {
    "server_url": "server",
    "token_file": "token_file",
    "node_name": "node",
    "cluster": "cluster",
    "record_root": "record_root",
    "root": "root",
    "proc": "proc",
    "drills_folder": "drills",
    "spool_folder": "spool",
    "ca_file": "ca_file",
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
    if not (config.server_url or config.listen):
        raise ConfigurationInvalid("The agent would tell nobody: give --server URL, --listen HOST:PORT, or --once.")
    stop = threading.Event()
    temporary = "" if config.spool_folder else _temporary_folder()
    with contextlib.ExitStack() as parts:
        if temporary:
            parts.callback(_remove_folder, temporary)
        uplink = _new_uplink(config, Path(config.spool_folder or temporary)) if config.server_url else None
        runner = _new_runner(config, node, uplink)  # forks: before anything below starts a thread
        parts.callback(runner.close)
        if uplink is not None:
            uplink.on_refused = runner.wake
        helpers: list[Uplink | OrderKeeper | Repeating] = [
            Repeating(
                "sweeper", partial(sweep, node, keep_seconds=config.keep_seconds), interval_seconds=SWEEP_SECONDS
            ),
            Repeating("watchdog", runner.check_overdue, interval_seconds=WATCHDOG_SECONDS),
        ]
        if uplink is not None:
            tls = _tls(config)
            files = RecorderFiles(config.flight_recorder_pipe_prefix, config.flight_recorder_file_prefix)
            orders = OrderKeeper(config.server_url, token_reader(config), node, tls=tls, recorder_files=files)
            helpers += [uplink, orders]
        if config.listen:
            parts.callback(Exposition(config.listen, _page_of(runner, config, node)).close)
        _stop_on_signals(stop, runner.wake)
        for helper in helpers:
            helper.start()
            parts.callback(helper.close)
        return _watch(runner, uplink, stop)


def _temporary_folder() -> str:
    import tempfile  # with a spool of its own, as it should run, an agent needs no such thing

    return tempfile.mkdtemp(prefix="instep-agent-")


def _remove_folder(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _watch(runner: Runner, uplink: Uplink | None, stop: threading.Event) -> int:
    while not stop.is_set():
        wait_seconds = runner.run_due()
        if uplink is not None and uplink.refused_at_start.is_set():
            stop.set()
            return COULD_NOT_LOOK
        runner.wait(min(wait_seconds, STOP_CHECK_SECONDS))
    runner.say_last_words()
    return FINE


def _tls(config: AgentConfig) -> Tls:
    return Tls(config.ca_file, config.client_cert_file, config.client_key_file)


def _new_uplink(config: AgentConfig, folder: Path) -> Uplink:
    spool = Spool(folder, bytes_max=config.spool_bytes_max, age_seconds_max=config.spool_age_seconds_max)
    return Uplink(config.server_url, token_reader(config), spool, tls=_tls(config))


def _new_runner(config: AgentConfig, node: Node, uplink: Uplink | None) -> Runner:
    return Runner(
        node,
        _sources(config),
        uplink.put if uplink else lambda _frame, _dictionary: None,
        interval_seconds=config.frame_interval_seconds,
        values_interval_seconds=config.values_interval_seconds,
        cluster=config.cluster,
        also=uplink.samples if uplink else tuple,
        drills_folder=Path(config.drills_folder),
    )


def _sources(config: AgentConfig) -> tuple[Source, ...]:
    try:
        return all_sources(
            ranks_interval_seconds=config.ranks_interval_seconds,
            ranks_calm_interval_seconds=config.ranks_calm_interval_seconds,
            discovery_interval_seconds=config.ranks_discovery_interval_seconds,
            nccl_ras_addresses=config.nccl_ras_addresses,
            log_files=config.log_files,
            expected_gpus=config.expected_gpus,
        )
    except ValueError as error:
        raise ConfigurationInvalid(f"A source cannot be set up: {error}") from error


def _page_of(runner: Runner, config: AgentConfig, node: Node) -> Callable[[], bytes]:
    metrics = [*UPLINK_METRICS, *(metric for state in runner.states for metric in state.source.metrics)]
    page = Page(
        metrics,
        node=node.name,
        dcgm_names=config.dcgm_names,
        is_full=config.exposition == "full",
        series_max=config.series_max,
    )
    return lambda: page.render(runner.snapshot)


def _stop_on_signals(stop: threading.Event, wake: Callable[[], None]) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if not stop.is_set():  # what wakes the loop is closed soon after
            stop.set()
            wake()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)


def run_once(config: AgentConfig, node: Node, *, is_json: bool) -> int:
    """Ask every source, print what was seen, and end: a source that could not look is in what is printed."""
    frames: list[Frame] = []
    runner = Runner(node, _sources(config), lambda frame, _dictionary: frames.append(frame), cluster=config.cluster)
    with contextlib.closing(runner):
        ask_all(runner)
        print_seen(runner, frames, node.name, is_json=is_json)
    return FINE


def run_check(config: AgentConfig, node: Node, *, is_json: bool) -> int:
    """Ask every source, and explain what is here, what is not, and what cannot be looked at."""
    runner = Runner(node, _sources(config), lambda _frame, _dictionary: None)
    with contextlib.closing(runner):
        ask_all(runner)
        print_check(runner, is_json=is_json)
    return FINE if all(state.outcome in ("ok", "absent") for state in runner.states) else COULD_NOT_LOOK
