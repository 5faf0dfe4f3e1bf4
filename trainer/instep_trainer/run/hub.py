"""The coordinator at work: listens for supervisors, feeds their messages to the pure `Coordination`, carries out its
effects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import msgspec
from instep_agent.wire import RankDump, RankReport

from instep_trainer.run.coordination import Coordination, Effect, Limits, Order, Send, Stage, TakeDumps, Tell
from instep_trainer.run.local_watch import LocalWatch
from instep_trainer.run.messages import (
    LINE_BYTES_MAX,
    Alive,
    Dump,
    Dumped,
    Exited,
    Hello,
    Leaving,
    Observed,
    Refused,
    Stopped,
    ToMember,
    decode_to_coordinator,
    encode,
)
from instep_trainer.run.options import RunOptions
from instep_trainer.run.server_link import ServerLink

log = logging.getLogger("instep.run")
TICK_SECONDS = 0.1
DUMP_SECONDS_MAX = 2.5
HELLO_SECONDS_MAX = 5.0
LOCAL_DUMP = -1
"""Order number of evidence that the supervisors want for themselves."""
LOCAL_DUMP_SECONDS_MIN = 1.0
"""Between two of them: taking stacks stops a rank for a moment."""


class Hub:
    """Serves one run. `open` raises OSError when the endpoint cannot be listened to."""

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        limits = Limits(
            nodes_min=options.nodes_min,
            nodes_max=options.nodes_max,
            max_restarts=options.max_restarts,
            verdict_wait_seconds=options.verdict_wait_seconds,
            is_server_there=bool(options.server),
        )
        self.coordination = Coordination(
            job=options.job, run=options.run, node=options.node, key=options.key, limits=limits
        )
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._dumps: dict[int, dict[str, list[RankDump] | None]] = {}
        self._watch = LocalWatch()
        self._local_dumps: list[RankDump] | None = None
        self._local_dump_at = 0.0
        self._kept_attempt = -1
        self._link: ServerLink | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_admitted = asyncio.Event()

    async def open(self, host: str, port: int) -> int:
        """Listen; return the port."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=LINE_BYTES_MAX, reuse_address=True)
        options = self._options
        if options.server:
            self._link = ServerLink(
                url=options.server,
                token=options.token,
                job=options.job,
                run=options.run,
                node=options.node,
                on_order=self._on_order,
            )
            self._link.open()
        self._keep(asyncio.create_task(self._tick()))
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Deliver the last reports, then stop listening."""
        if self._link is not None:
            await self._link.close(drain_seconds=3.0)
        for task in self._tasks:
            task.cancel()
        self._server.close()
        for writer in self._writers.values():
            writer.close()

    async def admit(self, *, is_new: bool) -> str:
        """Begin to take supervisors in, unless the server refuses a new run: return its sentence then, else nothing."""
        if is_new and self._link is not None and (refusal := await self._link.ask_admission()):
            return refusal
        self._is_admitted.set()
        return ""

    def interrupt(self) -> None:
        """A person ends this supervisor: what happens to the run from now on is no fault."""
        self._carry_out(self.coordination.interrupted())

    # Messages in ------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = ""
        try:
            hello = await asyncio.wait_for(self._read(reader), HELLO_SECONDS_MAX)
            await self._is_admitted.wait()
            if not isinstance(hello, Hello) or not await self._admit(hello, writer):
                return
            node = hello.node
            while (message := await self._read(reader)) is not None:
                self.coordination.heard(node, time.monotonic())
                self._take(node, message)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, msgspec.DecodeError) as error:
            log.debug("connection of %s ended: %s", node or "a stranger", error)
        except asyncio.CancelledError:
            node = ""  # the coordinator itself is ending; nobody is lost by that
        finally:
            writer.close()
            if node and self._writers.get(node) is writer:
                self._lose(node)

    async def _admit(self, hello: Hello, writer: asyncio.StreamWriter) -> bool:
        """Take a supervisor in, or tell it why not."""
        known = self.coordination.members.get(hello.node)
        if known is not None and known.hello.supervisor == hello.supervisor and hello.key == self._options.key:
            self._lose(hello.node)  # the same supervisor again: its connection broke, and only it has noticed so far
        effects = self.coordination.join(hello, time.monotonic())
        refusals = [effect.message for effect in effects if isinstance(effect, Send)]
        if any(isinstance(message, Refused) for message in refusals):
            writer.write(b"".join(encode(message) for message in refusals))
            await writer.drain()
            return False
        self._writers[hello.node] = writer
        self._carry_out(effects)
        return True

    def _lose(self, node: str) -> None:
        """A member's connection is over, and with it the member."""
        writer = self._writers.pop(node, None)
        if writer is not None:
            writer.close()
        self._carry_out(self.coordination.leave(node, time.monotonic()))

    async def _read(self, reader: asyncio.StreamReader) -> Any:
        line = await reader.readline()
        return decode_to_coordinator(line) if line else None

    def _take(self, node: str, message: Alive | Leaving | Exited | Stopped | Observed | Dumped) -> None:
        now = time.monotonic()
        match message:
            case Leaving():
                log.info("node %s leaves the run: whoever runs it has ended its supervisor", node)
                self._carry_out(self.coordination.withdraw(node, now))
            case Exited():
                self._carry_out(self.coordination.exited(node, message.attempt, message.rank, message.exit_code, now))
            case Stopped():
                self._carry_out(self.coordination.stopped(node, message, now))
            case Observed() if message.attempt == self.coordination.attempt:
                self._watch.observe(message.reports, now)
                self._notice_kept(message.reports)
            case Dumped():
                self._dumped(node, message)

    def _on_order(self, order: Order) -> None:
        log.info(
            "order %s from the server: %s attempt %s%s",
            order.id,
            order.action,
            order.attempt,
            f", leaving out {', '.join(order.exclude)}" if order.exclude else "",
        )
        self._carry_out(self.coordination.order(order, time.monotonic()))

    # Effects out ------------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.node, effect.message)
                case Tell():
                    self._tell(effect)
                case TakeDumps():
                    self._ask_for_dumps(effect.order)

    def _send(self, node: str, message: ToMember) -> None:
        writer = self._writers.get(node)
        if writer is not None:
            writer.write(encode(message))

    def _tell(self, effect: Tell) -> None:
        if effect.kind == "attempt_opened":
            self._watch.begin(effect.attempt, effect.body["world_size"])
            if self._link is not None:
                self._link.at_attempt(effect.attempt)
        if effect.kind in ("attempt_opened", "rank_exited", "local_decision", "run_finished"):
            log.info("%s", describe(effect))
        if self._link is not None:
            self._link.tell(effect.kind, effect.body, effect.attempt)

    def _ask_for_dumps(self, order: int) -> None:
        assigned = [node for node, ranks in self.coordination.assignment.items() if ranks and node in self._writers]
        self._dumps[order] = dict.fromkeys(assigned)
        for node in assigned:
            self._send(node, Dump(dump=str(order), attempt=self.coordination.attempt))
        self._keep(asyncio.create_task(self._close_dumps(order)))

    async def _close_dumps(self, order: int) -> None:
        await asyncio.sleep(DUMP_SECONDS_MAX)
        self._deliver_dumps(order)

    def _dumped(self, node: str, message: Dumped) -> None:
        waiting = self._dumps.get(int(message.dump))
        if waiting is None or node not in waiting:
            return
        waiting[node] = message.dumps
        if all(dumps is not None for dumps in waiting.values()):
            self._deliver_dumps(int(message.dump))

    def _deliver_dumps(self, order: int) -> None:
        collected = self._dumps.pop(order, None)
        if collected is None:
            return
        dumps = [dump for per_node in collected.values() for dump in per_node or []]
        if order == LOCAL_DUMP:
            self._local_dumps = dumps  # judged by the next tick, where a detector that fails ends nothing
            return
        self._tell(Tell("dump", {"order": order, "dumps": msgspec.to_builtins(dumps)}, self.coordination.attempt))
        self._carry_out(self.coordination.dumped(order))

    # Time -------------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self._carry_out(self.coordination.tick(now))
            for node in [node for node in self._writers if node not in self.coordination.members]:
                self._lose(node)  # dropped for its silence: it learns so, ends its ranks and comes anew
            try:
                self._watch_locally(now)
            except Exception:
                log.exception("the hang detector failed; the run goes on without it for now")

    def _watch_locally(self, now: float) -> None:
        """Judge hangs here only while nobody else does."""
        dumps, self._local_dumps = self._local_dumps, None
        is_silent = self._link is None or self._link.silence_seconds > self._options.server_silence_seconds
        if self.coordination.stage is not Stage.RUNNING or not is_silent or LOCAL_DUMP in self._dumps:
            return
        if dumps is not None:
            self._judge_locally(dumps)
        elif now - self._local_dump_at >= LOCAL_DUMP_SECONDS_MIN and self._watch.finds_stall(
            self._options.job, self._options.run, self.coordination.attempt, now
        ):
            log.info("no progress: asking every supervisor for stacks")
            self._local_dump_at = now
            self._ask_for_dumps(LOCAL_DUMP)

    def _judge_locally(self, dumps: list[RankDump]) -> None:
        verdict = self._watch.judge(
            self._options.job, self._options.run, self.coordination.attempt, dumps, time.monotonic()
        )
        if verdict is None:
            return
        summary, body = verdict
        log.info("%s", summary)
        self._carry_out(
            self.coordination.restart_locally(
                attempt=self.coordination.attempt, reason=summary, verdict=body, now=time.monotonic()
            )
        )

    def _notice_kept(self, reports: list[RankReport]) -> None:
        """After a restart, tell when every rank has finished a step of the new attempt."""
        step = self._watch.step_of_all()
        attempt = self.coordination.attempt
        if step is None or self._kept_attempt == attempt:
            return
        self._kept_attempt = attempt
        if attempt == 0:
            return  # nothing was to be kept from
        self._tell(Tell("step_kept", {"step": step, "after_attempt": attempt - 1}, attempt))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            error = task.exception()
            if error is not None:
                log.error("a task of the coordinator failed", exc_info=error)


def describe(effect: Tell) -> str:
    """One line for the terminal."""
    body = effect.body
    match effect.kind:
        case "attempt_opened":
            members = ", ".join(f"{member['node']}: ranks {member['ranks']}" for member in body["members"])
            resume = f", resuming after step {body['resume_step']}" if body["resume_step"] is not None else ""
            standby = ", ".join(body["standby"]) or "none"
            return f"attempt {effect.attempt} opens ({members}; standing by: {standby}){resume}"
        case "rank_exited":
            return f"rank {body['rank']} on {body['node']} ended with {body['exit_code']}"
        case "local_decision":
            return f"deciding without the server: {body['action']} ({body['reason']})"
        case _:
            return f"{effect.kind}: {body}"
