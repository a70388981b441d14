"""JSON in the pandas-records form, to and from Arrow.

Reading takes two steps, because the type of a number depends on who will use it: `read_records` gives the columns as
Python values, `to_batch` makes Arrow of them with hints from the models (a float model's `[1, 2]` are doubles).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract.failures import BadInput
from engine.contract.json_text import row_texts

LeafKind = Literal["float", "int", "uint", "string", "bool"]
"""What the numbers or texts of a column are wanted for."""

Columns = dict[str, list[Any]]

DEPTH_LIMIT = 16

_decoder = msgspec.json.Decoder()
_INT64 = range(-(2**63), 2**63)
_NUMBERS = frozenset({int, float, bool})


class _BadCell(Exception):
    """A cell that does not fit its column; `index` counts in the list at hand."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index, self.message = index, message


def parse_json(body: bytes | bytearray | memoryview) -> Any:
    """Return the JSON value in `body`; raises `BadInput` saying where it breaks."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadInput(f"The body is not valid JSON: {exc}") from exc
    except RecursionError as exc:
        raise BadInput("The body is nested too deeply.") from exc


def read_records(value: Any) -> tuple[Columns, int]:
    """Turn a list of row objects into columns, and say how many rows there are.

    Raises `BadInput` for anything but a list of objects with the same keys.
    """
    if not isinstance(value, list):
        raise BadInput(f"The body must be a JSON list of records (objects), one per row; it is {_kind(value)}.")
    for row, record in enumerate(value):
        if not isinstance(record, dict):
            raise BadInput(f"a record must be an object of fields, not {_kind(record)}", row=row)
    if not value:
        return {}, 0
    names = value[0].keys()
    try:
        columns = {name: [record[name] for record in value] for name in names}
    except KeyError:
        columns = {}
    if not columns or sum(map(len, value)) != len(names) * len(value):
        _check_same_fields(value)
    return columns, len(value)


def _check_same_fields(records: Sequence[Mapping[str, Any]]) -> None:
    names = records[0].keys()
    for row, record in enumerate(records):
        for name in names:
            if name not in record:
                raise BadInput("the field is missing here; every record needs the same fields", field=name, row=row)
        for name in record:
            if name not in names:
                raise BadInput(
                    "the first record has no such field; every record needs the same fields", field=name, row=row
                )


def to_batch(columns: Columns, rows: int, hints: Mapping[str, LeafKind] | None = None) -> pa.RecordBatch:
    """Make a record batch of columns of Python values; raises `BadInput` naming the field and the row."""
    hints = hints or {}
    arrays, fields = [], []
    for name, cells in columns.items():
        try:
            array = to_array(cells, hints.get(name))
        except _BadCell as exc:
            raise BadInput(exc.message, field=name, row=exc.index) from exc
        arrays.append(array)
        fields.append(pa.field(name, array.type))
    if not fields:
        return pa.RecordBatch.from_struct_array(cols.struct_array([], [], rows))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def to_array(cells: list[Any], hint: LeafKind | None = None, depth: int = 0) -> pa.Array:
    """Make one Arrow array of JSON values of one kind; lists and objects may be nested `DEPTH_LIMIT` deep."""
    if depth > DEPTH_LIMIT:
        raise _BadCell(0, f"it is nested more than {DEPTH_LIMIT} deep")
    kinds = set(map(type, cells))
    has_nulls = type(None) in kinds
    kinds.discard(type(None))
    if len(kinds) > 1 and kinds != {int, float}:
        _check_alike(cells)
    if list in kinds:
        return _lists(cells, hint, has_nulls, depth)
    if dict in kinds:
        return _structs(cells, has_nulls, depth)
    if str in kinds:
        return _nulls(cols.string_array([cell or "" for cell in cells] if has_nulls else cells), cells, has_nulls)
    if kinds == {bool} or (not kinds and hint == "bool"):
        array = cols.numeric_array(np.fromiter((bool(cell) for cell in cells), np.bool_, len(cells)))
        return _nulls(array, cells, has_nulls)
    if not kinds and hint == "string":
        return _nulls(cols.string_array([""] * len(cells)), cells, has_nulls)
    return _nulls(_numbers(cells, hint, kinds, has_nulls), cells, has_nulls)


def _numbers(cells: list[Any], hint: LeafKind | None, kinds: set[type], has_nulls: bool) -> pa.Array:
    filled = [0 if cell is None else cell for cell in cells] if has_nulls else cells
    is_whole = float not in kinds or (hint in ("int", "uint") and all(_is_whole(cell) for cell in filled))
    if hint != "float" and kinds and is_whole:
        whole = filled if float not in kinds else [int(cell) for cell in filled]
        low, high = min(whole), max(whole)
        if (hint != "uint" or low < 0) and low in _INT64 and high in _INT64:
            return cols.numeric_array(np.array(whole, "i8"))
        if low >= 0 and high < 2**64:
            return cols.numeric_array(np.array(whole, "u8"))
    try:
        return cols.numeric_array(np.array(filled, "f8"))
    except OverflowError as exc:
        raise _BadCell(_find(cells, lambda cell: abs(cell or 0) > 2**1023), "the number is too large") from exc


def _is_whole(value: float) -> bool:
    return value == value // 1


def _lists(cells: list[Any], hint: LeafKind | None, has_nulls: bool, depth: int) -> pa.Array:
    filled = [cell or [] for cell in cells] if has_nulls else cells
    offsets = cols.starts(filled)
    flat = list(chain.from_iterable(filled))
    try:
        values = to_array(flat, hint, depth + 1)
    except _BadCell as exc:
        row = int(np.searchsorted(offsets, exc.index, side="right")) - 1
        raise _BadCell(row, f"{exc.message} (element {exc.index - int(offsets[row])})") from exc
    valid = _bitmap(cells) if has_nulls else None
    return cols.list_array(values, offsets, pa.field("item", values.type), valid)


def _structs(cells: list[Any], has_nulls: bool, depth: int) -> pa.Array:
    names = dict.fromkeys(chain.from_iterable(cell for cell in cells if cell is not None))
    arrays = [to_array([cell and cell.get(name) for cell in cells], None, depth + 1) for name in names]
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)]
    return _nulls(cols.struct_array(arrays, fields, len(cells)), cells, has_nulls)


def _nulls(array: pa.Array, cells: list[Any], has_nulls: bool) -> pa.Array:
    """Lay the nulls of `cells` over an array of the same length."""
    if not has_nulls:
        return array
    buffers = array.buffers()
    if pa.types.is_struct(array.type):
        children = [array.field(index) for index in range(array.type.num_fields)]
        return pa.Array.from_buffers(array.type, len(array), [_bitmap(cells)], children=children)
    return pa.Array.from_buffers(array.type, len(array), [_bitmap(cells), *buffers[1:]])


def _bitmap(cells: list[Any]) -> pa.Buffer:
    known = np.fromiter((cell is not None for cell in cells), np.bool_, len(cells))
    return pa.py_buffer(np.packbits(known, bitorder="little"))


def _check_alike(cells: list[Any]) -> None:
    """Find the first cell that is of another kind than the first one; true and false count as numbers."""
    known = [(index, cell) for index, cell in enumerate(cells) if cell is not None]
    wanted = _kind_group(known[0][1])
    for index, cell in known:
        if _kind_group(cell) is not wanted:
            raise _BadCell(index, f"expected {_kind(known[0][1])} as before in this field, got {_kind(cell)}")


def _kind_group(cell: Any) -> type:
    kind = type(cell)
    return float if kind in _NUMBERS else kind


def _find(cells: list[Any], is_bad: Any) -> int:
    return next(index for index, cell in enumerate(cells) if is_bad(cell))


def _kind(value: Any) -> str:
    """Name a JSON value's kind in words."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names[type(value)]


def decode_records(body: bytes, hints: Mapping[str, LeafKind] | None = None) -> pa.RecordBatch:
    """Read pandas-records JSON in one step; raises `BadInput`."""
    columns, rows = read_records(parse_json(body))
    return to_batch(columns, rows, hints)


def to_rows(records: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Return the rows as objects of JSON values; NaN and infinities stay floats here and become null when encoded."""
    names = records.schema.names
    if not names:
        return [{} for _ in range(records.num_rows)]
    columns = [_column(records.column(index)) for index in range(records.num_columns)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _column(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    if isinstance(column, pa.ChunkedArray):
        return list(chain.from_iterable(cols.to_python(chunk) for chunk in column.chunks))
    return cols.to_python(column)


def encode_records(records: pa.RecordBatch | pa.Table) -> bytes:
    """Write rows as pandas-records JSON: float32 in shortest form, NaN and infinities as null."""
    batches = [records] if isinstance(records, pa.RecordBatch) else records.to_batches()
    rows = [row for batch in batches for row in row_texts(batch.schema.names, batch.columns, batch.num_rows)]
    return b"[" + b",".join(rows) + b"]"
