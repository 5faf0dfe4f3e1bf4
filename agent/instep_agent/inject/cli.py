"""`instep inject FAULT` for the faults of a node: puts one where it arises, and takes it back at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from instep_agent.clocks import boot_id
from instep_agent.drills import DRILLS_FOLDER
from instep_agent.errors import ConfigurationInvalid
from instep_agent.inject.faults import BY_NAME, NODE_FAULTS
from instep_agent.inject.injection import Injection, Target
from instep_agent.inject.places import DrillFile, StandIn, Tree, drill_name, write_kernel_log

SECONDS_DEFAULT = 60.0
SECONDS_MAX = 3600.0
GRACE_SECONDS = 2.0
"""A drill whose command was killed ends by itself so much later."""
MOMENT_SECONDS = 10.0
"""What comes of a moment, such as the event of an Xid, is marked when it comes within this time."""


def listing() -> str:
    """Give every fault of a node with its line for people."""
    return "\n".join(f"  {fault.name:18} {fault.help}" for fault in NODE_FAULTS)


def add_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of a node's faults."""
    parser.add_argument(
        "--for",
        dest="lasting_seconds",
        type=float,
        default=SECONDS_DEFAULT,
        metavar="SECONDS",
        help=f"how long it lasts (default {SECONDS_DEFAULT:g}); then, or at Ctrl-C, it is taken back. A line in a "
        "kernel log is a moment",
    )
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU")
    parser.add_argument("--pci", default="", help="PCI address of the GPU or NVSwitch, such as 0000:3b:00")
    parser.add_argument("--code", type=int, default=0, help="number of the Xid or SXid")
    parser.add_argument("--count", type=int, default=1, help="how many (errors, flaps)")
    parser.add_argument("--pid", type=int, default=0, help="oom: the process that the line names")
    parser.add_argument("--device", default="", help="RDMA adapter, such as mlx5_0")
    parser.add_argument("--port", type=int, default=1, help="its port (default 1)")
    parser.add_argument("--counter", default="", help="its counter, as the port's folder calls it")
    parser.add_argument("--mount", default="/", help="disk-full: the mount (default /)")
    parser.add_argument("--kernel-log", type=Path, default=None, help="where lines are written (default ROOT/dev/kmsg)")
    parser.add_argument("--root", type=Path, default=Path("/"), help="of a simulated node, whose files are changed")
    parser.add_argument("--scenario", type=Path, default=None, help="scenario of the NVML stand-in of a simulated node")
    parser.add_argument("--drills", type=Path, default=Path(DRILLS_FOLDER), help="where its agent looks for drills")


def inject(parsed: argparse.Namespace) -> None:
    """Put the fault there, wait until its end, and take it back. Raise `AgentError` when that cannot be."""
    if not 0 < parsed.lasting_seconds <= SECONDS_MAX:
        raise ConfigurationInvalid(f"--for is {parsed.lasting_seconds:g}: give more than 0, at most {SECONDS_MAX:g}.")
    injection = BY_NAME[parsed.fault].injection(_target(parsed))
    asked_to_stop = threading.Event()
    with _stopped_by_signals(asked_to_stop), contextlib.ExitStack() as undone:
        _put(injection, parsed, undone)
        print(json.dumps({"fault": parsed.fault, "at": time.time()}), flush=True)
        if not injection.is_moment:
            asked_to_stop.wait(parsed.lasting_seconds)


def _put(injection: Injection, parsed: argparse.Namespace, undone: contextlib.ExitStack) -> None:
    """Put every piece where it belongs. The drill comes first: nothing may arise that is not marked yet."""
    is_simulated = bool(injection.scenario and parsed.scenario) or bool(injection.tree and _is_tree(parsed))
    lasting_seconds = MOMENT_SECONDS if injection.is_moment else parsed.lasting_seconds + GRACE_SECONDS
    until_ns = time.monotonic_ns() + int(lasting_seconds * 1e9)
    drill = injection.drill(parsed.fault, parsed.node, boot_id(), until_ns, is_simulated=is_simulated)
    if is_simulated or not injection.is_moment:
        file = DrillFile(parsed.drills, drill_name(parsed.fault))
        file.put(drill)
        if not injection.is_moment:
            undone.callback(file.undo, drill)
    if injection.scenario and parsed.scenario:
        stand_in = StandIn(parsed.scenario)
        if not injection.is_moment:
            undone.callback(stand_in.undo)
        stand_in.put(injection.scenario)
    elif is_simulated:
        tree = Tree(parsed.root)
        undone.callback(tree.undo)
        tree.put(injection.tree)
    if injection.kernel_lines:
        write_kernel_log(parsed.kernel_log or parsed.root / "dev/kmsg", injection.kernel_lines)


def _is_tree(parsed: argparse.Namespace) -> bool:
    """Whether the root is a simulated node's: the files of a real one are the kernel's, not ours to change."""
    return bool(parsed.root.resolve() != Path("/"))


@contextlib.contextmanager
def _stopped_by_signals(asked_to_stop: threading.Event) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the drill instead of leaving it behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: asked_to_stop.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _target(parsed: argparse.Namespace) -> Target:
    if parsed.count < 1:
        raise ConfigurationInvalid(f"--count is {parsed.count}: give 1 or more.")
    return Target(
        gpu=parsed.gpu,
        pci=parsed.pci,
        device=parsed.device,
        port=parsed.port,
        mount=parsed.mount,
        pid=parsed.pid,
        code=parsed.code,
        counter=parsed.counter,
        count=parsed.count,
    )
