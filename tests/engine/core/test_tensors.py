"""Every kind of column into every kind of input, and back: right, or refused with field, row and reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from tests.engine.core import making
from tests.engine.core.making import DOUBLE, FLOAT, INT64, engine, error_of, model, rows_of, send, table_of

KINDS = {
    "float": (TensorProto.FLOAT, pa.float32(), [1.5, -2.0]),
    "double": (TensorProto.DOUBLE, pa.float64(), [0.1, 1e300]),
    "float16": (TensorProto.FLOAT16, pa.float16(), [1.5, -2.0]),
    "int8": (TensorProto.INT8, pa.int8(), [-128, 127]),
    "int16": (TensorProto.INT16, pa.int16(), [-32768, 32767]),
    "int32": (TensorProto.INT32, pa.int32(), [-(2**31), 2**31 - 1]),
    "int64": (TensorProto.INT64, pa.int64(), [-(2**63), 2**53 + 1]),
    "uint8": (TensorProto.UINT8, pa.uint8(), [0, 255]),
    "uint16": (TensorProto.UINT16, pa.uint16(), [0, 65535]),
    "uint32": (TensorProto.UINT32, pa.uint32(), [0, 2**32 - 1]),
    "uint64": (TensorProto.UINT64, pa.uint64(), [0, 2**64 - 1]),
    "bool": (TensorProto.BOOL, pa.bool_(), [True, False]),
    "string": (TensorProto.STRING, pa.string(), ["", "ünï"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_element_type_goes_through_in_json_and_arrow(tmp_path: Path, kind: str) -> None:
    onnx_kind, arrow_kind, values = KINDS[kind]
    made = engine([model(1, making.echo(tmp_path / "echo.onnx", onnx_kind, ["N", 2]))])
    table = pa.table({"x": pa.array([values, values], pa.list_(arrow_kind))})

    from_json = rows_of(send(made, [{"x": values}, {"x": values}]))
    from_arrow = table_of(send(made, table, accept=making.ARROW))

    assert [row["out"]["y"] for row in from_json] == [values, values]
    assert from_json[0]["in"]["x"] == values
    assert [row["y"] for row in from_arrow["out"].to_pylist()] == [values, values]
    field = from_arrow.schema.field("out").type.field("y")
    assert field.type == pa.list_(pa.field("inner", arrow_kind, nullable=False))
    assert field.metadata == {b"tensor_type": b'{"shape":[2]}'}
    assert from_arrow.schema.field("in").type.field("x").type == pa.list_(arrow_kind)


def columns_of_numbers() -> dict[str, pa.Array]:
    plain = pa.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], pa.list_(pa.float32()))
    fixed = plain.cast(pa.list_(pa.float32(), 3))
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([[1, 2, 3], [4, 5, 6]], "f4"))
    sliced = pa.concat_arrays([plain, plain]).slice(2, 2)
    return {
        "list": plain,
        "sliced": sliced,
        "large list": plain.cast(pa.large_list(pa.float32())),
        "fixed-size list": fixed,
        "sliced fixed-size list": pa.concat_arrays([fixed, fixed]).slice(2, 2),
        "list view": pa.ListViewArray.from_arrays([0, 3], [3, 3], plain.values),
        "doubles": plain.cast(pa.list_(pa.float64())),
        "whole numbers": plain.cast(pa.list_(pa.int16())),
        "halves": plain.cast(pa.list_(pa.float16())),
        "decimals": pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.decimal128(5, 2))),
        "fixed-shape tensors": tensors,
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), plain),
    }


@pytest.mark.parametrize("layout", columns_of_numbers())
def test_every_layout_of_numbers_is_understood(tmp_path: Path, layout: str) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])
    table = pa.table({"x": columns_of_numbers()[layout]})

    answered = table_of(send(made, table, accept=making.ARROW))

    assert [row["y"] for row in answered["out"].to_pylist()] == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    assert [[float(value) for value in row["x"]] for row in answered["in"].to_pylist()] == [[1, 2, 3], [4, 5, 6]]


def test_texts_of_every_layout_are_understood(tmp_path: Path) -> None:
    made = engine([model(1, making.echo(tmp_path / "echo.onnx", TensorProto.STRING, ["N"]))])
    texts = pa.array(["a", "b", "a"])
    layouts = [texts, texts.cast(pa.large_string()), texts.cast(pa.string_view()), texts.dictionary_encode()]

    for column in layouts:
        answered = rows_of(send(made, pa.table({"x": column})))
        assert [row["out"]["y"] for row in answered] == [["a"], ["b"], ["a"]]
        assert [row["in"]["x"] for row in answered] == ["a", "b", "a"]


def test_a_flat_list_takes_the_models_own_shape(tmp_path: Path) -> None:
    made = engine([model(1, making.echo(tmp_path / "image.onnx", FLOAT, ["N", 3, 2, 2]))])

    answered = table_of(send(made, [{"x": list(range(12))}], accept=making.ARROW))

    assert answered["out"].to_pylist()[0]["y"] == list(range(12))
    assert answered.schema.field("out").type.field("y").metadata == {b"tensor_type": b'{"shape":[3,2,2]}'}


@pytest.mark.parametrize("dims", [["N", 3, 2, 2], ["N", "C", "H", "W"], [1, 3, 2, 2], ["N", 3, "H", "W"]])
def test_nested_lists_and_declared_shapes_say_the_shape(tmp_path: Path, dims: Any) -> None:
    made = engine([model(1, making.echo(tmp_path / "image.onnx", FLOAT, dims))])
    image = np.arange(12, dtype="f4").reshape(3, 2, 2)
    metadata = {b"tensor_type": b'{"shape": [3, 2, 2]}'}
    flat = pa.array([image.reshape(-1).tolist()] * 2, pa.list_(pa.float32()))
    described = pa.table([flat], schema=pa.schema([pa.field("x", flat.type, metadata=metadata)]))
    tensors = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([image, image]))})

    for rows in ([{"x": image.tolist()}] * 2, described, tensors):
        answered = table_of(send(made, rows, accept=making.ARROW))
        assert [row["y"] for row in answered["out"].to_pylist()] == [list(range(12))] * 2


def test_a_permuted_tensor_column_is_read_in_its_logical_order(tmp_path: Path) -> None:
    made = engine([model(1, making.echo(tmp_path / "grid.onnx", FLOAT, ["N", 3, 2]))])
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0])
    storage = pa.array([[0, 1, 2, 3, 4, 5]], pa.list_(pa.float32(), 6))
    table = pa.table({"x": pa.ExtensionArray.from_storage(kind, storage)})

    answered = rows_of(send(made, table))

    assert answered[0]["out"]["y"] == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]


def test_scalars_feed_columns_of_one_and_inputs_without_a_second_dimension(tmp_path: Path) -> None:
    for dims in (["N", 1], ["N"]):
        made = engine([model(1, making.echo(tmp_path / "one.onnx", DOUBLE, dims))])
        assert [row["out"]["y"] for row in rows_of(send(made, [{"x": 1.5}, {"x": 2.5}]))] == [[1.5], [2.5]]


def test_a_model_of_several_inputs_and_outputs_takes_fields_by_name_or_by_tensor_fields(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    ports = {"a": (FLOAT, ["N", 2]), "b": (FLOAT, ["N", 2])}
    path = making.save(tmp_path / "two.onnx", nodes, ports, {"sum": (FLOAT, ["N", 2]), "difference": (FLOAT, ["N", 2])})
    wanted = {"sum": [4.0, 6.0], "difference": [2.0, 2.0]}

    by_name = engine([model(1, path)])
    by_field = engine([model(1, path, tensor_fields=["first", "second"])])

    assert rows_of(send(by_name, [{"b": [1, 2], "a": [3, 4], "id": 7}]))[0]["out"] == wanted
    assert rows_of(send(by_field, [{"second": [1, 2], "first": [3, 4]}]))[0]["out"] == wanted
    assert "field 'b': model 'two' needs the field a, b; got a" in error_of(send(by_name, [{"a": [1, 2]}]))


def test_rows_may_be_fed_one_at_a_time(tmp_path: Path) -> None:
    path = making.total(tmp_path / "total.onnx")
    whole, single = engine([model(1, path)]), engine([model(1, path, batch_config="single")])
    ragged = [{"x": [1.0, 2.0]}, {"x": [1.0, 2.0, 3.0]}]

    assert [row["out"]["total"] for row in rows_of(send(single, ragged))] == [[3.0], [6.0]]
    assert "row 1: expected 2 float32 numbers as in the other rows, got 3" in error_of(send(whole, ragged))


def test_a_model_of_a_fixed_batch_of_one_is_fed_row_by_row(tmp_path: Path) -> None:
    made = engine([model(1, making.echo(tmp_path / "one.onnx", FLOAT, [1, 3]))])

    rows = [{"x": [float(row)] * 3} for row in range(5)]

    assert [row["out"]["y"] for row in rows_of(send(made, rows))] == [row["x"] for row in rows]


def test_a_model_without_a_batch_dimension_takes_one_row_as_its_whole_input(tmp_path: Path) -> None:
    made = engine([model(1, making.echo(tmp_path / "image.onnx", FLOAT, [3, 2, 2]))])

    answered = rows_of(send(made, [{"x": list(range(12))}, {"x": list(range(12, 24))}]))

    assert [row["out"]["y"] for row in answered] == [list(range(12)), list(range(12, 24))]


def test_a_batch_size_limit_splits_a_request(tmp_path: Path) -> None:
    config = {"max_batch_delay_ms": 10, "batch_size_target": 2, "batch_size_limit": 2}
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2), dynamic_batching_config=config)])

    answered = rows_of(send(made, [{"x": [row, row, row]} for row in range(5)]))

    assert [row["out"]["y"][0] for row in answered] == [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("name", ["tensor", "x"])
def test_a_single_input_is_fed_by_its_name_or_by_a_column_named_tensor(tmp_path: Path, name: str) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])

    assert rows_of(send(made, [{name: [1, 2, 3]}]))[0]["out"]["y"] == [2.0, 4.0, 6.0]


GOOD = [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"x": [1.0, 2.0]}], "field 'x', row 0: expected 3 float32 numbers, got 2"),
        ([{"x": GOOD}, {"x": [1.0]}], "field 'x', row 1: expected 3 float32 numbers as in the other rows, got 1"),
        ([{"x": [1.0]}, {"x": GOOD}], "field 'x', row 0: expected 3 float32 numbers as in the other rows, got 1"),
        ([{"x": []}], "expected 3 float32 numbers, got 0"),
        ([{"x": 1.0}], "expected 3 float32 numbers, got a single value"),
        ([{"x": [[1.0, 2.0], [3.0, 4.0]]}], "expected 3 float32 numbers, got shape [2, 2]"),
        ([{"x": ["a", "b", "c"]}], "expected float32 numbers, got texts"),
        ([{"x": [1.0, "b", 2.0]}], "expected a number as before in this field, got text (element 1)"),
        ([{"x": None}], "tensor values may not be null"),
        ([{"x": GOOD}, {"x": None}], "field 'x', row 1: tensor values may not be null"),
        ([{"x": GOOD}, {"x": [1.0, None, 2.0]}], "field 'x', row 1: tensor values may not be null"),
        ([{"x": {"a": 1}}], "expected float32 numbers, got struct"),
        ([{"y": GOOD}], "needs the field x; got y"),
        ([{}], "needs the field x; got none"),
        ([{"x": GOOD}, {"z": GOOD}], "field 'x', row 1: the field is missing here"),
        ([{"x": GOOD}, {"x": GOOD, "z": 1}], "field 'z', row 1: the first record has no such field"),
        ([GOOD], "row 0: a record must be an object of fields, not a list"),
        ({"x": GOOD}, "must be a JSON list of records"),
        (b"{not json", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"x":[NaN,1,2]}]', "not valid JSON"),
    ],
)
def test_what_a_model_cannot_read_is_refused_with_field_row_and_reason(tmp_path: Path, rows: Any, reason: str) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])

    reply = send(made, rows)

    assert reason in error_of(reply)
    assert reply.failure is not None
    assert reply.failure["error"].to_pylist()[0]["code"] == 400
    assert reply.record is None


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        (TensorProto.INT64, [1.5, 2.0], "expected whole numbers from -9223372036854775808 to 92233"),
        (TensorProto.INT8, [1, 300], "expected whole numbers from -128 to 127, got 300"),
        (TensorProto.UINT8, [1, -1], "expected whole numbers from 0 to 255, got -1"),
        (TensorProto.UINT64, [1, -1], "expected whole numbers from 0 to 18446744073709551615, got -1"),
        (TensorProto.INT64, [1, 2**63], "expected whole numbers from"),
        (TensorProto.BOOL, [1, 2], "expected true or false, got 2"),
        (TensorProto.STRING, [1, 2], "expected texts, got int64"),
        (TensorProto.INT64, [1, 10**400], "too large"),
    ],
)  # fmt: skip
def test_a_value_out_of_an_inputs_range_is_refused(tmp_path: Path, kind: int, values: Any, reason: str) -> None:
    made = engine([model(1, making.echo(tmp_path / "echo.onnx", kind, ["N", 2]))])

    assert reason in error_of(send(made, [{"x": values}]))


def test_nan_and_infinities_pass_through_arrow_and_are_null_in_json(tmp_path: Path) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])
    table = pa.table({"x": pa.array([[math.nan, math.inf, -math.inf]], pa.list_(pa.float32()))})

    exact = table_of(send(made, table, accept=making.ARROW))["out"].to_pylist()[0]["y"]
    shown = rows_of(send(made, table))[0]

    assert math.isnan(exact[0])
    assert exact[1:] == [math.inf, -math.inf]
    assert shown["out"]["y"] == shown["in"]["x"] == [None, None, None]


def test_a_request_without_rows_is_answered_without_rows(tmp_path: Path) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])
    empty = pa.table({"x": pa.array([], pa.list_(pa.float32()))})

    from_json = send(made, [])
    from_arrow = send(made, empty, accept=making.ARROW)
    no_batches = send(made, pa.Table.from_batches([], schema=empty.schema), accept=making.ARROW)

    assert rows_of(from_json) == []
    for reply in (from_arrow, no_batches):
        table = table_of(reply)
        assert table.num_rows == 0
        assert table.schema.names == ["time", "in", "out", "check_failures", "anomaly", "metadata"]
        assert table.schema.field("out").type.field("y").type.value_type == pa.float32()
        assert reply.record is None


def test_a_file_of_many_compressed_batches_is_one_request(tmp_path: Path) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])
    rows = [[float(row)] * 3 for row in range(1000)]
    table = pa.table({"x": pa.array(rows, pa.list_(pa.float32()))})
    chunked = pa.concat_tables([table.slice(start, 100) for start in range(0, 1000, 100)])

    for compression in (None, "lz4", "zstd"):
        body = making.arrow_bytes(chunked, compression)
        reply = made.infer(making.InferRequest(pipeline="p", content_type=making.ARROW, body=body))
        assert [row["out"]["y"][0] for row in rows_of(reply)] == [2.0 * row for row in range(1000)]


def test_very_many_rows_are_answered(tmp_path: Path) -> None:
    made = engine([model(1, making.scale(tmp_path / "double.onnx", 2))])
    values = pa.array(np.arange(1_500_000, dtype="f4"))
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(values, 3)})

    answered = table_of(send(made, table, accept=making.ARROW))

    assert answered.num_rows == 500_000
    assert answered["out"].combine_chunks().field("y").values[-1].as_py() == 2 * 1_499_999.0


def test_maps_and_sequences_of_scikit_learn_exports_are_shown(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    inputs = np.array([[0.0], [1.0], [2.0], [3.0]], "f4")
    fitted = LogisticRegression().fit(inputs, [0, 0, 1, 1])
    path = tmp_path / "classifier.onnx"
    path.write_bytes(to_onnx(fitted, inputs[:1]).SerializeToString())
    made = engine([model(1, path, tensor_fields=["tensor"])])
    rows = [{"tensor": row} for row in inputs.tolist()]

    nested = rows_of(send(made, rows))
    flat = rows_of(send(made, rows, query=making.SDK_QUERY))

    assert [row["out"]["output_label"] for row in nested] == [[0], [0], [1], [1]]
    expected = fitted.predict_proba(inputs)
    shown = [[row["out"]["output_probability"][label] for label in "01"] for row in nested]
    assert np.allclose(shown, expected, atol=1e-6)
    assert flat[0]["out.output_probability.0"] == pytest.approx(expected[0][0], abs=1e-6)


def schema_text(schema: pa.Schema) -> str:
    import base64

    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def test_a_declared_schema_names_and_types_the_outputs(tmp_path: Path) -> None:
    path = making.total(tmp_path / "total.onnx")
    inputs = schema_text(pa.schema([("inputs", pa.list_(pa.float64(), 3))]))
    declared = {"predictions": pa.int32(), "many": pa.list_(pa.float64()), "fixed": pa.list_(pa.float32(), 1)}

    for name, kind in declared.items():
        made = engine([model(1, path, input_schema=inputs, output_schema=schema_text(pa.schema([(name, kind)])))])
        table = table_of(send(made, [{"inputs": [1, 2, 3]}], accept=making.ARROW))
        assert table.schema.field("out").type.field(0).type == kind
        assert table["out"].to_pylist()[0] == {name: 6 if name == "predictions" else [6.0]}


def test_a_declared_schema_of_nested_lists_keeps_the_shape(tmp_path: Path) -> None:
    output = schema_text(pa.schema([("grid", pa.list_(pa.list_(pa.float32(), 2), 3))]))
    made = engine([model(1, making.echo(tmp_path / "grid.onnx", FLOAT, ["N", 3, 2]), output_schema=output)])

    rows = [{"x": [[1, 2], [3, 4], [5, 6]]}] * 2

    assert [row["out"] for row in rows_of(send(made, rows))] == [{"grid": [[1, 2], [3, 4], [5, 6]]}] * 2


def test_an_output_that_does_not_fit_its_declared_type_is_refused(tmp_path: Path) -> None:
    output = schema_text(pa.schema([("label", pa.int32())]))
    made = engine([model(1, making.total(tmp_path / "total.onnx"), output_schema=output)])

    assert "does not fit its declared type int32" in error_of(send(made, [{"x": [0.5, 1.0]}]))


def test_a_model_that_gives_another_number_of_rows_is_refused_with_advice(tmp_path: Path) -> None:
    axes = helper.make_tensor("axes", INT64, [1], [0])
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    path = making.save(tmp_path / "sum.onnx", [node], {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, ["M", 3])}, [axes])

    rows = [{"x": GOOD}, {"x": GOOD}]

    assert "batch_config single" in error_of(send(engine([model(1, path)]), rows))
    single = engine([model(1, path, batch_config="single")])
    assert [row["out"]["y"] for row in rows_of(send(single, rows))] == [GOOD, GOOD]


def test_a_model_of_a_fixed_batch_takes_just_that_many_rows(tmp_path: Path) -> None:
    made = engine([model(1, making.echo(tmp_path / "two.onnx", FLOAT, [2, 3]))])

    assert len(rows_of(send(made, [{"x": GOOD}] * 2))) == 2
    assert "takes exactly 2 rows at a time, got 3" in error_of(send(made, [{"x": GOOD}] * 3))
