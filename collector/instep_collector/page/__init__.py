"""The status page: rendered on the server, nothing from elsewhere, every value escaped. One script of our own brings it
up to date in place; everything works without it."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from instep_collector.page.contents import IncidentPage, JobPanel, NodePage, Overview, Page, PlanPage
from instep_collector.page.words import age, clears, duration, leading, moment, plain

_templates = Environment(
    loader=PackageLoader("instep_collector.page", "templates"),
    undefined=StrictUndefined,
    autoescape=select_autoescape(default=True, default_for_string=True),
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(age=age, clears=clears, duration=duration, moment=moment, leading=leading, plain=plain)


def security_headers(page: Page | None = None) -> dict[str, str]:
    """Return the headers of a page, or of the script; forms go to this server only, and only where there are any."""
    forms = "'self'" if page is not None and page.has_form else "'none'"
    return {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; "
        f"connect-src 'self'; img-src 'none'; base-uri 'none'; form-action {forms}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def render(page: Page) -> str:
    """Return the page's HTML."""
    return _templates.get_template(page.template).render(page=page)


def script() -> str:
    """Return the script that brings a page up to date."""
    return _templates.get_template("page.js").render()


__all__ = [
    "IncidentPage",
    "JobPanel",
    "NodePage",
    "Overview",
    "Page",
    "PlanPage",
    "render",
    "script",
    "security_headers",
]
