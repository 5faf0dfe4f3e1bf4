"""How the page writes durations, moments and kinds."""

from __future__ import annotations

from typing import Any

NOTHING = "nothing that is known"
EVIDENCE_SHOWN = 4
"""Facts beside an incident on the first page; its own page has all."""


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


def age(seconds: float) -> str:
    """Return when something was seen, as told by a verdict: before it, or after it began.

    >>> age(2.0), age(0.0), age(-0.3)
    ('2.0 s before the verdict', '0 ms before the verdict', '300 ms after the verdict')
    """
    return f"{duration(abs(seconds))} {'before' if seconds >= 0 else 'after'} the verdict"


def plain(name: str) -> str:
    """Return a name of ours as words.

    >>> plain("gpu-fault"), plain("drain_node")
    ('GPU fault', 'drain node')
    """
    return name.replace("-", " ").replace("_", " ").replace("gpu", "GPU")


CLEARS = {
    "reset": "a reset of the GPU",
    "reboot": "a reboot of the node",
    "person": "somebody who says that it is repaired",
    "recovery-none": "the driver, when it asks for nothing any more",
}


def clears(words: list[str]) -> str:
    """Return what ends a fault, in words.

    >>> clears(["reboot", "xid-162"]), clears([])
    ('a reboot of the node, or Xid 162', 'nothing that is known')
    """
    found = [CLEARS.get(word, word.replace("sxid-", "SXid ").replace("xid-", "Xid ")) for word in words]
    return " or ".join(filter(None, [", ".join(found[:-1]) + ("," if found[1:] else ""), *found[-1:]])) or NOTHING


def leading(incident: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the facts that matter most: those about who is blamed and about nodes, before those about who waits."""
    blamed = {suspect["rank"] for suspect in incident["suspects"]}
    facts = (incident["verdict"] or {}).get("evidence", [])
    return sorted(facts, key=lambda fact: fact["rank"] is not None and fact["rank"] not in blamed)[:EVIDENCE_SHOWN]
