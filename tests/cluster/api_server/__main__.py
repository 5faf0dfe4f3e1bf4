"""The stand-in as a process: `python -m tests.cluster.api_server --port 0 --print-port --kubeconfig FILE`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.cluster.api_server.server import ApiServer


def main(words: list[str]) -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="api_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--print-port", action="store_true", help="print the port once the server accepts connections")
    parser.add_argument("--kubeconfig", type=Path, help="write a kubeconfig file for an administrator")
    parser.add_argument("--nodes", type=int, default=0, help="begin with nodes node-a, node-b, …")
    parser.add_argument("--termination-seconds", type=float, default=0.0, help="how long a pod takes to end")
    parser.add_argument("--without-controllers", action="store_true", help="evicted pods are not made again")
    parser.add_argument(
        "--rbac", action="store_true", help="service accounts may do what their roles grant, nothing else"
    )
    parser.add_argument("--oldest", action="store_true", help="the event rules of Kubernetes 1.20")
    asked = parser.parse_args(words)
    signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}
    )  # inherited by the threads: they come to us
    server = ApiServer(
        port=asked.port,
        has_controllers=not asked.without_controllers,
        termination_seconds=asked.termination_seconds,
        has_rbac=asked.rbac,
        is_oldest=asked.oldest,
    )
    for number in range(asked.nodes):
        server.add_node(f"node-{chr(ord('a') + number)}")
    with server:
        if asked.kubeconfig:
            server.kubeconfig(asked.kubeconfig)
        if asked.print_port:
            print(server.port, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
