"""Reads a folder of PyTorch profiles: one Chrome trace in JSON for each rank, compressed or not."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import msgspec

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.files.trace import read_layout, read_tensor_size
from instep_diagnosis.whatif.profiles import Profile, Span, trace_of
from instep_diagnosis.whatif.trace import SECONDS_MAX, Layout, Trace

PROFILE_BYTES_MAX = 1 << 30
"""Of one rank, uncompressed."""
PROFILES_MAX = 4096
MICROSECOND = 1e-6
_HOST = {"user_annotation", "cpu_op"}
_DEVICE = "gpu_user_annotation"
_IN_NAME = re.compile(r"rank[-_.]?(\d{1,6})")


class _Arguments(msgspec.Struct):
    external: object = msgspec.field(name="External id", default=None)


class _Event(msgspec.Struct):
    ph: str = ""
    cat: str = ""
    name: str = ""
    ts: float = 0.0
    dur: float = 0.0
    args: _Arguments | None = None


class _Distributed(msgspec.Struct):
    rank: int | None = None


class _Document(msgspec.Struct):
    events: list[_Event] = msgspec.field(name="traceEvents")
    distributed: _Distributed = msgspec.field(name="distributedInfo", default_factory=_Distributed)


def read_profiles(folder: Path, meta: Path | None) -> Trace:
    """The profiles of a folder as a trace; without a meta file every profile is a data-parallel rank."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith((".json", ".json.gz")))
        paths = [path for path in paths if path.is_file()]
    except OSError as error:
        raise EvidenceError(f"Cannot read the folder {folder} ({error.strerror}): give one of yours.") from error
    if not paths:
        raise EvidenceError(f"The folder {folder} holds no profile: export one .json or .json.gz a rank.")
    if len(paths) > PROFILES_MAX:
        raise EvidenceError(f"The folder {folder} holds {len(paths)} profiles: at most {PROFILES_MAX}.")
    profiles: dict[int, Profile] = {}
    for path in paths:
        profile = read_profile(path)
        if profile.rank in profiles:
            raise EvidenceError(f"The folder {folder} holds rank {profile.rank} twice (see {path.name}): keep one.")
        profiles[profile.rank] = profile
    layout = read_layout(meta) if meta else Layout(pp=1, dp=len(profiles), name=folder.name)
    return trace_of(list(profiles.values()), layout, tp=read_tensor_size(meta) if meta else 1)


def read_profile(path: Path) -> Profile:
    """One rank's profile. Its rank is the one it states, or else the one in the file's name."""
    try:
        document = msgspec.json.decode(_bytes(path), type=_Document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise EvidenceError(f"The profile {path} is no Chrome trace ({error}): export it again.") from error
    rank = document.distributed.rank
    if rank is None:
        found = _IN_NAME.search(path.name)
        if not found:
            raise EvidenceError(f"The profile {path} does not say its rank: name the file as in rank3.json.")
        rank = int(found[1])
    whole = [event for event in document.events if event.ph == "X"]
    if any(not (0 <= event.dur * MICROSECOND <= SECONDS_MAX) for event in whole):
        raise EvidenceError(f"The profile {path} holds an event of impossible length: export it again.")
    return Profile(rank, _spans(whole), has_kernels=any(event.cat == "kernel" for event in whole))


def _spans(events: list[_Event]) -> list[Span]:
    """The ranges of the host; in place of those that the device shows too, the device's."""
    on_device: dict[tuple[str, str], list[Span]] = {}
    for number, event in enumerate(events):
        if event.cat == _DEVICE:
            known = event.args.external if event.args else None
            key = event.name, f"alone {number}" if known is None else str(known)
            on_device.setdefault(key, []).append(_span(event))
    names = {name for name, _ in on_device}
    host = [_span(event) for event in events if event.cat in _HOST and event.name not in names]
    return host + [
        # A range whose kernels ran on several streams is shown once on each of them.
        Span(name, min(span.start for span in spans), max(span.end for span in spans))
        for (name, _), spans in on_device.items()
    ]


def _span(event: _Event) -> Span:
    return Span(event.name, event.ts * MICROSECOND, (event.ts + event.dur) * MICROSECOND)


def _bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            raw = stream.read(PROFILE_BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise EvidenceError(f"Cannot read the profile {path} ({error}): export it again.") from error
    if len(raw) > PROFILE_BYTES_MAX:
        raise EvidenceError(f"The profile {path} unpacks to more than {PROFILE_BYTES_MAX} bytes: record fewer steps.")
    return raw
