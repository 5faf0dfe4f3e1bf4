"""Queries about answers that are given again to whoever asks again with the same `Idempotency-Key`."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from instep_collector.store.models import Answer

KEEP_SECONDS = 86_400.0
ANSWERS_MAX = 10_000
"""The oldest go first when there are more."""


def get(session: Session, token_sha256: str, key: str) -> Answer | None:
    """Return the answer that was given to a token's key."""
    return session.get(Answer, (token_sha256, key))


def keep(session: Session, answer: Answer) -> None:
    """Keep an answer, and no more than the limit."""
    session.add(answer)
    session.flush()
    if (session.scalar(select(func.count()).select_from(Answer)) or 0) > ANSWERS_MAX:
        oldest = session.scalar(select(func.min(Answer.at)))
        session.execute(delete(Answer).where(Answer.at <= oldest))


def prune(session: Session, *, before: float) -> None:
    """Forget answers given before a moment."""
    session.execute(delete(Answer).where(Answer.at < before))
