"""What one fault of a node is made of, and where it is: pure data, before anything is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from instep_agent.drills import Change, Drill, Mark, Said
from instep_agent.errors import ConfigurationInvalid

DRILL_WORD = "instep-drill"
"""Stands in every line that is written to a kernel log: whoever reads it knows that it was injected."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which part of the node has the fault; a fault takes what it needs."""

    gpu: int = -1
    pci: str = ""
    device: str = ""
    """RDMA adapter, such as `mlx5_0`."""
    port: int = 1
    mount: str = "/"
    pid: int = 0
    code: int = 0
    """Number of an Xid or SXid; 0 is the fault's usual one."""
    counter: str = ""
    """A counter's name, as its folder has it."""
    count: int = 1


@dataclass(frozen=True, slots=True)
class ScenarioChange:
    """One answer of the NVML stand-in: set to a text, or counted up."""

    key: str
    text: str = ""
    add: int = 0


@dataclass(frozen=True, slots=True)
class TreeChange:
    """One file of a simulated node's tree, beneath its root: set to a text, or counted up."""

    path: str
    text: str = ""
    add: int = 0


@dataclass(frozen=True, slots=True)
class Injection:
    """The pieces of one fault. Each is put where it really arises, as far as there is such a place.

    Kernel lines are always written. Where the stand-in or the tree of a simulated node is at hand, these are changed
    and the readings that come of it are marked only; on a real node `changes` are laid over the readings, and `said`
    are the facts that the source would have made of them.
    """

    kernel_lines: tuple[str, ...] = ()
    scenario: tuple[ScenarioChange, ...] = ()
    tree: tuple[TreeChange, ...] = ()
    changes: tuple[Change, ...] = ()
    marks: tuple[Mark, ...] = ()
    said: tuple[Said, ...] = ()
    stopped_child: str = ""

    @property
    def is_moment(self) -> bool:
        """Whether there is nothing to take back: what was logged stays logged, an event has happened."""
        lasts = any(change.key != "event" for change in self.scenario)
        return not (lasts or self.tree or self.changes or self.said or self.stopped_child)

    def drill(self, fault: str, node: str, boot_id: str, until_monotonic_ns: int, *, is_simulated: bool) -> Drill:
        """Give what the agent is told: all of it on a real node, the marks alone where the fault itself is there."""
        told = Drill(
            fault=fault,
            node=node,
            boot_id=boot_id,
            until_monotonic_ns=until_monotonic_ns,
            changes=self.changes,
            marks=self.marks,
        )
        if is_simulated:
            marked = tuple(Change(metric=change.metric, labels=change.labels) for change in self.changes)
            return msgspec.structs.replace(told, changes=marked)
        return msgspec.structs.replace(told, said=self.said, stopped_child=self.stopped_child)


class NodeFault(Protocol):
    """One fault that a node can have; each is one module of this package."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    @property
    def help(self) -> str:
        """One line for people, with the options that it needs."""

    def injection(self, target: Target) -> Injection:
        """Give its pieces. Raise `ConfigurationInvalid` when the target lacks something."""


def needs_gpu(target: Target) -> int:
    """Give the GPU's index. Raise `ConfigurationInvalid` without one."""
    if target.gpu < 0:
        raise ConfigurationInvalid("--gpu is missing: which GPU, by its index, such as 3?")
    return target.gpu


def needs_pci(target: Target) -> str:
    """Give the PCI address as the kernel log has it. Raise `ConfigurationInvalid` without one."""
    if not target.pci:
        raise ConfigurationInvalid("--pci is missing: which GPU, such as 0000:3b:00?")
    return target.pci


def needs_device(target: Target) -> str:
    """Give the RDMA adapter's name. Raise `ConfigurationInvalid` without one."""
    if not target.device or "/" in target.device or target.device.startswith("."):
        raise ConfigurationInvalid("--device is missing: which RDMA adapter, such as mlx5_0?")
    return target.device
