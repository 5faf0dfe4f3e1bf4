"""SXid: the NVSwitch driver reports a numbered error in the kernel log."""

from __future__ import annotations

from instep_agent.inject.injection import DRILL_WORD, Injection, Target, needs_pci

CODE_DEFAULT = 20034


class Sxid:
    """A line as the NVSwitch driver writes it."""

    name = "sxid"
    help = "an SXid in the kernel log: --pci (of the switch), --code (default 20034)"

    def injection(self, target: Target) -> Injection:
        """Give the line."""
        code = target.code or CODE_DEFAULT
        words = "Link 30 LTSSM Fault Up" if code == CODE_DEFAULT else "injected"
        line = f"nvidia-nvswitch0: SXid (PCI:{needs_pci(target)}): {code}, Fatal, {words} {DRILL_WORD}"
        return Injection(kernel_lines=(line,))
