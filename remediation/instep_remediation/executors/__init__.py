"""What carries changes to nodes out: one module or package each, and one line in the list below.

An executor is imported when it is configured, so that nobody needs the packages of one that is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from instep_remediation.node_executor import NodeExecutor

if TYPE_CHECKING:
    from instep_remediation.server.config import ServerConfig

EXECUTORS: dict[str, str] = {
    "print": "instep_remediation.executors.printing:make",
    "kubernetes": "instep_remediation.executors.kubernetes:make",
}
"""`executor` in the configuration → `module:function`; the function takes the configuration."""


def make_executor(config: ServerConfig) -> NodeExecutor:
    """Return the configured executor; raises StartError with one sentence when it cannot be had."""
    module, _, name = EXECUTORS[config.executor].partition(":")
    make: Callable[[ServerConfig], NodeExecutor] = getattr(import_module(module), name)
    return make(config)
