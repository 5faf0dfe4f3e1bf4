"""What can go wrong in the collector.

```
CollectorError
├── Refused          the request is at fault; carries the HTTP status. A retry helps after a 409 only.
├── JournalError     the journal cannot be written (disk full, no access). A retry helps once there is room.
├── StoreAway        the database does not answer. A retry helps; what was acknowledged is in the journal meanwhile.
└── StartError       the server cannot start as configured. A retry does not help.
```
"""

from __future__ import annotations


class CollectorError(Exception):
    """Base of everything this part raises on purpose."""


class Refused(CollectorError):
    """A request is not taken; nothing was changed by it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class JournalError(CollectorError):
    """The journal could not keep a record, so nothing may be acknowledged."""


class StoreAway(CollectorError):
    """The database cannot be reached, or cannot write."""


class StartError(CollectorError):
    """One sentence on why the server does not start."""
