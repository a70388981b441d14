"""What the vendor's platform answered, answered again: every ONNX use case of the recorded data, JSON and Arrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.contract.codecs import decode_records
from tests.engine.core import making
from tests.engine.core.vendor import VALIDATIONS, cases, check, config

pytestmark = pytest.mark.vendor_data


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
