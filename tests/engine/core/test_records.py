"""What the log keeps of an inference: no nulls, no row that is too large, one schema where one is possible."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.deployment import LogDocument
from engine.contract.records import row_bytes, zero_like
from tests.engine.core import making
from tests.engine.core.making import FLOAT, engine, model, rows_of, send, table_of


def kept(reply: Any) -> list[dict[str, Any]]:
    assert reply.record is not None
    reply.record.validate(full=True)
    rows: list[dict[str, Any]] = reply.record.to_pylist()
    return rows


def test_the_record_has_the_recorded_types(tmp_path: Path) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])

    schema = send(made, [{"x": [1, 2, 3]}], wall_ms=1_700_000_000_123).record.schema

    inner = pa.field("inner", pa.float32(), nullable=False)
    assert schema.field("time").equals(pa.field("time", pa.int64(), nullable=False))
    assert schema.field("in").type == pa.struct([("x", pa.list_(pa.float64()))])
    assert schema.field("out").type == pa.struct([pa.field("y", pa.list_(inner), nullable=False)])
    assert schema.field("anomaly").type == pa.struct([pa.field("count", pa.uint32(), nullable=False)])
    assert schema.field("metadata").type == pa.struct([
        pa.field("last_model", pa.string(), nullable=False),
        pa.field("pipeline_version", pa.string(), nullable=False),
        pa.field("elapsed", pa.list_(pa.field("steps", pa.uint64(), nullable=False)), nullable=False),
        pa.field("dropped", pa.list_(pa.string()), nullable=False),
        pa.field("partition", pa.string(), nullable=False),
    ])  # fmt: skip
    assert schema.metadata is None
    assert schema.field("in").type.field("x").metadata == {b"tensor_type": b'{"shape":[3]}'}
    assert schema.field("anomaly").type.field("count").metadata == {b"tensor_type": b'{"shape":[]}'}


def test_every_row_of_a_request_has_its_time_and_metadata(tmp_path: Path) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])

    reply = send(made, [{"x": [1, 2, 3]}, {"x": [4, 5, 6]}], wall_ms=1_700_000_000_123)

    for row in (*kept(reply), *rows_of(reply)):
        assert row["time"] == 1_700_000_000_123
        assert row["metadata"]["pipeline_version"] == "pipeline-version"
        assert row["metadata"]["partition"] == "engine-1"
        assert row["metadata"]["dropped"] == []
        assert len(row["metadata"]["elapsed"]) == 2
        assert all(value > 0 for value in row["metadata"]["elapsed"])


def test_nulls_beside_the_models_fields_are_shown_and_kept_as_zeroes(tmp_path: Path) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])
    extra = {"id": None, "name": None, "tags": None, "deep": None}
    full = {"id": 7, "name": "a", "tags": ["t"], "deep": {"a": 1.5}}

    reply = send(made, [{"x": [1, 2, 3], **extra}, {"x": [1, 2, 3], **full}])

    assert rows_of(reply)[0]["in"] == {"x": [1.0, 2.0, 3.0], **extra}
    nulls, values = (row["in"] for row in kept(reply))
    assert nulls == {"x": [1.0, 2.0, 3.0], "id": 0, "name": "", "tags": [], "deep": {"a": 0.0}}
    assert values == {"x": [1.0, 2.0, 3.0], **full}


@pytest.mark.parametrize(
    ("array", "zeroes"),
    [
        (pa.array([1, None]), [1, 0]),
        (pa.array([True, None]), [True, False]),
        (pa.array([b"x", None]), [b"x", b""]),
        (pa.array([None, [1, None]]), [[], [1, 0]]),
        (pa.array([None, [1.0, None]], pa.list_(pa.float32(), 2)), [[0.0, 0.0], [1.0, 0.0]]),
        (pa.array([None, ["a"]], pa.large_list(pa.large_string())), [[], ["a"]]),
        (pa.array([None, {"a": {"b": None}}, {"a": {"b": 1}}]).slice(0, 2), [{"a": {"b": 0}}] * 2),
        (pa.nulls(2), [0.0, 0.0]),
        (pa.array([None, 5], pa.timestamp("ms")), [0, 5]),
        (pa.array([None, 1], pa.decimal128(5, 2)), [0, 1]),
        (pa.array([None, 0.5], pa.float16()), [0.0, 0.5]),
        (pa.array([None, "a", "b"]).slice(0, 2), ["", "a"]),
        (pa.array([None, 1], pa.date32()), [dt.date(1970, 1, 1), dt.date(1970, 1, 2)]),
    ],
)  # fmt: skip
def test_a_null_of_every_type_has_a_zero(array: pa.Array, zeroes: list[Any]) -> None:
    made = zero_like(array)

    made.validate(full=True)
    if pa.types.is_timestamp(made.type):
        made = made.cast(pa.int64())
    assert made.to_pylist() == zeroes


value = st.one_of(st.none(), st.integers(-9, 9))
deep = st.one_of(st.none(), st.lists(st.one_of(st.none(), st.lists(value, max_size=3)), max_size=3))


@given(st.lists(st.fixed_dictionaries({"a": value, "b": deep}), min_size=1, max_size=5), st.integers(0, 2))
def test_zeroes_replace_nulls_and_nothing_else(rows: list[dict[str, Any]], start: int) -> None:
    kind = pa.struct([("a", pa.int64()), ("b", pa.list_(pa.list_(pa.int64())))])
    array = pa.array(rows, kind).slice(start)

    made = zero_like(array)

    made.validate(full=True)
    assert made.to_pylist() == [
        {
            "a": row["a"] or 0,
            "b": [[number or 0 for number in inner or []] for inner in row["b"] or []],
        }
        for row in rows[start:]
    ]


def test_a_row_over_the_limit_loses_its_largest_input_first(tmp_path: Path) -> None:
    made = engine(
        [model(1, making.total(tmp_path / "total.onnx"))], log=LogDocument(root="unused", record_bytes_limit=4_000)
    )
    rows = [{"x": [1.0] * 1000, "note": "n" * 100}]

    reply = send(made, rows)

    assert len(rows_of(reply)[0]["in"]["x"]) == 1000
    assert rows_of(reply)[0]["metadata"]["dropped"] == []
    (row,) = kept(reply)
    assert row["in"] == {"note": "n" * 100}
    assert row["out"] == {"total": [1000.0]}
    assert row["metadata"]["dropped"] == ["in.x"]


def test_outputs_are_dropped_after_inputs_and_time_stays(tmp_path: Path) -> None:
    made = engine(
        [model(1, making.echo(tmp_path / "echo.onnx", FLOAT, ["N", 1000]))],
        log=LogDocument(root="unused", record_bytes_limit=1_000),
    )

    (row,) = kept(send(made, [{"x": [1.0] * 1000}]))

    assert (row["in"], row["out"]) == ({}, {})
    assert row["metadata"]["dropped"] == ["in.x", "out.y"]
    assert row["time"] > 0


def test_only_the_rows_that_are_too_large_lose_a_column(tmp_path: Path) -> None:
    made = engine(
        [model(1, making.scale(tmp_path / "double.onnx", 2))], log=LogDocument(root="unused", record_bytes_limit=1_000)
    )

    small, large = kept(send(made, [{"x": [1, 2, 3], "text": "a"}, {"x": [1, 2, 3], "text": "b" * 2000}]))

    assert (small["in"]["text"], small["metadata"]["dropped"]) == ("a", [])
    assert (large["in"]["text"], large["metadata"]["dropped"]) == ("", ["in.text"])
    assert large["in"]["x"] == [1.0, 2.0, 3.0]


def test_a_shape_that_varies_is_told_in_the_reply_and_not_in_the_logs_schema(tmp_path: Path) -> None:
    made = engine([model(1, making.echo(tmp_path / "grid.onnx", FLOAT, ["N", "H", "W"]))])

    replies = [send(made, [{"x": [[1.0] * width] * 2}], accept=making.ARROW) for width in (2, 3)]

    shapes = [table_of(reply).schema.field("out").type.field("y").metadata[b"tensor_type"] for reply in replies]
    assert shapes == [b'{"shape":[2,2]}', b'{"shape":[2,3]}']
    first, second = (reply.record.schema for reply in replies)
    assert first.field("out").equals(second.field("out"), check_metadata=True)


def test_the_size_of_rows_is_counted() -> None:
    kind = pa.struct([("a", pa.list_(pa.float64())), ("s", pa.string())])
    array = pa.array([{"a": [1.0, 2.0], "s": "abc"}, {"a": [], "s": ""}], kind)

    assert row_bytes(array).tolist() == [16 + 7, 4]


def test_a_failure_keeps_the_row_at_fault_in_one_schema(tmp_path: Path) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])

    replies = [send(made, rows) for rows in (b"{", [{"x": [1, 2, 3]}, {"x": [1]}], [{"y": "a"}])]

    failures = [reply.failure for reply in replies]
    assert len({failure.schema for failure in failures}) == 1
    assert [failure["in"].to_pylist()[0]["request"] for failure in failures] == ["", '{"x":[1.0]}', '{"y":"a"}']
    assert replies[0].topic == "workspace-1-pipeline-p"
    assert failures[0].schema.names == ["time", "in", "error", "metadata"]
