"""Whatever is sent, an engine answers: with rows that are sound, or with a refusal; never with a failure of its own."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.runtime.engine import Engine, InferReply, InferRequest
from tests.engine.core import making
from tests.engine.core.making import ARROW, RECORDS, engine, model, scale, send


@cache
def doubling_engine() -> Engine:
    folder = Path(tempfile.mkdtemp(prefix="potoroo-engine-"))
    return engine([model(1, scale(folder / "double.onnx", 2))])


def sound(reply: InferReply) -> None:
    assert reply.status in (200, 400, 415), reply.body
    for kept in (reply.record, reply.failure):
        if kept is not None:
            kept.validate(full=True)
    if reply.content_type == ARROW:
        pa.ipc.open_file(reply.body).read_all().validate(full=True)
    else:
        json.loads(reply.body)
    assert (reply.status == 200) is (reply.failure is None)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3)
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=2), inner, max_size=3)),
    max_leaves=12,
)
near = st.lists(
    st.fixed_dictionaries(
        {"x": st.one_of(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), anything)},
        optional={"y": anything},
    ),
    max_size=4,
)
queries = st.sampled_from(
    ["", making.SDK_QUERY, "dataset[]=out&dataset.separator=:", "dataset[]=x", "dataset.separator=%ff", "&&=&dataset[]"]
)
accepts = st.sampled_from([None, ARROW, RECORDS, "application/json; format=wallaroo"])


@settings(max_examples=200, deadline=None)
@given(
    value=st.one_of(anything, near), query=queries, accept=accepts, kind=st.sampled_from([RECORDS, "application/json"])
)
@example(value=[{"x": [1e300, 0, 0]}], query="", accept=None, kind=RECORDS)
@example(value=[{"x": [1, 2, 3], "y": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}], query="", accept=ARROW, kind=RECORDS)
@example(value=[{"x": [1, 2, 3], "": {"": {}}}], query=making.SDK_QUERY, accept=ARROW, kind=RECORDS)
def test_any_json_is_answered_or_refused(value: Any, query: str, accept: str | None, kind: str) -> None:
    body = json.dumps(value).encode()

    sound(doubling_engine().infer(InferRequest("p", kind, body, accept=accept, query=query)))


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60), kind=st.sampled_from([RECORDS, ARROW, None, "application/json"]))
@example(body=b'[{"x":"\\ud800"}]', kind=RECORDS)
@example(body=b'[{"\\ud800":1}]', kind=RECORDS)
@example(body=b'[{"x":[1e400,1,1]}]', kind=RECORDS)
@example(body=b'[{"x":' + b"[" * 900 + b"]" * 900 + b"}]", kind=RECORDS)
@example(body=b"[" + b'{"a":' * 900 + b"1" + b"}" * 900 + b"]", kind=RECORDS)
@example(body=b'[{"x":[1,2,3],"x":[4,5,6]}]', kind=RECORDS)
def test_any_bytes_are_answered_or_refused(body: bytes, kind: str | None) -> None:
    sound(doubling_engine().infer(InferRequest("p", kind, body)))


def columns_of_every_type() -> dict[str, pa.Array]:
    moment = dt.datetime(2024, 5, 1, 10, tzinfo=dt.UTC)
    return {
        "date32": pa.array([moment.date(), None]),
        "date64": pa.array([moment.date(), None], pa.date64()),
        "time32": pa.array([dt.time(1, 2, 3), None], pa.time32("s")),
        "time64": pa.array([dt.time(1, 2, 3), None], pa.time64("ns")),
        "timestamp": pa.array([moment, None], pa.timestamp("ns")),
        "zoned timestamp": pa.array([moment, None], pa.timestamp("us", "Europe/Berlin")),
        "duration": pa.array([dt.timedelta(seconds=1), None]),
        "interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
        "decimal128": pa.array([decimal.Decimal("1.5"), None]),
        "decimal256": pa.array([decimal.Decimal("1.5"), None], pa.decimal256(60, 2)),
        "decimal32": pa.array([decimal.Decimal("1.5"), None], pa.decimal32(5, 2)),
        "binary": pa.array([b"\xff", None]),
        "large binary": pa.array([b"\xff", None], pa.large_binary()),
        "binary view": pa.array([b"\xff", None], pa.binary_view()),
        "fixed-size binary": pa.array([b"ab", None], pa.binary(2)),
        "string view": pa.array(["a", None], pa.string_view()),
        "null": pa.nulls(2),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        "struct": pa.array([{"a": 1, "b": {"c": [None, 1]}}, None]),
        "empty struct": pa.array([{}, None], pa.struct([])),
        "fixed-size list": pa.array([[1, None], None], pa.list_(pa.int8(), 2)),
        "list of nothing": pa.array([[], None], pa.list_(pa.null())),
        "list of structs": pa.array([[{"a": 1}, None], None]),
        "empty fixed-size list": pa.array([[], None], pa.list_(pa.int8(), 0)),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef", None], pa.binary(16))),
        "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None])),
        "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8())),
        "half": pa.array([0.5, None], pa.float16()),
        "large list view": pa.array([[1], None], pa.large_list_view(pa.int8())),
        "union": pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]),
    }


@pytest.mark.parametrize("name", columns_of_every_type())
def test_a_column_of_any_type_beside_the_models_own_is_shown_and_kept(name: str) -> None:
    column = columns_of_every_type()[name]
    numbers = pa.array([[1.0, 2.0, 3.0]] * 2, pa.list_(pa.float32()))
    for table in (pa.table({"x": numbers, "extra": column}), pa.table({"x": numbers, "extra": column}).slice(1, 1)):
        for accept in (None, ARROW, "application/json; format=wallaroo"):
            for query in ("", making.SDK_QUERY):
                reply = send(doubling_engine(), table, accept=accept, query=query)
                sound(reply)
                assert reply.status == (400 if name == "union" else 200), reply.body


@pytest.mark.parametrize("name", columns_of_every_type())
def test_a_column_of_any_type_in_the_models_place_is_refused(name: str) -> None:
    reply = send(doubling_engine(), pa.table({"x": columns_of_every_type()[name]}))

    sound(reply)
    assert reply.status == 400
