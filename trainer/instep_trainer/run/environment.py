"""The environment a rank starts with: torchrun's variables, and ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from instep_trainer.run.messages import Open
from instep_trainer.run.options import RunOptions

HOOK_FOLDER = Path(__file__).resolve().parent.parent / "observe" / "sitecustomize"


def base_environment(options: RunOptions) -> dict[str, str]:
    """Return what the zygote gets: torchrun's default of one OpenMP thread where several ranks share a node."""
    environment = dict(os.environ)
    environment.pop("INSTEP_TOKEN", None)
    if options.slots > 1:
        environment.setdefault("OMP_NUM_THREADS", "1")
    # torch's evidence server logs its every start and end as a warning; errors still show.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return environment


def rank_environment(options: RunOptions, opening: Open, local_rank: int, supervisor_pid: int) -> dict[str, str]:
    """Return the variables of one rank of one attempt."""
    rank = opening.ranks[local_rank]
    torchrun = {
        "RANK": rank,
        "LOCAL_RANK": local_rank,
        "WORLD_SIZE": opening.world_size,
        "LOCAL_WORLD_SIZE": len(opening.ranks),
        "GROUP_RANK": opening.group_rank,
        "GROUP_WORLD_SIZE": opening.group_world_size,
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": opening.world_size,
        "ROLE_NAME": "default",
        "MASTER_ADDR": opening.master_address,
        "MASTER_PORT": opening.master_port,
        "TORCHELASTIC_RESTART_COUNT": opening.restarts_used,
        "TORCHELASTIC_MAX_RESTARTS": options.max_restarts,
        "TORCHELASTIC_RUN_ID": options.run,
        # Rank 0 hosts the store itself, on a port of this attempt's own, so no key of an attempt before can be met.
        "TORCHELASTIC_USE_AGENT_STORE": False,
    }
    ours = {
        "INSTEP_JOB": options.job,
        "INSTEP_RUN": options.run,
        "INSTEP_ATTEMPT": opening.attempt,
        "INSTEP_NODE_NAME": options.node,
        "INSTEP_RECORD_ROOT": options.record_root,
        "INSTEP_SUPERVISOR_PID": supervisor_pid,
        "INSTEP_OBSERVE": int(options.is_observed),
        "INSTEP_DRILLS": int(options.are_drills_allowed),
        "INSTEP_RESUME_STEP": "" if opening.resume_step is None else opening.resume_step,
    }
    environment = {name: str(value) for name, value in (torchrun | ours).items()}
    return environment | _hook(options, os.environ)


def _hook(options: RunOptions, current: Mapping[str, str]) -> dict[str, str]:
    """A fresh interpreter finds our import hook first on its path; it hands on to the sitecustomize that was there."""
    if options.is_preloaded:
        return {}
    path = current.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{HOOK_FOLDER}{os.pathsep}{path}" if path else str(HOOK_FOLDER)}
