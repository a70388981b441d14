"""JSON to Arrow and back without loss."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract import columns as cols
from engine.contract.codecs import decode_records, encode_records, to_rows
from engine.contract.custom_json import read_arrays, tagged_outputs
from engine.contract.failures import BadInput, failure_body

whole = st.integers(-(2**63), 2**63 - 1)
real = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
leaf = st.sampled_from([whole, real, texts, st.booleans()])


@st.composite
def columns(draw: st.DrawFn) -> st.SearchStrategy[Any]:
    kind = draw(leaf)
    for _ in range(draw(st.integers(0, 2))):
        kind = st.lists(kind, max_size=3)
    return draw(st.sampled_from([kind, st.one_of(st.none(), kind)]))


@st.composite
def records(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = draw(st.integers(1, 4))
    names = draw(st.lists(texts, unique=True, min_size=1, max_size=3))
    made = {name: draw(st.lists(draw(columns()), min_size=rows, max_size=rows)) for name in names}
    return [{name: made[name][row] for name in names} for row in range(rows)]


@given(rows=records())
def test_records_read_and_written_are_the_same(rows: list[dict[str, Any]]) -> None:
    batch = decode_records(json.dumps(rows).encode())

    batch.validate(full=True)
    assert json.loads(encode_records(batch)) == rows


@given(rows=records(), start=st.integers(0, 3), count=st.integers(0, 4))
def test_slices_are_written_as_they_are(rows: list[dict[str, Any]], start: int, count: int) -> None:
    batch = decode_records(json.dumps(rows).encode())

    assert json.loads(encode_records(batch.slice(min(start, len(rows)), count))) == rows[start : start + count]


ARRAYS = [
    pa.list_(pa.float32()),
    pa.list_(pa.float64(), 2),
    pa.large_list(pa.list_(pa.int16())),
    pa.list_(pa.bool_()),
    pa.list_(pa.string()),
    pa.struct([("a%b", pa.float64()), ("", pa.struct([("b", pa.list_(pa.uint64()))]))]),
    pa.struct([]),
    pa.float16(),
    pa.string(),
    pa.bool_(),
    pa.date32(),
    pa.binary(),
]


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        return st.none() | st.lists(values_of(kind.value_type), min_size=size, max_size=size)
    if cols.is_list(kind):
        return st.none() | st.lists(values_of(kind.value_type), max_size=3)
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    simple: dict[str, st.SearchStrategy[Any]] = {
        "halffloat": st.floats(width=16),
        "float": st.floats(width=32),
        "double": st.floats(),
        "int16": st.integers(-9, 9),
        "uint64": st.integers(0, 2**64 - 1),
        "bool": st.booleans(),
        "string": texts,
        "date32[day]": st.dates(),
        "binary": st.binary(max_size=3),
    }
    return st.none() | simple[str(kind)]


@given(st.data(), st.sampled_from(ARRAYS), st.integers(0, 2))
def test_the_text_of_columns_is_what_the_encoder_makes_of_their_values(
    data: st.DataObject, kind: pa.DataType, start: int
) -> None:
    array = pa.array(data.draw(st.lists(values_of(kind), max_size=6)), kind).slice(start)
    batch = pa.RecordBatch.from_arrays([array, array], names=["x", "%y"])

    assert encode_records(batch) == msgspec.json.encode(to_rows(batch))
    assert encode_records(pa.Table.from_batches([batch, batch])) == msgspec.json.encode(to_rows(batch) * 2)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_float32_is_written_in_the_shortest_form_that_reads_back(values: list[float]) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(values, pa.float32())], names=["x"])

    text = encode_records(batch)
    read = [row["x"] for row in json.loads(text)]

    assert [np.float32(value) for value in read] == [np.float32(value) for value in values]
    for value, again in zip(values, read, strict=True):
        assert abs(float(str(np.float32(value))) - again) <= abs(again) * 1e-12


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0014974177, b"0.0014974177"), (718013.75, b"718013.75"), (0.1, b"0.1"), (16777216.0, b"16777216.0")],
)  # fmt: skip
def test_float32_looks_as_the_vendor_prints_it(value: float, text: bytes) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([[value]], pa.list_(pa.float32()))], names=["x"])

    assert encode_records(batch) == b'[{"x":[' + text + b"]}]"


def test_whole_numbers_beyond_2_to_the_53_are_exact() -> None:
    rows = [{"id": 9007199254740993, "ids": [2**63 - 1, -(2**63)], "big": 2**64 - 1}]

    assert json.loads(encode_records(decode_records(json.dumps(rows).encode()))) == rows


def test_values_of_other_types_have_a_json_form() -> None:
    table = pa.table({
        "when": pa.array([1_700_000_000_123], pa.timestamp("ms")),
        "zoned": pa.array([1_700_000_000_123_000], pa.timestamp("us", "Europe/Berlin")),
        "day": pa.array([0], pa.date32()),
        "span": pa.array([1500], pa.duration("ms")),
        "bytes": pa.array([b"\x00\xff"]),
        "price": pa.array([12345], pa.decimal128(10, 0)),
        "half": pa.array([0.1], pa.float16()),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "nan": pa.array([math.nan]),
    })  # fmt: skip

    (row,) = json.loads(encode_records(table))

    assert row == {
        "when": 1_700_000_000_123,
        "zoned": 1_700_000_000_123,
        "day": "1970-01-01",
        "span": 1500,
        "bytes": "AP8=",
        "price": "12345",
        "half": 0.1,
        "map": {"a": 1},
        "nan": None,
    }


def test_hints_decide_what_a_number_becomes() -> None:
    body = b'[{"x":[1,2],"n":[1.0,2.0],"s":[]}]'

    batch = decode_records(body, {"x": "float", "n": "int", "s": "string"})

    assert batch.schema.field("x").type == pa.list_(pa.float64())
    assert batch.schema.field("n").type == pa.list_(pa.int64())
    assert batch.schema.field("s").type == pa.list_(pa.string())


@given(st.lists(st.one_of(st.none(), st.lists(st.floats(width=32), max_size=3)), max_size=5))
def test_arrays_read_by_their_buffers_hold_what_pyarrow_says(values: list[Any]) -> None:
    for kind in (pa.list_(pa.float64()), pa.large_list(pa.float64())):
        array = pa.array(values, kind)
        for one in (array, array.slice(1), array.slice(0, max(len(array) - 1, 0))):
            assert str(cols.to_python(one)) == str(one.to_pylist())


def test_custom_json_reads_arrays_per_input() -> None:
    assert read_arrays({"a": [[1], [2]], "b": [3, 4]}) == ({"a": [[1], [2]], "b": [3, 4]}, 2)
    assert read_arrays([[1, 2]]) == ({"tensor": [[1, 2]]}, 1)
    for bad in ({"a": [1], "b": [1, 2]}, {"a": 1}, {}, "x", 7, None):
        with pytest.raises(BadInput):
            read_arrays(bad)


def test_custom_json_tags_outputs_with_their_type_and_shape() -> None:
    field = pa.field("grid", pa.list_(pa.float32()), metadata={"tensor_type": '{"shape":[2,1]}'})
    batch = pa.RecordBatch.from_arrays(
        [pa.array([[1, 2], [3, 4]], pa.list_(pa.float32())), pa.array([["a"], ["b"]]), pa.array([[1], [2, 3]])],
        schema=pa.schema([field, pa.field("s", pa.list_(pa.string())), pa.field("r", pa.list_(pa.int64()))]),
    )

    assert tagged_outputs(batch) == [
        {"Float": {"v": 1, "dim": [2, 2, 1], "data": [1.0, 2.0, 3.0, 4.0]}},
        {"String": {"v": 1, "dim": [2, 1], "data": ["a", "b"]}},
        {"Int64": {"v": 1, "dim": [3], "data": [1, 2, 3]}},
    ]


@pytest.mark.parametrize("agent", ["python-requests/2.25.1", "python-requests/2.28.0"])
def test_old_clients_read_errors_as_a_list(agent: str) -> None:
    assert json.loads(failure_body("no", 400, agent)) == [{"error_type": "InferenceError", "error": "no"}]


@pytest.mark.parametrize(
    "agent", ["python-requests/2.32.3", "python-httpx/0.27", None, "curl/8", "python-requests/2.2"]
)
def test_other_clients_read_errors_as_an_object(agent: str | None) -> None:
    body = {"code": 404, "status": "Error", "error": "no", "source": "platform"}

    assert json.loads(failure_body("no", 404, agent, "platform")) == body
