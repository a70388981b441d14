"""What clients send and read through the external URL of a whole server: every kind of data, every kind of step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from tests.engine.core import making
from tests.engine.core.making import ARROW, FLOAT, INT64, RECORDS, arrow_bytes
from tests.inference.instance import Instance, running

pytestmark = [pytest.mark.slow, pytest.mark.server]

WALLAROO = "application/json; format=wallaroo"
OLD_SDK = {"User-Agent": "python-requests/2.25.1"}
KINDS: dict[str, tuple[int, pa.DataType, list[Any]]] = {
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
Model = dict[str, Any]


class Door:
    """A running server, models in it, and requests to its pipelines as clients make them."""

    def __init__(self, instance: Instance, folder: Path) -> None:
        self.instance = instance
        self.folder = folder
        self._count = 0

    def upload(self, name: str, path: Path, **config: Any) -> Model:
        model = self.instance.upload(name, path.read_bytes())
        return self.instance.configure(model, **config) if config else model

    def scale(self, name: str, factor: float, **config: Any) -> Model:
        """Upload a model that multiplies x (three numbers) by a number and calls it y."""
        return self.upload(name, making.scale(self.folder / f"{name}.onnx", factor), **config)

    @property
    def next_name(self) -> str:
        self._count += 1
        return f"door-{self._count}"

    def open(self, *steps: dict[str, Any]) -> Pipe:
        """Deploy a pipeline of these steps."""
        name = self.next_name
        return Pipe(self.instance, name, self.instance.deploy_steps(name, list(steps)).url)

    def refusal(self, status: int, *steps: dict[str, Any]) -> str:
        """Return why a pipeline of these steps is not deployed."""
        name = self.next_name
        version = self.instance.version_of(name, list(steps))
        answer = httpx.post(
            f"{self.instance.base}/v1/api/pipelines/deploy",
            json={"deploy_id": name, "pipeline_version_pk_id": version, "engine_config": {}},
            headers=self.instance.headers,
        )
        assert answer.status_code == status, (answer.status_code, answer.text)
        return str(answer.json()["msg"])


class Pipe:
    """A deployed pipeline."""

    def __init__(self, instance: Instance, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self._instance = instance

    def post(
        self, rows: Any, query: str = "", kind: str | None = None, accept: str = "*/*", **headers: str
    ) -> httpx.Response:
        is_arrow = isinstance(rows, pa.Table | pa.RecordBatch)
        body = arrow_bytes(rows) if is_arrow else rows if isinstance(rows, bytes) else json.dumps(rows).encode()
        sent = {"Content-Type": kind or (ARROW if is_arrow else RECORDS), "Accept": accept}
        return httpx.post(
            f"{self.url}?{query}", content=body, headers=self._instance.headers | sent | headers, timeout=60
        )

    def rows(self, rows: Any, query: str = "", **request: Any) -> list[Any]:
        answer = self.post(rows, query, **request)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == RECORDS
        found: list[Any] = answer.json()
        return found

    def table(self, rows: Any, query: str = "", **request: Any) -> pa.Table:
        answer = self.post(rows, query, accept=ARROW, **request)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == ARROW
        return pa.ipc.open_file(answer.content).read_all()

    def error(self, rows: Any, **request: Any) -> str:
        answer = self.post(rows, **request)
        assert answer.status_code == 400, (answer.status_code, answer.text)
        body = answer.json()
        assert body == {"code": 400, "status": "Error", "error": body["error"], "source": "engine"}
        return str(body["error"])

    def logs(self, query: str = "dataset%5B%5D=%2A&dataset.separator=.") -> list[Any]:
        """Return the pipeline's inference log, the newest record first."""
        topic = f"workspace-{self._instance.workspace}-pipeline-{self.name}-inference"
        answer = httpx.post(
            f"{self._instance.base}/v1/logs/topic/{topic}/records?order=desc&{query}",
            headers=self._instance.headers | {"Accept": RECORDS},
            json={},
        )
        assert answer.status_code == 200, answer.text
        found: list[Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    """A server for the tests of this file."""
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        for instance in running(Path(folder) / "home"):
            yield Door(instance, Path(folder))


def infer(*models: Model) -> dict[str, Any]:
    return {"ModelInference": {"models": list(models)}}


# Every kind of data.


@pytest.fixture(scope="module")
def kinds(door: Door) -> Pipe:
    """A pipeline of one model that gives back an input of every ONNX element type."""
    nodes = [helper.make_node("Identity", [f"{name}_in"], [name]) for name in KINDS]
    inputs = {f"{name}_in": (kind, ["N", 2]) for name, (kind, _, _) in KINDS.items()}
    outputs = {name: (kind, ["N", 2]) for name, (kind, _, _) in KINDS.items()}
    path = making.save(door.folder / "kinds.onnx", nodes, inputs, outputs)
    return door.open(infer(door.upload("kinds", path)))


def test_every_element_type_comes_back_in_json(kinds: Pipe) -> None:
    row = {f"{name}_in": values for name, (_, _, values) in KINDS.items()}

    answered = kinds.rows([row, row])

    assert [one["in"] for one in answered] == [row, row]
    assert [one["out"] for one in answered] == [{name: values for name, (_, _, values) in KINDS.items()}] * 2


def test_every_element_type_comes_back_in_arrow(kinds: Pipe) -> None:
    table = pa.table({f"{n}_in": pa.array([values] * 3, pa.list_(kind)) for n, (_, kind, values) in KINDS.items()})

    answered = kinds.table(table)

    assert answered["in"].to_pylist() == table.to_pylist()
    out = answered["out"].combine_chunks()
    for name, (_, kind, values) in KINDS.items():
        assert out.field(name).type == pa.list_(pa.field("inner", kind, nullable=False))
        assert out.field(name).to_pylist() == [values] * 3
        assert out.type.field(name).metadata == {b"tensor_type": b'{"shape":[2]}'}
    assert answered.schema.metadata is None


def test_the_log_keeps_what_every_type_was(kinds: Pipe) -> None:
    row = {f"{name}_in": values for name, (_, _, values) in KINDS.items()}
    kinds.rows([row])

    newest = kinds.logs()[0]

    assert {name: newest[f"out.{name}"] for name in KINDS} == {name: values for name, (_, _, values) in KINDS.items()}
    assert {name: newest[f"in.{name}"] for name in row} == row


@pytest.fixture(scope="module")
def doubled(door: Door) -> Pipe:
    """A pipeline that doubles x, three numbers."""
    return door.open(infer(door.scale("double", 2)))


def layouts() -> dict[str, pa.Table]:
    plain = pa.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], pa.list_(pa.float32()))
    return {
        "large list": pa.table({"x": plain.cast(pa.large_list(pa.float32()))}),
        "fixed-size list": pa.table({"x": plain.cast(pa.list_(pa.float32(), 3))}),
        "fixed-shape tensors": pa.table(
            {"x": pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([[1, 2, 3], [4, 5, 6]], "f4"))}
        ),
        "dictionary": pa.table({"x": pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), plain)}),
        "many batches": pa.concat_tables([pa.table({"x": plain.slice(0, 1)}), pa.table({"x": plain.slice(1, 1)})]),
        "with an extra column": pa.table({"x": plain, "note": pa.array(["a", None], pa.large_string())}),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_every_layout_of_arrow_is_read(doubled: Pipe, layout: str, compression: str | None) -> None:
    sent = arrow_bytes(layouts()[layout], compression)

    answered = doubled.table(sent, kind=ARROW)

    assert answered["out"].to_pylist() == [{"y": [2, 4, 6]}, {"y": [8, 10, 12]}]
    assert [row["x"] for row in answered["in"].to_pylist()] == [[1, 2, 3], [4, 5, 6]]
    assert [row["out"]["y"] for row in doubled.rows(sent, kind=ARROW)] == [[2, 4, 6], [8, 10, 12]]


