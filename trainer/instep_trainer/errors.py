"""Errors of the trainer part.

TrainerError
├── UsageError         the command line, the environment or the files are not as they must be (exit 2)
├── CannotRun          something the run needs is missing here: torch, room in shared memory, a port (exit 3)
└── RunRefused         another run holds the job name, or the coordinator does not take this supervisor (exit 3)
"""

from __future__ import annotations


class TrainerError(Exception):
    """One clear sentence: what failed, where, and how to put it right."""

    exit_code = 1


class UsageError(TrainerError):
    """The command line, the environment or the files are not as they must be."""

    exit_code = 2


class CannotRun(TrainerError):
    """Something the run needs is missing on this node; a retry helps only after it has been put right."""

    exit_code = 3


class RunRefused(TrainerError):
    """Another run holds the job name or the endpoint."""

    exit_code = 3
