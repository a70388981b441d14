"""Taking one value of each record out of the log's nested columns, as numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.assays.plan import Path, Source
from engine.assays import NotNumbers
from engine.assays.statistics import Numbers

Mask = NDArray[np.bool_]


class MissingColumn(ValueError):
    """The records have no such field, or no such place in it."""


def take(batch: pa.RecordBatch, path: Path) -> Numbers:
    """Return the value at `path` of each record, NaN where a record has none.

    Raises `MissingColumn` or `NotNumbers` with a reason for people.
    """
    column = _field(batch, path)
    places: NDArray[np.int64] = np.arange(len(column), dtype=np.int64)
    present: Mask = _valid(column)
    indexes = path.indexes
    if indexes is not None and len(indexes) == 1 and _is_list(column.type):
        column, places, there = _flat(column, places, indexes[0])
        present = present & there
    elif indexes is not None and (indexes != (0,) or not _is_number(column.type)):  # place 0 of a plain value is itself
        for index in indexes:
            if not _is_list(column.type) and not _is_number(column.type):
                raise NotNumbers(f"{path.side}.{path.field} holds {column.type}, not numbers.")
            if not _is_list(column.type):
                raise MissingColumn(f"{path.key}: {path.side}.{path.field} is not a list that deep.")
            column, places, there = _step(column, places, index)
            present = present & there
    while _is_list(column.type):
        starts, ends, _ = _spans(column)
        if len(places) and (ends - starts)[places].max() > 1:
            raise MissingColumn(f"{path.key}: {path.side}.{path.field} is a list; say which of its values is meant.")
        column, places, there = _step(column, places, 0)
        present = present & there
    return _numbers(column, places, present, path)


def matching(batch: pa.RecordBatch, partition: str, source: Source) -> Mask | None:
    """Return which records are of the source's model and locations, None for all of them.

    A record that does not say where it comes from comes from its partition.
    """
    mask: Mask | None = None
    if source.model is not None:
        mask = _same(_column(batch, "metadata.last_model"), lambda text: _model_of(text) == source.model, len(batch))
    if source.locations:
        places = _column(batch, "metadata.partition")
        if places is None:
            there = np.full(len(batch), partition in source.locations)
        else:
            there = _same(places, lambda text: (text or partition) in source.locations, len(batch))
        mask = there if mask is None else mask & there
    return None if mask is None or mask.all() else mask


def wanted(paths: Sequence[Path], source: Source) -> list[tuple[str, ...]]:
    """Return the columns of the log that `take` and `matching` need."""
    columns: dict[tuple[str, ...], None] = {}
    for path in paths:
        columns[path.side, path.field] = None
        if path.field.isdigit():  # fields by number, as the first clients wrote them
            columns[path.side,] = None
    if source.model is not None:
        columns["metadata", "last_model"] = None
    if source.locations:
        columns["metadata", "partition"] = None
    return list(columns)


def _field(batch: pa.RecordBatch, path: Path) -> pa.Array:
    found = _column(batch, f"{path.side}.{path.field}")
    if found is not None:
        return found
    struct = _column(batch, path.side)
    if struct is not None and pa.types.is_struct(struct.type) and int(path.field) < struct.type.num_fields:
        return struct.field(int(path.field))
    raise MissingColumn(f"The records have no column {path.side}.{path.field}.")


def _column(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    place = batch.schema.get_field_index(name)
    return batch.column(place) if place >= 0 else None


def _same(column: pa.Array | None, accept: Any, rows: int) -> Mask:
    """Return for which rows `accept` holds, asking it once per distinct text."""
    if column is None or not rows:
        return np.zeros(rows, dtype=bool)
    first = column[0].as_py()
    if column.null_count == 0 and pc.all(pc.equal(column, column[0])).as_py():
        return np.full(rows, bool(accept(first)))
    encoded = column.dictionary_encode()
    accepted = np.array([bool(accept(text)) for text in [*encoded.dictionary.to_pylist(), None]])
    codes = encoded.indices.fill_null(len(accepted) - 1).to_numpy(zero_copy_only=False)
    return cast("Mask", accepted[codes])


def _model_of(text: str | None) -> str | None:
    try:
        said = json.loads(text or "null")
    except ValueError:
        return None
    return said.get("model_name") if isinstance(said, dict) else None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _valid(column: pa.Array) -> Mask:
    if not column.null_count:
        return np.ones(len(column), dtype=bool)
    return cast("Mask", column.is_valid().to_numpy(zero_copy_only=False))


def _spans(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Array]:
    """Return where each list begins and ends in the array of all values, and that array."""
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        starts = (np.arange(len(column), dtype=np.int64) + column.offset) * size
        return starts, starts + size, column.values
    offsets = column.offsets.to_numpy().astype(np.int64, copy=False)
    return offsets[:-1], offsets[1:], column.values


def _step(column: pa.Array, places: NDArray[np.int64], index: int) -> tuple[pa.Array, NDArray[np.int64], Mask]:
    """Go from lists to their value at `index`: the values, where each lies among them, and whether it exists."""
    starts, ends, child = _spans(column)
    if not len(starts):
        return child, np.zeros(len(places), dtype=np.int64), np.zeros(len(places), dtype=bool)
    there = (starts + index < ends)[places]
    if column.null_count:
        there = there & _valid(column)[places]
    return child, np.where(there, starts[places] + index, 0), there


def _flat(column: pa.Array, places: NDArray[np.int64], index: int) -> tuple[pa.Array, NDArray[np.int64], Mask]:
    """Like `_step`, over nested lists as if they were one."""
    starts, ends, child = _spans(column)
    while _is_list(child.type):
        inner_starts, inner_ends, inner = _spans(child)
        bounds = np.append(inner_starts, inner_ends[-1:] if len(inner_ends) else [0])
        starts, ends, child = bounds[starts], bounds[ends], inner
    there = starts + index < ends
    return child, np.where(there, starts + index, 0)[places], there[places]


def _numbers(column: pa.Array, places: NDArray[np.int64], present: Mask, path: Path) -> Numbers:
    kind = column.type
    if pa.types.is_boolean(kind):
        column, kind = column.cast(pa.uint8()), pa.uint8()
    elif pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if not _is_number(kind):
        raise NotNumbers(f"{path.key} holds {kind}, not numbers.")
    if not present.any():
        return np.full(len(places), np.nan, dtype=np.float32)
    nulls = None
    if column.null_count:
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        column = column.fill_null(0)
    values = column.to_numpy(zero_copy_only=False)
    narrow = values.dtype.itemsize <= (4 if values.dtype.kind == "f" else 2)
    nulls = None if nulls is None else nulls[places]
    taken: Numbers = values[places].astype(np.float32 if narrow else np.float64, copy=False)
    absent = ~present if nulls is None else ~present | nulls
    if absent.any():
        taken = taken.copy()
        taken[absent] = np.nan
    return taken