def test_nan_and_infinities_pass_in_arrow_and_are_null_in_json(doubled: Pipe) -> None:
    table = pa.table({"x": pa.array([[float("nan"), float("inf"), -1.0]], pa.list_(pa.float32()))})

    out = doubled.table(table)["out"].to_pylist()[0]["y"]

    assert np.isnan(out[0])
    assert out[1:] == [float("inf"), -2.0]
    assert doubled.rows(table)[0]["out"]["y"] == [None, None, -2.0]


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "null": ([{"x": [1, 2, 3]}, {"x": None}], ("x", "row 1", "null")),
    "null element": ([{"x": [1, None, 3]}], ("x", "row 0", "null")),
    "ragged": ([{"x": [1, 2, 3]}, {"x": [1, 2]}], ("x", "row 1", "3")),
    "too long": ([{"x": [1, 2, 3, 4]}], ("x", "row 0", "3", "4")),
    "text": ([{"x": ["a", "b", "c"]}], ("x", "row 0", "float")),
    "missing": ([{"z": [1, 2, 3]}], ("x", "z")),
    "missing in one row": ([{"x": [1, 2, 3]}, {"z": 1}], ("x", "row 1")),
    "object": ([{"x": {"a": 1}}], ("x",)),
    "no record": ([1, 2], ()),
    "bare text": ("hello", ()),
    "damaged": (b'[{"x":[1,2,', ()),
    "empty": (b"", ()),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_rows_are_refused_with_field_row_and_reason(doubled: Pipe, case: str) -> None:
    rows, named = REFUSED[case]

    message = doubled.error(rows)

    assert [part for part in named if part not in message] == []


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([[1.0, 2.0, 3.0], None], pa.list_(pa.float32())), ("x", "row 1", "null")),
        (pa.array([[1.0, 2.0, 3.0], [1.0]], pa.list_(pa.float32())), ("x", "row 1", "3")),
        (pa.array(["a", "b"]), ("x", "row 0", "expected float32 numbers", "got text")),
        (pa.array([{"a": 1.0}] * 2), ("x", "struct")),
    ],
)
def test_bad_columns_are_refused_with_field_row_and_reason(
    doubled: Pipe, column: pa.Array, named: tuple[str, ...]
) -> None:
    message = doubled.error(pa.table({"x": column}))

    assert [part for part in named if part not in message] == []


