"""Thermal: a GPU is too hot, and its driver holds the clocks."""

from __future__ import annotations

from instep_agent.drills import Change
from instep_agent.inject.injection import Injection, ScenarioChange, Target, needs_gpu

CELSIUS = 95
CLOCK_HERTZ = 345e6
_HARDWARE_SLOWDOWN, _HARDWARE_THERMAL = 0x8, 0x40


class Thermal:
    """Hot, no margin left, clocks low, and both thermal reasons of the hardware given for it."""

    name = "thermal"
    help = "a GPU is hot and slowed down by it: --gpu"

    def injection(self, target: Target) -> Injection:
        """Give temperature, margin, clock and reasons."""
        gpu = needs_gpu(target)
        labels = {"gpu": str(gpu)}
        mask = _HARDWARE_SLOWDOWN | _HARDWARE_THERMAL
        reasons = ("hardware_slowdown", "hardware_thermal")
        return Injection(
            scenario=(
                ScenarioChange(f"{gpu}.temperature", str(CELSIUS)),
                ScenarioChange(f"{gpu}.temperature_margin", "0"),
                ScenarioChange(f"{gpu}.clock.1", str(int(CLOCK_HERTZ / 1e6))),
                ScenarioChange(f"{gpu}.clock_reasons", str(mask)),
            ),
            changes=(
                Change(metric="instep_gpu_temperature_celsius", labels=labels, set=float(CELSIUS)),
                Change(metric="instep_gpu_temperature_margin_celsius", labels=labels, set=0.0),
                Change(metric="instep_gpu_sm_clock_hertz", labels=labels, set=CLOCK_HERTZ),
                Change(metric="instep_gpu_clock_reasons_mask", labels=labels, set=float(mask)),
                *(
                    Change(metric="instep_gpu_clock_reason", labels=labels | {"reason": reason}, set=1.0)
                    for reason in reasons
                ),
            ),
        )
