"""Asks the server's API for the command line."""

from __future__ import annotations

import json
import os
import secrets
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from instep_remediation.errors import ClientError, Refusal

TIMEOUT_SECONDS = 10.0
TRIES_MAX = 2
"""Of a change whose answer did not come: it carries a key, so it is made once."""
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
        return self._ask(urllib.request.Request(self._server + path, headers=self._headers()))

    def post(self, path: str, body: dict[str, Any], *, version: int | None = None) -> Any:
        """Have a change made once, if the thing is still of this version; returns the JSON answer.

        Raises Refusal when the server will not, ClientError when it cannot be asked.
        """
        headers = self._headers() | {"Content-Type": "application/json", "Idempotency-Key": secrets.token_urlsafe(16)}
        if version is not None:
            headers["If-Match"] = f'"{version}"'
        request = urllib.request.Request(self._server + path, json.dumps(body).encode(), headers, method="POST")
        for is_last in [False] * (TRIES_MAX - 1) + [True]:
            try:
                return json.loads(self._ask(request))
            except Refusal:
                raise
            except ClientError:
                if is_last:
                    raise
        raise AssertionError("the last try returns or raises")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    def _ask(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                body: bytes = response.read()
                return body
        except urllib.error.HTTPError as error:
            with error:
                raise Refusal(_detail(error), status=error.code) from error
        except (OSError, ValueError, HTTPException) as error:
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