def test_errors_are_in_the_dialect_of_the_client(doubled: Pipe) -> None:
    old = doubled.post([{"x": None}], **OLD_SDK)
    new = doubled.post([{"x": None}], **{"User-Agent": "python-requests/2.32.3"})

    assert old.status_code == new.status_code == 400
    assert [sorted(entry) for entry in old.json()] == [["error", "error_type"]]
    assert new.json()["error"] == old.json()[0]["error"]


def test_no_rows_are_answered_with_none_and_many_with_as_many(doubled: Pipe) -> None:
    kind = pa.list_(pa.float32(), 3)
    none = pa.table({"x": pa.array([], kind)})
    many = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(600_000, dtype="f4")), 3)})

    assert doubled.rows([]) == []
    assert doubled.table(none).num_rows == 0
    answered = doubled.table(many)
    assert answered.num_rows == 200_000
    assert answered["out"].chunk(answered["out"].num_chunks - 1).field("y").values[-1].as_py() == 2 * 599_999.0
    assert len(doubled.rows([{"x": [1, 2, 3]}] * 20_000, making.SDK_QUERY)) == 20_000


def test_custom_json_is_answered_in_its_own_form(doubled: Pipe) -> None:
    answer = doubled.post({"x": [[1, 2, 3]]}, kind=WALLAROO, accept=WALLAROO)
    old = doubled.post({"x": [[1, 2, 3]]}, kind="application/json", accept="application/json")

    assert answer.headers["content-type"] == WALLAROO
    (found,) = answer.json()
    assert found["outputs"] == [{"Float": {"v": 1, "dim": [1, 3], "data": [2.0, 4.0, 6.0]}}]
    assert (found["model_name"], found["pipeline_name"]) == ("double", doubled.name)
    assert found["original_data"] == {"x": [[1, 2, 3]]}
    assert old.json()[0]["outputs"] == found["outputs"]


