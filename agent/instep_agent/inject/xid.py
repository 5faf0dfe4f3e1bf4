"""Xid: the GPU driver reports a numbered error, in the kernel log and as an NVML event."""

from __future__ import annotations

from instep_agent.drills import Mark
from instep_agent.inject.injection import DRILL_WORD, Injection, ScenarioChange, Target, needs_pci

CODE_DEFAULT = 79
_WORDS = {79: "GPU has fallen off the bus.", 94: "Contained memory error.", 13: "Graphics SM Warp Exception."}


class Xid:
    """A line as the driver writes it; with the NVML stand-in also the event."""

    name = "xid"
    help = "an Xid in the kernel log: --pci, --code (default 79); with --scenario and --gpu also as NVML event"

    def injection(self, target: Target) -> Injection:
        """Give the line, and the event of the stand-in's GPU."""
        code, pci = target.code or CODE_DEFAULT, needs_pci(target)
        words = _WORDS.get(code, "injected")
        line = f"NVRM: Xid (PCI:{pci}): {code}, pid='<unknown>', name=<unknown>, {words} {DRILL_WORD}"
        event = (ScenarioChange("event", f"{target.gpu} {code}"),) if target.gpu >= 0 else ()
        marks = (Mark(kind="gpu_event", fields={"type": "xid", "pci": pci, "code": str(code)}),)
        return Injection(kernel_lines=(line,), scenario=event, marks=marks)
