"""Rows of the same columns share a page by time, whatever the width of their numbers."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from engine.logs.ordered import read_ordered
from engine.logs.query import Order, Status
from engine.logs.unify import fit_to, shape_of, unify
from engine.logs.writer import PartitionWriter


def record(kind: pa.DataType, time: int, value: float, name: str = "tensor") -> pa.RecordBatch:
    schema = pa.schema(
        [
            pa.field("time", pa.int64(), nullable=False),
            pa.field("in", pa.struct([pa.field(name, kind, metadata={"tensor_type": str(kind)})]), nullable=False),
            pa.field("text", pa.large_string() if time % 2 else pa.string()),
        ]
    )
    return pa.RecordBatch.from_pylist([{"time": time, "in": {name: [value] * 2}, "text": "x"}], schema=schema)


KINDS = [
    pa.list_(pa.float64()),
    pa.list_(pa.float32()),
    pa.list_(pa.field("inner", pa.float32(), nullable=False)),
    pa.list_(pa.float32(), 2),
    pa.large_list(pa.float32()),
]


def test_json_and_arrow_requests_share_a_page(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, "t", "p") as writer:
        for time in range(20):
            writer.append(record(KINDS[time % len(KINDS)], time, 0.1))
            writer.flush()

    page = read_ordered(tmp_path, "t", order=Order.ASC)

    assert page.status is Status.ALL
    assert page.table["time"].to_pylist() == list(range(20))
    assert page.table.schema.field("in").type.field(0).type == pa.large_list(pa.float64())
    assert len(page.parts) == 20
    assert [part.schema.field("in").type.field(0).type for part in page.parts[:5]] == KINDS


def test_other_columns_end_the_page(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, "t", "p") as writer:
        writer.append(record(KINDS[0], 1, 0.1))
        writer.append(record(KINDS[1], 2, 0.1))
        writer.append(record(KINDS[1], 3, 0.1, name="other"))

    first = read_ordered(tmp_path, "t", order=Order.ASC)
    second = read_ordered(tmp_path, "t", cursor=first.cursor)

    assert (first.status, first.table.num_rows) == (Status.SCHEMA_CHANGE, 2)
    assert (second.status, second.table["time"].to_pylist()) == (Status.ALL, [3])


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_any_two_forms_fit_one_table(one: pa.DataType, other: pa.DataType) -> None:
    tables = [pa.Table.from_batches([record(kind, 1, 0.5)]) for kind in (one, other)]

    schema = unify([table.schema for table in tables])

    assert shape_of(tables[0].schema) == shape_of(tables[1].schema)
    for table in tables:
        fitted = fit_to(table, schema)
        fitted.validate(full=True)
        assert fitted.to_pylist() == table.to_pylist()
    assert unify([tables[0].schema]).equals(tables[0].schema, check_metadata=True)