@pytest.mark.parametrize(
    ("query", "columns"),
    [
        ("", ["time", "in", "out", "check_failures", "anomaly", "metadata"]),
        (making.SDK_QUERY, ["time", "in.x", "out.y", "check_failures", "anomaly.count"]),
        ("dataset[]=time&dataset[]=out.y&dataset.separator=.", ["time", "out.y"]),
        ("dataset[]=in&dataset[]=out&dataset.separator=:", ["in:x", "out:y"]),
        ("dataset[]=out", ["y"]),
        (
            "dataset[]=time&dataset[]=anomaly.count&dataset.exclude[]=anomaly&dataset.separator=.",
            ["time", "anomaly.count"],
        ),
        ("dataset[]=*&dataset.exclude[]=in&dataset.exclude[]=metadata", ["time", "out", "check_failures", "anomaly"]),
        (
            "dataset.flatten=true&dataset.exclude[]=metadata",
            ["time", "in.x", "out.y", "check_failures", "anomaly.count"],
        ),
    ],
)
def test_the_query_chooses_the_columns_of_json_and_arrow(doubled: Pipe, query: str, columns: list[str]) -> None:
    (row,) = doubled.rows([{"x": [1, 2, 3]}], query)

    assert list(row) == columns
    assert doubled.table([{"x": [1, 2, 3]}], query).column_names == columns


def test_a_path_that_leads_nowhere_is_named(doubled: Pipe) -> None:
    assert "out.z" in doubled.error([{"x": [1, 2, 3]}], query="dataset[]=out.z&dataset.separator=.")


def test_a_scikit_learn_exports_map_is_shown(door: Door) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    inputs = np.array([[0.0], [1.0], [2.0], [3.0]], "f4")
    fitted = LogisticRegression().fit(inputs, ["no", "no", "yes", "yes"])
    path = door.folder / "classifier.onnx"
    path.write_bytes(to_onnx(fitted, inputs[:1]).SerializeToString())
    pipe = door.open(infer(door.upload("classifier", path, tensor_fields=["tensor"])))

    rows = pipe.rows([{"tensor": row} for row in inputs.tolist()])
    table = pipe.table([{"tensor": [3.0]}], making.SDK_QUERY)

    assert [row["out"]["output_label"] for row in rows] == [["no"], ["no"], ["yes"], ["yes"]]
    shown = [[row["out"]["output_probability"][label] for label in ("no", "yes")] for row in rows]
    assert np.allclose(shown, fitted.predict_proba(inputs), atol=1e-6)
    assert table["out.output_probability.yes"].to_pylist() == [pytest.approx(shown[3][1])]
    assert pipe.logs()[0]["out.output_label"] == ["yes"]


# Every kind of step.


@pytest.fixture(scope="module")
def several(door: Door) -> Callable[[int], Model]:
    """Models of the same input and output that multiply by a number each."""
    made: dict[int, Model] = {}

    def times(factor: int) -> Model:
        if factor not in made:
            made[factor] = door.scale(f"times-{factor}", factor)
        return made[factor]

    return times


Times = Callable[[int], Model]
ONES = [{"x": [1, 1, 1]}]


def too_high(name: str, column: str, limit: float) -> str:
    """Return the text of a check that the first element of a column is above a limit."""
    element = {"input": [{"Column": column}, {"Literal": {"Int32": 0}}], "function": {"ListExpr": "Get"}, "options": {}}
    compared = {"left": {"Function": element}, "op": "Gt", "right": {"Literal": {"Float64": limit}}}
    return json.dumps({"Alias": [{"BinaryExpr": compared}, name]})


