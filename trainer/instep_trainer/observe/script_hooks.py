"""Phases and steps of a script that marks nothing, from torch's own hooks.

A step is all optimizers that stepped since the last forward; it is closed when the next forward, backward, batch or the
end of the
script shows that it is over. What the script does between a step and the next forward is not known, and is recorded so.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from instep_agent.rank_record.layout import Phase
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from instep_trainer.observe.collectives import CollectiveObserver
from instep_trainer.observe.recorder import RankRecorder


class ScriptHooks:
    """Installs itself for the life of the process; a script that annotates itself silences it."""

    def __init__(self, recorder: RankRecorder, observer: CollectiveObserver) -> None:
        self._recorder, self._observer = recorder, observer
        self._stepped_ns = 0
        """When the last optimizer of the open step ended; 0 while none has stepped."""
        self._is_skipped = False
        self._has_backward = False
        self._forward_hook: Any = None

    def open(self) -> None:
        """Put every hook in place."""
        register_optimizer_step_pre_hook(self._before_optimizer)
        register_optimizer_step_post_hook(self._after_optimizer)
        torch.autograd.backward = self._in_phase(torch.autograd.backward, Phase.backward, self._before_backward)
        loader = torch.utils.data.dataloader._BaseDataLoaderIter
        loader.__next__ = self._in_phase(loader.__next__, Phase.data, self._next_begins)  # type: ignore[method-assign]
        torch.save = self._in_phase(torch.save, Phase.checkpoint, None)
        torch.load = self._in_phase(torch.load, Phase.checkpoint, None)
        _patch_scaler(self)
        self._watch_destroy()
        self._expect_forward()

    def close_step(self) -> None:
        """The open step is over, if an optimizer stepped (or a scaler skipped) in it."""
        if not self._stepped_ns:
            return
        ended_ns, self._stepped_ns = self._stepped_ns, 0
        is_skipped, self._is_skipped = self._is_skipped, False
        self._has_backward = False
        self._recorder.finish_step(self._recorder.step + 1, is_skipped=is_skipped, ended_ns=ended_ns)

    def skipped(self) -> None:
        """A GradScaler ended an iteration in which no optimizer stepped."""
        if not self._recorder.is_annotated and self._has_backward and not self._stepped_ns:
            self._stepped_ns, self._is_skipped = time.monotonic_ns(), True

    # Optimizers -------------------------------------------------------------------------------------------------------

    def _before_optimizer(self, _optimizer: Any, _arguments: Any, _options: Any) -> None:
        if not self._recorder.is_annotated:
            self._recorder.enter_phase("optimizer")

    def _after_optimizer(self, _optimizer: Any, _arguments: Any, _options: Any) -> None:
        if self._recorder.is_annotated:
            return
        self._stepped_ns = time.monotonic_ns()
        self._recorder.leave_phase("between")
        self._expect_forward()

    # Forward ----------------------------------------------------------------------------------------------------------

    def _expect_forward(self) -> None:
        """Listen for the next module call; a hook that stayed would cost in every module of every forward."""
        if self._forward_hook is None:
            self._forward_hook = torch.nn.modules.module.register_module_forward_pre_hook(self._before_forward)

    def _before_forward(self, _module: Any, _arguments: Any) -> None:
        recorder = self._recorder
        if recorder.is_annotated:
            self._no_longer_expect_forward()
            return
        self._next_begins()
        if torch.is_grad_enabled():
            self._no_longer_expect_forward()
            recorder.enter_phase("forward")
        elif recorder._phase != Phase.evaluation:
            recorder.enter_phase("evaluation")

    def _no_longer_expect_forward(self) -> None:
        if self._forward_hook is not None:
            self._forward_hook.remove()
            self._forward_hook = None

    # Backward, batches, files -----------------------------------------------------------------------------------------

    def _next_begins(self) -> None:
        self.close_step()

    def _before_backward(self) -> None:
        self.close_step()
        self._has_backward = True
        self._no_longer_expect_forward()

    def _in_phase(
        self, function: Callable[..., Any], phase: Phase, before: Callable[[], None] | None
    ) -> Callable[..., Any]:
        """Return the function, marked as this phase while it runs."""
        recorder = self._recorder
        after = {Phase.backward: "between", Phase.data: "forward"}.get(phase)

        @functools.wraps(function)
        def marked(*arguments: Any, **options: Any) -> Any:
            if recorder.is_annotated:
                return function(*arguments, **options)
            if before is not None:
                before()
            previous = recorder.enter_phase(phase.name)
            try:
                return function(*arguments, **options)
            finally:
                recorder.leave_phase(after or previous)

        return marked

    def _watch_destroy(self) -> None:
        """Groups that are destroyed may be followed by others of the same names."""
        destroy, observer = torch.distributed.destroy_process_group, self._observer

        @functools.wraps(destroy)
        def destroy_process_group(*arguments: Any, **options: Any) -> Any:
            observer.forget_groups()
            return destroy(*arguments, **options)

        torch.distributed.destroy_process_group = destroy_process_group
        torch.distributed.distributed_c10d.destroy_process_group = destroy_process_group


def _patch_scaler(hooks: ScriptHooks) -> None:
    scaler = torch.amp.GradScaler
    update = scaler.update

    @functools.wraps(update)
    def marked(self: Any, *arguments: Any, **options: Any) -> Any:
        hooks.skipped()
        return update(self, *arguments, **options)

    scaler.update = marked  # type: ignore[method-assign]
