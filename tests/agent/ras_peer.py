"""A RAS service for tests: speaks the line protocol over a real socket, and makes the answers of both formats."""

import contextlib
import json
import socket
import threading


def rank(number, *, host="127.0.0.1", gpu=None, launches=100, init=0, error=0, **flags):
    status = {"init_state": init, "async_error": error, "finalize_called": False, "destroy_flag": False}
    return {
        "rank": number,
        "host": host,
        "pid": 1000 + number,
        "cuda_dev": 0,
        "nvml_dev": number if gpu is None else gpu,
        "status": status | {"abort_flag": False} | flags,
        "collective_counts": {"Broadcast": 0, "AllReduce": launches, "AllGather": 7},
    }


def missing(number, *, host="127.0.0.1", dead=False, unresponsive=True):
    return {
        "rank": number,
        "host": host,
        "pid": 1000 + number,
        "cuda_dev": 0,
        "nvml_dev": number,
        "status": {"unresponsive": unresponsive, "considered_dead": dead},
    }


def communicator(ranks, lost=(), name="0x9a8b7c6d5e4f"):
    return {
        "hash": name,
        "secondary_hash": "0x1:0x2",
        "size": len(ranks) + len(lost),
        "ranks_count": len(ranks),
        "missing_ranks_count": len(lost),
        "ranks": list(ranks),
        "missing_ranks": list(lost),
    }


def document(*communicators, timeouts=0):
    return json.dumps(
        {
            "nccl_version": "2.28.7",
            "cuda_runtime_version": 12080,
            "cuda_driver_version": 12080,
            "timestamp": "2026-01-02 03:04:05",
            "communicators_count": len(communicators),
            "communicators": list(communicators),
            "ras": {"collection_time_sec": 0.25, "timeouts_count": timeouts},
        },
        indent=2,
    ).encode()


class RasPeer:
    """Listens; `answer` is what STATUS gives. `behaviour`: well, hang, close, garbage, flood, drip."""

    def __init__(self, *, knows_json=True):
        self.knows_json = knows_json
        self.answer = document(communicator([rank(0), rank(1)]))
        self.behaviour = "well"
        self.heard = []
        self.sent_bytes = 0
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self):
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self):
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._talk(connection)

    def _talk(self, connection):
        if self.behaviour == "hang":
            self._stop.wait(30)
        if self.behaviour in ("hang", "close"):
            return
        if self.behaviour == "garbage":
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                command = line.decode().strip()
                self.heard.append(command)
                if "STATUS" in command:
                    self._status(connection)
                    return
                connection.sendall(self._reply(command))

    def _reply(self, command):
        if command.startswith("CLIENT PROTOCOL"):
            return b"SERVER PROTOCOL 2\n"
        if command.startswith("SET FORMAT") and not self.knows_json:
            return f"ERROR: Unknown command {command}\n".encode()
        return b"OK\n"

    def _status(self, connection):
        if self.behaviour == "flood":
            while not self._stop.is_set():
                self.sent_bytes += connection.send(b"x" * 65536)
        elif self.behaviour == "drip":
            connection.sendall(self.answer[:20])
            self._stop.wait(30)
        elif self.behaviour == "half":
            connection.sendall(self.answer[: len(self.answer) // 2])
        elif self.behaviour != "nothing":
            connection.sendall(self.answer)


TEXT_HEALTHY = b"""NCCL version 2.24.3 compiled with CUDA 12.5
CUDA runtime version 12050, driver version 12020

Job summary
===========

  Nodes  Processes         GPUs  Processes     GPUs
(total)   per node  per process    (total)  (total)
      4          8            1         32       32

Communicators... (0.12s)
=============

Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors
    #  in group  per comm  per node  per comm  in group
    0         8         4         1         4        32   RUNNING      OK
    1         1         4         8        32        32   RUNNING      OK

Errors
======

Warnings
========

"""

TEXT_TROUBLED = b"""NCCL version 2.26.2 compiled with CUDA 12.8
CUDA runtime version 12080, driver version 12080

Job summary
===========

  Nodes  Processes
          per node
      3          8

Communicators... (5.02s)
=============

Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors
    #  in group  per comm  per node  per comm  in group
    0         1         4       7-8        32        31   RUNNING  INCOMPLETE,MISMATCH
    1         2         4         1         4         8  FINALIZE  ERROR

Errors
======

INCOMPLETE
  Missing communicator data from 1 job process
  Process 3487984 on node 10.0.0.21 managing GPU 5

DEAD
  1 job process is considered dead (unreachable via the RAS network)
  Process 3487999 on node 10.0.0.22 managing GPU 3 (NVML 6)

#0-0 (00009a8b7c6d5e4f) INCOMPLETE
  Missing communicator data from 1 rank
  Rank 13 -- GPU 5 managed by process 3487984 on node 10.0.0.21

#1-0 (0000000000abcdef) ERROR
  Asynchronous error on 1 rank
  Rank 2 reported System error -- GPU 2 (NVML 4) managed by process 77 on node 10.0.0.23

Warnings
========

TIMEOUT
  Encountered 2 communication timeouts while gathering communicator data

#0-0 (00009a8b7c6d5e4f) MISMATCH
  Communicator ranks have different AllReduce operation counts
  29 ranks have launched up to operation 650
  Rank 3 has launched up to operation 648 -- GPU 3 managed by process 91 on node 10.0.0.20
  Rank 4 has not launched any operations -- GPU 4 managed by process 92 on node 10.0.0.20

"""