def below(name: str, model: str, limit: float) -> str:
    """Return the text of an older check that the first output of a model is below a limit."""
    left = {"node": "variable", "variant_id": {"name": model}, "position": "output", "key": [0, 0]}
    root = {"node": "binop", "op": "<", "left": left, "right": {"node": "literal", "float": limit}}
    values = {name: {"root": root, "required_data": [{"name": model}]}}
    return json.dumps({"values": values, "gauges": [], "validations": [name]})


def test_a_shadow_deployment_with_checks_shows_all_models_and_marks_rows(door: Door, several: Times) -> None:
    pipe = door.open(
        infer(several(2), several(3), several(5)),
        {"AuditResults": {"from": 1, "to": None}},
        {"MultiOut": {}},
        {"Check": {"tree": [too_high("champion", "out.y", 3), too_high("challenger", "out_times-5.y", 3)]}},
    )

    (row,) = pipe.rows(ONES, making.SDK_QUERY)

    assert row["out.y"] == [2, 2, 2]
    assert (row["out_times-3.y"], row["out_times-5.y"]) == ([3, 3, 3], [5, 5, 5])
    anomalies = {name: row[f"anomaly.{name}"] for name in ("count", "champion", "challenger")}
    assert anomalies == {"count": 1, "champion": False, "challenger": True}
    assert {name: value for name, value in pipe.logs()[0].items() if name in row} == row


def test_an_old_check_in_a_shadow_deployment_lists_what_failed(door: Door, several: Times) -> None:
    pipe = door.open(
        infer(several(2), several(5)),
        {"Check": {"tree": [below("low", "times-5", 3.0)]}},
        {"MultiOut": {}},
    )

    (row,) = pipe.rows(ONES)

    assert [list(failure) for failure in row["check_failures"]] == [["False"]]
    assert row["check_failures"][0]["False"]["expr"] == "times-5.outputs[0][0] < 3.0"


def test_a_random_split_with_checks_sends_each_request_to_one_model(door: Door, several: Times) -> None:
    weights = [{"model": several(2), "weight": 3}, {"model": several(3), "weight": 1}]
    pipe = door.open(
        {"RandomSplit": {"hash_key": None, "weights": weights}}, {"Check": {"tree": [too_high("high", "out.y", 2.5)]}}
    )

    seen = [pipe.rows(ONES * 2, making.SDK_QUERY) for _ in range(60)]

    for rows in seen:
        chosen = {row["out.y"][0] for row in rows}
        assert len(chosen) == 1
        told = json.loads(rows[0]["out._model_split"][0])["model_version"]
        assert told["name"] == f"times-{chosen.pop():.0f}"
        assert [row["anomaly.high"] for row in rows] == [row["out.y"][0] == 3 for row in rows]
    threes = sum(rows[0]["out.y"][0] == 3 for rows in seen)
    assert 3 <= threes <= 30  # of 60 with a chance of a quarter: beyond this about once in a million runs


def test_a_random_split_by_a_field_is_decided_by_it(door: Door, several: Times) -> None:
    weights = [{"model": several(2), "weight": 1}, {"model": several(3), "weight": 1}]
    pipe = door.open({"RandomSplit": {"hash_key": "bucket", "weights": weights}})

    def chosen(bucket: float) -> float:
        value: float = pipe.rows([{"x": [1, 1, 1], "bucket": bucket}])[0]["out"]["y"][0]
        return value

    assert [chosen(bucket) for bucket in (0.0, 0.49, 0.5, 1.0)] == [2, 2, 3, 3]
    assert "bucket" in pipe.error([{"x": [1, 1, 1], "bucket": 1.5}])
    assert "bucket" in pipe.error(ONES)


