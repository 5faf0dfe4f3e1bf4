"""Carries approved node actions out, step by step. Each step is in the journal before it is asked for and after.

The store is touched in the event loop only; the executor, which blocks, is asked in a worker thread. A server that dies
goes on from the rows: a step that was being carried out is asked for again, under the same mark.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from instep_collector.clock import Clock
from instep_collector.store import plans, steps
from instep_collector.store.engine import Store
from instep_collector.store.models import ActionRow, PlanRow, StepRow
from sqlalchemy.orm import Session

from instep_remediation.node_executor import NodeExecutor, Outcome, Progress, Step
from instep_remediation.node_guards import hold
from instep_remediation.policy import Policy
from instep_remediation.proceedings import begin, end_action, fail_action, remaining, steps_of

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 300.0
ASKINGS_MAX = 16
"""Steps of different plans asked for at once."""

ENDED = ("done", "failed")
"""Steps that came to an end of their own."""

Key = tuple[int, int, int]


class PlanRunner:
    """Carries out what was approved; nothing at all with an executor that changes nothing."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        nodes: NodeExecutor,
        policy: Policy,
        count: Callable[[str], object] = lambda _outcome: None,
    ) -> None:
        """`count` is told how each step ended: `done` or `failed`."""
        self._clock = clock
        self._store = store
        self._nodes = nodes
        self._policy = policy
        self._count = count
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Look at once: something was decided. To be called after the commit."""
        self._news.set()

    async def run(self) -> None:
        """Carry out until cancelled."""
        while True:
            self._news.clear()
            try:
                while await self.tick():
                    pass
            except Exception:
                log.exception("A look at the plans failed.")
            try:
                await asyncio.wait_for(self._news.wait(), POLL_SECONDS)
            except TimeoutError:
                continue

    async def tick(self) -> int:
        """Begin what may begin and ask once for every step that is due; returns how many were asked for."""
        if not self._nodes.is_changing:
            return 0
        self._begin()
        due = self._due()
        await asyncio.gather(*(self._ask(key, step) for key, step in due))
        return len(due)

    def _begin(self) -> None:
        """Begin approved actions as far as the guards allow, oldest plan first."""
        now = self._clock.realtime()
        with self._store.begin() as session:
            for plan, action in plans.in_state(session, "approved"):
                reason = hold(session, plan, action, self._policy)
                if reason is None:
                    self._begin_one(session, plan, action, now)
                elif plan.is_automatic and now - plan.created_at > self._policy.guards.hold_seconds_max:
                    self._ask_people(session, plan, action, reason)
                elif action.detail != reason:
                    action.detail = reason

    def _begin_one(self, session: Session, plan: PlanRow, action: ActionRow, now: float) -> None:
        """Begin one action; one whose steps cannot be told fails, and holds up no other."""
        try:
            made = steps_of(self._nodes, action)
        except Exception as error:
            log.exception("The executor %s cannot tell the steps of %s.", self._nodes.name, action.name)
            sentence = f"The executor {self._nodes.name} cannot tell its steps ({type(error).__name__}: {error})."
            fail_action(session, plan, action, sentence, failures_max=self._policy.guards.failures_max, now=now)
        else:
            begin(session, plan, action, made, now=now)
            if not remaining(session, action):  # Cancelled while its last step was under way, which ended well.
                end_action(session, plan, action, now=now)
        session.flush()

    def _ask_people(self, session: Session, plan: PlanRow, action: ActionRow, reason: str) -> None:
        """Take the policy's own approval back: what led to it is old by now."""
        action.state = "proposed"
        action.detail = f"Held back for too long to be carried out without approval: {reason}"
        plan.is_automatic = False
        plans.refresh(session, plan, at=self._clock.realtime())

    def _due(self) -> list[tuple[Key, Step]]:
        """Write down that each executing action's next step is asked for, and return those steps."""
        now = self._clock.realtime()
        due: list[tuple[Key, Step]] = []
        with self._store.begin() as session:
            for _, action in plans.in_state(session, "executing"):
                row = next((step for step in steps.of_action(session, action) if step.state in steps.OPEN), None)
                is_early = row is not None and 0.0 < row.next_at - now <= RETRY_SECONDS_MAX  # More: the clock was set.
                if row is None or is_early or len(due) >= ASKINGS_MAX:
                    continue
                row.state, row.tries = "executing", row.tries + 1
                row.started_at = now if row.started_at is None else row.started_at
                key = (row.plan, row.position, row.step)
                due.append((key, Step(row.name, row.node, row.mark, dict(row.arguments))))
        return due

    async def _ask(self, key: Key, step: Step) -> None:
        try:
            progress = await asyncio.to_thread(self._nodes.carry_out, step)
        except Exception as error:
            log.exception("The executor %s failed at %s.", self._nodes.name, step.describe())
            progress = Progress(Outcome.FAILED, f"The executor failed unexpectedly ({type(error).__name__}: {error}).")
        with self._store.begin() as session:
            state = self._write_down(session, key, progress)
        if state in ENDED:
            self._count(state)

    def _write_down(self, session: Session, key: Key, progress: Progress) -> str:
        """Write the answer down, and what follows from it; returns the step's state, empty when it is gone."""
        now, row = self._clock.realtime(), steps.get(session, *key)
        plan, action = plans.get(session, key[0]), session.get(ActionRow, key[:2])
        if row is None or plan is None or action is None:
            return ""  # Its incident was forgotten meanwhile.
        row.detail = progress.detail
        match progress.outcome:
            case Outcome.DONE:
                row.state, row.ended_at = "done", now
                if action.state == "executing" and not remaining(session, action):
                    end_action(session, plan, action, now=now)
            case Outcome.WAITING:
                wait = min(max(progress.retry_after_seconds, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)
                row.next_at = now + wait
                self._give_up_when_late(session, plan, action, row, now)
            case Outcome.FAILED:
                self._fail(session, plan, action, row, f"Step {step_name(row)} failed: {progress.detail}", now)
        return row.state

    def _give_up_when_late(self, session: Session, plan: PlanRow, action: ActionRow, row: StepRow, now: float) -> None:
        limit = self._policy.nodes.drain_timeout_seconds
        if row.started_at is not None and now - row.started_at >= limit:
            said = f" Last heard: {row.detail}" if row.detail else ""
            self._fail(session, plan, action, row, f"Step {step_name(row)} did not end within {limit:g} s.{said}", now)

    def _fail(
        self, session: Session, plan: PlanRow, action: ActionRow, row: StepRow, sentence: str, now: float
    ) -> None:
        if action.state != "executing":
            return  # Cancelled while it was asked for: the step's own row says how that went.
        row.state, row.ended_at = "failed", now
        fail_action(session, plan, action, sentence, failures_max=self._policy.guards.failures_max, now=now)


def step_name(row: StepRow) -> str:
    """Return a step as it is named in sentences."""
    return f"{row.step + 1} ({row.name} {row.node})"
