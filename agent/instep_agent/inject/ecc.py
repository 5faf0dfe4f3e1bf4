"""ECC: device memory had errors, corrected or not."""

from __future__ import annotations

from instep_agent.drills import Change
from instep_agent.inject.injection import Injection, ScenarioChange, Target, needs_gpu

_PLACES = {"corrected": (3, 5, 11), "uncorrected": (4, 6, 12)}
"""NVML's fields: volatile and aggregate over the board, and volatile in device memory."""


class Ecc:
    """So many more errors in the volatile and the aggregate counts of one GPU."""

    def __init__(self, kind: str) -> None:
        """`kind` is `corrected` or `uncorrected`."""
        self._kind = kind
        self.name = f"ecc-{kind}"
        self.help = f"{kind} memory errors of a GPU: --gpu, --count (default 1)"

    def injection(self, target: Target) -> Injection:
        """Give the counts, counted up."""
        gpu, count = needs_gpu(target), target.count
        metrics = (
            f"instep_gpu_ecc_{self._kind}_volatile_total",
            f"instep_gpu_ecc_{self._kind}_aggregate_total",
            f"instep_gpu_ecc_device_memory_{self._kind}_volatile_total",
        )
        return Injection(
            scenario=tuple(ScenarioChange(f"{gpu}.field.{number}", add=count) for number in _PLACES[self._kind]),
            changes=tuple(Change(metric=metric, labels={"gpu": str(gpu)}, add=float(count)) for metric in metrics),
        )
