"""`instep bench localisation`: how often the verdict on made-up hangs is the truth, by fault."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence

from instep_diagnosis.exit_status import FINE, FOUND
from instep_diagnosis.simulation.hangs import CALL_FAULTS, Fault, HangCase, hang_case
from instep_diagnosis.wait_graph.assembly import assemble
from instep_diagnosis.wait_graph.finding import Finding
from instep_diagnosis.wait_graph.judge import localise

RIGHT_RATIO_MIN = 0.995

EXACT, TIED, WRONG = "exact", "tied", "wrong"


def grade(case: HangCase, finding: Finding) -> str:
    """How a finding stands to the truth: `exact`; `tied`, where the guilty call met one other rank only, so that no
    majority could tell, and both are named as tied; else `wrong`.

    A tie counts as missed. Two ranks that differ are symmetric evidence only where neither ring goes back a step: then
    the same job with the roles exchanged, the other call being the script's, leaves the same dumps. As soon as one
    whole step is on record, each rank's past foretells its call, the mirrored job would have another past, and the
    evidence decides. Fewer than one simulated job in a thousand has a ring that short.
    """
    if finding.culprits == case.culprits and finding.is_hang == (case.fault is not Fault.HEALTHY):
        return EXACT
    pair = finding.culprits
    is_pair = finding.is_tied and len(pair) == 2 and set(case.culprits) < set(pair)
    return TIED if case.fault in CALL_FAULTS and is_pair else WRONG


def measure(seeds: Sequence[int], *, world_size_max: int) -> tuple[dict[str, Counter[str]], list[int]]:
    """Fault → how many findings of each grade, and the seeds of those that are not exact."""
    tally: dict[str, Counter[str]] = {fault.value: Counter() for fault in Fault}
    missed = []
    for seed in seeds:
        case = hang_case(seed, world_size_max=world_size_max)
        found = grade(case, localise(assemble(case.dumps)))
        tally[case.fault.value][found] += 1
        missed += [seed] if found != EXACT else []
    return tally, missed


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 within its bar, 1 not."""
    parser = argparse.ArgumentParser(prog="instep bench localisation", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000, help="how many jobs (default 1000)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first (default 0)")
    parser.add_argument("--ranks", type=int, default=64, help="ranks of a job at most (default 64)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + max(1, options.cases))
    tally, missed = measure(seeds, world_size_max=max(2, options.ranks))
    if options.json:
        print(json.dumps({"cases": len(seeds), "by_fault": tally, "missed_seeds": missed}))
    else:
        print(_table(tally, missed, len(seeds)))
    return FINE if len(missed) <= (1.0 - RIGHT_RATIO_MIN) * len(seeds) else FOUND


def _table(tally: dict[str, Counter[str]], missed: list[int], count: int) -> str:
    lines = [f"{'fault':18} {'cases':>6} {EXACT:>6} {TIED:>6} {WRONG:>6}"]
    for fault, found in tally.items():
        lines.append(f"{fault:18} {found.total():6} {found[EXACT]:6} {found[TIED]:6} {found[WRONG]:6}")
    seeds = f" (not: seeds {', '.join(map(str, missed[:20]))})" if missed else ""
    lines.append(f"exact rank set: {1 - len(missed) / count:.2%} of {count}{seeds}")
    return "\n".join(lines)
