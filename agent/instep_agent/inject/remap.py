"""Row remapping: a row waits for a reset to be remapped, or could not be."""

from __future__ import annotations

from instep_agent.drills import Change
from instep_agent.inject.injection import Injection, ScenarioChange, Target, needs_gpu

_FIELDS = {
    "pending": (144, "instep_gpu_row_remap_is_pending"),
    "failed": (145, "instep_gpu_row_remap_has_failed"),
}


class Remap:
    """The flag of one GPU is set."""

    def __init__(self, kind: str) -> None:
        """`kind` is `pending` or `failed`."""
        self._number, self._metric = _FIELDS[kind]
        self.name = f"remap-{kind}"
        self.help = f"a GPU whose row remapping is {kind}: --gpu"

    def injection(self, target: Target) -> Injection:
        """Give the flag."""
        gpu = needs_gpu(target)
        return Injection(
            scenario=(ScenarioChange(f"{gpu}.field.{self._number}", "u:1"),),
            changes=(Change(metric=self._metric, labels={"gpu": str(gpu)}, set=1.0),),
        )
