"""What can go wrong in remediation.

```
RemediationError
├── PolicyError    the policy or configuration is wrong; names file, key and value. A retry does not help.
├── ClientError    the server could not be asked. A retry may help.
│   └── Refusal       it was asked, and refused. A retry does not help
├── DeliveryError  a message did not reach its receiver. A retry helps; the outbox does it.
│   └── DeliveryRefused   the receiver will never take it
└── DecisionError  a person's decision cannot be carried out; nothing was changed
    ├── NotKnown      what it is about does not exist
    ├── NotPossible   the state of the plan, incident or node does not allow it
    ├── Outdated      it was made on an older version. Look again, then decide again.
    └── KeyReused     its Idempotency-Key belongs to another decision
```
"""

from __future__ import annotations


class RemediationError(Exception):
    """Base of everything this part raises on purpose."""


class PolicyError(RemediationError):
    """A configuration or policy file cannot be used."""


class ClientError(RemediationError):
    """The server did not answer, or refused."""


class Refusal(ClientError):
    """The server refused, with this status."""

    def __init__(self, sentence: str, *, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class DeliveryError(RemediationError):
    """A message was not taken."""


class DeliveryRefused(DeliveryError):
    """The receiver does not understand the message."""


class DecisionError(RemediationError):
    """A decision was refused."""


class NotKnown(DecisionError):
    """There is no such plan, incident or node."""


class NotPossible(DecisionError):
    """It cannot be done now; the sentence says why."""


class Outdated(DecisionError):
    """It has changed since whoever decides looked at it."""


class KeyReused(DecisionError):
    """The same key came with another request."""