def test_a_split_by_value_is_followed_by_a_further_step(door: Door, several: Times) -> None:
    split = {"split_key": "tier", "control": several(2), "routes": {"gold": several(3), "7": several(5)}}
    pipe = door.open({"MetaValueSplit": split}, infer(several(10)))

    def answered(**more: Any) -> Any:
        (row,) = pipe.rows([{"x": [1, 1, 1], **more}])
        told = json.loads(row["out"]["_model_split"][0])["model_version"]["name"]
        return row["out"]["y"][0], told

    assert answered(tier="gold") == (30, "times-3")
    assert answered(tier="tin") == (20, "times-2")
    assert answered(tier=7) == (50, "times-5")
    assert answered() == (20, "times-2")


def test_steps_pass_on_columns_of_other_names_and_keep_the_request(door: Door, several: Times) -> None:
    final = door.upload("final", making.total(door.folder / "final.onnx", source="features", target="price"))
    pipe = door.open(infer(several(2)), infer(several(3)), infer(final))

    (row,) = pipe.rows([{"x": [1, 2, 3]}])

    assert (row["in"], row["out"]) == ({"x": [1, 2, 3]}, {"price": [36]})
    assert json.loads(row["metadata"]["last_model"])["model_name"] == "final"


def test_average_and_nth_make_one_answer_of_several(door: Door, several: Times) -> None:
    mean = door.open(infer(several(2), several(3), several(10)), {"Average": {}})
    second = door.open(infer(several(2), several(3), several(10)), {"Nth": {"index": 1}}, infer(several(5)))

    assert mean.rows(ONES)[0]["out"] == {"y": [5, 5, 5]}
    assert second.rows(ONES)[0]["out"] == {"y": [15, 15, 15]}


def test_columns_may_be_chosen_and_converted_before_a_model(door: Door) -> None:
    path = making.scale(door.folder / "pair.onnx", 2, width=2)
    pair = door.upload("pair", path)
    pipe = door.open({"InputDataToType": {"data_type": "f32"}}, {"ColumnsSelect": {"columns": [0, 2]}}, infer(pair))

    (row,) = pipe.rows([{"x": [1, 2, 3]}])

    assert (row["in"], row["out"]) == ({"x": [1, 2, 3]}, {"y": [2, 6]})


def test_rows_go_to_the_models_of_their_positions(door: Door, several: Times) -> None:
    routes = [{"row_index": 0, "model": several(2)}, {"row_index": 1, "model": several(3)}]
    pipe = door.open({"RowsToModels": {"rows_to_models": routes}})

    assert [row["out"]["y"][0] for row in pipe.rows(ONES * 2)] == [2, 3]
    assert "row 2" in pipe.error(ONES * 3)


def test_what_makes_no_sense_is_refused_at_deploy_with_its_reason(door: Door, several: Times) -> None:
    two = infer(several(2), several(3))
    refused: list[tuple[list[dict[str, Any]], str]] = [
        ([{"Explode": {}}], "'Explode'"),
        ([two], "never reduced"),
        ([two, infer(several(2))], "put MultiOut, Nth or Average before it"),
        ([{"MultiOut": {}}], "needs a model before it"),
        ([two, {"Nth": {"index": 2}}], "there are 2"),
        ([{"RandomSplit": {"hash_key": None, "weights": [{"model": several(2), "weight": 0}]}}], "weights"),
        ([infer(several(2)), {"Check": {"tree": ["{"]}}], "Step 2"),
        ([infer(several(2)), {"Check": {"tree": [below("low", "nobody", 1)]}}], "'nobody'"),
        ([infer(several(2)), {"Check": {"tree": ['{"Alias":[{"Rolling":{}},"a"]}']}}], "Step 2"),
    ]

    for steps, reason in refused:
        assert reason in door.refusal(400, *steps), steps
    unknown = {"name": "times-2", "version": "00000000-0000-4000-8000-000000000000", "sha": ""}
    assert "'times-2'" in door.refusal(404, infer(unknown))


# How a model is configured.


