"""What every action is: a name, arguments that can be stored, and a sentence that can be printed before anything is
done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self


class Action(ABC):
    """One idempotent change."""

    __slots__ = ()
    name: ClassVar[str]
    is_about_nodes: ClassVar[bool] = False
    """Watch-only by default: proposed and printed; carried out by the node executor once somebody has approved it."""

    @abstractmethod
    def describe(self) -> str:
        """Return what it does, as one printable line."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return its fields as JSON values."""

    @classmethod
    @abstractmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Return the action again from `arguments()`."""
