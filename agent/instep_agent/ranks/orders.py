"""Stacks on order: waits at the server for orders to this node, and answers each with what its ranks show.

The supervisors are asked first; an agent hears of an order only when they were silent, or when a run has none
(docs/designs/001-control-protocol.md). It has a thread of its own, so that it stalls no source.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from instep_agent.errors import (
    AgentError,
    OrdersRefused,
    RankRecordError,
    ServerUnreachable,
    StacksUnavailable,
)
from instep_agent.folders import FOLDER_FLAGS, Folder, names
from instep_agent.host.processes import look_at, owner_of
from instep_agent.node import Node
from instep_agent.rank_record.reader import RecordReader
from instep_agent.rank_record.report import report
from instep_agent.ranks.flight_recorder import RECORDERS_BYTES_MAX, Recorder, RecorderFiles, recorder_of
from instep_agent.ranks.stacks import stacks_of
from instep_agent.uplink.connection import JSON, TLS_OF_THE_SYSTEM, Connection, Tls, keep_trying
from instep_agent.wire import NodeDump, NodeOrder, NodeOrders, RankDump, RankReport, ThreadStack

POLL_SECONDS = 45.0
"""How long the server holds a question without an order: short of the minute after which many proxies cut, and long
enough that 10,000 agents cost the server little.
"""
ANSWER_SLACK_SECONDS = 5.0
ORDERS_MAX = 16
"""Carried out from one answer."""
RANKS_MAX = 256
STACK_SECONDS_MAX = 2.0
STACKS_AT_ONCE = 4
RECORDERS_AT_ONCE = 16
"""They only wait for the ranks to answer."""
DUMP_BYTES_MAX = 8 << 20
"""A larger answer is sent with the main threads only."""
NOT_ASKED = "The rank is not running, so neither its Python nor its flight recorder was asked."

NO_FILES = RecorderFiles()

log = logging.getLogger("instep.agent.orders")
_answers = msgspec.json.Decoder(NodeOrders)


class OrderKeeper:
    """Waits for orders and carries them out. Start it, `close` it."""

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        node: Node,
        *,
        poll_seconds: float = POLL_SECONDS,
        random_unit: Callable[[], float] = random.random,
        tls: Tls = TLS_OF_THE_SYSTEM,
        recorder_files: RecorderFiles = NO_FILES,
    ) -> None:
        self._connection = Connection(
            url,
            token,
            meanwhile="orders for this node wait",
            timeout_seconds=poll_seconds + ANSWER_SLACK_SECONDS,
            tls=tls,
        )
        self._node = node
        self._recorder_files = recorder_files
        self._poll_seconds = poll_seconds
        self._random_unit = random_unit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orders", daemon=True)
        self._after, self._epoch = 0, ""
        self.dumps_total = 0

    def start(self) -> None:
        """Begin to wait for orders."""
        self._thread.start()

    def close(self, timeout_seconds: float = 0.5) -> None:
        """Stop waiting; an order that is being carried out is given up."""
        self._stop.set()
        self._connection.interrupt()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        keep_trying(self._turn, self._stop, self._note, self._random_unit)
        self._connection.close()

    def _note(self, error: AgentError, failures: int) -> None:
        """A refusal is news; that the server is away the uplink says already."""
        if not self._stop.is_set():
            is_news = failures == 1 and isinstance(error, OrdersRefused)
            log.log(logging.WARNING if is_news else logging.DEBUG, "%s", error)

    def _turn(self) -> None:
        for order in self._wait():
            if self._stop.is_set():
                return
            if order.action == "dump":
                self._answer(order)
            self._after = max(self._after, order.id)

    def _wait(self) -> tuple[NodeOrder, ...]:
        asked_at = time.monotonic()
        answer = self._connection.get(
            f"/control/v1/node-orders?node={quote(self._node.name, safe='')}&after={self._after}"
            f"&epoch={quote(self._epoch, safe='')}&wait_seconds={self._poll_seconds:g}"
        )
        if answer.status != 200:
            raise OrdersRefused(f"The server gives this agent no orders ({answer.status}: {answer.detail}).")
        try:
            said = _answers.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise OrdersRefused(f"The server's orders could not be understood ({error}).") from error
        if said.epoch != self._epoch:
            self._after, self._epoch = 0, said.epoch
        orders = said.orders[:ORDERS_MAX]
        if not orders and time.monotonic() - asked_at < self._poll_seconds / 2:
            raise ServerUnreachable("The server did not wait for an order: it is ending, or too many wait there.")
        return orders

    def _answer(self, order: NodeOrder) -> None:
        """Take the evidence and send it; what the server then refuses, such as a late answer, is not sent again."""
        try:
            dumps = take_dumps(self._node, order.run, order.attempt, self._recorder_files)
        except (OSError, RuntimeError) as error:  # Out of descriptors or threads: an answer without evidence is one.
            log.warning("Cannot take the stacks of run %s (%s).", order.run, error)
            dumps = ()
        body = encode_dump(
            NodeDump(node=self._node.name, order=order.id, run=order.run, attempt=order.attempt, dumps=dumps)
        )
        answer = self._connection.post("/control/v1/node-dumps", body, JSON)
        if answer.status != 200:
            log.warning("The server did not take the answer to order %d (%s).", order.id, answer.detail)
            return
        self.dumps_total += 1
        log.info("Sent the stacks of %d ranks of run %s (order %d).", len(dumps), order.run, order.id)


def take_dumps(node: Node, run: str, attempt: int, recorder_files: RecorderFiles = NO_FILES) -> tuple[RankDump, ...]:
    """Give evidence of every rank that has a record of that attempt on this node: record with collectives, stacks,
    flight recorder.
    """
    from concurrent.futures import ThreadPoolExecutor  # for an order, which is rare

    if not is_folder_name(run) or attempt < 0:
        return ()
    found = tuple(_records(node, run, attempt))
    bytes_max = RECORDERS_BYTES_MAX // max(1, len(found))
    with ThreadPoolExecutor(STACKS_AT_ONCE) as stack_pool, ThreadPoolExecutor(RECORDERS_AT_ONCE) as recorder_pool:
        recorders = recorder_pool.map(
            lambda one: _recorder(node, one[0], owner=one[2], files=recorder_files, bytes_max=bytes_max), found
        )
        stacks = stack_pool.map(lambda one: _stacks_or_why(node, *one), found)
        seen = zip(found, stacks, recorders, strict=True)
        return tuple(_dump(one[0], its_stacks, recorder) for one, its_stacks, recorder in seen)


def is_folder_name(name: str) -> bool:
    """Whether it names a folder right beneath another one.

    >>> [is_folder_name(name) for name in ("run-1", "..", "a/b", "", ".job.lock")]
    [True, False, False, False, False]
    """
    return bool(name) and not name.startswith(".") and "/" not in name and "\0" not in name


def encode_dump(dump: NodeDump, bytes_max: int = DUMP_BYTES_MAX) -> bytes:
    """Give the JSON of an answer; beyond `bytes_max` only the main threads stay, and it says so."""
    body = msgspec.json.encode(dump)
    if len(body) <= bytes_max:
        return body
    note = f"The stacks of the node's ranks were larger than {bytes_max} bytes: only the main threads are here."
    short = tuple(
        replace(one, stacks=tuple(filter(lambda stack: stack.is_main, one.stacks)), missing=(*one.missing, note))
        for one in dump.dumps
    )
    return msgspec.json.encode(replace(dump, dumps=short))


def _records(node: Node, run: str, attempt: int) -> Iterator[tuple[RankReport, int, int]]:
    """Yield each sound record's report, its process's start and its owner."""
    try:
        root = os.open(node.record_root / node.name, FOLDER_FLAGS)
    except OSError:
        return
    try:
        with Folder(run, root) as run_folder, Folder(str(attempt), run_folder) as folder:
            for name in sorted(filter(str.isdecimal, names(folder, RANKS_MAX)), key=int):
                try:
                    found = _read(node, name, folder)
                except (RankRecordError, OSError) as error:
                    log.debug("record of rank %s: %s", name, error)
                    continue
                identity = (found[0].run, found[0].attempt, found[0].node, found[0].rank)
                if identity == (run, attempt, node.name, int(name)):
                    yield found
    finally:
        os.close(root)


def _read(node: Node, name: str, folder: int) -> tuple[RankReport, int, int]:
    owner = os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid
    with RecordReader(name, dir_fd=folder, uid=owner) as reader:
        record = reader.read(with_collectives=True)
    said = report(record, now_monotonic_ns=node.monotonic_ns(), boot_id=node.boot_id, proc=node.proc)
    return said, record.header.pid_start_ticks, owner


def _dump(said: RankReport, stacks: tuple[ThreadStack, ...] | str, recorder: Recorder) -> RankDump:
    """Put together what was seen of one rank; in place of stacks there may be a sentence why there are none."""
    why = (stacks,) if isinstance(stacks, str) else ()
    return RankDump(
        report=said,
        stacks=() if isinstance(stacks, str) else stacks,
        answers=recorder.answers,
        flight_recorder=recorder.text,
        flight_recorder_pickle=recorder.pickle,
        missing=(*why, *recorder.missing),
    )


def _recorder(node: Node, said: RankReport, *, owner: int, files: RecorderFiles, bytes_max: int) -> Recorder:
    if said.process_state in ("gone", "zombie", "stopped"):
        return Recorder(missing=(NOT_ASKED,))
    return recorder_of(node, said.run, said.attempt, said.rank, owner=owner, files=files, bytes_max=bytes_max)


def _stacks_or_why(node: Node, said: RankReport, started_ticks: int, owner: int) -> tuple[ThreadStack, ...] | str:
    try:
        return _stacks(node, said, started_ticks, owner)
    except StacksUnavailable as error:
        return str(error)


def _stacks(node: Node, said: RankReport, started_ticks: int, owner: int) -> tuple[ThreadStack, ...]:
    """A record is untrusted, it may name any process: only one of that start and of the record's owner counts."""
    if said.process_state in ("gone", "zombie"):
        raise StacksUnavailable(f"Rank {said.rank} has no process any more.")
    if said.process_state == "unknown":
        raise StacksUnavailable(
            f"The process of rank {said.rank} cannot be seen by the agent: give the agent the node's pid namespace."
        )
    if owner_of(said.pid, node.proc) != owner:
        raise StacksUnavailable(f"Process {said.pid} is not of the user who owns the record of rank {said.rank}.")
    stacks = stacks_of(said.pid, timeout_seconds=STACK_SECONDS_MAX)
    if look_at(said.pid, started_ticks, proc=node.proc).state == "gone":
        raise StacksUnavailable(f"The process of rank {said.rank} ended while its stacks were read.")
    return stacks
