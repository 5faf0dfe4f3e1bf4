"""Codes that come again on one GPU: once points to a program, often enough to the hardware."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from instep_diagnosis.catalogues.rules import RepeatRule, repeat_rules
from instep_diagnosis.kernel_line import KernelLine, LineKind


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One coded line of a GPU, and when it was logged."""

    node: str
    gpu: str
    line: KernelLine
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Repetition:
    """A rule that holds for one GPU, or for one link or unit of it."""

    rule: RepeatRule
    code: int
    node: str
    gpu: str
    part: str
    """The link or unit; empty where the rule is about the whole GPU."""
    count: int
    last_seconds: float

    @property
    def fault_class(self) -> str:
        """Name of the suspicion, such as `xid-31-repeated`."""
        return f"xid-{self.code}-repeated"


@cache
def repeated_codes() -> frozenset[int]:
    """The codes that a rule is about: of others no line need be kept."""
    return frozenset(code for rule in repeat_rules() for code in rule.codes)


def repetitions(seen: Sequence[Occurrence]) -> list[Repetition]:
    """Every rule that holds at the time of the newest line of its group, whatever the order of the lines."""
    by_code: dict[int | None, list[Occurrence]] = defaultdict(list)
    for one in seen:
        if one.line.kind is LineKind.XID:
            by_code[one.line.code].append(one)
    return [
        found
        for rule in repeat_rules()
        for code in rule.codes
        if code in by_code
        for found in _of_rule(rule, code, by_code[code])
    ]


def _of_rule(rule: RepeatRule, code: int, seen: Sequence[Occurrence]) -> list[Repetition]:
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for one in seen:
        part = _part(rule, one.line)
        if part is not None:
            groups[(one.node, one.gpu, part)].append(one.at_seconds)
    found = []
    for (node, gpu, part), times in sorted(groups.items()):
        last = max(times)
        count = _bursts(rule, [at for at in times if at > last - rule.window_seconds])
        if count >= rule.count and not (rule.is_alone and _is_elsewhere(rule, seen, node, gpu, last=last)):
            found.append(Repetition(rule, code, node, gpu, part, count, last))
    return found


def _part(rule: RepeatRule, line: KernelLine) -> str | None:
    """What must be the same besides the GPU; None where the line does not say it."""
    if rule.same == "link":
        return None if line.link is None else f"link {line.link}"
    return line.unit if rule.same == "unit" else ""


def _bursts(rule: RepeatRule, times: Sequence[float]) -> int:
    count, counted = 0, float("-inf")
    for at in sorted(times):
        if at - counted >= rule.apart_seconds:
            count, counted = count + 1, at
    return count


def _is_elsewhere(rule: RepeatRule, seen: Sequence[Occurrence], node: str, gpu: str, *, last: float) -> bool:
    return any(one.node == node and one.gpu != gpu and abs(last - one.at_seconds) < rule.window_seconds for one in seen)
