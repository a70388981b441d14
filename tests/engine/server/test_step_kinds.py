"""Every kind of step, asked of an engine process over its port."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from engine.logs.query import Order, read_page
from tests.engine.core.making import INT64, SDK_QUERY, echo, scale, total
from tests.engine.core.test_steps import anomaly, validation
from tests.engine.server import models
from tests.engine.server.test_engine_process import ARROW, EngineUnderTest, running

pytestmark = pytest.mark.server

NAMES = ("double", "triple", "negate", "one", "two", "whole", "sum")
REFERENCES = {name: {"name": name, "version": f"{name}-v1"} for name in NAMES}


def made(folder: Path) -> dict[str, Path]:
    """Models of three columns (`double`, `triple`, `negate`), of one (`one` doubles, `two` triples), and others."""
    factors = {"double": (2, 3), "triple": (3, 3), "negate": (-1, 3), "one": (2, 1), "two": (3, 1)}
    paths = {name: scale(folder / f"{name}.onnx", factor, width) for name, (factor, width) in factors.items()}
    paths["whole"] = echo(folder / "whole.onnx", INT64, ["N", 3])
    paths["sum"] = total(folder / "sum.onnx")
    return paths


def inference(*names: str) -> dict[str, Any]:
    return {"ModelInference": {"models": [REFERENCES[name] for name in names]}}


def by_tier(**routes: str) -> dict[str, Any]:
    chosen = {value: REFERENCES[name] for value, name in routes.items()}
    return {"MetaValueSplit": {"split_key": "tier", "control": REFERENCES["double"], "routes": chosen}}


def at_random(key: str | None, **weights: float) -> dict[str, Any]:
    entries = [{"model": REFERENCES[name], "weight": weight} for name, weight in weights.items()]
    return {"RandomSplit": {"hash_key": key, "weights": entries}}


def to_models(*names: str) -> dict[str, Any]:
    entries = [{"row_index": index, "model": REFERENCES[name]} for index, name in enumerate(names)]
    return {"RowsToModels": {"rows_to_models": entries}}


AUDIT: dict[str, Any] = {"AuditResults": {"from": 1, "to": None}}
MULTI_OUT: dict[str, Any] = {"MultiOut": {}}
AVERAGE: dict[str, Any] = {"Average": {}}
COLUMNS_TO_ROWS: dict[str, Any] = {"ColumnsToRows": {}}

STEPS: dict[str, list[dict[str, Any]]] = {
    "no-step": [],
    "inference": [inference("double")],
    "chain": [inference("double"), inference("triple"), inference("sum")],
    "shadow": [inference("double", "triple", "negate"), AUDIT, MULTI_OUT],
    "audit-one": [
        inference("double", "triple", "negate"),
        {"AuditResults": {"from": 1, "to": 2}},
        {"Nth": {"index": 2}},
    ],
    "audit": [inference("double", "triple", "negate"), AUDIT, {"Nth": {"index": 0}}],
    "nth": [inference("double", "triple"), {"Nth": {"index": 1}}],
    "average": [inference("double", "triple", "negate"), AVERAGE],
    "average-chain": [inference("double", "triple"), AVERAGE, inference("sum")],
    "by-value": [by_tier(gold="triple")],
    "by-number": [by_tier(**{"7": "triple"})],
    "by-key": [at_random("share", double=2, triple=1)],
    "random": [at_random(None, double=0, triple=1)],
    "old-check": [inference("double"), validation("low", limit=5.0)],
    "check": [inference("double"), anomaly("big"), anomaly("small", limit=100.0)],
    "select": [{"ColumnsSelect": {"columns": [2, 0]}}, inference("sum")],
    "select-columns": [{"ColumnsSelect": {"columns": [1]}}, inference("double")],
    "to-rows": [COLUMNS_TO_ROWS, inference("one")],
    "columns-to-rows": [COLUMNS_TO_ROWS, inference("one")],
    "rows-only": [COLUMNS_TO_ROWS],
    "to-models": [to_models("double", "triple")],
    "rows-to-models": [COLUMNS_TO_ROWS, to_models("one", "two", "one")],
    "to-whole": [{"InputDataToType": {"data_type": "i64"}}, inference("whole")],
    "to-small": [{"InputDataToType": {"data_type": "u8"}}],
    "to-double": [{"InputDataToType": {"data_type": "f64"}}, inference("sum")],
}

Row = Mapping[str, Any]
X: list[Row] = [{"x": [1.0, 2.0, 3.0]}, {"x": [4.0, 5.0, 6.0]}]
DOUBLED = [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
TRIPLED = [[3.0, 6.0, 9.0], [12.0, 15.0, 18.0]]
NEGATED = [[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]]


def given(**fields: list[Any]) -> list[Row]:
    """Return the rows `X` with further fields."""
    return [dict(row) | {name: values[index] for name, values in fields.items()} for index, row in enumerate(X)]


CASES: list[tuple[str, list[Row], dict[str, list[Any]]]] = [
    ("no-step", X, {"out.x": [row["x"] for row in X]}),
    ("inference", X, {"out.y": DOUBLED}),
    ("chain", X, {"out.total": [[36.0], [90.0]]}),
    ("shadow", X, {"out.y": DOUBLED, "out_triple.y": TRIPLED, "out_negate.y": NEGATED}),
    ("audit-one", X, {"out.y": NEGATED}),
    ("audit", X, {"out.y": DOUBLED}),
    ("nth", X, {"out.y": TRIPLED}),
    ("average", X, {"out.y": [[4 / 3, 8 / 3, 4.0], [16 / 3, 20 / 3, 8.0]]}),
    ("average-chain", X, {"out.total": [[15.0], [37.5]]}),
    ("by-value", given(tier=["gold", "lead"]), {"split": ["triple", "triple"], "out.y": TRIPLED}),
    ("by-value", given(tier=["lead", "gold"]), {"split": ["double", "double"], "out.y": DOUBLED}),
    ("by-value", X, {"split": ["double", "double"], "out.y": DOUBLED}),
    ("by-number", given(tier=[7, 8]), {"split": ["triple", "triple"], "out.y": TRIPLED}),
    ("by-key", given(share=[0.5, 0.9]), {"split": ["double", "double"], "out.y": DOUBLED}),
    ("by-key", given(share=[0.9, 0.5]), {"split": ["triple", "triple"], "out.y": TRIPLED}),
    ("random", X, {"split": ["triple", "triple"], "out.y": TRIPLED}),
    ("old-check", X, {"out.y": DOUBLED, "failed": [[], ["double.outputs[0][0] < 5.0"]]}),
    ("check", X, {"out.y": DOUBLED, "anomaly.count": [0, 1], "anomaly.big": [0, 1], "anomaly.small": [0, 0]}),
    ("select", X, {"out.total": [[4.0], [10.0]]}),
    ("select-columns", [{"a": "no", **row} for row in X], {"out.y": DOUBLED}),
    ("to-rows", X, {"out.y": DOUBLED}),
    ("columns-to-rows", [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}], {"out.y": [[2.0, 4.0], [6.0, 8.0]]}),
    ("rows-only", X, {"out.x": [row["x"] for row in X]}),
    ("to-models", X, {"out.y": [DOUBLED[0], TRIPLED[1]]}),
    ("rows-to-models", X, {"out.y": [[2.0, 6.0, 6.0], [8.0, 15.0, 12.0]]}),
    ("to-whole", X, {"out.y": [[1, 2, 3], [4, 5, 6]]}),
    ("to-small", X, {"out.x": [[1, 2, 3], [4, 5, 6]]}),
    ("to-double", X, {"out.total": [[6.0], [15.0]]}),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    folder = tmp_path_factory.mktemp("engine")
    document = models.document(folder, made(folder), STEPS, config={"tensor_fields": None}, split_record="short")
    with running(folder, document) as engine:
        yield engine


def as_json(rows: list[Row]) -> tuple[bytes, str]:
    return json.dumps(rows).encode(), "application/json; format=pandas-records"


def as_arrow(rows: list[Row]) -> tuple[bytes, str]:
    """Write rows as an SDK does: lists of float32, scalars as they are."""
    names = rows[0]
    types = {name: pa.list_(pa.float32()) if name == "x" else pa.scalar(names[name]).type for name in names}
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes(), ARROW


def send(engine: EngineUnderTest, pipeline: str, sent: tuple[bytes, str], accept: str = "*/*") -> httpx.Response:
    headers = {"Content-Type": sent[1], "Accept": accept}
    return httpx.post(f"{engine.url}/pipelines/{pipeline}?{SDK_QUERY}", content=sent[0], headers=headers)


def counts(exposition: str, metric: str) -> dict[str, int]:
    """Return how often each series of a histogram was observed, by its labels."""
    found = re.findall(rf"^{metric}_count({{.*}}) (\d+)$", exposition, re.MULTILINE)
    return {labels: int(count) for labels, count in found}


def shown(reply: httpx.Response) -> dict[str, list[Any]]:
    """Return the columns of a reply that its request did not hold; who was chosen, and which checks failed, by name."""
    assert reply.status_code == 200, reply.text
    if reply.headers["content-type"] == ARROW:
        columns = pa.ipc.open_file(reply.content).read_all().to_pydict()
    else:
        rows = reply.json()
        columns = {name: [row[name] for row in rows] for name in rows[0]}
    found: dict[str, list[Any]] = {}
    for name, values in columns.items():
        if name == "out._model_split":
            found["split"] = [json.loads(text)["name"] for (text,) in values]
        elif name == "check_failures":
            texts = [[entry["False"]["expr"] for entry in map(failure, row)] for row in values]
            found |= {"failed": texts} if any(texts) else {}
        elif name != "time" and not name.startswith("in.") and not (name == "anomaly.count" and not any(values)):
            found[name] = values
    return found


def failure(entry: Any) -> Any:
    return json.loads(entry) if isinstance(entry, str) else entry


@pytest.mark.parametrize("accept", ["application/json; format=pandas-records", ARROW])
@pytest.mark.parametrize("form", [as_json, as_arrow])
@pytest.mark.parametrize(("pipeline", "rows", "expected"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
def test_a_step_gives_what_it_should(
    engine: EngineUnderTest, pipeline: str, rows: list[Row], expected: dict[str, list[Any]], form: Any, accept: str
) -> None:
    found = shown(send(engine, pipeline, form(rows), accept))

    assert set(found) == set(expected)
    for name, values in expected.items():
        if name in ("split", "failed"):
            assert found[name] == values
        else:
            np.testing.assert_allclose(found[name], values, rtol=1e-6)


@pytest.mark.parametrize("pipeline", STEPS)
def test_no_rows_in_are_no_rows_out(engine: EngineUnderTest, pipeline: str) -> None:
    rows = next(rows for name, rows, _ in CASES if name == pipeline)
    table = pa.ipc.open_file(as_arrow(rows)[0]).read_all().slice(0, 0)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)

    arrow = send(engine, pipeline, (sink.getvalue().to_pybytes(), ARROW), ARROW)
    records = send(engine, pipeline, as_json([]))

    assert (arrow.status_code, records.status_code) == (200, 200), (arrow.text, records.text)
    assert pa.ipc.open_file(arrow.content).read_all().num_rows == 0
    assert records.json() == []


@pytest.mark.parametrize(
    ("pipeline", "row", "reason"),
    [
        ("chain", {"x": [1.0]}, "x"),
        ("average", {"x": ["a", "b", "c"]}, "x"),
        ("by-key", {"x": [1.0, 2.0, 3.0]}, "share"),
        ("by-key", {"x": [1.0, 2.0, 3.0], "share": 2}, "a number from 0 to 1"),
        ("by-value", {"tier": "gold"}, "x"),
        ("select", {"x": [1.0, 2.0]}, "selects element 2"),
        ("select-columns", {"x": 1.0}, "selects column 1"),
        ("columns-to-rows", {"a": 1.0, "b": "no"}, "must be of one type"),
        ("rows-to-models", {"x": [1.0, 2.0, 3.0, 4.0]}, "no model is given for row 3"),
        ("to-whole", {"x": [1.5, 2.0, 3.0]}, "cannot be converted to i64"),
        ("to-small", {"x": [1, 256, 3]}, "cannot be converted to u8"),
    ],
)
def test_what_a_step_cannot_take_is_a_400(engine: EngineUnderTest, pipeline: str, row: Row, reason: str) -> None:
    reply = send(engine, pipeline, as_json([row]))

    assert reply.status_code == 400, reply.text
    assert reason in reply.json()["error"]


def test_a_step_keeps_the_type_it_is_asked_for(engine: EngineUnderTest) -> None:
    small = pa.ipc.open_file(send(engine, "to-small", as_arrow(X), ARROW).content).read_all()
    whole = send(engine, "to-whole", as_arrow(X)).json()

    assert small.schema.field("out.x").type.value_type == pa.uint8()
    assert json.dumps(whole[0]["out.y"]) == "[1, 2, 3]"


@pytest.mark.parametrize(
    ("pipeline", "audited"),
    [
        ("shadow", {"out_triple": TRIPLED, "out_negate": NEGATED}),
        ("audit-one", {"out_triple": TRIPLED}),
        ("audit", {"out_triple": TRIPLED, "out_negate": NEGATED}),
        ("nth", {}),
    ],
)
def test_the_log_keeps_what_was_audited(engine: EngineUnderTest, pipeline: str, audited: dict[str, list[Any]]) -> None:
    assert send(engine, pipeline, as_json(X)).status_code == 200

    root = Path(engine.document["log"]["root"])
    kept = read_page(root, f"topic-{pipeline}", page_size=2, order=Order.DESC).table

    found = {name: kept[name].to_pylist() for name in kept.schema.names if name.startswith("out_")}
    assert found == {name: [{"y": values} for values in rows[::-1]] for name, rows in audited.items()}


def test_each_of_several_steps_has_its_times(engine: EngineUnderTest) -> None:
    def observed(metric: str) -> dict[str, int]:
        return counts(httpx.get(f"{engine.url}/metrics").text, metric)

    before, runs_before = observed("potoroo_engine_step_ns"), observed("potoroo_engine_run_ns")
    for pipeline in ("inference", "nth", "check"):
        for _ in range(3):
            assert send(engine, pipeline, as_json(X)).status_code == 200
    after, runs_after = observed("potoroo_engine_step_ns"), observed("potoroo_engine_run_ns")

    assert {name: count - before[name] for name, count in after.items() if count > before[name]} == {
        f'{{pipeline_name="{pipeline}",deploy_id="shop",step="{step}"}}': 3
        for pipeline, steps in {
            "nth": ("0:ModelInference", "1:Nth"),
            "check": ("0:ModelInference", "1:Check", "2:Check"),
        }.items()
        for step in steps
    }
    alone = '{pipeline_name="inference",deploy_id="shop"}'
    assert runs_after[alone] - runs_before[alone] == 3
    assert not [name for name in after if 'pipeline_name="inference"' in name]
