"""The executor for Kubernetes. Its client is an extra, so it is imported when this executor is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instep_collector.errors import StartError

from instep_remediation.node_executor import NodeExecutor

if TYPE_CHECKING:
    from instep_remediation.executors import ExecutorSettings


def make(config: ExecutorSettings) -> NodeExecutor:
    """Return it, connected; raises StartError with one sentence when it cannot be had."""
    try:
        from instep_remediation.executors.kubernetes.connection import connect
        from instep_remediation.executors.kubernetes.executor import KubernetesExecutor
    except ModuleNotFoundError as error:
        raise StartError(
            f"The executor \"kubernetes\" needs the module {error.name}: pip install 'instep[kubernetes]'."
        ) from error
    return KubernetesExecutor(connect(config.kubernetes), config.kubernetes)
