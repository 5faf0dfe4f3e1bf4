"""Standard output that takes any word of a file: a locale without a letter of it must not end a command."""

from __future__ import annotations

import io
import sys


def prepare_output(*, as_json: bool) -> None:
    """JSON is UTF-8 whatever the locale says; text keeps the locale's encoding. What either cannot hold, such as a
    file's name that is no UTF-8, is written as an escape, which in JSON is one as well."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = "utf-8" if as_json else sys.stdout.encoding
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
