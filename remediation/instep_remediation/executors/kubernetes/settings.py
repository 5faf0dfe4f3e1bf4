"""How Instep changes nodes of a Kubernetes cluster: the `[kubernetes]` section of the server's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class KubernetesConfig(BaseModel):
    """Used when `executor = "kubernetes"`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    kubeconfig: Path | None = None
    """Unset: the service account of the pod that the server runs in, or else the user's own kubeconfig."""
    context: str = ""
    """Of the kubeconfig; empty is its current one."""
    taint_key: str = Field(default="instep.dev/faulty", pattern="^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    """Taint of a node that is taken out of service; its value is the plan."""
    taint_effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """`NoExecute` ends pods without asking their disruption budgets, so it is not the default."""
    condition: str = Field(default="InstepHealthy", pattern="^[A-Za-z][A-Za-z0-9]*$")
    """Node condition that says `False` while a node is out of service."""
    drain_unmanaged_pods: bool = False
    """Evict pods that nobody would make again; otherwise a drain that meets one fails before it evicts anything."""
    drain_empty_dir: bool = True
    """Evict pods with emptyDir volumes: training pods mount their shared memory so, and it dies with the job."""
    eviction_grace_seconds: int | None = Field(default=None, ge=0, le=86_400)
    """How long a pod may take to end; unset is what the pod itself says."""
