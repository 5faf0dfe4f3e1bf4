"""Everything one server holds, put together in one place; starts it in order and ends it in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from dataclasses import fields, replace
from pathlib import Path

import msgspec
from apscheduler.schedulers.asyncio import AsyncIOScheduler  # type: ignore[import-untyped]
from instep_agent.wire import GpuReport
from instep_collector.clock import Clock
from instep_collector.control import Member
from instep_collector.errors import StartError
from instep_collector.facts import FactBook
from instep_collector.hot_window import HotWindow
from instep_collector.intake import Intake
from instep_collector.journal import Journal
from instep_collector.metrics import Metrics
from instep_collector.registry import Registry
from instep_collector.store import answers, audit, incidents, jobs, nodes, outbox, plans
from instep_collector.store.engine import Store
from instep_collector.store.hold import Hold
from instep_collector.tokens import Principal, TokenBook, admin_entry, read_or_make_token, read_token
from instep_collector.watch import Watch, WatchSettings
from instep_diagnosis.settings import HangSettings
from sqlalchemy.orm import Session

from instep_remediation.aftermath import Aftermath
from instep_remediation.alerts.alertmanager import Alertmanagers
from instep_remediation.alerts.message import moment
from instep_remediation.alerts.webhook import WebhookOutbox
from instep_remediation.decisions import Decisions
from instep_remediation.desk import Desk
from instep_remediation.evidence import EvidenceDesk
from instep_remediation.executor import Executor
from instep_remediation.executors import make_executor
from instep_remediation.latches import Latches
from instep_remediation.node_executor import NodeExecutor
from instep_remediation.node_orders import NodeOrders
from instep_remediation.orders import OrderHub
from instep_remediation.plan_rows import ACTOR
from instep_remediation.policy import Policy
from instep_remediation.repairs import faulty_nodes
from instep_remediation.runner import PlanRunner
from instep_remediation.server.config import HangConfig, ServerConfig
from instep_remediation.server.sessions import ONLOOKER, Sessions

AUDIT_SLACK_SECONDS = 86400.0
"""The audit log is pruned when its oldest line is so much older than it is kept: one line a day tells of it."""
DATABASE_SECONDS = 1.0
"""How often a database that was away is asked again."""

log = logging.getLogger(__name__)


class Runtime:
    """One server's parts. Made closed; `open` takes the state folder, `start` begins the loops."""

    def __init__(
        self, config: ServerConfig, policy: Policy, clock: Clock, *, nodes: NodeExecutor | None = None
    ) -> None:
        self.config = config
        self.policy = policy
        self.clock = clock
        self.is_ready = False
        self.public_url = config.public_url or config.url
        self.nodes = nodes or make_executor(config)
        check_executor(policy, self.nodes)
        self._lock = _lock_state(config.state_dir)
        self.token_file = config.token_file or config.state_dir / "token"
        token = read_token(config.token_file) if config.token_file else read_or_make_token(self.token_file)
        self.book = TokenBook([admin_entry(token), *(token.entry() for token in config.tokens)])
        self.sessions = Sessions(clock, is_secure=self.public_url.startswith("https://"))
        self.store = Store(config.database or f"sqlite:///{(config.state_dir / 'instep.db').absolute()}")
        self.hold = Hold(self.store)
        self.journal = Journal(config.state_dir / "journal")
        self.registry, self.window, self.facts, self.metrics = Registry(), HotWindow(), FactBook(), Metrics()
        self.intake = Intake(clock, self.journal, self.registry, self.window, self.facts)
        self.hub, self.node_orders = OrderHub(clock, self.store), NodeOrders(clock)
        self.intake.is_asked = self.node_orders.is_asked
        self.webhooks, self.alertmanagers = self._ways_to_people(config)
        self.latches = Latches()
        executor = Executor(clock, self.hub, self.nodes, policy)
        self.runner = PlanRunner(
            clock, self.store, self.nodes, policy, lambda outcome: self.metrics.plan_steps.labels(outcome).inc()
        )
        self.decisions = Decisions(clock, self.nodes, policy, self.webhooks.announce)
        self.aftermath = Aftermath(clock, self.store, self.webhooks.announce)
        self.desk = Desk(
            clock,
            self.store,
            self.registry,
            self.hub,
            executor,
            evidence=EvidenceDesk(clock, self.hub, self.node_orders, self.metrics),
            policy=policy,
            metrics=self.metrics,
            announce=self.webhooks.announce,
            latches=self.latches,
        )
        self.watch = Watch(
            clock,
            self.registry,
            self.facts,
            self.intake,
            self.store,
            self.desk,
            metrics=self.metrics,
            settings=WatchSettings(
                hang=hang_settings(config.hang), evidence_grace_seconds=config.evidence_grace_seconds
            ),
        )
        self.metrics.watch(clock, self.registry, self.intake, self.journal, self.store)
        self._tasks: list[asyncio.Task[None]] = []
        self._scheduler = AsyncIOScheduler(timezone="UTC")

    def _ways_to_people(self, config: ServerConfig) -> tuple[WebhookOutbox, Alertmanagers]:
        webhooks = WebhookOutbox(
            self.clock,
            self.store,
            self.metrics,
            url=config.webhook,
            page_url=self.public_url,
            runbook_base=config.runbook_url,
            is_told_on_resolve=config.webhook_on_resolve,
        )
        alertmanagers = Alertmanagers(
            self.clock,
            self.store,
            self.metrics,
            addresses=config.alertmanager,
            token_file=config.alertmanager_token_file,
            resend_seconds=config.alertmanager_resend_seconds,
            page_url=self.public_url,
            runbook_base=config.runbook_url,
        )
        return webhooks, alertmanagers

    def page_link(self, asker: Principal = ONLOOKER) -> str:
        """Return a link to the page that works once; what can be done there is what the asker's token allows."""
        return f"{self.public_url}/?link={self.sessions.new_link(asker)}"

    def open(self) -> None:
        """Rebuild what was known: runs and nodes from the store, then the journal's last minutes."""
        self.journal.open()
        self._load()
        self.intake.on_report = self.aftermath.on_report
        replayed = self.intake.replay()
        if self.journal.cut_bytes:
            log.warning("The journal's last record was torn: %d bytes were cut off.", self.journal.cut_bytes)
        log.info("%d journal records were replayed.", replayed)
        self.is_ready = True

    def start(self) -> None:
        """Begin the loops, in the running event loop."""
        self._tasks = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (
                ("watch", self.watch.run()),
                ("webhooks", self.webhooks.run()),
                ("alerts", self.alertmanagers.run()),
                ("fsync", self._sync_journal()),
                ("database", self._mind_database()),
                ("plans", self.runner.run()),
            )
        ]
        self._scheduler.add_job(self.prune, "interval", hours=1)
        self._scheduler.add_job(self.prune_audit, "interval", hours=1)
        self._scheduler.start()

    async def stop(self) -> None:
        """End the loops and close everything."""
        self.is_ready = False
        self.release()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.close()

    def release(self) -> None:
        """Answer everybody who waits for orders, and let nobody wait any more: the server ends."""
        self.hub.release()
        self.node_orders.release()

    def close(self) -> None:
        """Close files and connections."""
        self.journal.close()
        self.hold.close()
        self.store.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def prune(self) -> None:
        """Forget what is older than the retention."""
        before = self.clock.realtime() - self.config.retention_days * 86400.0
        with self.store.begin() as session:
            nodes.prune_events(session, before=before)
            outbox.prune(session, before=before)
            incidents.prune(session, before=before)
            jobs.prune(session, before=before)
            plans.prune(session, before=before)
            answers.prune(session, before=self.clock.realtime() - answers.KEEP_SECONDS)

    async def prune_audit(self) -> None:
        """Remove audit lines that are older than their retention, at most once a day, and say so in the audit log."""
        now, days = self.clock.realtime(), self.config.audit_retention_days
        before = now - days * 86400.0
        with self.store.begin() as session:
            oldest = audit.oldest_at(session)
            if oldest is None or oldest >= before - AUDIT_SLACK_SECONDS:
                return
            count = audit.prune(session, before=before)
            reason = f"{count} lines from before {moment(before)} were removed (audit_retention_days = {days:g})."
            audit.note(session, at=now, actor=ACTOR, action="audit-prune", subject="audit", reason=reason)

    async def _sync_journal(self) -> None:
        while True:
            await asyncio.sleep(self.config.journal_fsync_seconds)
            try:
                await self.journal.sync()
            except OSError:
                log.exception("The journal cannot be brought to the disk.")

    async def _mind_database(self) -> None:
        """Bring into the store what waited for it; end when another server has taken the database meanwhile."""
        while True:
            await asyncio.sleep(DATABASE_SECONDS)
            self.aftermath.catch_up()
            if not self.hold.is_kept():
                log.critical("Another server has taken the database while it was away: this one ends.")
                signal.raise_signal(signal.SIGTERM)
                return

    def _load(self) -> None:
        now, realtime = self.clock.monotonic(), self.clock.realtime()
        with self.store.begin() as session:
            for job, attempt in jobs.running(session):
                run = self.registry.ensure(job.job, job.run)
                run.attempt, run.world_size, run.is_controlled = job.attempt, job.world_size, True
                run.max_restarts, run.restarts_used = job.max_restarts, job.restarts_used
                run.standby, run.members = tuple(job.standby), msgspec.convert(attempt.members, tuple[Member, ...])
                run.is_attempt_over = attempt.ended_at is not None
                run.heard_at = now - max(0.0, realtime - attempt.opened_at)  # The journal knows of later heartbeats.
            for node in nodes.nodes(session):
                booted_at = None if node.booted_at is None else now - (realtime - node.booted_at)
                if booted_at is not None:
                    self.intake.expect_boot(node.node, node.boot_id, booted_at)
                self.registry.see_node(
                    node.node,
                    cluster=node.cluster,
                    boot_id=node.boot_id,
                    gpus=msgspec.convert(node.gpus, tuple[GpuReport, ...]),
                    at=now - max(0.0, realtime - node.last_seen_at),
                    booted_at=booted_at,
                )
            self._expect_asked(session)

    def _expect_asked(self, session: Session) -> None:
        """Know what drivers asked for on nodes with a fault: a reset while this server was away ends it."""
        for name in sorted({node for row in incidents.active(session) for node in faulty_nodes(row)}):
            node = nodes.get(session, name)
            if node is not None:
                for gpu in nodes.asking(session, node):
                    self.intake.expect_asked(name, node.boot_id, gpu)


def check_executor(policy: Policy, nodes: NodeExecutor) -> None:
    """Raise StartError when the policy asks for what the executor cannot do."""
    if policy.nodes.drain in ("approve", "auto") and not nodes.is_changing:
        raise StartError(
            f'The policy says nodes.drain = "{policy.nodes.drain}", and the executor "{nodes.name}" changes nothing: '
            'configure an executor that changes nodes, or say nodes.drain = "propose".'
        )


def hang_settings(config: HangConfig) -> HangSettings:
    """Return the detector's settings with what the configuration changes."""
    known = {field.name for field in fields(HangSettings)}
    changed = {name: value for name, value in config.model_dump().items() if value is not None and name in known}
    return replace(HangSettings(), **changed)


def _lock_state(folder: Path) -> int:
    """Make the state folder and hold it for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"Cannot write to the state folder {folder} ({error.strerror}): give the server a --state-dir it "
            "may write to."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StartError(
            f"The state folder {folder} is in use by another server: give this one its own --state-dir."
        ) from error
    return descriptor
