"""The figures of a diagnosis benchmark, from the records of its cases. Pure.

`cases.jsonl` holds one record a line (`simulation.scoring.Case`), so that runs add up.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from instep_diagnosis.simulation.baselines import BASELINES
from instep_diagnosis.simulation.scoring import Case, is_false, is_hit
from instep_diagnosis.simulation.statistics import (
    Counts,
    calibration_error,
    count_bound,
    interval,
    rate_words,
    reliability,
)

HANG_METHODS = ("instep", "instep flight-recorder", "torchfrtrace")
STEP_METHODS = ("instep", *BASELINES)
METHODS = {
    "hang": ("instep flight-recorder", "hang"),
    "hang-live": ("instep", "hang-real"),
    "straggler": ("instep", "straggler"),
}
"""Table of confidence → the method whose verdicts it is for, and the kinds of cases."""
QUIET_SIGMA_MAX = 0.012
"""Noise of one step up to which the bar for small ratios is meant: what was recorded on two shared cores."""

Lines = Iterator[str]


def report_lines(cases: Sequence[Case], *, seed: int) -> Lines:
    """Everything worth printing."""
    for kind in ("hang-real", "hang-real-pair", "hang-simulated", "hang-degraded"):
        yield from _hang_lines(kind, [case for case in cases if case["kind"] == kind])
    for kind in ("straggler-paced", "straggler-cpu", "straggler-simulated"):
        yield from _straggler_lines(kind, [case for case in cases if case["kind"] == kind], seed)
    for kind in ("straggler-paced", "straggler-cpu", "healthy-simulated"):
        yield from _alarm_lines(kind, [case for case in cases if case["kind"] == kind and "healthy_seconds" in case])
    yield from _calibration_lines(cases)


def _hang_lines(kind: str, cases: Sequence[Case]) -> Lines:
    if not cases:
        return
    judged = [case for case in cases if case.get("answers")]
    others = Counter(str(case["outcome"]) for case in cases if not case.get("answers"))
    yield f"{kind}: {len(judged)} judged" + "".join(f", {count} {word}" for word, count in sorted(others.items()))
    faults = Counter(str(case["fault"]) for case in judged)
    yield "  " + ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items()))
    for method in HANG_METHODS:
        answers = [(case, case["answers"][method]) for case in judged if method in case["answers"]]
        if answers:
            yield from _method_lines(method, answers)
    alarms = [case["alarm_seconds"] for case in judged if "alarm_seconds" in case]
    if alarms:
        yield (
            f"  onset → alarm: median {statistics.median(alarms):.2f} s, "
            f"p99 {sorted(alarms)[max(0, -(-99 * len(alarms) // 100) - 1)]:.2f} s"
        )


def _method_lines(method: str, answers: Sequence[tuple[Case, Case]]) -> Lines:
    exact = sum(hang_grade(case, answer) == "exact" for case, answer in answers)
    tied = sum(hang_grade(case, answer) == "tied" for case, answer in answers)
    silent = sum(hang_grade(case, answer) == "nobody" for case, answer in answers)
    innocents = [innocents_of(case, answer) for case, answer in answers]
    classes = [found for case, answer in answers if (found := _class_right(method, case, answer)) is not None]
    yield f"  {method}: exact set {rate_words(exact, len(answers))}"
    yield (
        f"    tied, the culprit among them: {tied}; nobody named: {silent}; innocents named without a tie: "
        f"{sum(innocents)} in {sum(count > 0 for count in innocents)} cases"
        + (f"; host or device right {rate_words(sum(classes), len(classes))}" if classes else "")
    )


def hang_grade(case: Case, answer: Case) -> str:
    """`exact`, `tied` (the culprit is among those named as tied), `nobody`, or `wrong`.

    >>> hang_grade({"truth": [1]}, {"named": [0, 1], "is_tied": True}), hang_grade({"truth": [1]}, {"named": [0]})
    ('tied', 'wrong')
    """
    named, truth = set(answer["named"]), set(case["truth"])
    if named == truth and not answer.get("is_tied"):
        return "exact"
    if not named:
        return "nobody"
    return "tied" if answer.get("is_tied") and truth <= named else "wrong"


def innocents_of(case: Case, answer: Case) -> int:
    """Ranks that are named, not as one of a tie, and have done nothing."""
    return 0 if answer.get("is_tied") else len(set(answer["named"]) - set(case["truth"]))


def _class_right(method: str, case: Case, answer: Case) -> bool | None:
    found = answer.get("class_right", None if method == "torchfrtrace" else case.get("class_right"))
    return None if found is None else bool(found)


def _straggler_lines(kind: str, cases: Sequence[Case], seed: int) -> Lines:
    judged = [case for case in cases if "answers" in case]
    if not judged:
        return
    yield f"{kind}: {len(judged)} jobs or episodes, {sum(bool(case['truth']) for case in judged)} with a slow rank"
    for words, chosen in _strata(kind, judged):
        if chosen:
            yield f"  {words}:"
            for method in STEP_METHODS:
                yield _step_method_line(method, chosen, seed)
            yield from _ceiling_lines(chosen)
    for case in judged:
        answer = case["answers"]["instep"]
        if is_false(case, answer):
            place = f"{case.get('layout', '')} of {case.get('world_size', '?')}, seed {case['seed']}"
            causes = ", ".join(answer.get("causes", []))
            yield f"  wrongly named by instep: {answer['named']} ({causes}) in {place}, truth {case['truth']}"
    owners = [case["owner_right"] for case in judged if case.get("owner_right") is not None]
    if owners:
        yield f"  right owner: {rate_words(sum(owners), len(owners))}"


def _ceiling_lines(cases: Sequence[Case]) -> Lines:
    """What chance leaves to find, where that is known."""
    known = [bool(case["findable"]) for case in cases if case.get("findable") is not None]
    if known:
        yield f"    knowing the noise of the whole job one could find {sum(known)} of {len(known)}"


def _alarm_lines(kind: str, cases: Sequence[Case]) -> Lines:
    """Alarms while nobody was slow, and how often they may come at most."""
    if not cases:
        return
    alarms = sum(int(case["alarms"]) if "alarms" in case else _false_at_rest(case) for case in cases)
    hours, steps = sum(case["healthy_seconds"] for case in cases) / 3600, sum(case["healthy_steps"] for case in cases)
    bound = count_bound(alarms)
    yield (
        f"{kind}: {alarms} alarms in {hours:.1f} job-hours while nobody was slow ({steps} steps): at most "
        f"{bound / max(hours, 1e-9):.3f} an hour, one in {steps / bound:,.0f} steps (95 % bound)"
    )
    works = Counter(str(case["work"]) for case in cases if not case["truth"] and "work" in case)
    named = Counter(str(case["work"]) for case in cases if not case["truth"] and "work" in case and _names(case))
    if works:
        yield "  alarms in healthy ones: " + ", ".join(f"{w} {named[w]} of {works[w]}" for w in sorted(works))


def _names(case: Case) -> bool:
    return bool(case["answers"]["instep"]["named"])


def _false_at_rest(case: Case) -> int:
    """1 where somebody was named while nobody was slow."""
    answer = case["answers"]["instep"]
    return int(_names(case) and (not case["truth"] or answer["delay_steps"] <= 0))


@dataclass(frozen=True, slots=True)
class Band:
    """Slow ranks of like size, and what is asked of them."""

    words: str
    ratio_min: float
    ratio_max: float
    f1_min: float | None = None
    """None: the figure is told, and nothing asked."""
    fault: str = ""
    """Only of this one; empty: of all that are not left out elsewhere."""
    is_even_only: bool = False
    """Only jobs whose steps are all alike."""


_TIMED = (
    Band("at 2 %, even work", 1.0, 1.025, is_even_only=True),
    Band("at 3 %", 1.025, 1.045, 0.97),
    Band("from 5 % on", 1.045, 10.0, 0.99),
    Band("of these, slow in three steps of ten", 1.045, 10.0, fault="now-and-then"),
)
BANDS: dict[str, tuple[Band, ...]] = {
    "straggler-paced": _TIMED,
    "straggler-simulated": _TIMED,
    "straggler-cpu": (Band("below 20 %", 1.0, 1.195), Band("from 20 % on", 1.195, 10.0, 0.95)),
}


def band_cases(band: Band, cases: Sequence[Case]) -> list[Case]:
    """Its slow cases, and all healthy ones of quiet jobs; empty without a slow one."""
    quiet = [case for case in cases if case.get("sigma", 0.0) <= QUIET_SIGMA_MAX]
    slow = [
        case
        for case in quiet
        if case["truth"]
        and band.ratio_min <= case["ratio"] < band.ratio_max
        and band.fault in ("", case["fault"])
        and (not band.is_even_only or case.get("work") == "even")
    ]
    return [*slow, *(case for case in quiet if not case["truth"])] if slow else []


def _strata(kind: str, cases: Sequence[Case]) -> Iterator[tuple[str, list[Case]]]:
    for band in BANDS[kind]:
        bar = "" if band.f1_min is None else f" (bar: F1 {band.f1_min})"
        yield f"{band.words}{bar}", band_cases(band, cases)
    yield "in louder jobs", [case for case in cases if case.get("sigma", 0.0) > QUIET_SIGMA_MAX]


def _step_method_line(method: str, cases: Sequence[Case], seed: int) -> str:
    rows = [step_counts(case, case["answers"][method]) for case in cases]
    hits, misses, false = (sum(row[place] for row in rows) for place in range(3))
    counts = Counts(hits, misses, false)
    low, high = interval(rows, lambda found: found.f1, seed=seed)
    delays = sorted(case["answers"][method]["delay_steps"] for case in cases if is_hit(case, case["answers"][method]))
    delay = f"; delay median {statistics.median(delays):.0f}, most {delays[-1]} steps" if delays else ""
    quiet = [case for case in cases if not case["truth"]]
    alarms = sum(bool(case["answers"][method]["named"]) for case in quiet)
    return (
        f"    {method}: F1 {counts.f1:.3f} [{low:.3f}, {high:.3f}], precision {counts.precision:.3f}, "
        f"recall {counts.recall:.3f}{delay}; alarms in healthy ones: {alarms} of {len(quiet)}"
    )


def step_counts(case: Case, answer: Case) -> tuple[int, int, int]:
    """Hits, misses and false alarms of one case."""
    hit = is_hit(case, answer)
    return int(hit), int(bool(case["truth"]) and not hit), int(is_false(case, answer))


def verdicts(cases: Sequence[Case], name: str) -> list[tuple[float, float, bool]]:
    """Strength, stated confidence and truth of every rank that was named: by the table's name."""
    method, kind = METHODS[name]
    found = []
    for case in cases:
        answer = case.get("answers", {}).get(method)
        if answer is None or not str(case["kind"]).startswith(kind):
            continue
        sure = answer.get("sure", [])
        for rank, stated, strength in zip(answer["named"], sure, answer.get("strength", sure), strict=True):
            found.append((float(strength), float(stated), rank in case["truth"]))
    return found


