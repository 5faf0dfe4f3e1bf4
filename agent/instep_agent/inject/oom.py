"""OOM: the kernel killed a process for want of memory."""

from __future__ import annotations

from instep_agent.errors import ConfigurationInvalid
from instep_agent.inject.injection import DRILL_WORD, Injection, Target


class Oom:
    """The kernel's lines about a process that was killed; no process is."""

    name = "oom"
    help = "the kernel log says that a process was killed for want of memory (none is): --pid"

    def injection(self, target: Target) -> Injection:
        """Give the lines."""
        if target.pid <= 0:
            raise ConfigurationInvalid("--pid is missing: which process, by its number on the node?")
        limits = "constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom"
        return Injection(
            kernel_lines=(
                f"oom-kill:{limits},task_memcg=/,task=python,pid={target.pid},uid=0 {DRILL_WORD}",
                f"Out of memory: Killed process {target.pid} (python) total-vm:1048576kB, anon-rss:1048576kB, "
                f"file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:2048kB oom_score_adj:0 {DRILL_WORD}",
            )
        )
