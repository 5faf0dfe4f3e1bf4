"""The fault-tolerant launcher, recorder and bundled trainer."""

from instep_trainer.session import Session, session

__all__ = ["Session", "session"]
