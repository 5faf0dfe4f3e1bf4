"""What rank 0 says of the training: progress lines on standard output, and the loss of every step in `losses.jsonl`."""

from __future__ import annotations

import time
from typing import Any

from instep_trainer.checkpoint.agree import Agreement
from instep_trainer.place import Place
from instep_trainer.train.config import TrainConfig
from instep_trainer.train.losses import LossLog, read_losses


class Report:
    """Silent on every rank but 0."""

    def __init__(self, config: TrainConfig, place: Place, fingerprint: str) -> None:
        self._config = config
        self._place = place
        self._fingerprint = fingerprint
        self._log = LossLog(config.losses_path) if place.rank == 0 else None
        self._said_at = time.monotonic()
        self._said_step = 0

    def resumed(self, agreement: Agreement, kept: dict[str, Any]) -> None:
        """Say where training begins; complete the loss line of the resumed step, which its writer may not have lived to
        write."""
        step = self._said_step = agreement.entry.step
        if self._log is None or agreement.source == "start":
            return
        received = f"; received by ranks {', '.join(map(str, agreement.receivers))}" if agreement.receivers else ""
        self._say(f"resumed at step {step} from {agreement.source}{received}")
        if kept.get("fingerprint") != self._fingerprint:
            self._say("settings, data or world size differ from those the state was kept with: losses will not repeat")
        loss = kept.get("loss")
        if isinstance(loss, str) and step not in read_losses(self._config.losses_path):
            self._log.append(step, float.fromhex(loss), agreement.entry.attempt)

    def step(self, step: int, loss: float | None) -> None:
        """Record the loss of a step; None, when a drill skipped the mean, records nothing."""
        if self._log is None or loss is None:
            return
        self._log.append(step, loss, self._place.attempt)
        if step % self._config.log_every == 0 or step == self._config.steps:
            now = time.monotonic()
            milliseconds = 1000 * (now - self._said_at) / max(1, step - self._said_step)
            self._said_at, self._said_step = now, step
            self._say(f"step {step}/{self._config.steps} loss {loss:.4f} {milliseconds:.1f} ms/step")

    def evaluation(self, step: int, loss: float) -> None:
        """Say the loss over held-out text."""
        if self._log is not None:
            self._say(f"step {step}/{self._config.steps} held-out loss {loss:.4f}")

    def close(self) -> None:
        """Let go of the file."""
        if self._log is not None:
            self._log.close()

    def _say(self, text: str) -> None:
        print(f"attempt {self._place.attempt}: {text}", flush=True)
