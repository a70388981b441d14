"""Selection, exclusion, separators and flattening of datasets."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.datasets import EVERYTHING, Selection, parse_selection, select, select_table
from engine.contract.failures import BadInput

ROW = {
    "time": 1,
    "in": {"tensor": [1.0], "id": "a"},
    "out": {"y": [2.0], "deep": {"a": 1, "b": {"c": 2}}},
    "anomaly": {"count": 0},
    "out_chal-a": {"y": [3.0]},
    "metadata": {"last_model": "{}", "elapsed": [1, 2]},
}
RECORD = pa.RecordBatch.from_pylist([ROW])
DOT = ("dataset.separator", ".")
FLAT = ["time", "in.tensor", "in.id", "out.y", "out.deep.a", "out.deep.b.c", "anomaly.count", "out_chal-a.y"]


def names(query: list[tuple[str, str]]) -> list[str]:
    return list(select(RECORD, parse_selection(urlencode(query))).schema.names)


@pytest.mark.parametrize(
    ("query", "columns"),
    [
        ([], list(ROW)),
        ([("dataset[]", "*")], list(ROW)),
        ([("dataset[]", "*"), ("dataset.exclude[]", "metadata"), DOT], FLAT),
        ([("dataset[]", "*"), ("dataset.exclude[]", "metadata"), ("dataset.flatten", "true")], FLAT),
        ([("dataset[]", "*"), ("dataset.exclude[]", "metadata")], list(ROW)[:-1]),
        (
            [("dataset[]", "time"), ("dataset[]", "out"), ("dataset[]", "metadata"), DOT],
            ["time", "out.y", "out.deep.a", "out.deep.b.c", "metadata.last_model", "metadata.elapsed"],
        ),
        ([("dataset[]", "time"), ("dataset[]", "out.y"), DOT], ["time", "out.y"]),
        (
            [("dataset[]", "time"), ("dataset[]", "anomaly.count"), ("dataset.exclude[]", "anomaly"), DOT],
            ["time", "anomaly.count"],
        ),
        ([("dataset[]", "in"), ("dataset.separator", ":")], ["in:tensor", "in:id"]),
        ([("dataset[]", "out:deep:b"), ("dataset.separator", ":")], ["out:deep:b:c"]),
        ([("dataset[]", "out"), ("dataset.exclude[]", "out.deep"), DOT], ["out.y"]),
        ([("dataset[]", "out"), ("dataset.exclude[]", "out.deep.b"), DOT], ["out.y", "out.deep.a"]),
        ([("dataset[]", "out"), ("dataset.exclude[]", "out.y"), DOT], ["out.y", "out.deep.a", "out.deep.b.c"]),
        ([("dataset[]", "out.y"), ("dataset.exclude[]", "out.y"), DOT], []),
        ([("dataset[]", "out")], ["y", "deep"]),
        ([("dataset[]", "time"), ("dataset[]", "out")], ["time", "out"]),
        ([("dataset[]", "time")], ["time"]),
        ([("dataset[]", "*"), ("dataset[]", "metadata"), DOT], [*FLAT, "metadata.last_model", "metadata.elapsed"]),
        ([("dataset[]", "out_chal-a"), DOT], ["out_chal-a.y"]),
        ([("dataset[0]", "time"), ("dataset[1]", "in"), DOT], ["time", "in.tensor", "in.id"]),
        ([("dataset", "time")], ["time"]),
        ([("dataset[]", "*"), ("dataset.separator", "")], list(ROW)),
        ([("page_size", "3"), ("order", "desc")], list(ROW)),
    ],
)  # fmt: skip
def test_the_query_chooses_the_columns(query: list[tuple[str, str]], columns: list[str]) -> None:
    assert names(query) == columns


@pytest.mark.parametrize(
    "query",
    [
        [("dataset[]", "nope")],
        [("dataset[]", "out.y")],
        [("dataset[]", "out.z"), DOT],
        [("dataset[]", "time.x"), DOT],
        [("dataset[]", "out.y.z"), DOT],
        [("dataset[]", ""), DOT],
    ],
)
def test_a_path_that_leads_nowhere_is_invalid(query: list[tuple[str, str]]) -> None:
    with pytest.raises(BadInput, match="invalid path"):
        names(query)


def test_names_may_contain_the_separator() -> None:
    record = pa.RecordBatch.from_pylist([{"out": {"a.b": 1, "a": {"c.d": 2}}}])

    flat = select(record, Selection(("out.a.b", "out.a.c.d"), (), "."))

    assert flat.to_pylist() == [{"out.a.b": 1, "out.a.c.d": 2}]


def test_field_metadata_stays_with_its_column() -> None:
    field = pa.field("y", pa.list_(pa.float32()), nullable=False, metadata={"tensor_type": '{"shape":[1]}'})
    schema = pa.schema([pa.field("out", pa.struct([field]))])
    record = pa.RecordBatch.from_pylist([{"out": {"y": [1.0]}}], schema=schema)

    flat = select(record, Selection(("*",), (), "."))

    assert flat.schema.field("out.y").equals(field.with_name("out.y"), check_metadata=True)


def test_nulls_of_a_struct_reach_its_columns() -> None:
    record = pa.RecordBatch.from_pylist([{"out": {"y": 1}}, {"out": None}])

    assert select(record, Selection(("*",), (), ".")).to_pylist() == [{"out.y": 1}, {"out.y": None}]


def test_tables_of_several_chunks_and_of_none_are_selected_alike() -> None:
    selection = Selection(("*",), ("metadata",), ".")
    table = pa.Table.from_batches([RECORD, RECORD])

    assert select_table(table, selection).schema.names == FLAT
    assert select_table(table, selection).num_rows == 2
    assert select_table(table.slice(0, 0), selection).schema.names == FLAT
    assert select_table(pa.Table.from_batches([], RECORD.schema), selection).schema.names == FLAT
    assert select_table(table, EVERYTHING) is table


leaf = st.one_of(st.integers(-5, 5), st.lists(st.floats(allow_nan=False), max_size=2), st.text(max_size=2))
name = st.text("abc_-", min_size=1, max_size=3)
nested = st.recursive(leaf, lambda inner: st.dictionaries(name, inner, min_size=1, max_size=3), max_leaves=6)


def flattened(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for child, below in value.items() for key, leaf in flattened(f"{path}.{child}", below).items()}


@given(row=st.dictionaries(name, nested, min_size=1, max_size=4))
def test_flattening_gives_every_leaf_under_its_path(row: dict[str, Any]) -> None:
    record = pa.RecordBatch.from_pylist([row])

    flat = select(record, Selection(("*",), (), "."))

    assert flat.to_pylist() == [
        {path: leaf for key, value in row.items() for path, leaf in flattened(key, value).items()}
    ]


@given(row=st.dictionaries(name, nested, min_size=1, max_size=4), data=st.data())
def test_a_path_selects_what_flattening_would_give(row: dict[str, Any], data: st.DataObject) -> None:
    record = pa.RecordBatch.from_pylist([row])
    everything = flattened("", row)
    path = data.draw(st.sampled_from(sorted(everything)))

    chosen = select(record, Selection((path[1:],), (), "."))

    assert chosen.to_pylist() == [{path[1:]: everything[path]}]
