"""What carries changes to nodes out: one module or package each, and one line in the list below.

An executor is imported when it is configured, so that nobody needs the packages of one that is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from instep_remediation.node_executor import NodeExecutor

if TYPE_CHECKING:
    from instep_remediation.executors.kubernetes.settings import KubernetesConfig

EXECUTORS: dict[str, str] = {
    "print": "instep_remediation.executors.printing:make",
    "kubernetes": "instep_remediation.executors.kubernetes:make",
}
"""`executor` in the configuration → `module:function`; the function takes the configuration."""


class ExecutorSettings(Protocol):
    """What executors take of the server's configuration: which one it is, and a table for each that has settings."""

    @property
    def executor(self) -> str:
        """A key of `EXECUTORS`."""

    @property
    def kubernetes(self) -> KubernetesConfig:
        """The settings of "kubernetes"."""


def make_executor(config: ExecutorSettings) -> NodeExecutor:
    """Return the configured executor; raises StartError with one sentence when it cannot be had."""
    module, _, name = EXECUTORS[config.executor].partition(":")
    make: Callable[[ExecutorSettings], NodeExecutor] = getattr(import_module(module), name)
    return make(config)
