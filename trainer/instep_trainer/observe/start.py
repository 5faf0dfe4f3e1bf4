"""Starts the recorder in a rank: at once in a preloaded child, or as soon as a fresh interpreter has imported torch.

Only the process that the supervisor started records: it claims the rank's file, and its own children find it taken.
"""

from __future__ import annotations

import atexit
import os
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from instep_agent.errors import RecordTaken
from instep_agent.rank_record.identity import RankIdentity
from instep_agent.rank_record.writer import RankRecordWriter

if TYPE_CHECKING:
    from instep_trainer.observe.recorder import RankRecorder

CLAIMED = "INSTEP_RECORD_PID"
_kept: list[object] = []
"""What must live as long as the process: the library of kernels, the evidence server."""


def is_rank(environment: os._Environ[str] = os.environ) -> bool:
    """Whether this process is the one that the supervisor started as a rank."""
    return (
        "INSTEP_RUN" in environment
        and "RANK" in environment
        and CLAIMED not in environment
        and environment.get("INSTEP_OBSERVE", "1") != "0"
    )


def claim_record() -> RankRecordWriter | None:
    """Create this rank's record; None when this process is not the rank, or another has claimed it."""
    environment = os.environ
    if not is_rank(environment):
        return None
    environment[CLAIMED] = str(os.getpid())
    identity = RankIdentity(
        job=environment["INSTEP_JOB"],
        run=environment["INSTEP_RUN"],
        attempt=int(environment["INSTEP_ATTEMPT"]),
        rank=int(environment["RANK"]),
        local_rank=int(environment["LOCAL_RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        node=environment["INSTEP_NODE_NAME"],
        gpu=_gpu(int(environment["LOCAL_RANK"])),
        namespace=environment.get("POD_NAMESPACE", ""),
        pod_uid=environment.get("POD_UID", ""),
        scheduler_job_id=environment.get("SLURM_JOB_ID", ""),
    )
    try:
        return RankRecordWriter.create(environment["INSTEP_RECORD_ROOT"], identity)
    except RecordTaken:
        return None


def start_in_preloaded() -> None:
    """Record from now on; torch is imported already."""
    writer = claim_record()
    if writer is not None:
        observe(writer)


def observe(writer: RankRecordWriter) -> RankRecorder:
    """Put every hook in place. Needs torch imported."""
    from instep_trainer import phases
    from instep_trainer.inject.faults import faults_of_this_rank
    from instep_trainer.observe.collectives import CollectiveObserver
    from instep_trainer.observe.recorder import RankRecorder
    from instep_trainer.observe.script_hooks import ScriptHooks
    from instep_trainer.observe.worker_server import open_worker_server

    recorder = RankRecorder(writer, faults_of_this_rank())
    observer = CollectiveObserver(writer, recorder)
    observer.open()
    hooks = ScriptHooks(recorder, observer)
    hooks.open()
    phases.install(recorder)
    _kept.extend([observer, hooks, open_worker_server(writer.path.parent, writer.identity.rank)])
    atexit.register(_end, recorder, hooks)
    return recorder


def _end(recorder: RankRecorder, hooks: object) -> None:
    hooks.close_step()  # type: ignore[attr-defined]
    recorder.finished()


def _gpu(local_rank: int) -> str:
    """The GPU's index on the node: torchrun's convention is the local rank, among those that are visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(local_rank)
    listed = [device.strip() for device in visible.split(",") if device.strip()]
    return listed[local_rank] if local_rank < len(listed) else ""


def start_in_fresh_interpreter() -> None:
    """Claim the record now, and put the hooks in place as soon as the script has imported torch."""
    writer = claim_record()
    if writer is not None:
        sys.meta_path.insert(0, _WhenTorchIsImported(writer))


class _WhenTorchIsImported:
    """Finds `torch` as the finders behind it do, and has the hooks put in place when its import is complete."""

    def __init__(self, writer: RankRecordWriter) -> None:
        self._writer = writer

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return torch's own spec with a loader that calls back; None for every other module."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = cast(Loader, _Afterwards(spec.loader, self._writer))
        return spec


class _Afterwards:
    """A loader that does what the real one does, and then starts the recorder."""

    def __init__(self, loader: Any, writer: RankRecordWriter) -> None:
        self._loader, self._writer = loader, writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> Any:
        """As the real loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """Import torch, then observe."""
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        observe(self._writer)
