"""What the vendor's platform answered, answered again: every ONNX use case of the recorded data, JSON and Arrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.contract.codecs import decode_records
from tests.engine.core import making

pytestmark = pytest.mark.vendor_data

FOLDERS = ("ccfraud", "houseprice", "demandcurve", "imdb", "onnx-multi-io")

VALIDATIONS = {
    "out.dense_1[0] > 0.95": (
        '{"Alias":[{"BinaryExpr":{"left":{"Function":{"input":[{"Column":"out.dense_1"},{"Literal":{"Int32":0}}],'
        '"function":{"ListExpr":"Get"},"options":{}}},"op":"Gt","right":{"Literal":{"Float64":0.95}}}},"%s"]}'
    ),
    "outputs[0][0] < 1500000.0": json.dumps(
        {
            "values": {
                "%s": {
                    "root": {
                        "node": "binop",
                        "op": "<",
                        "left": {
                            "node": "variable",
                            "variant_id": {"name": "m0"},
                            "position": "output",
                            "key": [0, 0],
                        },
                        "right": {"node": "literal", "float": 1500000.0},
                    },
                    "required_data": [],
                }
            },
            "gauges": [],
            "validations": ["%s"],
        }
    ),
}


def cases(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name in FOLDERS:
        for case in json.loads((folder / name / "cases.json").read_text())["cases"]:
            described = case.get("steps") or [case["model"]]
            if all(entry["framework"] == "onnx" for entry in described):
                found.append((name, case))
    return found


def config(entry: dict[str, Any]) -> dict[str, Any]:
    configure = entry.get("configure") or {}
    return {"tensor_fields": configure.get("tensor_fields") or configure.get("input_columns")}


def deployed(folder: Path, case: dict[str, Any]) -> Any:
    described = case.get("steps") or [case["model"]]
    models = [
        making.model(number, folder / entry["file"], f"m{number}", **config(entry))
        for number, entry in enumerate(described)
    ]
    steps = [making.infer_step(model) for model in models]
    if shadows := case.get("shadow"):
        challengers = [
            making.model(10 + number, folder / entry["file"], entry["name"], **config(entry))
            for number, entry in enumerate(shadows)
        ]
        steps = [
            making.infer_step(*models, *challengers),
            {"AuditResults": {"from": 1, "to": None}},
            {"MultiOut": {}},
        ]
        models += challengers
    for name, text in (case.get("validations") or {}).items():
        steps.append({"Check": {"tree": [VALIDATIONS[text].replace("%s", name)]}})
    return making.engine(models, *steps)


def flat(value: Any) -> list[Any]:
    return [item for entry in value for item in flat(entry)] if isinstance(value, list) else [value]


def is_close(got: Any, want: Any, tolerance: dict[str, float]) -> bool:
    got, want = flat(got), flat(want)
    return len(got) == len(want) and all(
        abs(one - two) <= max(tolerance["abs"], tolerance["rel"] * abs(two)) for one, two in zip(got, want, strict=True)
    )


def check(columns: dict[str, list[Any]], rows: int, case: dict[str, Any]) -> None:
    expected, tolerance = case["expected"], case["tolerance"]
    assert rows == expected["rows"]
    for name, want in expected.get("columns", {}).items():
        assert is_close(columns[name], want, tolerance), name
    for name, want in expected.get("head", {}).items():
        assert is_close(columns[name][: len(want)], want, tolerance), name
    if picked := expected.get("filter"):
        passing = [row for row, value in enumerate(columns[picked["column"]]) if flat(value)[0] > picked["gt"]]
        for name, want in expected["row_index_to_value"].items():
            assert passing == [int(row) for row in want]
            assert is_close([columns[name][row] for row in passing], list(want.values()), tolerance)
    for name in expected.get("columns_present", []):
        assert name in columns
    for name, want in expected.get("true_rows", {}).items():
        assert [row for row, mark in enumerate(columns[name]) if mark] == want
    if failing := expected.get("failing_rows"):
        assert [row for row, failures in enumerate(columns["check_failures"]) if failures] == failing
    for name, want in expected.get("failing_values", {}).items():
        assert is_close([columns[name][row] for row in expected["failing_rows"]], want, tolerance)


@pytest.mark.parametrize("replies_in", ["json", "arrow"])
@pytest.mark.parametrize("asked_in", ["json", "arrow"])
def test_every_recorded_case_gives_the_recorded_numbers(vendor_data: Path, asked_in: str, replies_in: str) -> None:
    found = cases(vendor_data)

    assert len(found) > 20
    for name, case in found:
        engine = deployed(vendor_data / name, case)
        body = (vendor_data / name / case["input"]["file"]).read_bytes()
        is_arrow = case["input"]["format"] == "arrow-file"
        if asked_in == "arrow":
            rows: Any = pa.ipc.open_file(body).read_all() if is_arrow else decode_records(body)
        else:
            rows = pa.ipc.open_file(body).read_all().to_pylist() if is_arrow else body
        accept = making.ARROW if replies_in == "arrow" else None
        reply = making.send(engine, rows, query=making.SDK_QUERY, accept=accept)
        if replies_in == "arrow":
            table = making.table_of(reply)
            columns, count = table.to_pydict(), table.num_rows
        else:
            answered = making.rows_of(reply)
            columns, count = {key: [row[key] for row in answered] for key in answered[0]}, len(answered)
        check(columns, count, case)
        assert reply.record is not None
        assert reply.record.num_rows == count


def test_the_shortest_form_of_float32_is_shown(vendor_data: Path) -> None:
    folder = vendor_data / "ccfraud"
    engine = making.engine([making.model(1, folder / "ccfraud.onnx", tensor_fields=["tensor"])])

    reply = making.send(engine, (folder / "smoke_test.df.json").read_bytes())

    assert b'"out":{"dense_1":[0.0014974177]}' in reply.body


def test_a_column_named_tensor_feeds_a_model_of_one_input_without_configuration(vendor_data: Path) -> None:
    folder = vendor_data / "ccfraud"
    engine = making.engine([making.model(1, folder / "ccfraud.onnx")])

    reply = making.send(engine, (folder / "high_fraud.df.json").read_bytes())

    assert making.rows_of(reply)[0]["out"]["dense_1"] == pytest.approx([0.981199])


def test_steps_pass_outputs_on_by_position_when_names_differ(vendor_data: Path) -> None:
    folder = vendor_data / "imdb"
    models = [making.model(1, folder / "embedder.onnx"), making.model(2, folder / "sentiment_model.onnx")]
    engine = making.engine(models, making.infer_step(models[0]), making.infer_step(models[1]))

    reply = making.send(engine, (folder / "singleton.df.json").read_bytes())

    row = making.rows_of(reply)[0]
    assert row["out"]["dense_1"] == pytest.approx([0.37142318])
    assert len(row["in"]["tensor"]) == 100
