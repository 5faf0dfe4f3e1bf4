"""A training state as bytes and back, without pickle: named tensors and JSON, the same in shared memory and on disk.

The manifest is `{"extras": {…}, "tensors": [[name, dtype, shape, offset], …]}`; tensors lie in the payload in this
order, each at the next multiple of 64. The layout follows from names, dtypes and shapes alone, so a reader computes
it again and believes nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instep_trainer.checkpoint.errors import DamagedSnapshot, OtherState
from instep_trainer.checkpoint.header import (
    HEADER_BYTES,
    MANIFEST_BYTES_MAX,
    Header,
    align,
    body_digest,
    check_digest,
    pack_header,
    parse_header,
)

EXTRAS_BYTES_MAX = 8 << 10
TENSORS_MAX = 100_000
DIMENSIONS_MAX = 64
DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "complex64",
        "complex128",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    )
}
"""The dtypes a snapshot can hold, by their torch names."""
_dtype_names = {dtype: name for name, dtype in DTYPES.items()}

Extras = dict[str, Any]
"""What JSON can say beside the tensors: data position, seed, world size, fingerprint."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A training state after `step` optimizer updates."""

    step: int
    attempt: int
    tensors: Mapping[str, Tensor]
    extras: Extras


class Layout:
    """Where each tensor lies. Made once per state; names, dtypes and shapes must not change after."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._places: list[tuple[str, torch.dtype, tuple[int, ...], int, int]] = []
        end = 0
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            self._places.append((name, tensor.dtype, tuple(tensor.shape), align(end), size))
            end = align(end) + size
        self.payload_bytes = end
        self._tensors_json = _tensors_json(self._places)
        self.snapshot_bytes_max = align(HEADER_BYTES + len(self._tensors_json) + EXTRAS_BYTES_MAX + 64) + end

    def manifest(self, extras: Extras) -> bytes:
        """Give the JSON of a snapshot with these extras; raise ValueError when they are beyond `EXTRAS_BYTES_MAX`."""
        text = json.dumps(extras, separators=(",", ":"), allow_nan=False).encode()
        if len(text) > EXTRAS_BYTES_MAX:
            raise ValueError(f"The extras of a snapshot take {len(text)} bytes; {EXTRAS_BYTES_MAX} are allowed.")
        return b'{"extras":' + text + b',"tensors":' + self._tensors_json + b"}"

    def chunks(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, memoryview]]:
        """Give each tensor's offset and bytes; tensors on a device are copied to the CPU here."""
        for name, dtype, shape, offset, _size in self._places:
            tensor = tensors[name]
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise ValueError(f"The tensor {name!r} has changed its shape or dtype since the layout was made.")
            yield offset, _bytes_of(tensor)


def encode(snapshot: Snapshot, layout: Layout | None = None) -> bytearray:
    """Give the whole snapshot, complete flag set."""
    layout = layout or Layout(snapshot.tensors)
    manifest = layout.manifest(snapshot.extras)
    payload_offset = align(HEADER_BYTES + len(manifest))
    end = payload_offset + layout.payload_bytes
    raw = bytearray(end)
    raw[HEADER_BYTES : HEADER_BYTES + len(manifest)] = manifest
    for at, chunk in layout.chunks(snapshot.tensors):
        raw[payload_offset + at : payload_offset + at + len(chunk)] = chunk
    digest = body_digest(raw, end)
    header = Header(snapshot.step, snapshot.attempt, digest, len(manifest), payload_offset, layout.payload_bytes)
    raw[:HEADER_BYTES] = pack_header(header, is_complete=True)
    return raw


def decode(raw: bytearray) -> Snapshot:
    """Give the snapshot in `raw`; its tensors share that memory. Raises DamagedSnapshot when it is not whole."""
    header = parse_header(raw, len(raw))
    check_digest(raw, header)
    extras, rows = _parse_manifest(bytes(memoryview(raw)[HEADER_BYTES : HEADER_BYTES + header.manifest_bytes]))
    tensors: dict[str, Tensor] = {}
    end = 0
    for row in rows:
        name, dtype, shape, offset = _parse_row(row)
        count = math.prod(shape)
        if name in tensors or offset != align(end) or offset + count * dtype.itemsize > header.payload_bytes:
            raise DamagedSnapshot(f"The snapshot's tensor {name!r} is not where the layout puts it.")
        tensors[name] = _tensor_at(raw, header.payload_offset + offset, dtype, shape)
        end = offset + count * dtype.itemsize
    if end != header.payload_bytes:
        raise DamagedSnapshot("The snapshot's payload is longer than its tensors.")
    return Snapshot(header.step, header.attempt, tensors, extras)


@torch.no_grad()
def load_into(state: Mapping[str, Tensor], snapshot: Snapshot) -> None:
    """Copy the snapshot's tensors into `state`; raise OtherState when names, shapes or dtypes differ, and then change
    nothing."""
    for name, tensor in state.items():
        held = snapshot.tensors.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            raise OtherState(
                f"The checkpoint of step {snapshot.step} is of another model ({name!r} differs): "
                "use the settings it was made with, or another --out."
            )
    if len(snapshot.tensors) != len(state):
        raise OtherState(
            f"The checkpoint of step {snapshot.step} holds {len(snapshot.tensors)} tensors, not the "
            f"{len(state)} of this model: use the settings it was made with, or another --out."
        )
    for name, tensor in state.items():
        tensor.copy_(snapshot.tensors[name])


def _tensors_json(places: list[tuple[str, torch.dtype, tuple[int, ...], int, int]]) -> bytes:
    if len(places) > TENSORS_MAX:
        raise ValueError(f"A snapshot holds at most {TENSORS_MAX} tensors, not {len(places)}.")
    text = json.dumps(
        [[name, _dtype_names[dtype], shape, offset] for name, dtype, shape, offset, _ in places], separators=(",", ":")
    ).encode()
    if len(text) + EXTRAS_BYTES_MAX + 64 > MANIFEST_BYTES_MAX:
        raise ValueError(f"The names and shapes of the tensors take {len(text)} bytes, more than a manifest can hold.")
    return text


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _tensor_at(raw: bytearray, offset: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype, count=count, offset=offset).reshape(shape)


def _parse_manifest(text: bytes) -> tuple[Extras, list[Any]]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedSnapshot("The snapshot's manifest is not JSON.") from error
    extras = manifest.get("extras") if isinstance(manifest, dict) else None
    rows = manifest.get("tensors") if isinstance(manifest, dict) else None
    if not isinstance(extras, dict) or not isinstance(rows, list) or len(rows) > TENSORS_MAX:
        raise DamagedSnapshot("The snapshot's manifest is not one.")
    return extras, rows


def _parse_row(row: Any) -> tuple[str, torch.dtype, list[int], int]:
    match row:
        case [str(name), str(dtype), list(shape), int(offset)] if dtype in DTYPES and len(shape) <= DIMENSIONS_MAX:
            if all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
                return name, DTYPES[dtype], shape, offset
    raise DamagedSnapshot(f"The snapshot's manifest holds a tensor that cannot be: {str(row)[:80]}.")
