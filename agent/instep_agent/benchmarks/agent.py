"""What the agent costs on a node with 8 GPUs, 8 HCAs and 8 ranks, and how fast a fault is at the server."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from instep_agent.benchmarks.faults import measure_faults
from instep_agent.benchmarks.hang import measure_hang
from instep_agent.benchmarks.outage import measure_outage
from instep_agent.benchmarks.ports import free_port, scrape, series_of
from instep_agent.benchmarks.real_server import RealServer
from instep_agent.benchmarks.receiver import Receiver
from instep_agent.benchmarks.relay import Relay
from instep_agent.benchmarks.simulated_node import SimulatedNode
from instep_agent.benchmarks.sink import Sink
from instep_agent.benchmarks.storm import measure_storm
from instep_agent.benchmarks.usage import cpu_seconds, ended_children_seconds, group_of, memory
from instep_agent.errors import AgentError
from instep_agent.running.repeating import Repeating
from instep_agent.uplink.spool import BYTES_MAX

WINDOW_SECONDS = 10.0
SCRAPE_SECONDS = 15.0
WARM_UP_SECONDS = 10.0
"""The first seconds hold imports and the making of dictionaries."""
CHANGE_SECONDS = 1.0
CPU_RATIO_MAX, PSS_BYTES_MAX, SERIES_MAX = 0.005, 40 << 20, 1500
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """What a measurement found: for people, for programs, and whether every bar was held."""

    text: str
    numbers: object
    is_within: bool


@dataclass(slots=True)
class Watched:
    """One program that is measured, with everything that it starts and keeps."""

    name: str
    pid: int
    port: int
    ratios: list[float] = field(default_factory=list)
    """CPU seconds a second, window by window."""
    ratio: float = 0.0
    """Over the whole time."""
    pss_bytes: int = 0
    alone_bytes: int = 0
    rss_bytes: int = 0
    brief_bytes: int = 0
    """PSS at its highest, with processes that come and go; the three above are of those that stay."""
    known: list[int] = field(default_factory=list)
    """Its processes at the last look."""
    by_process: dict[str, float] = field(default_factory=dict)
    """CPU seconds a second of each of its processes."""
    series: int = 0


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 within the bars, 1 not, 2 used wrongly or not possible here."""
    options = _parser().parse_args(list(arguments))
    try:
        result = _measured(options)
    except AgentError as error:
        print(f"instep bench agent: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result.numbers, indent=2) if options.json else result.text)
    return 0 if result.is_within else 1


def _measured(options: argparse.Namespace) -> Result:
    ways = ((options.storm, _storm), (options.faults, _faults), (options.hang, _hang), (options.outage, _outage))
    for wanted, measure in ways:
        if wanted:
            return measure(options)
    return _cost(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="instep bench agent", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long the cost is measured (default 5)")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="instead: the way of N faults to the server")
    parser.add_argument("--storm", type=int, default=0, metavar="N", help="instead: N equal lines in the kernel log")
    parser.add_argument(
        "--hang", type=float, default=0.0, metavar="SECONDS", help="instead: a call of the GPU driver hangs for so long"
    )
    parser.add_argument(
        "--outage",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="instead: the server is away for so long, and the agent is killed meanwhile",
    )
    parser.add_argument(
        "--spool-bytes",
        type=int,
        default=BYTES_MAX,
        metavar="N",
        help=f"with --outage: the bound of the agent's spool (default {BYTES_MAX})",
    )
    parser.add_argument(
        "--receiver",
        choices=("server", "sink"),
        default="server",
        help="who keeps the faults: a real `instep server` with its store (default), or the benchmark's own receiver",
    )
    parser.add_argument(
        "--nvml",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of the NVML stand-in (default: built from the repository's tests)",
    )
    parser.add_argument(
        "--kernel-log",
        type=Path,
        default=None,
        metavar="DEVICE",
        help="a real kernel log, such as /dev/kmsg (default: a file)",
    )
    parser.add_argument(
        "--changing",
        action="store_true",
        help="what holds a GPU's clocks changes every second, so that GPUs are never looked at more rarely",
    )
    parser.add_argument("--without-peers", action="store_true", help="leave out nvitop-exporter and node_exporter")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _cost(options: argparse.Namespace) -> Result:
    with SimulatedNode(library=options.nvml, kernel_log=options.kernel_log) as node:
        sink = node.receiver
        assert isinstance(sink, Sink)
        watched = [Watched("instep agent", node.agent.pid, node.port)]
        if not options.without_peers:
            watched += _peers(node)
        changing = Repeating("changes", _change(node), interval_seconds=CHANGE_SECONDS)
        if options.changing:
            changing.start()
        time.sleep(WARM_UP_SECONDS)
        _measure(watched, 60.0 * options.minutes)
        changing.close()
        frames, sent = sink.frames_total, sink.bytes_total
        own = watched[0]
        is_within = own.ratio <= CPU_RATIO_MAX and own.pss_bytes <= PSS_BYTES_MAX and own.series <= SERIES_MAX
        text = [_table(watched), f"\nof the agent: {_parts(own)}"]
        text.append(f"with processes that live for less than a window: {own.brief_bytes / _MIB:.1f} MiB PSS at most")
        text.append(_circumstances(node.page()))
        text.append(f"frames: {frames}, {sent / max(1, frames):.0f} bytes each, {sink.series_total} series")
        text.append(
            f"bars: CPU at most {CPU_RATIO_MAX:.1%} of a core, PSS at most {PSS_BYTES_MAX / _MIB:.0f} MiB, at most "
            f"{SERIES_MAX} series: {'held' if is_within else 'NOT held'}"
        )
    return Result("\n".join(text), [asdict(one) for one in watched], is_within=is_within)


def _change(node: SimulatedNode) -> Callable[[], None]:
    """Give what has a GPU's clocks held by its power limit, then by its heat, then by nothing.

    Three in turn: of two, who looks at every other one sees no change.
    """
    lines = ("0.clock_reasons 0x4", "0.clock_reasons 0x20", "0.clock_reasons 0x0")
    turns = itertools.cycle(lines)

    def change() -> None:
        node.scenario.remove(*lines)
        node.scenario.add(next(turns))

    return change


def _peers(node: SimulatedNode) -> list[Watched]:
    """Start what people run instead, as far as it is installed; each shows its page to whoever asks."""
    found = []
    nvitop = Path(sys.executable).with_name("nvitop-exporter")
    if nvitop.exists():
        port = free_port()
        found.append(Watched("nvitop-exporter", node.start("--port", str(port), program=str(nvitop)).pid, port))
    exporter = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
    if exporter:
        port = free_port()
        process = node.start(
            f"--web.listen-address=127.0.0.1:{port}", f"--path.sysfs={node.root}/sys", program=exporter
        )
        found.append(Watched("node_exporter", process.pid, port))
    return found


def _measure(watched: Sequence[Watched], seconds: float) -> None:
    """Fill in what each costs; every page is asked for every SCRAPE_SECONDS, as Prometheus would."""
    began_seconds = last_seconds = time.monotonic()
    first = {one.name: _cpu(one) for one in watched}
    last = dict(first)
    next_scrape_seconds = began_seconds
    while last_seconds - began_seconds < seconds:
        due_seconds = min(next_scrape_seconds, last_seconds + WINDOW_SECONDS)
        time.sleep(max(0.0, due_seconds - time.monotonic()))
        now_seconds = time.monotonic()
        if now_seconds >= next_scrape_seconds:
            next_scrape_seconds += SCRAPE_SECONDS
            for one in watched:
                one.series = series_of(scrape(one.port))
        if now_seconds >= last_seconds + WINDOW_SECONDS:
            now = {one.name: _cpu(one) for one in watched}
            for one in watched:
                spent = sum(now[one.name].values()) - sum(last[one.name].values())
                one.ratios.append(spent / (now_seconds - last_seconds))
                _note_memory(one)
            last, last_seconds = now, now_seconds
    for one in watched:
        took_seconds = last_seconds - began_seconds
        one.by_process = {
            name: (spent - first[one.name].get(name, 0.0)) / took_seconds for name, spent in last[one.name].items()
        }
        one.ratio = sum(one.by_process.values())


def _cpu(one: Watched) -> dict[str, float]:
    """Give what each process has taken; what ended between two looks counts with the one that started it."""
    return {f"{_name(pid)} {pid}": cpu_seconds(pid) + ended_children_seconds(pid) for pid in group_of(one.pid)}


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"


def _note_memory(one: Watched) -> None:
    """Keep the most that was seen. A process that was not there a window ago may be one that is about to end."""
    pids = group_of(one.pid)
    one.brief_bytes = max(one.brief_bytes, memory(pids).pss_bytes)
    now = memory([pid for pid in pids if pid in one.known])
    one.known = pids
    one.pss_bytes = max(one.pss_bytes, now.pss_bytes)
    one.alone_bytes = max(one.alone_bytes, now.alone_bytes)
    one.rss_bytes = max(one.rss_bytes, now.rss_bytes)


def _table(watched: Sequence[Watched]) -> str:
    head = f"{'':16} {'CPU %':>7} {f'of each {WINDOW_SECONDS:.0f} s: min / median / max':>33} {'PSS MiB':>8} "
    lines = [head + f"{'alone':>6} {'RSS':>6} {'series':>6}"]
    for one in watched:
        low, middle, high = min(one.ratios), statistics.median(one.ratios), max(one.ratios)
        spread = f"{low:.3%} / {middle:.3%} / {high:.3%}"
        sizes = f"{one.pss_bytes / _MIB:8.1f} {one.alone_bytes / _MIB:6.1f} {one.rss_bytes / _MIB:6.1f}"
        lines.append(f"{one.name:16} {one.ratio:7.3%} {spread:>33} {sizes} {one.series:6}")
    return "\n".join(lines)


def _parts(one: Watched) -> str:
    return ", ".join(f"{name} {ratio:.3%}" for name, ratio in one.by_process.items())


def _circumstances(page: str) -> str:
    """Give what the numbers are to be read with: series that did not fit, and how busy the machine was."""
    told = [line.split()[1] for line in page.splitlines() if line.startswith("instep_agent_page_series_dropped ")]
    return (
        f"series left out of the page: {float(told[0]):.0f}; this machine: load {os.getloadavg()[1]:.1f} on "
        f"{os.cpu_count()} cores (a busy one makes every CPU second dearer)"
    )


def _faults(options: argparse.Namespace) -> Result:
    with SimulatedNode(library=options.nvml, kernel_log=options.kernel_log, receiver=_receiver(options)) as node:
        found = measure_faults(node, options.faults)
    return Result(found.text(), found.numbers(), is_within=found.is_within)


def _storm(options: argparse.Namespace) -> Result:
    with SimulatedNode(library=options.nvml, receiver=_receiver(options)) as node:
        found = measure_storm(node, options.storm)
    return Result(found.text(), asdict(found), is_within=found.is_within)


def _hang(options: argparse.Namespace) -> Result:
    with SimulatedNode(library=options.nvml, kernel_log=options.kernel_log, receiver=_receiver(options)) as node:
        found = measure_hang(node, options.hang)
    return Result(found.text(), asdict(found), is_within=found.is_within)


def _outage(options: argparse.Namespace) -> Result:
    relays: list[Relay] = []

    def receiver(folder: Path) -> Relay:
        relays.append(Relay(RealServer(folder)))
        return relays[0]

    settings = f"spool_bytes_max = {options.spool_bytes}\n"
    with SimulatedNode(
        library=options.nvml, kernel_log=options.kernel_log, receiver=receiver, settings=settings
    ) as node:
        found = measure_outage(node, relays[0], options.outage, spool_bytes_max=options.spool_bytes)
    return Result(found.text(), asdict(found), is_within=found.is_within)


def _receiver(options: argparse.Namespace) -> Callable[[Path], Receiver]:
    return RealServer if options.receiver == "server" else lambda _folder: Sink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
