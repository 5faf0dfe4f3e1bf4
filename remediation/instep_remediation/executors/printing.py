"""The executor that changes nothing: it says what would be done. The default, so that nodes are watch-only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from instep_remediation.actions import Action, CordonNode, DrainNode, UncordonNode
from instep_remediation.node_executor import Outcome, Progress, Step

if TYPE_CHECKING:
    from instep_remediation.executors import ExecutorSettings

STEPS: dict[type[Action], tuple[str, ...]] = {
    CordonNode: ("cordon",),
    DrainNode: ("cordon", "evict"),
    UncordonNode: ("uncordon",),
}


class PrintingExecutor:
    """Prints steps; plans stay proposals with it."""

    name = "print"
    is_changing = False

    def __init__(self, write: Callable[[str], object] = sys.stderr.write) -> None:
        self._write = write

    def steps(self, action: Action, mark: str) -> Sequence[Step]:
        """Return what an executor that changes nodes would do, in the words that all of them share."""
        node = str(action.arguments()["node"])
        return [Step(name, node, f"{mark}-{name}") for name in STEPS[type(action)]]

    def carry_out(self, step: Step) -> Progress:
        """Print one line."""
        self._write(f"not done, only printed: {step.describe()}\n")
        return Progress(Outcome.DONE, "Nothing was changed: this executor only prints.")


def make(_config: ExecutorSettings) -> PrintingExecutor:
    """Return it; there is nothing to configure."""
    return PrintingExecutor()
