"""Which metrics exist in code, and which ones an expression names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import promql_parser
from instep_agent.exposition.page import FRAMES_ONLY, PAGE_METRICS
from instep_agent.running.runner import RUNNER_METRICS
from instep_agent.sources import SOURCES
from instep_collector.metrics import metric_names
from promql_parser import VectorSelector

VARIABLES = {"$__rate_interval": "10s", "$__interval": "5s"}


def filled(expression: str, job: str) -> str:
    """The expression as Grafana sends it."""
    for name, value in (*VARIABLES.items(), ("$job", job)):
        expression = expression.replace(name, value)
    return expression


def named(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return {node.name for node in _walk(promql_parser.parse(expression)) if isinstance(node, VectorSelector)}


def _walk(node: Any) -> Iterator[Any]:
    yield node
    children = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
    for child in (*children, *(getattr(node, "args", None) or ())):
        if child is not None and not isinstance(child, str | float | int):
            yield from _walk(child)


def existing() -> set[str]:
    """Every metric that agents and servers expose without being told to expose more."""
    of_agents = (*RUNNER_METRICS, *PAGE_METRICS, *(metric for source in SOURCES for metric in source.metrics))
    shown = {metric.name for metric in of_agents if metric.is_on_page}
    return {*metric_names(), *shown - set(FRAMES_ONLY)}
