"""The status page: rendered on the server, no script, no asset from elsewhere, every value escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from instep_collector.page.heat_map import HeatMap

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_templates = Environment(
    loader=PackageLoader("instep_collector.page", "templates"),
    undefined=StrictUndefined,
    autoescape=select_autoescape(default=True, default_for_string=True),
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, slots=True)
class JobPanel:
    """One run on the page."""

    job: str
    run: str
    attempt: int
    state: str
    step: int
    world_size: int
    step_seconds: float | None
    restarts: str
    heard_age_seconds: float
    nodes: Sequence[str]
    standby: Sequence[str]
    heat_map: HeatMap | None


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the page shows."""

    now: str
    jobs: Sequence[JobPanel]
    open: Sequence[dict[str, Any]]
    """Open incidents and suspects, as the API shows them, with `since_seconds`."""
    recent: Sequence[dict[str, Any]]
    plans: Sequence[dict[str, Any]]
    nodes: Sequence[dict[str, Any]]
    incident: dict[str, Any] | None = None
    """Set on the page of one incident."""
    made: Sequence[dict[str, Any]] = field(default=())
    """The plans of that incident."""
    refresh_seconds: int = 3


def duration(seconds: float | None) -> str:
    """Return a duration as people say it.

    >>> duration(0.25), duration(75), duration(None)
    ('250 ms', '1 min 15 s', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def render(page: Page) -> str:
    """Return the page's HTML."""
    name = "page.html" if page.incident is None else "incident.html"
    return _templates.get_template(name).render(page=page)


_templates.filters["duration"] = duration
