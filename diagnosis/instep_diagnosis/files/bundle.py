"""Evidence bundles as zip files of JSON: `evidence.json`, `verdicts.json` and `README.txt`."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from instep_diagnosis.bundles import FORMAT_VERSION, EvidenceBundle
from instep_diagnosis.codec import DOCUMENT_BYTES_MAX, decode, encode
from instep_diagnosis.errors import EvidenceError, reason_of
from instep_diagnosis.verdict import Verdict

T = TypeVar("T")

_README = (
    "Evidence of one Instep verdict. `instep diagnose bundle FILE.zip` comes to the same verdict again.\n"
    "evidence.json: what the detector looked at, with its settings. verdicts.json: what it said.\n"
)
_MEND = "give a bundle that Instep exported"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
"""What `zipfile` raises of a file that is missing, damaged, encrypted, or packed by a method it does not know."""


def packed(bundle: EvidenceBundle, verdicts: Sequence[Verdict]) -> bytes:
    """The bundle as a zip file; equal evidence gives equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        contents = {"README.txt": _README.encode(), "evidence.json": encode(bundle), "verdicts.json": encode(verdicts)}
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def write_bundle(path: Path, bundle: EvidenceBundle, verdicts: Sequence[Verdict]) -> None:
    """Write a bundle; raises `OSError` where the file cannot be written."""
    path.write_bytes(packed(bundle, verdicts))


def read_bundle(path: Path) -> tuple[EvidenceBundle, tuple[Verdict, ...]]:
    """The evidence in a bundle, and the verdicts it was packed with. Raises `EvidenceError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            bundle = _member(archive, path, "evidence.json", EvidenceBundle)
            verdicts = _member(archive, path, "verdicts.json", tuple[Verdict, ...])
    except _UNREADABLE as error:
        raise EvidenceError(f"Cannot read {path} ({reason_of(error)}): {_MEND}.") from error
    if bundle.version > FORMAT_VERSION:
        raise EvidenceError(f"{path} has format {bundle.version}, this Instep reads up to {FORMAT_VERSION}: update it.")
    if bundle.job is None and bundle.steps is None and not bundle.facts:
        raise EvidenceError(f"{path} holds no evidence of a job or a node: {_MEND}.")
    return bundle, verdicts


def _member(archive: zipfile.ZipFile, path: Path, name: str, wanted: type[T]) -> T:
    try:
        information = archive.getinfo(name)
    except KeyError:
        raise EvidenceError(f"{path} holds no {name}: {_MEND}.") from None
    size = information.file_size
    if size > DOCUMENT_BYTES_MAX:
        raise EvidenceError(f"{name} in {path} has {size} bytes: at most {DOCUMENT_BYTES_MAX} are read.")
    with archive.open(information) as stream:
        document = stream.read(DOCUMENT_BYTES_MAX + 1)
    try:
        return decode(document, wanted)
    except EvidenceError as error:
        reason = error.__cause__ or error
        raise EvidenceError(f"{name} in {path} is not what it should be ({reason}): {_MEND}.") from error
