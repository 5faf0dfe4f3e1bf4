"""What each page shows, as the templates take it. Incidents, plans and nodes are dictionaries as the API has them, with
a few words more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from instep_collector.page.heat_map import HeatMap

STOPS = ("crash", "hang", "mismatch")
"""Kinds of incident that keep a job from going on."""
REFRESH_SECONDS = 4
READING_SECONDS = 8
"""A page that is being read moves less."""
WATCHING_SECONDS = 2
"""A plan that is being carried out is looked at while it is."""

Shown = dict[str, Any]


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
    remark: str = ""
    """What its ranks show and no incident tells of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What every page has."""

    template: ClassVar[str]
    now: str
    open: Sequence[Shown]
    """Open incidents and suspects, with `since_seconds`, `is_trouble` and `waits_for` (a sentence where the job is
    through with it and the node is not)."""
    holder: str = ""
    """Whose session it is; empty for a program's token."""
    form_token: str = ""
    """Stands in each form; empty where nothing may be decided."""
    problem: str = ""
    """Why a decision was refused."""

    @property
    def may_decide(self) -> bool:
        """Whether there are forms."""
        return bool(self.form_token)

    @property
    def alarms(self) -> int:
        """How many of the open ones are more than a suspicion, and more than a node that waits for repair."""
        return sum(incident["state"] == "open" and not incident["waits_for"] for incident in self.open)

    @property
    def repairs(self) -> int:
        """How many wait for a repair alone."""
        return sum(bool(incident["waits_for"]) for incident in self.open)

    @property
    def suspicions(self) -> int:
        """How many are suspicions."""
        return sum(incident["state"] == "suspect" for incident in self.open)

    @property
    def refresh_seconds(self) -> int | None:
        """How soon the page is brought up to date; None for one that stays as it is."""
        return READING_SECONDS

    @property
    def has_form(self) -> bool:
        """Whether something can be typed: a browser without scripts then leaves the page as it is."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview(Page):
    """The first page."""

    template: ClassVar[str] = "overview.html"
    jobs: Sequence[JobPanel]
    recent: Sequence[Shown]
    plans: Sequence[Shown]
    """Those that are not over, and those that failed lately."""
    nodes: Sequence[Shown]

    @property
    def refresh_seconds(self) -> int | None:
        """Watched from across the room."""
        return REFRESH_SECONDS

    @property
    def has_form(self) -> bool:
        """Where a plan can be decided on."""
        return has_offers(self, self.plans)

    @property
    def by_urgency(self) -> list[Shown]:
        """The open ones: first what stops a job, then what slows it or threatens it, then repairs, then suspicions; new
        before old."""
        return sorted(
            self.open,
            key=lambda one: (one["state"] != "open", bool(one["waits_for"]), one["kind"] not in STOPS),
        )

    def of_run(self, run: str) -> list[Shown]:
        """Return what is open about a run."""
        return [incident for incident in self.by_urgency if incident["run"] == run]


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentPage(Page):
    """One incident with its plans."""

    template: ClassVar[str] = "incident.html"
    incident: Shown
    plans: Sequence[Shown]

    @property
    def refresh_seconds(self) -> int | None:
        """What is over moves no more."""
        return READING_SECONDS if self.incident["state"] in ("open", "suspect") else None

    @property
    def has_form(self) -> bool:
        """Where a plan can be decided on."""
        return has_offers(self, self.plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePage(Page):
    """One node: what runs there, what is wrong with it, and what is planned."""

    template: ClassVar[str] = "node.html"
    node: Shown
    faults: Sequence[Shown]
    """What is open about it."""
    latched: Sequence[Shown]
    """Faults that stand, worst first, with what ends each."""
    said: Sequence[Shown]
    """Its last raw facts, newest first."""
    ranks: Sequence[Shown]
    plans: Sequence[Shown]
    audit: Sequence[Shown]

    @property
    def has_form(self) -> bool:
        """Where a plan can be decided on."""
        return has_offers(self, self.plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPage(Page):
    """One plan: what it is for, its steps, who decided, and what became of it."""

    template: ClassVar[str] = "plan.html"
    plan: Shown
    audit: Sequence[Shown]

    @property
    def refresh_seconds(self) -> int | None:
        """One that is being carried out moves; the answer to a form stays."""
        if self.problem:
            return None
        return WATCHING_SECONDS if self.plan["state"] in ("approved", "executing") else READING_SECONDS

    @property
    def has_form(self) -> bool:
        """Where it can be decided on."""
        return has_offers(self, [self.plan])


def has_offers(page: Page, plans: Sequence[Shown]) -> bool:
    """Whether the page's session may decide on one of the plans."""
    return page.may_decide and any(plan["offers"] for plan in plans)
