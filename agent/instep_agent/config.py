"""The agent's settings: one TOML file, one frozen model; an option of the command line overrules the file."""

from __future__ import annotations

import ast
import inspect
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from instep_agent.drills import DRILLS_FOLDER
from instep_agent.errors import ConfigurationInvalid
from instep_agent.ranks.keeping import KEEP_SECONDS
from instep_agent.sources.nccl_ras import ADDRESSES
from instep_agent.uplink.spool import AGE_SECONDS_MAX, BYTES_MAX

PAGE_SERIES_MAX = 1500
Seconds = Annotated[float, msgspec.Meta(ge=0.05, le=3600)]
AbsolutePath = Annotated[str, msgspec.Meta(pattern="^/.")]


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one agent. Empty text means *not set*."""

    node_name: str = ""
    """Name of this node, as the supervisors on it use it; `INSTEP_NODE_NAME` when empty."""
    cluster: str = ""
    """Name of the cluster, where one server serves several."""
    server_url: str = ""
    """Where frames go, `https://HOST:PORT` or `http://HOST:PORT`; nowhere when empty."""
    token_file: str = ""
    """File with the bearer token; `INSTEP_TOKEN` when empty."""
    root: str = "/"
    """Root of the file system to read, for an agent in a container."""
    proc: str = ""
    """Folder of the process table; `<root>/proc` when empty."""
    record_root: str = "/dev/shm/instep"
    """Folder of the rank records."""
    drills_folder: str = DRILLS_FOLDER
    """Folder where `instep inject` puts the drills of this node."""
    spool_folder: str = ""
    """Folder that keeps frames until they are acknowledged; a temporary one when empty."""
    spool_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 16)] = BYTES_MAX
    """Beyond so many bytes the oldest samples are given up, and events only when they alone are too much."""
    spool_age_seconds_max: Annotated[float, msgspec.Meta(ge=1)] = AGE_SECONDS_MAX
    """Samples that are older are given up; events are kept."""
    ca_file: str = ""
    """Certificates of the authorities that the server's must come from (PEM); those of the system when empty."""
    client_cert_file: str = ""
    """The agent's own certificate, for a server that asks for one (mTLS)."""
    client_key_file: str = ""
    """Its key; empty when it is in the same file."""
    listen: str = ""
    """`HOST:PORT` of the agent's own /metrics page; off when empty."""
    dcgm_names: Literal["old", "new", "off"] = "old"
    """The page also has the names and labels of dcgm-exporter (`DCGM_FI_DEV_…`), where the meaning is the same: `old`
    as up to its 4.8, `new` as from 4.9 on (base units), or none of them."""
    exposition: Literal["default", "full"] = "default"
    """Which series /metrics has: those that dashboards and people look at, or `full`: all that frames have. A node with
    8 GPUs then has more than `series_max`: raise it."""
    series_max: Annotated[int, msgspec.Meta(ge=100, le=100_000)] = PAGE_SERIES_MAX
    """Beyond so many series the page leaves out the last ones, and says how many."""
    frame_interval_seconds: Seconds = 0.5
    """How often a frame with what the ranks said is sent at most; events leave at once."""
    values_interval_seconds: Seconds = 1.0
    """How often a frame has the values of the sources, too."""
    ranks_interval_seconds: Seconds = 0.5
    """How often rank records are read."""
    ranks_calm_interval_seconds: Seconds = 1.0
    """How often instead while every rank gives signs of life, where that is longer."""
    ranks_discovery_interval_seconds: Seconds = 1.0
    """How often new rank records are looked for."""
    expected_gpus: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    """How many GPUs this node should have; one that is missing then shows. 0 expects nothing."""
    log_files: tuple[AbsolutePath, ...] = ()
    """Log files of jobs to follow, beneath `root`: absolute paths, which may hold `*`; none when empty."""
    nccl_ras_addresses: tuple[str, ...] = ADDRESSES
    """Where NCCL's RAS services listen (`NCCL_RAS_ADDR` of the jobs), each `HOST:PORT`; none is asked when empty."""
    flight_recorder_pipe_prefix: str = ""
    """`TORCH_NCCL_DEBUG_INFO_PIPE_FILE` of jobs without `instep run`, beneath `root`; nobody is asked when empty."""
    flight_recorder_file_prefix: str = ""
    """`TORCH_FR_DUMP_TEMP_FILE` of such jobs, beneath `root`; no dump is looked for when empty."""
    keep_seconds: Annotated[float, msgspec.Meta(ge=60)] = KEEP_SECONDS
    """What a run left behind is removed when its ranks are gone and nobody adopted it for so long."""


def load_config(path: Path) -> AgentConfig:
    """Give the settings in a file; raise ConfigurationInvalid with file, key and what is allowed."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationInvalid(
            f"Cannot read the configuration {path} ({(error.strerror or '').lower()})."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"The configuration {path} is not TOML: {error}.") from error
    allowed = [each.name for each in msgspec.structs.fields(AgentConfig)]
    unknown = sorted(set(values) - set(allowed))
    if unknown:
        raise ConfigurationInvalid(
            f"The configuration {path} has an unknown key {unknown[0]!r}: allowed keys are {', '.join(allowed)}."
        )
    try:
        return msgspec.convert(values, AgentConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationInvalid(f"The configuration {path} has a value out of range: {error}.") from error


def describe(path: str | None) -> list[dict[str, Any]]:
    """Give every setting in effect with where it came from, its documentation and its range, for `instep config show`.

    The agent has no usual file: without a path everything is at its default. Options of a running agent are not seen.
    """
    config = load_config(Path(path)) if path else AgentConfig()
    in_file = tomllib.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    documentation = _documentation()
    rows: list[dict[str, Any]] = [
        {
            "key": field.name,
            "value": getattr(config, field.name),
            "source": path if field.name in in_file else "default",
            "help": documentation.get(field.name, ""),
            "range": _range(field.type),
        }
        for field in msgspec.structs.fields(AgentConfig)
    ]
    for row in rows:
        if row["key"] == "node_name" and not row["value"] and os.environ.get("INSTEP_NODE_NAME"):
            row |= {"value": os.environ["INSTEP_NODE_NAME"], "source": "INSTEP_NODE_NAME"}
    return rows


def _range(kind: Any) -> str:
    """Give the limits of a number in words, empty when it has none."""
    limits = msgspec.inspect.type_info(kind)
    low, high = getattr(limits, "ge", None), getattr(limits, "le", None)
    if low is None:
        return ""
    return f"{low:g} to {high:g}" if high is not None else f"at least {low:g}"


def _documentation() -> dict[str, str]:
    """Give the text under each field, which the interpreter itself does not keep."""
    body = ast.parse(inspect.getsource(AgentConfig)).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found