def strengths(cases: Sequence[Case], name: str) -> list[tuple[float, bool]]:
    """Strength of each verdict's evidence, and whether it was right: a tie is, where it holds the culprit."""
    method, kind = METHODS[name]
    found = []
    for case in cases:
        answer = case.get("answers", {}).get(method)
        if answer and answer["named"] and "strength" in answer and str(case["kind"]).startswith(kind):
            named, truth = set(answer["named"]), set(case["truth"])
            is_right = named == truth or (bool(answer.get("is_tied")) and bool(truth) and truth <= named)
            found.append((float(answer["strength"][0]), is_right))
    return found


def within_bars(cases: Sequence[Case]) -> bool:
    """Whether real hangs, simulated hangs and slow ranks of each band reach what is asked of them."""
    return all(
        right >= share * count
        for share, (right, count) in (
            (0.99, _exact(cases, "hang-real", "instep")),
            (0.99, _exact(cases, "hang-simulated", "instep flight-recorder")),
        )
    ) and all(_is_within(kind, band, cases) for kind, bands in BANDS.items() for band in bands)


def _is_within(kind: str, band: Band, cases: Sequence[Case]) -> bool:
    """Whether a band reaches its F1, and computing jobs name nobody wrongly."""
    judged = [case for case in cases if case["kind"] == kind and "answers" in case]
    if kind == "straggler-cpu" and any(is_false(case, case["answers"]["instep"]) for case in judged):
        return False
    chosen = band_cases(band, judged)
    # Healthy jobs without a slow one beside them must be silent.
    chosen = chosen or [case for case in judged if not case["truth"]]
    rows = [step_counts(case, case["answers"]["instep"]) for case in chosen]
    return band.f1_min is None or Counts(*(sum(row[place] for row in rows) for place in range(3))).f1 >= band.f1_min


def _exact(cases: Sequence[Case], kind: str, method: str) -> tuple[int, int]:
    chosen = [case for case in cases if case["kind"] == kind and method in case.get("answers", {})]
    grades = [hang_grade(case, case["answers"][method]) for case in chosen]
    return sum(grade == "exact" for grade in grades), len(grades)


def _calibration_lines(cases: Sequence[Case]) -> Lines:
    for name in METHODS:
        found = verdicts(cases, name)
        if not found:
            continue
        sure, right = [stated for _, stated, _ in found], [is_right for *_, is_right in found]
        yield f"calibration, {name}: expected error {calibration_error(sure, right):.3f} over {len(found)} named ranks"
        for row in reliability(sure, right):
            yield f"    stated {row.stated:.2f}, right {row.right:.2f} ({row.count})"
