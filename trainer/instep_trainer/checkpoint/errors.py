"""Errors of checkpoints.

TrainerError
└── CheckpointError
    ├── DamagedSnapshot    what is stored is not a whole snapshot; an older one may be (a retry of this one cannot help)
    └── OtherState         a whole snapshot, but of another model or optimizer than the one to load it into
"""

from __future__ import annotations

from instep_trainer.errors import TrainerError


class CheckpointError(TrainerError):
    """A kept state cannot be used."""


class DamagedSnapshot(CheckpointError):
    """What is stored is not a whole snapshot."""


class OtherState(CheckpointError):
    """The snapshot is whole and belongs to another model or optimizer."""

    exit_code = 2
