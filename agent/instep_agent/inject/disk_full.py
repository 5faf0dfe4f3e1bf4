"""Disk full: a file system has no room left."""

from __future__ import annotations

from instep_agent.drills import Change
from instep_agent.inject.injection import Injection, Target


class DiskFull:
    """No byte available, everything in use. Laid over the readings everywhere: a real disk is never filled."""

    name = "disk-full"
    help = "a file system without room (no byte is written): --mount (default /)"

    def injection(self, target: Target) -> Injection:
        """Give room and use of the mount."""
        labels = {"path": target.mount}
        return Injection(
            changes=(
                Change(metric="instep_mount_available_bytes", labels=labels, set=0.0),
                Change(metric="instep_mount_used_ratio", labels=labels, set=1.0),
            )
        )
