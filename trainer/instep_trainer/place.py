"""Where a rank runs: what `torchrun` and `instep run` tell it through the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from instep_trainer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """One rank's position in its run; without a launcher the only rank of a world of one."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    attempt: int = 0
    memory_folder: Path | None = None
    """Folder of the checkpoint slots in shared memory, outliving the rank."""
    resume_step: int | None = None
    """The step that the supervisors expect to resume at."""


def place_from(environment: Mapping[str, str]) -> Place:
    """Give the place that the environment describes; raise UsageError naming a variable that is no number.

    >>> place_from({"RANK": "3", "WORLD_SIZE": "4"}).rank
    3
    """
    world_size = _number(environment, "WORLD_SIZE", 1)
    return Place(
        rank=_number(environment, "RANK", 0),
        local_rank=_number(environment, "LOCAL_RANK", 0),
        world_size=world_size,
        local_world_size=_number(environment, "LOCAL_WORLD_SIZE", world_size),
        attempt=_number(environment, "INSTEP_ATTEMPT", _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)),
        memory_folder=memory_folder_from(environment),
        resume_step=_number(environment, "INSTEP_RESUME_STEP", 0) if environment.get("INSTEP_RESUME_STEP") else None,
    )


def memory_folder_from(environment: Mapping[str, str]) -> Path | None:
    """Give `<INSTEP_RECORD_ROOT>/<node>/<run>/checkpoint`, or None outside the launcher."""
    parts = [environment.get(name) for name in ("INSTEP_RECORD_ROOT", "INSTEP_NODE_NAME", "INSTEP_RUN")]
    if not all(parts):
        return None
    return Path(*(part for part in parts if part), "checkpoint")


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or len(text) > 18:
        raise UsageError(f"The environment variable {name} is {text!r}: it must be a whole number.")
    return int(text)
