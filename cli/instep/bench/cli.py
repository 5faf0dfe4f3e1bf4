"""`instep bench NAME`: finds the benchmark among those of this package and those that the parts bring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from instep.bench import hang, interference, resume, soak

OWN: dict[str, Callable[[Sequence[str]], int]] = {
    "hang": hang.main,
    "interference": interference.main,
    "resume": resume.main,
    "soak": soak.main,
}


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark. Exit status: 0 within its bar, 1 not, 2 used wrongly, 3 could not measure."""
    brought = {point.name: point for point in entry_points(group="instep.benchmarks")}
    names = sorted({*OWN, *brought})
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: instep bench NAME …\n\nbenchmarks: " + ", ".join(names))
        return 0 if arguments else 2
    name, *rest = arguments
    if name in OWN:
        return OWN[name](rest)
    if name in brought:
        return int(brought[name].load()(rest))
    print(f"instep bench: there is no benchmark {name!r}; there are {', '.join(names)}.", file=sys.stderr)
    return 2
