"""Whether an empty answer means that there is nothing, or that one may not look: asked before *absent* is said."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from instep_agent.errors import SourceFailed

REMEDY = "run the agent as a user who may, or mount the node's own read-only into the agent's pod"
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


def check_listable(folder: str | Path) -> None:
    """Raise `SourceFailed` where a folder is, or may be, there and cannot be listed; one that is not there is fine."""
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise SourceFailed(f"Cannot list {folder} ({(error.strerror or '').lower()}): {REMEDY}.") from error


def check_readable(files: Iterable[str | Path]) -> None:
    """Raise `SourceFailed` where there are such files and the rights are lacking to read the first of them."""
    for file in files:
        try:
            os.close(os.open(file, _FLAGS))
            return
        except PermissionError as error:
            raise SourceFailed(f"Cannot read {file} ({(error.strerror or '').lower()}): {REMEDY}.") from error
        except OSError:  # it went away meanwhile
            continue
