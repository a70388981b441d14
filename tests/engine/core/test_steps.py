"""Every kind of step, alone and in combination."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.contract.definitions import DefinitionError, model_references, parse_definition
from engine.runtime.engine import Engine
from engine.runtime.models import LoadError
from tests.engine.core import making
from tests.engine.core.making import engine, error_of, infer_step, model, ref, rows_of, scale, send

AUDIT = {"AuditResults": {"from": 1, "to": None}}
MULTI_OUT = {"MultiOut": {}}


@pytest.fixture
def double(tmp_path: Path) -> Any:
    return model(1, scale(tmp_path / "double.onnx", 2))


@pytest.fixture
def triple(tmp_path: Path) -> Any:
    return model(2, scale(tmp_path / "triple-it.onnx", 3))


@pytest.fixture
def negate(tmp_path: Path) -> Any:
    return model(3, scale(tmp_path / "negate.onnx", -1))


def validation(name: str, op: str = "<", limit: float = 5.0, of: str = "double") -> dict[str, Any]:
    tree = {
        "values": {
            name: {
                "root": {
                    "node": "binop",
                    "op": op,
                    "left": {"node": "variable", "variant_id": {"name": of}, "position": "output", "key": [0, 0]},
                    "right": {"node": "literal", "float": limit},
                },
                "required_data": [{"name": of}],
            }
        },
        "gauges": [],
        "validations": [name],
    }
    return {"Check": {"tree": [json.dumps(tree)]}}


def anomaly(name: str, column: str = "out.y", limit: float = 5.0) -> dict[str, Any]:
    inputs = [{"Column": column}, {"Literal": {"Int32": 0}}]
    left = {"Function": {"input": inputs, "function": {"ListExpr": "Get"}, "options": {}}}
    expression = {"BinaryExpr": {"left": left, "op": "Gt", "right": {"Literal": {"Float64": limit}}}}
    return {"Check": {"tree": [json.dumps({"Alias": [expression, name]})]}}


ROWS = [{"x": [1.0, 2.0, 3.0]}, {"x": [4.0, 5.0, 6.0]}]


def test_outputs_of_a_step_are_the_inputs_of_the_next(double: Any, triple: Any) -> None:
    made = engine([double, triple], infer_step(double), infer_step(triple))

    row = rows_of(send(made, ROWS))[0]

    assert row["in"] == {"x": [1.0, 2.0, 3.0]}
    assert row["out"] == {"y": [6.0, 12.0, 18.0]}
    assert json.loads(row["metadata"]["last_model"])["model_name"] == "triple-it"


def test_a_pipeline_without_steps_gives_back_its_input() -> None:
    made = Engine(making.document([]))
    made.load()

    assert rows_of(send(made, ROWS))[1]["out"] == {"x": [4.0, 5.0, 6.0]}


def test_shadow_models_stand_beside_the_answer_in_reply_and_log(double: Any, triple: Any, negate: Any) -> None:
    made = engine([double, triple, negate], infer_step(double, triple, negate), AUDIT, MULTI_OUT)

    reply = send(made, ROWS, query=making.SDK_QUERY)

    assert list(rows_of(reply)[0]) == [
        "time", "in.x", "out.y", "check_failures", "anomaly.count", "out_triple-it.y", "out_negate.y",
    ]  # fmt: skip
    assert rows_of(reply)[1]["out_negate.y"] == [-4.0, -5.0, -6.0]
    assert reply.record is not None
    assert reply.record.schema.names == [
        "time", "in", "out", "check_failures", "anomaly", "out_triple-it", "out_negate", "metadata",
    ]  # fmt: skip


def test_audited_outputs_are_kept_in_the_log_alone(double: Any, triple: Any) -> None:
    made = engine([double, triple], infer_step(double, triple), AUDIT, {"Nth": {"index": 0}})

    reply = send(made, ROWS)

    assert "out_triple-it" not in rows_of(reply)[0]
    assert reply.record is not None
    assert reply.record["out_triple-it"].to_pylist()[0] == {"y": [3.0, 6.0, 9.0]}


def test_nth_keeps_one_of_several(double: Any, triple: Any) -> None:
    made = engine([double, triple], infer_step(double, triple), {"Nth": {"index": 1}})

    row = rows_of(send(made, ROWS))[0]

    assert row["out"] == {"y": [3.0, 6.0, 9.0]}
    assert json.loads(row["metadata"]["last_model"])["model_name"] == "triple-it"


def test_average_is_the_mean_of_each_element(double: Any, triple: Any) -> None:
    made = engine([double, triple], infer_step(double, triple), {"Average": {}})

    reply = send(made, ROWS, accept=making.ARROW)

    table = making.table_of(reply)
    assert table["out"].to_pylist()[0] == {"y": [2.5, 5.0, 7.5]}
    assert table.schema.field("out").type.field("y").type.value_type == pa.float32()


def test_average_of_unlike_outputs_is_refused(double: Any, tmp_path: Path) -> None:
    total = model(4, making.total(tmp_path / "total.onnx"))
    made = engine([double, total], infer_step(double, total), {"Average": {}})

    assert "differ in shape" in error_of(send(made, ROWS))


def split(weights: list[tuple[Any, float]], key: str | None = None) -> dict[str, Any]:
    entries = [{"model": ref(document), "weight": weight} for document, weight in weights]
    return {"RandomSplit": {"hash_key": key, "weights": entries}}


def test_a_random_split_sends_whole_requests_by_weight(double: Any, triple: Any) -> None:
    made = engine([double, triple], split([(double, 2), (triple, 1)]), split_record="short")
    chosen: Counter[str] = Counter()

    for _ in range(450):
        rows = rows_of(send(made, ROWS))
        names = {json.loads(row["out"]["_model_split"][0])["name"] for row in rows}
        assert len(names) == 1
        assert list(rows[0]["out"]) == ["_model_split", "y"]
        chosen[names.pop()] += 1

    assert 240 < chosen["double"] < 360
    assert chosen["double"] + chosen["triple-it"] == 450


@pytest.mark.parametrize(("key", "factor"), [(0.0, 2.0), (0.66, 2.0), (0.67, 3.0), (1.0, 3.0), ([0.1], 2.0), (1, 3.0)])
def test_a_hash_key_replaces_the_draw(double: Any, triple: Any, key: Any, factor: float) -> None:
    made = engine([double, triple], split([(double, 2), (triple, 1)], "session"))

    row = rows_of(send(made, [{"x": [1.0, 1.0, 1.0], "session": key}]))[0]

    assert row["out"]["y"] == [factor] * 3
    assert row["in"]["session"] == key


@pytest.mark.parametrize("row", [{}, {"session": "abc"}, {"session": 1.5}, {"session": None}, {"session": True}])
def test_a_hash_key_that_is_no_number_from_0_to_1_is_refused(double: Any, triple: Any, row: dict[str, Any]) -> None:
    made = engine([double, triple], split([(double, 2), (triple, 1)], "session"))

    assert "session" in error_of(send(made, [{"x": [1.0, 1.0, 1.0], **row}]))


def test_a_weight_of_zero_is_never_chosen(double: Any, triple: Any) -> None:
    made = engine([double, triple], split([(double, 0), (triple, 1)], "k"))

    assert rows_of(send(made, [{"x": [1.0, 1.0, 1.0], "k": 0.0}]))[0]["out"]["y"] == [3.0] * 3


def test_the_full_record_of_the_model_says_which_was_chosen(double: Any, triple: Any) -> None:
    made = engine([double, triple], split([(double, 1)]))

    text = rows_of(send(made, ROWS))[0]["out"]["_model_split"]

    assert [json.loads(entry) for entry in text] == [{"model_version": {"name": "double"}, "config": {"id": 1}}]


@pytest.mark.parametrize(
    ("value", "factor"),
    [("gold", 3.0), ("silver", 2.0), (7, 3.0), (7.0, 3.0), (True, 3.0), (["gold"], 3.0), (None, 2.0), ([], 2.0)],
)
def test_a_split_by_value_takes_the_first_rows_value(double: Any, triple: Any, value: Any, factor: float) -> None:
    routes = {name: ref(triple) for name in ("gold", "7", "true")}
    step = {"MetaValueSplit": {"split_key": "tier", "control": ref(double), "routes": routes}}
    made = engine([double, triple], step)

    rows = rows_of(send(made, [{"x": [1.0, 1.0, 1.0], "tier": value}, {"x": [1.0, 1.0, 1.0], "tier": value}]))

    assert [row["out"]["y"] for row in rows] == [[factor] * 3] * 2


def test_a_split_by_a_value_that_is_missing_goes_to_the_control(double: Any, triple: Any) -> None:
    step = {"MetaValueSplit": {"split_key": "tier", "control": ref(double), "routes": {"gold": ref(triple)}}}

    assert rows_of(send(engine([double, triple], step), ROWS))[0]["out"]["y"] == [2.0, 4.0, 6.0]


def test_old_validations_list_what_did_not_hold(double: Any) -> None:
    made = engine([double], infer_step(double), validation("low enough"), validation("high", ">", 3.0))

    rows = rows_of(send(made, ROWS))

    assert [row["check_failures"] for row in rows] == [
        [{"False": {"expr": "double.outputs[0][0] > 3.0"}}],
        [{"False": {"expr": "double.outputs[0][0] < 5.0"}}],
    ]
    assert [row["anomaly"] for row in rows] == [{"count": 0}, {"count": 0}]


def test_new_validations_mark_rows(double: Any) -> None:
    made = engine([double], infer_step(double), anomaly("big"), anomaly("small", limit=100.0))

    rows = rows_of(send(made, ROWS))

    assert [row["anomaly"] for row in rows] == [
        {"count": 0, "big": False, "small": False},
        {"count": 1, "big": True, "small": False},
    ]


@pytest.mark.parametrize(
    ("setting", "steps", "columns"),
    [
        ("both", [], ["check_failures", "anomaly"]),
        ("check_failures", [], ["check_failures"]),
        ("anomaly", [], ["anomaly"]),
        ("auto", [], ["anomaly"]),
        ("auto", [anomaly("n")], ["anomaly"]),
        ("auto", [validation("n")], ["check_failures"]),
    ],
)
def test_the_generation_of_check_results_is_a_setting(
    double: Any, setting: Any, steps: list[Any], columns: list[str]
) -> None:
    made = engine([double], infer_step(double), *steps, check_columns=setting)

    row = rows_of(send(made, ROWS))[0]

    assert [name for name in row if name in ("check_failures", "anomaly")] == columns


def test_validations_of_a_challenger_and_of_the_middle_of_a_pipeline(double: Any, triple: Any) -> None:
    steps = [
        infer_step(double, triple),
        validation("low", of="triple-it"),
        AUDIT,
        MULTI_OUT,
        anomaly("high", "out_triple-it.y"),
    ]
    made = engine([double, triple], *steps)

    rows = rows_of(send(made, ROWS))

    assert [len(row["check_failures"]) for row in rows] == [0, 1]
    assert [row["anomaly"]["high"] for row in rows] == [False, True]


def test_columns_select_keeps_elements_of_the_only_column(double: Any) -> None:
    made = engine([double], {"ColumnsSelect": {"columns": [0, 2, 3]}}, infer_step(double))

    assert rows_of(send(made, [{"x": [1, 9, 2, 3]}]))[0]["out"] == {"y": [2.0, 4.0, 6.0]}


def test_columns_select_keeps_columns(double: Any) -> None:
    made = engine([double], {"ColumnsSelect": {"columns": [1]}}, infer_step(double))

    assert rows_of(send(made, [{"a": "no", "x": [1, 2, 3]}]))[0]["out"] == {"y": [2.0, 4.0, 6.0]}


def test_columns_to_rows_sends_each_column_through_and_folds_the_outputs_back(tmp_path: Path) -> None:
    one = model(1, scale(tmp_path / "one.onnx", 2, width=1))
    made = engine([one], {"ColumnsToRows": {}}, infer_step(one))

    rows = rows_of(send(made, [{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]))

    assert [row["out"]["y"] for row in rows] == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]


def test_rows_to_models_gives_each_row_its_model(tmp_path: Path) -> None:
    models = [model(number, scale(tmp_path / f"m{number}.onnx", number, width=1)) for number in (1, 2, 3)]
    entries = [{"row_index": index, "model": ref(document)} for index, document in enumerate(models)]
    made = engine(models, {"ColumnsToRows": {}}, {"RowsToModels": {"rows_to_models": entries}})

    rows = rows_of(send(made, [{"x": [1, 1, 1]}, {"x": [2, 2, 2]}]))

    assert [row["out"]["y"] for row in rows] == [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    assert "no model is given for row 3" in error_of(send(made, [{"x": [1, 1, 1, 1]}]))


def test_input_data_to_type_converts_numbers(tmp_path: Path) -> None:
    whole = model(1, making.echo(tmp_path / "whole.onnx", making.INT64, ["N", 2]))
    made = engine([whole], {"InputDataToType": {"data_type": "i64"}}, infer_step(whole))

    assert rows_of(send(made, [{"x": [1.0, 2.0]}]))[0]["out"] == {"y": [1, 2]}
    assert "cannot be converted to i64" in error_of(send(made, [{"x": [1.5, 2.0]}]))


REFERENCE = {"name": "m", "version": "v", "sha": "s"}
ONE = {"ModelInference": {"models": [REFERENCE]}}
TWO = {"ModelInference": {"models": [REFERENCE, {"name": "n", "version": "v"}]}}


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([{"Explode": {}}], "Step 1: steps of kind 'Explode' cannot be run"),
        ([{"id": "metavalue_split", "operation": "map", "args": []}], "one key"),
        ([{"ModelInference": {"models": []}}], "models must be a list with at least one entry"),
        ([{"ModelInference": {}}], "lacks 'models'"),
        ([{"ModelInference": {"models": [{"name": "m"}]}}], "name and version"),
        ([TWO], "never reduced to one"),
        ([TWO, ONE], "Step 2: ModelInference cannot take the outputs of 2 models"),
        ([{"MultiOut": {}}], "Step 1: MultiOut needs a model before it"),
        ([ONE, {"Nth": {"index": 1}}], "asks for output 1; there are 1"),
        ([TWO, {"Nth": {"index": -1}}], "index must be a number from 0 on"),
        ([{"ModelInference": {"models": [REFERENCE] * 3}}, {"MultiOut": {}}], "two outputs as out_m"),
        ([split([], None)], "weights must be a list"),
        ([{"RandomSplit": {"weights": [{"model": REFERENCE, "weight": 0}]}}], "must not all be 0"),
        ([{"RandomSplit": {"weights": [{"model": REFERENCE, "weight": -1}]}}], "weight must be a number from 0 on"),
        ([{"MetaValueSplit": {"control": REFERENCE, "routes": {}}}], "lacks"),
        ([ONE, validation("low", of="nobody")], "looks at model 'nobody'"),
        ([ONE, {"Check": {"tree": ["{"]}}], "not valid JSON"),
        ([ONE, {"Check": {"tree": [json.dumps({"Column": "x"}), "[]"]}}], "not a polars"),
        ([{"InputDataToType": {"data_type": "f16"}}], "data_type must be one of"),
        ([{"RowsToModels": {"rows_to_models": [{"row_index": 0, "model": REFERENCE}] * 2}}], "given to two models"),
        ("ModelInference", "steps must be a list"),
    ],
)
def test_a_definition_that_makes_no_sense_is_refused_with_a_reason(steps: Any, reason: str) -> None:
    with pytest.raises(DefinitionError, match=reason):
        parse_definition({"steps": steps})


def test_every_model_of_a_definition_is_found_once() -> None:
    steps = [
        {"RandomSplit": {"weights": [{"model": {"name": n, "version": "1"}, "weight": 1} for n in "abc"]}},
        {
            "MetaValueSplit": {
                "split_key": "k",
                "control": {"name": "d", "version": "1"},
                "routes": {"x": {"name": "a", "version": "1"}},
            }
        },
    ]

    assert [reference.name for reference in model_references({"steps": steps})] == ["a", "b", "c", "d"]
    assert model_references({}) == ()


def test_a_model_that_the_deployment_lacks_keeps_it_from_running(double: Any) -> None:
    lacking = Engine(making.document([double], ONE))

    with pytest.raises(LoadError, match="names models that this deployment does not have: m v"):
        lacking.load()

    pipelines, models = lacking.status()
    assert (pipelines[0].status, models[0].status) == ("Error", "Running")


def test_the_old_expressions_add_compare_and_look_up() -> None:
    def variable(*key: int) -> dict[str, Any]:
        return {"node": "variable", "variant_id": {"name": "m"}, "position": "input", "key": list(key)}

    root = {
        "node": "binop",
        "op": "in",
        "left": {
            "node": "binop",
            "op": "+",
            "left": variable(0, 0),
            "right": {"node": "fn", "fn": "abs", "arguments": [variable(0, 1)]},
        },
        "right": {"node": "literal", "list": [3, 4]},
    }
    tree = {"values": {"n": {"root": root}, "alert:left": {}}, "gauges": ["alert:left"], "validations": ["n"]}
    parsed = parse_definition({"steps": [ONE, {"Check": {"tree": [json.dumps(tree)]}}]})

    step: Any = parsed.steps[1]
    assert step.validations[0].text == "(m.inputs[0][0] + abs(m.inputs[0][1])) in [3, 4]"
