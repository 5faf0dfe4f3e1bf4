"""One supervisor: this node's ranks, its place in the run's control plane, and, where it can listen, the coordinator
itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
from instep_agent.node import Node
from instep_agent.ranks.keeping import sweep

from instep_trainer.checkpoint.slots import inventory as read_inventory
from instep_trainer.errors import CannotRun, RunRefused, TrainerError
from instep_trainer.run.coordination import INTERRUPTED
from instep_trainer.run.daemon_thread import in_daemon_thread
from instep_trainer.run.environment import base_environment, rank_environment
from instep_trainer.run.evidence import NodeRecords, take_dumps
from instep_trainer.run.hub import Hub
from instep_trainer.run.messages import (
    LINE_BYTES_MAX,
    Alive,
    Dump,
    Dumped,
    Exited,
    Finish,
    Hello,
    Leaving,
    Observed,
    Open,
    Refused,
    Stop,
    Stopped,
    ToCoordinator,
    ToMember,
    Welcome,
    decode_to_member,
    encode,
)
from instep_trainer.run.options import RunOptions
from instep_trainer.run.ranks import RankExit, RankProcesses
from instep_trainer.run.zygote import Task

log = logging.getLogger("instep.run")
OBSERVE_SECONDS = 0.25
ALIVE_SECONDS = 1.0
WELCOME_SECONDS_MAX = 5.0
CONNECT_SECONDS_MAX = 5.0
RECONNECT_SECONDS = 0.3


class Supervisor:
    """Runs until the run is over; `run` returns its exit status."""

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._ranks = RankProcesses(
            is_preloaded=options.is_preloaded, environment=base_environment(options), on_exit=self._on_exit
        )
        self._records = NodeRecords(options.record_root, options.node, options.run)
        self._hub: Hub | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._attempt = -1
        self._restarts_known = 0
        self._ended: Finish | None = None
        self._interrupt = asyncio.Event()
        self._mark = secrets.token_hex(8)
        self._was_welcome = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Take part in the run until it ends; return 0 when the script finished on every rank."""
        self._on_signals()
        with _job_lock(self._options):
            sweep(Node(self._options.node, record_root=self._options.record_root))  # makes room for this run
            self._attempt = _prepare_folder(self._options.folder)
            try:
                if not await self._interrupted_before(self._ranks.open()):
                    await self._take_part()
                return INTERRUPTED if self._ended is None else self._ended.exit_code
            finally:
                self._ranks.close()
                if self._hub is not None:
                    await self._hub.close()
                self._tidy_up()

    # Taking part ------------------------------------------------------------------------------------------------------

    async def _take_part(self) -> None:
        endpoint = self._options.endpoint
        lost_at: float | None = None
        while self._ended is None and not self._interrupt.is_set():
            if self._hub is None:
                endpoint = await self._try_to_host(endpoint)
            try:
                await self._be_member(*endpoint)
                lost_at = time.monotonic()
            except (OSError, asyncio.IncompleteReadError) as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > self._options.rejoin_seconds:
                    raise CannotRun(
                        f"No coordinator answered at {endpoint[0]}:{endpoint[1]} for "
                        f"{self._options.rejoin_seconds:.0f} s ({error}): is a supervisor of run "
                        f"{self._options.run} running there?"
                    ) from error
            if self._ended is None:
                await self._stop_ranks(self._attempt)
                await self._interrupted_before(asyncio.sleep(RECONNECT_SECONDS))

    async def _try_to_host(self, endpoint: tuple[str, int]) -> tuple[str, int]:
        """Be the coordinator where the endpoint is ours and free; else somebody else is, or something foreign listens
        there."""
        hub = Hub(self._options)
        try:
            port = await hub.open(*endpoint)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise CannotRun(
                    f"Cannot listen on {endpoint[0]}:{endpoint[1]} ({error.strerror}): choose another --rdzv-endpoint."
                ) from error
            return endpoint
        self._hub = hub
        refusal = await hub.admit(is_new=not self._was_welcome)
        if refusal:
            raise RunRefused(refusal)
        log.info(
            "supervisor of %s coordinates run %s of job %s at %s:%s",
            self._options.node,
            self._options.run,
            self._options.job,
            endpoint[0],
            port,
        )
        return endpoint[0], port

    async def _be_member(self, host: str, port: int) -> None:
        """Talk with the coordinator until the connection ends."""
        opening = asyncio.open_connection(host, port, limit=LINE_BYTES_MAX)
        reader, writer = await asyncio.wait_for(opening, CONNECT_SECONDS_MAX)
        self._writer = writer
        self._say(self._hello())
        helpers = []
        try:
            await self._welcome(reader, host, port)
            self._was_welcome = True
            helpers = [asyncio.create_task(self._observe()), asyncio.create_task(self._interrupted(writer))]
            while self._ended is None and (line := await reader.readline()):
                await self._obey(decode_to_member(line))
        finally:
            for helper in helpers:
                helper.cancel()
            self._writer = None
            writer.close()

    async def _welcome(self, reader: asyncio.StreamReader, host: str, port: int) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), WELCOME_SECONDS_MAX)
            answer = decode_to_member(line) if line else None
        except (TimeoutError, ValueError, msgspec.DecodeError) as error:
            raise CannotRun(
                f"Port {port} on {host} is in use by something that is not an Instep coordinator: "
                "choose another --rdzv-endpoint."
            ) from error
        if isinstance(answer, Refused):
            raise RunRefused(answer.reason)
        if not isinstance(answer, Welcome):
            raise ConnectionResetError("the coordinator closed the connection")

    def _hello(self) -> Hello:
        options = self._options
        return Hello(
            job=options.job,
            run=options.run,
            node=options.node,
            slots=options.slots,
            node_rank=options.node_rank,
            attempt_known=self._attempt,
            restarts_known=self._restarts_known,
            address=options.address,
            port_offer=_free_port(options.address),
            inventory=read_inventory(options.folder / "checkpoint"),
            key=options.key,
            supervisor=self._mark,
        )

    async def _obey(self, message: ToMember) -> None:
        match message:
            case Open():
                await self._start_ranks(message)
            case Stop():
                await self._stop_ranks(message.attempt)
            case Dump():
                self._keep(asyncio.create_task(self._dump(message)))
            case Finish():
                await self._stop_ranks(self._attempt)
                self._ended = message
                if message.exit_code:
                    log.error("the run failed: %s", message.reason)

    # Ranks ------------------------------------------------------------------------------------------------------------

    async def _start_ranks(self, opening: Open) -> None:
        self._attempt, self._restarts_known = opening.attempt, opening.restarts_used
        self._records.begin(opening.attempt)
        for local_rank, rank in enumerate(opening.ranks):
            environment = rank_environment(self._options, opening, local_rank, os.getpid())
            await self._ranks.start(opening.attempt, rank, self._task(environment, opening.attempt, rank))

    def _task(self, environment: dict[str, str], attempt: int, rank: int) -> Task:
        options = self._options
        output = ""
        if options.log_dir is not None:
            folder = options.log_dir / f"attempt-{attempt}"
            folder.mkdir(parents=True, exist_ok=True)
            output = str(folder / f"rank-{rank}.log")
        if options.is_preloaded or options.form == "exec":
            return Task(list(options.argv), options.form, environment, output)
        python = [sys.executable, "-u", *(["-m"] if options.form == "module" else [])]
        return Task([*python, *options.argv], "exec", environment, output)

    async def _stop_ranks(self, attempt: int) -> None:
        left = await self._ranks.stop(self._options.stop_grace_seconds)
        if left:
            raise CannotRun(
                f"Ranks {', '.join(map(str, left))} cannot be ended even by SIGKILL (a driver holds them): this node "
                "takes no further part until it is repaired."
            )
        inventory = read_inventory(self._options.folder / "checkpoint")
        self._say(Stopped(attempt=attempt, inventory=inventory, port_offer=_free_port(self._options.address)))

    def _on_exit(self, exit_: RankExit) -> None:
        # While ranks are being ended, one that had died of something else is still news: it may be the cause.
        if exit_.attempt == self._attempt and not exit_.is_ours:
            self._say(Exited(attempt=exit_.attempt, rank=exit_.rank, exit_code=exit_.exit_code))

    async def _dump(self, request: Dump) -> None:
        dumps = await in_daemon_thread(take_dumps, self._records, dict(self._ranks.pids))
        self._say(Dumped(dump=request.dump, attempt=request.attempt, dumps=dumps))

    async def _observe(self) -> None:
        """Tell the coordinator what the records say, often enough for a hang to be seen within its bound."""
        alive_at = 0.0
        while True:
            now = time.monotonic()
            try:
                reports = self._records.read()
            except Exception:
                log.exception("the records of this node's ranks could not be read; the run goes on")
                reports = []
            if reports:
                self._say(Observed(attempt=self._attempt, reports=reports))
            elif now - alive_at >= ALIVE_SECONDS:
                self._say(Alive())
                alive_at = now
            await asyncio.sleep(OBSERVE_SECONDS)

    def _keep(self, task: asyncio.Task[None]) -> None:
        """Hold the task, which the loop itself does not, and tell of its failure."""
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the supervisor failed", exc_info=error)

    def _say(self, message: ToCoordinator) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    # Ending -----------------------------------------------------------------------------------------------------------

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt.set)

    async def _interrupted(self, writer: asyncio.StreamWriter) -> None:
        await self._interrupt.wait()
        log.info("interrupted: ending this node's ranks")
        if self._hub is not None:
            self._hub.interrupt()
        else:
            self._say(Leaving())
        writer.close()

    async def _interrupted_before(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work; return whether a person ended the supervisor before it was done."""
        working = asyncio.ensure_future(work)
        waiting = asyncio.ensure_future(self._interrupt.wait())
        try:
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return True
            working.result()
            return False
        finally:
            working.cancel()
            waiting.cancel()

    def _tidy_up(self) -> None:
        """A run that finished leaves nothing in shared memory; one that did not leaves what the next `instep run`
        resumes from."""
        if self._ended is not None and self._ended.exit_code == 0 and not self._options.keeps_records:
            shutil.rmtree(self._options.folder, ignore_errors=True)


@contextlib.contextmanager
def _job_lock(options: RunOptions) -> Iterator[None]:
    """Hold the job's name on this node: another run under it is refused while this one lives."""
    node_folder = options.record_root / options.node
    try:
        node_folder.mkdir(parents=True, exist_ok=True)
        lock = open(node_folder / f".{options.job}.lock", "a+")  # noqa: SIM115, PTH123  held for the whole run
    except OSError as error:
        raise CannotRun(
            f"Cannot write {node_folder} ({error.strerror}): give a writable --record-root in shared memory."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another run"
        raise RunRefused(
            f"Job {options.job} already runs on {options.node} as {holder}: wait for it, end it, "
            "or give this one another --job."
        ) from error
    try:
        lock.truncate(0)
        lock.write(f"run {options.run} (supervisor pid {os.getpid()})\n")
        lock.flush()
        yield
    finally:
        lock.close()


def _prepare_folder(folder: Path) -> int:
    """Return the last attempt whose records are there, so that a resumed run opens a new one; -1 for none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return max((int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()), default=-1)
    except OSError as error:
        raise CannotRun(
            f"Cannot write {folder} ({error.strerror}): give a writable --record-root in shared memory."
        ) from error


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


__all__ = ["Supervisor", "TrainerError"]
