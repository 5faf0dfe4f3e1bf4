"""Writes the reference page of sources and metrics from the code: `python -m instep_agent.reference FILE`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from instep_agent.exposition.dcgm_names import RENAMED
from instep_agent.exposition.page import FRAMES_ONLY, PAGE_METRICS
from instep_agent.metric import Metric
from instep_agent.node import Source, rights_of
from instep_agent.running.runner import RUNNER_METRICS
from instep_agent.sources import all_sources
from instep_agent.uplink.sender import UPLINK_METRICS

_OPENING = """\
# The agent's sources and metrics

Every source of the agent: how often it is asked, how long it may take, what it needs, and what it measures. This page
is written by `make docs`; a test compares it with the code. Frames to the server carry every metric. /metrics shows
those without “frames only”, all of them with `exposition = "full"`, and the second names of one generation
(`dcgm_names`: “also” tells the old ones, and “new” what dcgm-exporter calls them from 4.9 on, in our unit;
[the agent's guide](../guide/agent.md)).
"""


def main(arguments: Sequence[str]) -> int:
    """Write the page to the path given, or to standard output."""
    if arguments:
        Path(arguments[0]).write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
    return 0


def page() -> str:
    """Give the page."""
    own = [
        "## The agent itself\n",
        *_table(RUNNER_METRICS),
        "\nWhen it sends to a server:\n",
        *_table(UPLINK_METRICS),
        "\nOn /metrics alone (frames carry rank reports):\n",
        *_table(PAGE_METRICS),
    ]
    return "\n".join([_OPENING, *own, *(line for source in all_sources() for line in _section(source))]) + "\n"


def _section(source: Source) -> Iterator[str]:
    yield f"\n## `{source.name}`\n"
    yield f"{inspect.cleandoc(type(source).__doc__ or '')}\n"
    where = f"child process `{source.child}`" if source.child else "the agent's own thread"
    yield f"- asked every {source.interval_seconds:g} s, deadline {source.deadline_seconds:g} s, in {where}"
    yield f"- rights: {rights_of(source) or 'none'}"
    if hasattr(source, "watch"):
        yield "- also watches between its turns: what happens is reported at once"
    if source.metrics:
        yield ""
        yield from _table(source.metrics)


def _table(metrics: Sequence[Metric]) -> Iterator[str]:
    yield "| metric | type | meaning |"
    yield "| --- | --- | --- |"
    for metric in metrics:
        notes = [] if metric.is_on_page and metric.name not in FRAMES_ONLY else ["frames only"]
        if metric.page_labels:
            notes.append(f"/metrics: only {', '.join(metric.page_labels)}")
        if metric.alias:
            scale = "" if metric.alias_scale == 1.0 else f" (times {metric.alias_scale:g})"
            new = f", new `{RENAMED[metric.alias]}`" if metric.alias in RENAMED else ""
            notes.append(f"also `{metric.alias}`{scale}{new}")
        text = metric.help.replace("|", "\\|") + (f" *{'; '.join(notes)}*" if notes else "")
        yield f"| `{metric.name}` | {metric.kind.value} | {text} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
