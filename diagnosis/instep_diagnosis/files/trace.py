"""Reads a recorded trace: its rows from a Parquet file, the job's layout from a YAML file.

Both come from elsewhere: sizes are looked at before anything is read, and what does not fit is refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import yaml
from numpy.typing import NDArray

from instep_diagnosis.errors import EvidenceError
from instep_diagnosis.whatif.optypes import CODES
from instep_diagnosis.whatif.trace import RANKS_MAX, ROWS_MAX, Layout, Trace

META_BYTES_MAX = 64 << 10
NAME_LENGTH_MAX = 200
TABLE_BYTES_MAX = 8 << 30
"""Uncompressed size of the columns that are read, as the file itself states it."""
KINDS_MAX = 10_000
"""Distinct names of kinds; more means that the column holds something else."""
WHOLE = ("dp_rank", "stage", "step", "seq_id")
SECONDS = ("start_ts", "duration")
OPTIONAL_SIZES = ("vpp_size", "tp_size")
NEEDED = (*WHOLE, *SECONDS, "optype")


def read_trace(path: Path, layout: Layout) -> Trace:
    """The rows of a Parquet file. Raises `EvidenceError` where it is no such trace."""
    table = _table(path, layout)
    whole = {name: _integers(path, table, name) for name in WHOLE}
    seconds = {name: _seconds(path, table, name) for name in SECONDS}
    has_chunks = "mc" in table.column_names
    chunk_N = _integers(path, table, "mc") if has_chunks else np.zeros(len(table), dtype=np.int8)
    return Trace(
        layout=layout,
        dp_N=whole["dp_rank"],
        stage_N=whole["stage"],
        step_N=whole["step"].astype(np.int64, copy=False),
        optype_N=_kinds(path, table),
        start_seconds_N=seconds["start_ts"],
        duration_seconds_N=seconds["duration"],
        seq_N=whole["seq_id"],
        chunk_N=chunk_N,
    )


def read_layout(path: Path) -> Layout:
    """The layout in a meta file: `pp_size`, `dp_size`, and where present `vpp_size` and `trial_name`."""
    meta = _meta(path)
    pp, dp, vpp = (_size(path, meta, name) for name in ("pp_size", "dp_size", "vpp_size"))
    name = str(meta.get("trial_name", ""))[:NAME_LENGTH_MAX]
    return Layout(pp, dp, vpp, name="".join(letter for letter in name if letter.isprintable()))


def read_tensor_size(path: Path) -> int:
    """The number of tensor-parallel ranks in a meta file; 1 where it names none."""
    size = _size(path, _meta(path), "tp_size")
    if not 1 <= size <= RANKS_MAX:
        raise EvidenceError(f"The meta file {path} holds tp_size {size}: give a number from 1 to {RANKS_MAX}.")
    return size


def _meta(path: Path) -> Mapping[object, object]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(META_BYTES_MAX + 1)
        if len(raw) > META_BYTES_MAX:
            raise EvidenceError(f"The meta file {path} is larger than {META_BYTES_MAX} bytes: give the job's own.")
        meta = yaml.safe_load(raw)
    except OSError as error:
        raise EvidenceError(f"Cannot read the meta file {path} ({error.strerror}): name one with --meta.") from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise EvidenceError(f"The meta file {path} is no YAML: give one with pp_size and dp_size.") from error
    if not isinstance(meta, dict):
        raise EvidenceError(f"The meta file {path} holds no mapping: give one with pp_size and dp_size.")
    return meta


def _size(path: Path, meta: Mapping[object, object], name: str) -> int:
    value = meta.get(name, 1 if name in OPTIONAL_SIZES else None)
    if isinstance(value, bool) or not isinstance(value, int):
        held = "lacks" if name not in meta else "holds no whole number under"
        raise EvidenceError(f"The meta file {path} {held} {name}: give the job's own, as in `{name}: 4`.")
    return value


def _table(path: Path, layout: Layout) -> Any:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        missing = [name for name in NEEDED if names.count(name) != 1]
        if missing or names.count("mc") > 1 or (layout.vpp > 1 and "mc" not in names):
            wanted = missing or ["mc"]
            raise EvidenceError(f"The trace {path} needs one column {', '.join(wanted)}: record it, or rename yours.")
        columns = [name for name in (*NEEDED, "mc") if name in names]
        _check_sizes(path, file.metadata, columns)
        return pq.read_table(path, columns=columns, read_dictionary=["optype"], partitioning=None)
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise EvidenceError(f"Cannot read the trace {path} ({reason}): give a Parquet file.") from error
    except (pa.ArrowException, ValueError, TypeError, KeyError, MemoryError) as error:
        raise EvidenceError(f"The trace {path} is no Parquet file that can be read: copy it again.") from error


def _check_sizes(path: Path, metadata: Any, columns: list[str]) -> None:
    if metadata.num_rows > ROWS_MAX:
        raise EvidenceError(f"The trace {path} has {metadata.num_rows} rows: at most {ROWS_MAX}; record fewer steps.")
    parts = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    held = [part.column(place) for part in parts for place in range(part.num_columns)]
    size = sum(each.total_uncompressed_size for each in held if each.path_in_schema in columns)
    if size > TABLE_BYTES_MAX:
        raise EvidenceError(f"The trace {path} unpacks to {size} bytes: at most {TABLE_BYTES_MAX}; record fewer steps.")


def _integers(path: Path, table: Any, name: str) -> NDArray[Any]:
    column = table[name]
    if not pa.types.is_integer(column.type):
        raise EvidenceError(f"The trace {path} holds {column.type} in its column {name}: whole numbers are needed.")
    if column.null_count:
        if name != "mc":
            raise EvidenceError(f"The trace {path} has {column.null_count} rows without {name}: record it in each row.")
        column = column.fill_null(pa.scalar(-1, pa.int64()).cast(column.type))
    if column.type == pa.uint64():
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            reason = f"The trace {path} holds numbers in {name} that are too large: record it again."
            raise EvidenceError(reason) from error
    values: NDArray[Any] = column.to_numpy()
    return values


def _seconds(path: Path, table: Any, name: str) -> NDArray[Any]:
    column = table[name]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise EvidenceError(f"The trace {path} holds {column.type} in its column {name}: seconds are needed.")
    if column.null_count:
        raise EvidenceError(f"The trace {path} has {column.null_count} rows without {name}: record it in each row.")
    values: NDArray[Any] = column.to_numpy()
    return values


def _kinds(path: Path, table: Any) -> NDArray[np.int8]:
    """Each row's code; -1 for a kind that the method does not know."""
    column = table["optype"]
    if not pa.types.is_dictionary(column.type):
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise EvidenceError(f"The trace {path} holds {column.type} in its column optype: names are needed.")
        column = column.dictionary_encode()
    if not pa.types.is_string(column.type.value_type) and not pa.types.is_large_string(column.type.value_type):
        raise EvidenceError(f"The trace {path} holds no names in its column optype: give names as in forward-compute.")
    if column.null_count:
        raise EvidenceError(f"The trace {path} has {column.null_count} rows without optype: record it in each row.")
    parts = [_codes(path, chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int8)


def _codes(path: Path, chunk: Any) -> NDArray[np.int8]:
    if len(chunk.dictionary) > KINDS_MAX:
        raise EvidenceError(f"The trace {path} has more than {KINDS_MAX} kinds in its column optype: name kinds only.")
    try:
        names = chunk.dictionary.to_pylist()
    except UnicodeDecodeError as error:
        raise EvidenceError(f"The trace {path} holds no UTF-8 in its column optype: copy it again.") from error
    known = np.array([*(CODES.get(name, -1) for name in names), -1], dtype=np.int8)
    codes: NDArray[np.int8] = known[chunk.indices.to_numpy()]
    return codes
