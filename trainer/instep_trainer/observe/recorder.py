"""The rank's own clockwork: which phase it is in, how long each took, what it waited for; written into the rank record.

Called by the annotated trainer (through `instep_trainer.phases`), or by the hooks in a script that marks nothing.
"""

from __future__ import annotations

import os
import time
from typing import Any

from instep_agent.rank_record.layout import CompletedSource, Phase
from instep_agent.rank_record.writer import RankRecordWriter

from instep_trainer.inject.faults import Faults

PHASES = [phase.name for phase in Phase]
WORKS_POLLED_MAX = 64
"""Works whose completion nobody has seen yet; beyond it the oldest is let go as not observed."""
AWAY = frozenset((Phase.data, Phase.checkpoint, Phase.evaluation))
"""Phases that are no part of a rank's own work."""
YARDSTICK = range(256)
"""Adding these up takes about 1.3 µs, on the same core always the same. It tells a slow core from a rank that has more
to do."""
_now = time.monotonic_ns


class RankRecorder:
    """State of one rank's steps; every method costs about a microsecond."""

    def __init__(self, writer: RankRecordWriter, faults: Faults | None = None) -> None:
        self._writer = writer
        self._faults = faults
        self._schedstat = _open_schedstat()
        self.is_annotated = False
        self.step = 0
        self.micro_step = 0
        self._has_finished = False
        self._phase = int(Phase.startup)
        self._since_ns = _now()
        self._works: list[tuple[int, Any]] = []
        self._work_seconds = 0.0
        self._away_starved_ns = self._starved_away_ns = self._yardstick_ns = 0
        self._begin_step(self._since_ns)

    # Phases -----------------------------------------------------------------------------------------------------------

    def annotate(self) -> None:
        """The script marks its phases itself: hooks stop guessing, and time outside every phase is the script's own
        loop."""
        if not self.is_annotated:
            self.is_annotated = True
            self._writer.update_identity(is_annotated=True)
            self._switch(Phase.user)

    def enter_phase(self, phase: str) -> str:
        """Begin a phase; return the one before, for `leave_phase`."""
        previous = PHASES[self._phase]
        self._switch(Phase[phase])
        return previous

    def leave_phase(self, previous: str) -> None:
        """Go back to the phase before."""
        if self._phase == Phase.backward:
            self._end_backward()
        self._switch(Phase[previous])

    def _switch(self, phase: int) -> None:
        now = _now()
        self._spent_ns[self._phase] += now - self._since_ns
        if phase in AWAY or self._phase in AWAY:
            starved_ns = self.starved_ns()
            if self._phase in AWAY:
                self._starved_away_ns += starved_ns - self._away_starved_ns
            self._away_starved_ns = starved_ns
        self._phase, self._since_ns = int(phase), now
        if self._works:
            self._poll(now)
        self._beat()

    def _beat(self) -> None:
        """Before the first finished step everything is start-up: compilation and warm-up may take minutes."""
        phase = (
            self._phase if self._has_finished or self._phase in (Phase.checkpoint, Phase.evaluation) else Phase.startup
        )
        self._writer.heartbeat(self.step, self.micro_step, phase)

    def _end_backward(self) -> None:
        """What lies between the last collective of a backward pass and its end is waiting for peers."""
        self.micro_step += 1
        if self._entered_in_phase_ns > self._since_ns and self._entered_in_phase_ns > self._waited_until_ns:
            self._count_wait(self._entered_in_phase_ns, self._entered_starved_ns)

    def _count_wait(self, began_ns: int, began_starved_ns: int) -> None:
        """Waiting, and how much of it was being without a core: that part must not be taken off the step twice."""
        self._waited_until_ns = _now()
        self._wait_ns += self._waited_until_ns - began_ns
        self._starved_away_ns += self.starved_ns() - began_starved_ns

    # Collectives ------------------------------------------------------------------------------------------------------

    def entered(self, group: int | None, seq: int, op: int, payload_bytes: int) -> int:
        """A collective was called; return the record's token."""
        if self._works:
            self._poll(_now())
        if not self._yardstick_ns:
            # Between work and waiting: after a wait the core may be another one.
            self._yardstick_ns = _yardstick_ns()
        self._entered_in_phase_ns = _now()
        self._entered_starved_ns = self.starved_ns()
        return self._writer.enter(group, seq, op, payload_bytes)

    def handed_on(self, token: int, work: Any) -> None:
        """The call came back; its work object, if there is one, will tell when it is done (one in a batch has none)."""
        self._writer.returned(token)
        if work is None:
            return
        self._works.append((token, work))
        if len(self._works) > WORKS_POLLED_MAX:
            self._works.pop(0)

    def completed(self, token: int) -> None:
        """The call came back, and blocks until it is done."""
        self._writer.returned_completed(token)

    def forget_works(self) -> None:
        """Let go of every work object; those not seen complete stay not observed."""
        self._poll(_now())
        self._works = []

    def waited(self, began_ns: int, began_starved_ns: int) -> None:
        """The script was blocked on a work object from `began_ns` until now."""
        self._count_wait(began_ns, began_starved_ns)
        if self._works:
            self._poll(self._waited_until_ns)

    def _poll(self, now: int) -> None:
        open_works = []
        for token, work in self._works:
            if work.is_completed():
                self._writer.completed(token, CompletedSource.polled, now)
            else:
                open_works.append((token, work))
        self._works = open_works

    # Steps ------------------------------------------------------------------------------------------------------------

    def finish_step(
        self, step: int, tokens: int = 0, tokens_squared: int = 0, is_skipped: bool = False, ended_ns: int | None = None
    ) -> None:
        """Close the step: `step` steps are finished now over the whole run."""
        now = _now() if ended_ns is None else ended_ns
        self._spent_ns[self._phase] += now - self._since_ns
        self._since_ns = now
        cpu_ns, starved_ns = self._processor_ns()
        starved_at_work_ns = max(0, starved_ns - self._starved_ns - self._starved_away_ns)
        spent = self._spent_ns
        self._writer.finish_step(
            step,
            (now - self._began_ns) * 1e-9,
            data_seconds=spent[Phase.data] * 1e-9,
            forward_seconds=spent[Phase.forward] * 1e-9,
            backward_seconds=spent[Phase.backward] * 1e-9,
            optimizer_seconds=spent[Phase.optimizer] * 1e-9,
            checkpoint_seconds=spent[Phase.checkpoint] * 1e-9,
            evaluation_seconds=spent[Phase.evaluation] * 1e-9,
            wait_seconds=self._wait_ns * 1e-9,
            cpu_seconds=(cpu_ns - self._cpu_ns) * 1e-9,
            starved_seconds=starved_at_work_ns * 1e-9 if self._schedstat >= 0 else float("nan"),
            yardstick_ns=self._yardstick_ns or _yardstick_ns(),
            tokens=tokens,
            tokens_squared=tokens_squared,
            micro_steps=max(self.micro_step, 1),
            is_skipped=is_skipped,
        )
        if self._faults is not None:
            self._measure_work(now - self._began_ns, starved_at_work_ns)
        self.step, self.micro_step, self._has_finished = step, 0, True
        self._begin_step(now)
        self._beat()

    def _begin_step(self, now: int) -> None:
        self._cpu_ns, self._starved_ns = self._processor_ns()
        self._spent_ns = [0] * len(PHASES)
        self._began_ns = now
        self._wait_ns = 0
        self._yardstick_ns = 0
        self._starved_away_ns = 0
        self._away_starved_ns = self._starved_ns
        self._entered_in_phase_ns = self._waited_until_ns = self._entered_starved_ns = 0

    def starved_ns(self) -> int:
        """Time this thread was runnable without a core so far, by the kernel's run-queue accounting; 0 where it has
        none."""
        return self._processor_ns()[1]

    def _processor_ns(self) -> tuple[int, int]:
        """CPU time of this thread, and the time it was runnable without a core: one system call of about a
        microsecond."""
        if self._schedstat < 0:
            return time.thread_time_ns(), 0
        on_cpu, waiting, _slices = os.pread(self._schedstat, 64, 0).split()
        return int(on_cpu), int(waiting)

    # Drills -----------------------------------------------------------------------------------------------------------

    def fault_point(self, name: str) -> bool:
        """A place where `instep inject` may act; True asks the script to leave out what follows."""
        return self._faults is not None and self._faults.act(name, self.step, self._work_seconds)

    def _measure_work(self, wall_ns: int, starved_ns: int) -> None:
        """What a `slow` fault is in proportion to: the rank's own work, less what the fault itself slept."""
        assert self._faults is not None
        spent = self._spent_ns
        away_ns = self._wait_ns + spent[Phase.data] + spent[Phase.checkpoint] + spent[Phase.evaluation] + starved_ns
        self._work_seconds = max(0.0, (wall_ns - away_ns) * 1e-9 - self._faults.slept_seconds)
        self._faults.slept_seconds = 0.0

    def finished(self) -> None:
        """The script ended."""
        if self._works:
            self._poll(_now())
        self._has_finished = True
        self._switch(Phase.finished)


def _yardstick_ns() -> int:
    """How long the core takes now for what is the same for all ranks and steps."""
    first = _now()
    sum(YARDSTICK)
    second = _now()
    sum(YARDSTICK)
    third = _now()
    sum(YARDSTICK)
    # The least of three: the first may find cold caches, and an interrupt hits one of them.
    return min(second - first, third - second, _now() - third)


def _open_schedstat() -> int:
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1  # a kernel without scheduler statistics: starved time is then not observed
