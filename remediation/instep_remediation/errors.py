"""What can go wrong in remediation.

```
RemediationError
├── PolicyError    the policy or configuration is wrong; names file, key and value. A retry does not help.
├── ClientError    the server could not be asked. A retry may help.
└── DeliveryError  a message did not reach its receiver. A retry helps; the outbox does it.
```
"""

from __future__ import annotations


class RemediationError(Exception):
    """Base of everything this part raises on purpose."""


class PolicyError(RemediationError):
    """A configuration or policy file cannot be used."""


class ClientError(RemediationError):
    """The server did not answer, or refused."""


class DeliveryError(RemediationError):
    """A message was not taken."""
