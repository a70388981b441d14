"""The vendor's public tutorials: their models and data, and the results that they record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from play.stage import Stage, scenario, since, unless

Case = dict[str, Any]


def _folder(name: str) -> Path:
    return Path(os.environ["PLAY_DATA"]) / name


def _cases(folder: str) -> dict[str, Case]:
    return {case["id"]: case for case in json.loads((_folder(folder) / "cases.json").read_text())["cases"]}


def _schema(fields: dict[str, str]) -> pa.Schema:
    """Return the schema whose fields are written like `list<float32>[10]`."""

    def type_of(text: str) -> pa.DataType:
        inner, _, size = text.removeprefix("list<").partition(">")
        assert inner == "float32", text
        return pa.list_(pa.float32(), list_size=int(size.strip("[]")))

    return pa.schema([pa.field(name, type_of(text)) for name, text in fields.items()])


def _upload(stage: Stage, folder: str, given: Case) -> Any:
    """Upload a model of a case and configure it as the tutorial does; once per run."""
    from wallaroo.framework import Framework

    configured = given.get("configure")
    name = given.get("name") or Path(given["file"]).stem.replace("_", "-")
    key = f"tutorial-{folder}-{name}-{configured}"
    if key not in stage.kept:
        stage.workspace()
        schemas = {s: _schema(given[s]) for s in ("input_schema", "output_schema") if s in given}
        path = str(_folder(folder) / given["file"])
        made = stage.client().upload_model(name, path, framework=Framework.ONNX, **schemas)
        fields = configured and (configured.get("tensor_fields") or configured.get("input_columns"))
        if fields:
            made = made.configure(tensor_fields=fields)
        elif not since("2024.1"):
            made = made.configure()
        stage.kept[key] = made
    return stage.kept[key]


def _deploy(stage: Stage, folder: str, name: str, case: Case) -> Any:
    """Build the pipeline of a case, and run it."""
    given = case.get("steps") or [case["model"]]
    models = [_upload(stage, folder, step) for step in given]

    def build(pipeline: Any) -> Any:
        if "shadow" in case:
            pipeline.add_shadow_deploy(models[0], [_upload(stage, folder, other) for other in case["shadow"]])
        else:
            for model in models:
                pipeline.add_model_step(model)
        return pipeline

    return stage.deployed(name, build)


def _answer(pipeline: Any, folder: str, case: Case) -> pd.DataFrame:
    """Send the input of a case as a file, and as the object it holds; both are answered alike."""
    path = _folder(folder) / case["input"]["file"]
    from_file = pipeline.infer_from_file(str(path), timeout=60)
    if case["input"]["format"] == "arrow-file":
        with pa.ipc.open_file(str(path)) as reader:
            sent: Any = reader.read_all()
    else:
        sent = pd.DataFrame.from_records(json.loads(path.read_text()))
    direct = pipeline.infer(sent, timeout=60)
    both = [a.to_pandas() if isinstance(a, pa.Table) else a for a in (from_file, direct)]
    for column in (c for c in both[0].columns if c.startswith("out")):
        for one, other in zip(both[0][column], both[1][column], strict=True):
            np.testing.assert_array_equal(one, other)
    return both[0]


def _check(case: Case, answer: pd.DataFrame) -> None:
    """Compare an answer with what the case records."""
    expected, tolerance = case["expected"], case["tolerance"]

    def same(found: Any, wanted: Any) -> None:
        found, wanted = np.array(list(found), dtype=np.float64), np.array(wanted, dtype=np.float64)
        np.testing.assert_allclose(
            found.reshape(wanted.shape), wanted, rtol=tolerance["rel"], atol=tolerance["abs"], err_msg=case["id"]
        )

    assert len(answer) == expected["rows"]
    compared = 0
    for column, values in expected.get("columns", {}).items():
        same(answer[column], values)
        compared += len(values)
    for column, values in expected.get("head", {}).items():
        same(answer[column][: len(values)], values)
        compared += len(values)
    for column, values in expected.get("row_index_to_value", {}).items():
        over = [row for row, value in enumerate(answer[column]) if value[0] > expected["filter"]["gt"]]
        assert [str(row) for row in over] == list(values)
        same([answer[column][row][0] for row in over], list(values.values()))
        compared += len(values)
    assert compared > 0, case["id"]


def _play(stage: Stage, folder: str, name: str, ids: list[str]) -> None:
    """Play cases that share a pipeline."""
    cases = [_cases(folder)[key] for key in ids]
    pipeline = _deploy(stage, folder, name, cases[0])
    try:
        for case in cases:
            _check(case, _answer(pipeline, folder, case))
    finally:
        pipeline.undeploy()


@scenario()
def ccfraud_101(stage: Stage) -> None:
    _play(stage, "ccfraud", "ccf", ["smoke-row", "high-fraud-row", "batch-10k-over-0.75", "batch-1k-head"])


@scenario()
def ccfraud_by_the_model_s_own_input_name(stage: Stage) -> None:
    _play(stage, "ccfraud", "ccf-own", ["batch-1k-native-input-name"])


@scenario()
def ccfraud_shadow(stage: Stage) -> None:
    _play(stage, "ccfraud", "ccf-shadow", ["shadow-smoke"])


@scenario(unless(since("2023.4.2"), "its validations are the older ones"))
def ccfraud_anomalies(stage: Stage) -> None:
    import polars as pl

    case = _cases("ccfraud")["anomaly-1k-fraud"]
    model = _upload(stage, "ccfraud", case["model"])
    fraud = pl.col("out.dense_1").list.get(0) > 0.95
    pipeline = stage.deployed("ccf-anomaly", lambda p: p.add_model_step(model).add_validations(fraud=fraud))
    answer = _answer(pipeline, "ccfraud", case)
    pipeline.undeploy()

    assert set(case["expected"]["columns_present"]) <= set(answer.columns)
    found = [row for row, is_fraud in enumerate(answer["anomaly.fraud"]) if is_fraud]
    assert found == case["expected"]["true_rows"]["anomaly.fraud"]


@scenario()
def house_price_models(stage: Stage) -> None:
    _play(stage, "houseprice", "house-rf", ["rf_model-normal", "rf_model-large", "rf-1k-head"])
    _play(stage, "houseprice", "house-gbr", ["gbr_model-normal", "gbr_model-large"])
    _play(stage, "houseprice", "house-xgb", ["xgb_model-normal", "xgb_model-large"])
    _play(stage, "houseprice", "house-keras", ["keras-17-features"])


@scenario()
def house_price_shadow(stage: Stage) -> None:
    _play(stage, "houseprice", "house-shadow", ["shadow-1k-head"])


@scenario()
def house_price_a_b(stage: Stage) -> None:
    cases = _cases("houseprice")
    control, challenger = cases["rf_model-normal"], cases["xgb_model-normal"]
    split = [
        (2, _upload(stage, "houseprice", control["model"])),
        (1, _upload(stage, "houseprice", challenger["model"])),
    ]
    recorded = {"rf-model": control, "xgb-model": challenger}
    pipeline = stage.deployed("house-ab", lambda p: p.add_random_split(split))
    row = pd.DataFrame.from_records(json.loads((_folder("houseprice") / control["input"]["file"]).read_text()))
    counted = dict.fromkeys(recorded, 0)
    for _ in range(150):
        answer = pipeline.infer(row)
        told = json.loads(answer["out._model_split"][0][0])
        name = told.get("model_version", told)["name"]
        _check(recorded[name], answer)
        counted[name] += 1
    pipeline.undeploy()

    # Five standard deviations on both sides of two in three.
    assert 71 <= counted["rf-model"] <= 129, counted


@scenario(unless(not since("2023.4"), "gave way to polars expressions"))
def house_price_too_high(stage: Stage) -> None:
    case = _cases("houseprice")["rf-1k-validation"]
    model = _upload(stage, "houseprice", case["model"])
    affordable = model.outputs[0][0] < 1500000.0
    pipeline = stage.deployed(
        "house-high", lambda p: p.add_model_step(model).add_validation("price too high", affordable)
    )
    answer = pipeline.infer(_frame(case))
    pipeline.undeploy()

    _check_failing(case, answer, list(answer["check_failures"]))


@scenario(unless(since("2023.4.2"), "its validations are the older ones"))
def house_price_anomalies(stage: Stage) -> None:
    import polars as pl

    case = _cases("houseprice")["rf-1k-validation"]
    model = _upload(stage, "houseprice", case["model"])
    too_high = pl.col("out.variable").list.get(0) >= 1500000.0
    pipeline = stage.deployed("house-high", lambda p: p.add_model_step(model).add_validations(too_high=too_high))
    answer = pipeline.infer(_frame(case))
    pipeline.undeploy()

    _check_failing(case, answer, list(answer["anomaly.count"]))
    assert list(answer["anomaly.too_high"]) == [count == 1 for count in answer["anomaly.count"]]


def _frame(case: Case) -> pd.DataFrame:
    with pa.ipc.open_file(str(_folder("houseprice") / case["input"]["file"])) as reader:
        table = reader.read_all()
    return pd.DataFrame({name: table[name].to_pylist() for name in table.column_names})


def _check_failing(case: Case, answer: pd.DataFrame, failures: list[int]) -> None:
    rows = [row for row, count in enumerate(failures) if count]
    assert rows == case["expected"]["failing_rows"]
    assert set(failures) == {0, 1}
    _check(case | {"expected": {"rows": len(rows), "columns": case["expected"]["failing_values"]}}, answer.iloc[rows])


@scenario()
def imdb_in_two_steps(stage: Stage) -> None:
    _play(stage, "imdb", "imdb", ["two-step-singleton", "two-step-batch"])


@scenario()
def demand_curve(stage: Stage) -> None:
    _play(stage, "demandcurve", "demand", ["onnx-first-purchase"])


@scenario()
def onnx_with_several_inputs(stage: Stage) -> None:
    _play(stage, "onnx-multi-io", "multi", ["seed1"])
