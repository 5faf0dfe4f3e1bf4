"""Driver hang: the GPU driver does not answer any more."""

from __future__ import annotations

from instep_agent.drills import Mark
from instep_agent.inject.injection import Injection, ScenarioChange, Target

CHILD = "nvml"
CALL = "nvmlDeviceGetPowerUsage"


class DriverHang:
    """With the NVML stand-in a call that does not come back; on a real node the child that asks it is stopped.

    Either way the agent finds out by itself: by the deadline, not by being told.
    """

    name = "driver-hang"
    help = "the GPU driver does not answer: with --scenario one of its calls blocks, else the child is stopped"

    def injection(self, target: Target) -> Injection:
        """Give the blocked call, and what the agent will say of it."""
        gpu = str(target.gpu) if target.gpu >= 0 else "*"
        kinds = ("source_stuck", "child_lost", "child_unkillable", "child_not_started")
        return Injection(
            scenario=(ScenarioChange(f"{gpu}.hang", CALL),),
            marks=tuple(Mark(kind=kind, fields={"child": CHILD}) for kind in kinds),
            stopped_child=CHILD,
        )
