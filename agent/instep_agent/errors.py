"""Everything the agent's part can raise, in one tree.

AgentError
├── RankRecordError
│   ├── RecordTaken            another writer has claimed this rank's record
│   ├── RecordNoRoom           the shared-memory folder has no room for it (a retry helps once there is room)
│   ├── RecordInvalid          a file that is not a sound record; also one still being created (a retry may help)
│   │   └── RecordVersionUnknown   written by another major version
│   └── RecordStale            written before this machine's last boot: its times mean nothing now
├── Absent                     the node has no such hardware: neither a failure nor a finding
├── SourceFailed               a source could not look (a retry may help)
├── StacksUnavailable          the stacks of a process could not be taken
├── DrillImpossible            a fault could not be injected where it arises
├── ConfigurationInvalid       a file or option is wrong; the agent does not start
└── UplinkError
    ├── ServerUnreachable      no answer, or one that asks to come again (a retry helps)
    ├── TokenRefused           401: the token is wrong
    ├── FrameRefused           the server will never take this frame
    └── OrdersRefused          the server gives this agent no orders
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of every error of the agent; its text is one sentence for a person."""


class RankRecordError(AgentError):
    """Base of what goes wrong with a rank record."""


class RecordTaken(RankRecordError):
    """A record of this rank and attempt exists already."""


class RecordNoRoom(RankRecordError):
    """The record does not fit into its file system."""


class RecordInvalid(RankRecordError):
    """The file is not a sound rank record."""


class RecordVersionUnknown(RecordInvalid):
    """The record was written by a major version that this reader does not know."""


class RecordStale(RankRecordError):
    """The record was written before the last boot."""


class Absent(AgentError):
    """The node has no such hardware or interface."""


class SourceFailed(AgentError):
    """A source could not look at what it reads."""


class DrillImpossible(AgentError):
    """A fault cannot be put where it arises."""


class StacksUnavailable(AgentError):
    """The stacks of a process could not be taken."""


class ConfigurationInvalid(AgentError, ValueError):
    """A configuration file or option is wrong."""


class UplinkError(AgentError):
    """Base of what goes wrong between the agent and the server."""


class ServerUnreachable(UplinkError):
    """The server did not answer, or cannot take frames now."""


class TokenRefused(UplinkError):
    """The server does not know the agent's token."""


class FrameRefused(UplinkError):
    """The server refused one frame for good."""


class OrdersRefused(UplinkError):
    """The server gives this agent no orders."""
