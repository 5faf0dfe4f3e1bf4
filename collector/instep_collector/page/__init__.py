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

STOPS = ("crash", "hang", "mismatch")
"""Kinds of incident that keep a job from going on."""
EVIDENCE_SHOWN = 4
"""Facts beside an incident on the first page; its own page has all."""

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
    unknown_ranks: Sequence[int]
    """Ranks of which nothing was heard lately: neither healthy nor ill."""
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

    @property
    def alarms(self) -> int:
        """How many of the open ones are more than a suspicion."""
        return sum(incident["state"] == "open" for incident in self.open)

    @property
    def by_urgency(self) -> list[dict[str, Any]]:
        """The open ones: first what stops a job, then what slows it or threatens it, then suspicions; new before
        old."""
        return sorted(self.open, key=lambda one: (one["state"] != "open", one["kind"] not in STOPS))

    @property
    def refresh_seconds(self) -> int | None:
        """How soon a browser asks again. A page that is being read moves less, and what is over not at all."""
        if self.incident is None:
            return 4
        return 8 if self.incident["state"] in ("open", "suspect") else None

    def of_run(self, run: str) -> list[dict[str, Any]]:
        """Return what is open about a run."""
        return [incident for incident in self.by_urgency if incident["run"] == run]


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


def moment(text: str | None) -> str:
    """Return a moment of the API as people read it.

    >>> moment("2027-01-15T08:00:00.100Z"), moment(None)
    ('2027-01-15 08:00:00 UTC', '–')
    """
    return f"{text[:19].replace('T', ' ')} UTC" if text else "–"


def leading(incident: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the facts that matter most: those about who is blamed and about nodes, before those about who waits."""
    blamed = {suspect["rank"] for suspect in incident["suspects"]}
    facts = (incident["verdict"] or {}).get("evidence", [])
    return sorted(facts, key=lambda fact: fact["rank"] is not None and fact["rank"] not in blamed)[:EVIDENCE_SHOWN]


def render(page: Page) -> str:
    """Return the page's HTML."""
    name = "page.html" if page.incident is None else "incident.html"
    return _templates.get_template(name).render(page=page)


_templates.filters.update(duration=duration, moment=moment, leading=leading)