def test_tensor_fields_name_the_callers_columns(door: Door) -> None:
    sums = [helper.make_node("Add", ["left", "right"], ["sum"])]
    ports = {"left": (FLOAT, ["N", 1]), "right": (FLOAT, ["N", 1])}
    path = making.save(door.folder / "sums.onnx", sums, ports, {"sum": (FLOAT, ["N", 1])})
    pipe = door.open(infer(door.upload("sums", path, tensor_fields=["a", "b"])))

    assert pipe.rows([{"b": [1.5], "a": 2, "c": "kept"}])[0]["out"] == {"sum": [3.5]}
    assert pipe.rows([{"left": 1, "right": 2}])[0]["out"] == {"sum": [3]}
    assert "a" in pipe.error([{"b": 1}])


def test_a_declared_schema_names_and_types_what_comes_out(door: Door) -> None:
    from tests.engine.core.test_tensors import schema_text

    path = making.total(door.folder / "declared.onnx")
    config = {
        "input_schema": schema_text(pa.schema([("inputs", pa.list_(pa.float64(), 3))])),
        "output_schema": schema_text(pa.schema([("predictions", pa.int32())])),
    }
    pipe = door.open(infer(door.upload("declared", path, **config)))

    assert pipe.rows([{"inputs": [1, 2, 3]}])[0]["out"] == {"predictions": 6}
    assert pipe.table([{"inputs": [1, 2, 3]}]).schema.field("out").type.field(0).type == pa.int32()


def test_rows_are_fed_one_at_a_time_when_asked_for(door: Door) -> None:
    axes = helper.make_tensor("axes", INT64, [1], [0])
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    path = making.save(door.folder / "columns.onnx", [node], {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, ["M", 3])}, [axes])
    single = door.open(infer(door.upload("columns", path, batch_config="single")))
    limited = door.open(infer(door.scale("limited", 2, dynamic_batching_config={"batch_size_limit": 2})))

    assert [row["out"]["y"] for row in single.rows([{"x": [1, 2, 3]}, {"x": [4, 5, 6]}])] == [[1, 2, 3], [4, 5, 6]]
    assert [row["out"]["y"][0] for row in limited.rows(ONES * 5)] == [2] * 5


def test_finds_below_the_threshold_are_left_out(door: Door) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["confidence"]), helper.make_node("Identity", ["boxes_in"], ["boxes"])]
    path = making.save(
        door.folder / "finds.onnx",
        nodes,
        {"x": (FLOAT, ["N", 3]), "boxes_in": (FLOAT, ["N", 3, 2])},
        {"confidence": (FLOAT, ["N", 3]), "boxes": (FLOAT, ["N", 3, 2])},
    )
    pipe = door.open(infer(door.upload("finds", path, filter_threshold=0.5)))

    (row,) = pipe.rows([{"x": [0.9, 0.1, 0.5], "boxes_in": [[1, 2], [3, 4], [5, 6]]}])

    assert row["out"]["confidence"] == [0.9, 0.5]
    assert np.ravel(row["out"]["boxes"]).tolist() == [1, 2, 5, 6]


# What is counted.


def test_the_contracts_metrics_count_what_came_through_the_door(door: Door, doubled: Pipe) -> None:
    doubled.rows(ONES * 7)
    files = door.instance.home.glob("run/engines/*/*/status.json")
    ports = [json.loads(file.read_bytes())["port"] for file in files]

    counted = [
        line
        for port in ports
        for line in httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        if f'pipeline_name="{doubled.name}"' in line
    ]

    deployment = f'deploy_id="{doubled.name}"'
    (rows,) = [line for line in counted if line.startswith("tensor_throughput_batch_count")]
    (answered,) = [line for line in counted if line.startswith("latency_histogram_ns_count")]
    assert deployment in rows
    assert deployment in answered
    assert float(rows.split()[-1]) >= 7
    assert float(answered.split()[-1]) >= 1
    assert any(line.startswith("latency_histogram_ns_bucket") for line in counted)
