"""The server's configuration: one TOML file, overruled by the command line. Every field has a safe default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instep_collector.tokens import Principal, Scope, TokenEntry
from pydantic import BaseModel, ConfigDict, Field, field_validator

from instep_remediation.errors import PolicyError
from instep_remediation.executors import EXECUTORS
from instep_remediation.executors.kubernetes.settings import KubernetesConfig
from instep_remediation.toml_file import read_toml

_strict = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TokenConfig(BaseModel):
    """One more token, by its hash: `printf %s TOKEN | sha256sum`."""

    model_config = _strict
    name: str = Field(min_length=1, max_length=100)
    """Who holds it; shown in the audit log."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hex SHA-256 of a random token."""
    scopes: frozenset[Scope] = Field(min_length=1)
    """`agent`, `view`, `operate`, `admin`."""
    node: str | None = None
    """The only node it may speak for; unset is any."""

    def entry(self) -> TokenEntry:
        """Return it as the token book holds it."""
        return TokenEntry(self.sha256, Principal(self.name, self.scopes, self.node))


class HangConfig(BaseModel):
    """When a job counts as stalled; what is not set here has the detector's default."""

    model_config = _strict
    stall_floor_seconds: float | None = Field(default=None, gt=0.0)
    """No wait shorter than this is a stall."""
    stall_step_factor: float | None = Field(default=None, gt=1.0)
    """Peers must have waited this many median steps."""
    report_age_seconds_max: float | None = Field(default=None, gt=0.0)
    """A rank whose report is older is unknown."""
    unknown_phase_patience_seconds: float | None = Field(default=None, gt=0.0)
    """A rank outside every known phase stays a suspect for this long."""


class ServerConfig(BaseModel):
    """The whole configuration."""

    model_config = _strict
    listen: str = "127.0.0.1:7070"
    """Address and port; loopback unless told otherwise."""
    tls_certificate: Path | None = None
    """PEM file with the server's certificate and those up to its authority; set, the server speaks TLS only."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key; unset is the certificate's own file."""
    tls_client_ca: Path | None = None
    """PEM file with the authority of clients' certificates; set, nobody connects without one (mutual TLS)."""
    state_dir: Path = Path("instep-state")
    """Journal, embedded database and token live here."""
    database: str = ""
    """SQLAlchemy URL; empty is SQLite in the state folder."""
    token_file: Path | None = None
    """The administrator's token; without one it is made in the state folder at the first start."""
    policy: Path | None = None
    """The policy file; without one the defaults hold."""
    executor: str = "print"
    """What carries changes to nodes out; `print` changes nothing."""
    webhook: str = ""
    """One POST for each incident goes here; empty sends none."""
    alertmanager: tuple[str, ...] = ()
    """Addresses of Alertmanagers, such as http://alertmanager:9093; each is told of every incident."""
    alertmanager_token_file: Path | None = None
    """Sent to them as bearer token; read again for each message."""
    alertmanager_resend_seconds: float = Field(default=60.0, ge=1.0, le=600.0)
    """What stands is said again this often; without news for 15 minutes Alertmanager takes it to be over."""
    webhook_on_resolve: bool = False
    """A second POST when the incident is over."""
    public_url: str = ""
    """How people reach the page, for links in messages; empty is the address listened on."""
    runbook_url: str = "docs/runbooks"
    """Where the runbook pages are."""
    metrics_open: bool = False
    """Answer /metrics without a token."""
    journal_fsync_seconds: float = Field(default=1.0, gt=0.0, le=60.0)
    """Power loss costs at most this much of the samples."""
    evidence_grace_seconds: float = Field(default=0.6, ge=0.0, le=30.0)
    """How long a crash waits for facts about its node."""
    retention_days: float = Field(default=90.0, gt=0.0)
    """Settled incidents, ended runs and events are kept this long."""
    audit_retention_days: float = Field(default=400.0, ge=1.0)
    """Lines of the audit log are kept this long; that older ones were removed is a line itself."""
    tokens: tuple[TokenConfig, ...] = ()
    """More tokens, by hash."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """How the executor `kubernetes` changes nodes."""
    hang: HangConfig = HangConfig()
    """The hang detector."""

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("use HOST:PORT, such as 127.0.0.1:7070")
        return value

    @field_validator("executor")
    @classmethod
    def _is_executor(cls, value: str) -> str:
        if value not in EXECUTORS:
            raise ValueError(f"use one of {', '.join(sorted(EXECUTORS))}")
        return value

    @field_validator("alertmanager")
    @classmethod
    def _are_http(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value.startswith(("http://", "https://")):
                raise ValueError("use http:// or https:// addresses, such as http://alertmanager:9093")
        return values

    @field_validator("webhook")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("use an http:// or https:// address")
        return value

    @property
    def url(self) -> str:
        """Where it listens, as clients write it."""
        return f"{'https' if self.tls_certificate else 'http'}://{self.listen}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def describe(path: str | None) -> list[dict[str, Any]]:
    """Return every setting with its value and where that came from; raises ValueError with one sentence."""
    try:
        config = read_toml(Path(path), ServerConfig) if path else ServerConfig()
    except PolicyError as error:
        raise ValueError(str(error)) from error
    return list(_rows(config, path, ""))


def _rows(model: BaseModel, path: str | None, prefix: str) -> Iterator[dict[str, Any]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _rows(value, path, f"{prefix}{name}.")
            continue
        shown = [token.name for token in value] if name == "tokens" else value
        yield {
            "key": prefix + name,
            "value": str(shown) if isinstance(shown, Path) else shown,
            "source": path if name in model.model_fields_set else "default",
            "help": field.description or "",
            "range": ", ".join(_limit(rule) for rule in field.metadata if _limit(rule)),
        }


def _limit(rule: Any) -> str:
    """Return one rule of a field in words; empty for what is no range."""
    words = (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most"))
    return next((f"{word} {getattr(rule, sign)}" for sign, word in words if hasattr(rule, sign)), "")
