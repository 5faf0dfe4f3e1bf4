"""Asks the server's API for the command line."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from instep_remediation.errors import ClientError

TIMEOUT_SECONDS = 10.0
DEFAULT_SERVER = "http://127.0.0.1:7070"


class Client:
    """One server and the token to ask it with."""

    def __init__(self, server: str, token: str) -> None:
        self._server = server.rstrip("/")
        self._token = token

    def get(self, path: str) -> Any:
        """Return a JSON answer; raises ClientError with one sentence."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """Return an answer's body; raises ClientError with one sentence."""
        try:
            request = urllib.request.Request(self._server + path, headers={"Authorization": f"Bearer {self._token}"})
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                body: bytes = response.read()
                return body
        except urllib.error.HTTPError as error:
            with error:
                raise ClientError(_detail(error)) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ClientError(
                f"Cannot ask the server at {self._server} ({reason}): start it, or name it with --server or "
                "INSTEP_SERVER."
            ) from error


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(65_536))["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered {error.code}."


def find_token(token_file: str | None) -> str:
    """Return the token of --token-file, INSTEP_TOKEN or INSTEP_TOKEN_FILE, in this order; raises ClientError."""
    path = token_file or (None if os.environ.get("INSTEP_TOKEN") else os.environ.get("INSTEP_TOKEN_FILE"))
    if path:
        try:
            return Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ClientError(
                f"Cannot read the token file {path} ({error}): name a readable one with --token-file."
            ) from error
    token = os.environ.get("INSTEP_TOKEN", "")
    if not token:
        raise ClientError("A token is needed: give --token-file FILE, or set INSTEP_TOKEN or INSTEP_TOKEN_FILE.")
    return token


def quoted(part: str) -> str:
    """Return text as one part of a path."""
    return urllib.parse.quote(part, safe="")
