"""Bearer tokens: who may ask for what. Only hashes are held; comparison takes the same time for every guess."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from instep_collector.errors import StartError

TOKEN_BYTES_MIN = 16
"""Shorter tokens can be guessed; a plain SHA-256 at rest is sound for random ones only."""


class Scope(StrEnum):
    """What a token allows."""

    AGENT = "agent"
    """Send frames and reports, ask for orders."""
    VIEW = "view"
    OPERATE = "operate"
    ADMIN = "admin"


IMPLIED: dict[Scope, frozenset[Scope]] = {
    Scope.AGENT: frozenset({Scope.AGENT}),
    Scope.VIEW: frozenset({Scope.VIEW}),
    Scope.OPERATE: frozenset({Scope.OPERATE, Scope.VIEW}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever a request comes from."""

    name: str
    scopes: frozenset[Scope]
    node: str | None = None
    """The only node it may speak for; None is any."""

    def may(self, scope: Scope) -> bool:
        """Whether one of its scopes allows `scope`.

        >>> Principal("ops", frozenset({Scope.OPERATE})).may(Scope.VIEW)
        True
        >>> Principal("ops", frozenset({Scope.OPERATE})).may(Scope.AGENT)
        False
        """
        return any(scope in IMPLIED[held] for held in self.scopes)


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token as it is kept: its hash, never itself."""

    sha256: str
    principal: Principal


def token_hash(token: str) -> str:
    """Return the hex SHA-256 of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class TokenBook:
    """The tokens this server knows."""

    def __init__(self, entries: Iterable[TokenEntry]) -> None:
        self._entries = tuple(entries)

    def find(self, token: str) -> Principal | None:
        """Return who holds the token, or None. Every entry is compared, so time tells nothing."""
        asked = token_hash(token)
        found: Principal | None = None
        for entry in self._entries:
            if hmac.compare_digest(asked, entry.sha256):
                found = entry.principal
        return found

    def find_header(self, authorization: bytes | None) -> Principal | None:
        """Return who sent an `Authorization` header, or None when it is missing, malformed or unknown."""
        if authorization is None:
            return None
        kind, _, token = authorization.partition(b" ")
        if kind.lower() != b"bearer":
            return None
        try:
            return self.find(token.strip().decode("ascii"))
        except UnicodeDecodeError:
            return None


def admin_entry(token: str) -> TokenEntry:
    """Return the entry of the server's own administrator token."""
    return TokenEntry(sha256=token_hash(token), principal=Principal("admin", frozenset({Scope.ADMIN})))


def read_token(path: Path) -> str:
    """Return the token in a file; raises StartError when it cannot be read or is too short to be safe."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"Cannot read the token file {path} ({error}): give --token-file a readable file.") from error
    if len(token) < TOKEN_BYTES_MIN:
        raise StartError(f"The token in {path} has {len(token)} characters: use at least {TOKEN_BYTES_MIN}.")
    return token


def read_or_make_token(path: Path) -> str:
    """Return the token in `path`, making the file (mode 0600) with a new random one when there is none."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return read_token(path)
    except OSError as error:
        raise StartError(
            f"Cannot write the token file {path} ({error.strerror}): give the server a --state-dir it may write to."
        ) from error
    with os.fdopen(descriptor, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token
