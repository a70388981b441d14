"""Choose and flatten the datasets of records: one implementation for replies of the engine and for logs.

A record is nested (`time`, `in`, `out`, …); callers ask for parts of it by path, leave parts out, and have structs
flattened into columns named `in.tensor` with a separator of their choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl

import msgspec
import pyarrow as pa

from engine.contract.failures import BadInput


class Selection(msgspec.Struct, frozen=True):
    """What a caller wants of a record."""

    datasets: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    separator: str | None = None
    """None leaves structs nested."""

    @property
    def is_everything(self) -> bool:
        """Whether the record is wanted as it is."""
        return self.datasets == ("*",) and not self.exclude and self.separator is None


EVERYTHING = Selection()
FLAT = Selection(exclude=("metadata",), separator=".")
"""What the SDK asks for unless its user says otherwise."""


def parse_selection(query: str) -> Selection:
    """Read `dataset[]`, `dataset.exclude[]`, `dataset.separator` and `dataset.flatten` from a query string."""
    if not query:
        return EVERYTHING
    datasets: list[str] = []
    exclude: list[str] = []
    separator: str | None = None
    flatten = False
    for key, value in parse_qsl(query, keep_blank_values=True):
        name = key.partition("[")[0]
        if name == "dataset":
            datasets.append(value)
        elif name == "dataset.exclude":
            exclude.append(value)
        elif name == "dataset.separator":
            separator = value or None
        elif name == "dataset.flatten":
            flatten = value.lower() in ("true", "1", "")
    if flatten and separator is None:
        separator = "."
    return Selection(tuple(datasets) or ("*",), tuple(exclude), separator)


def select(records: pa.RecordBatch, selection: Selection) -> pa.RecordBatch:
    """Return the wanted part of `records`, columns in the order they were asked for, each once.

    Raises `BadInput` for a path that leads nowhere.
    """
    if selection.is_everything:
        return records
    columns: dict[str, tuple[pa.Field, pa.Array]] = {}
    for name, field, array in _requested(records, selection):
        columns.setdefault(name, (field.with_name(name), array))
    schema = pa.schema([field for field, _ in columns.values()])
    if not columns:
        return records.select([])
    return pa.RecordBatch.from_arrays([array for _, array in columns.values()], schema=schema)


def select_table(table: pa.Table, selection: Selection) -> pa.Table:
    """Do what `select` does for a table of several chunks."""
    if selection.is_everything:
        return table
    batches = table.to_batches() or [empty_batch(table.schema)]
    return pa.Table.from_batches([select(batch, selection) for batch in batches])


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch of this schema without rows."""
    return pa.RecordBatch.from_pylist([], schema=schema)


def _requested(records: pa.RecordBatch, selection: Selection) -> Iterator[tuple[str, pa.Field, pa.Array]]:
    excluded = frozenset(selection.exclude)
    paths = [path for path in _expand(records.schema.names, selection.datasets) if path not in excluded]
    for path in paths:
        field, array = _resolve(records, path, selection.separator)
        if selection.separator is not None:
            yield from _flatten(path, field, array, selection.separator, excluded)
        elif pa.types.is_struct(field.type) and len(paths) == 1:
            for child, values in zip(field.type, array.flatten(), strict=True):
                yield child.name, child, values
        else:
            yield path, field, array


def _expand(names: Iterable[str], datasets: Iterable[str]) -> Iterator[str]:
    for dataset in datasets:
        if dataset == "*":
            yield from names
        else:
            yield dataset


def _resolve(records: pa.RecordBatch, path: str, separator: str | None) -> tuple[pa.Field, pa.Array]:
    index = records.schema.get_field_index(path)
    if index >= 0:
        return records.schema.field(index), records.column(index)
    if separator is not None:
        for index, field in enumerate(records.schema):
            found = _descend(field, records.column(index), path, separator)
            if found is not None:
                return found
    raise BadInput(f"invalid path {path!r}: the record has {', '.join(records.schema.names)}")


def _descend(field: pa.Field, array: pa.Array, path: str, separator: str) -> tuple[pa.Field, pa.Array] | None:
    """Follow `path` from `field`; names may themselves contain the separator."""
    if path == field.name:
        return field, array
    start = field.name + separator
    if not path.startswith(start) or not pa.types.is_struct(field.type):
        return None
    for child, values in zip(field.type, array.flatten(), strict=True):
        found = _descend(child, values, path[len(start) :], separator)
        if found is not None:
            return found
    return None


def _flatten(
    path: str, field: pa.Field, array: pa.Array, separator: str, excluded: frozenset[str]
) -> Iterator[tuple[str, pa.Field, pa.Array]]:
    """Yield the leaves of a struct; lists are leaves, and only structs can be excluded on the way down."""
    if not pa.types.is_struct(field.type):
        yield path, field, array
        return
    for child, values in zip(field.type, array.flatten(), strict=True):
        below = f"{path}{separator}{child.name}"
        if pa.types.is_struct(child.type) and below in excluded:
            continue
        yield from _flatten(below, child, values, separator, excluded)
