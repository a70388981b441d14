"""An engine as a whole: what it loads, in which formats it answers, and whom it never calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from engine.contract.deployment import PipelineDocument
from engine.runtime.engine import Engine, InferRequest
from engine.runtime.models import LoadError
from tests.engine.core import making
from tests.engine.core.making import ARROW, RECORDS, engine, infer_step, model, rows_of, scale, send, table_of

CUSTOM = "application/json; format=wallaroo"
ROWS = [{"x": [1.0, 2.0, 3.0]}]


@pytest.fixture
def double(tmp_path: Path) -> Any:
    return model(1, scale(tmp_path / "double.onnx", 2))


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, RECORDS),
        ("*/*", RECORDS),
        (RECORDS, RECORDS),
        ("application/json", RECORDS),
        ("text/html", RECORDS),
        (ARROW, ARROW),
        ("application/json;q=0.5, application/vnd.apache.arrow.file", ARROW),
        ("application/vnd.apache.arrow.file;q=0, */*", RECORDS),
        (CUSTOM, CUSTOM),
        ('application/json; format="wallaroo"', CUSTOM),
    ],
)
def test_accept_chooses_the_format(double: Any, accept: str | None, content_type: str) -> None:
    made = engine([double])

    assert send(made, ROWS, accept=accept).content_type == content_type
    table = pa.table({"x": pa.array([[1.0, 2.0, 3.0]])})
    assert send(made, table, accept=accept).content_type == content_type


@pytest.mark.parametrize("content_type", ["application/json", CUSTOM])
def test_custom_json_is_answered_in_its_own_form(double: Any, content_type: str) -> None:
    made = engine([double])
    asked = {"x": [[1, 2, 3], [4, 5, 6]]}

    reply = send(made, json.dumps(asked).encode(), content_type=content_type, accept=content_type, wall_ms=5)

    (result,) = json.loads(reply.body)
    assert reply.content_type == CUSTOM
    assert result.pop("elapsed")[1] > 0
    assert result == {
        "check_failures": [],
        "model_name": "double",
        "model_version": double.version,
        "original_data": asked,
        "outputs": [{"Float": {"v": 1, "dim": [2, 3], "data": [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]}}],
        "pipeline_name": "p",
        "shadow_data": {},
        "time": 5,
    }
    assert reply.record is not None
    assert reply.record.num_rows == 2


def test_a_bare_list_of_rows_feeds_the_only_input(double: Any) -> None:
    made = engine([double])

    reply = send(made, b"[[1, 2, 3]]", content_type=CUSTOM, accept=CUSTOM)

    assert json.loads(reply.body)[0]["outputs"][0]["Float"]["data"] == [2.0, 4.0, 6.0]
    assert reply.record["in"].to_pylist() == [{"x": [1.0, 2.0, 3.0]}]


def test_a_body_without_a_type_is_recognised(double: Any) -> None:
    made = engine([double])
    table = pa.table({"x": pa.array([[1.0, 2.0, 3.0]])})

    for body in (json.dumps(ROWS).encode(), making.arrow_bytes(table)):
        for content_type in (None, "", "application/octet-stream"):
            reply = made.infer(InferRequest(pipeline="p", body=body, content_type=content_type))
            assert rows_of(reply)[0]["out"]["y"] == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("content_type", ["text/csv", "application/json; format=csv", "image/png"])
def test_a_type_that_nobody_reads_is_refused(double: Any, content_type: str) -> None:
    reply = send(engine([double]), ROWS, content_type=content_type)

    assert reply.status == 415
    assert content_type in json.loads(reply.body)["error"]


def test_the_sdk_gets_flat_columns(double: Any) -> None:
    made = engine([double])

    row = rows_of(send(made, ROWS, query=making.SDK_QUERY))[0]
    table = table_of(send(made, ROWS, query=making.SDK_QUERY, accept=ARROW))

    assert list(row) == table.column_names == ["time", "in.x", "out.y", "check_failures", "anomaly.count"]
    assert table.schema.metadata is None


def test_an_unknown_path_is_a_bad_request(double: Any) -> None:
    reply = send(engine([double]), ROWS, query="dataset[]=nope")

    assert reply.status == 400
    assert "invalid path 'nope'" in json.loads(reply.body)["error"]
    assert reply.record is None


def test_old_clients_get_errors_as_a_list(double: Any) -> None:
    made = engine([double])

    old = send(made, [{"x": [1.0]}], user_agent="python-requests/2.25.1")
    new = send(made, [{"x": [1.0]}], user_agent="python-httpx/0.27.0")

    assert json.loads(old.body)[0]["error_type"] == "InferenceError"
    assert json.loads(new.body)["code"] == 400


def test_a_pipeline_that_is_not_there_is_not_found(double: Any) -> None:
    reply = engine([double]).infer(InferRequest(pipeline="q", body=b"[]", content_type=RECORDS))

    assert (reply.status, reply.topic, reply.failure) == (404, "", None)


def test_a_bug_costs_its_request_alone(double: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    made = engine([double])
    with monkeypatch.context() as patch:
        patch.setattr(made.pipelines["p"], "run", lambda _: 1 / 0)
        broken = send(made, ROWS)

    assert broken.status == 500
    assert "Traceback" not in broken.body.decode()
    assert "ZeroDivisionError" in caplog.text
    assert send(made, ROWS).status == 200


def test_threads_share_an_engine(double: Any) -> None:
    made = engine([double])

    def ask(number: int) -> float:
        return float(rows_of(send(made, [{"x": [number] * 3}]))[0]["out"]["y"][0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(200))) == [2.0 * number for number in range(200)]


def test_a_model_of_several_pipelines_is_loaded_once(double: Any) -> None:
    document = making.document([double], infer_step(double), infer_step(double))
    second = PipelineDocument(id="q", version="v", definition={"steps": [infer_step(double)]}, topic="t")
    made = Engine(msgspec.structs.replace(document, pipelines=[*document.pipelines, second]))

    assert [status.status for group in made.status() for status in group] == ["Starting"] * 3
    made.load()

    assert list(made.models) == [1]
    assert [status.status for group in made.status() for status in group] == ["Running"] * 3
    assert made.pipelines["p"].first_model is made.pipelines["q"].first_model


def refusal(document: Any) -> str:
    made = Engine(making.document([document], infer_step(document)))
    with pytest.raises(LoadError) as caught:
        made.load()
    pipelines, models = made.status()
    assert (pipelines[0].status, models[0].status) == ("Error", "Error")
    assert models[0].reason == str(caught.value)
    return str(caught.value)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"not a model")
    good = scale(tmp_path / "good.onnx", 2)

    assert "its file" in refusal(model(1, tmp_path / "nowhere.onnx"))
    assert "cannot be loaded" in refusal(model(1, junk))
    assert "needs the runtime 'flight'; this engine runs onnx" in refusal(model(1, good, runtime="flight"))
    assert "tensor_fields names 2 fields, the model has 1 inputs (x)" in refusal(
        model(1, good, tensor_fields=["a", "b"])
    )
    node = making.helper.make_node("Constant", [], ["y"], value_floats=[1.0])
    constant = making.save(tmp_path / "constant.onnx", [node], {}, {"y": (making.FLOAT, [1])})
    assert "has no inputs" in refusal(model(1, constant))
    assert "output schema" in refusal(model(1, good, output_schema="bm90IGFycm93"))


@pytest.mark.parametrize("accel", ["cuda", "jetson", "openvino", "rocm", {"qaic": {"num_cores": 4}}])
def test_an_acceleration_that_this_build_lacks_is_named(tmp_path: Path, accel: Any) -> None:
    reason = refusal(model(1, scale(tmp_path / "good.onnx", 2), accel=accel))

    name = next(iter(accel)) if isinstance(accel, dict) else accel
    assert f"asks for acceleration {name!r}" in reason
    assert "ExecutionProvider" in reason


def test_a_definition_that_makes_no_sense_keeps_an_engine_from_loading(double: Any) -> None:
    made = Engine(making.document([double], {"Explode": {}}))

    with pytest.raises(LoadError, match="Pipeline 'p': Step 1: steps of kind 'Explode' cannot be run"):
        made.load()


PROBE = """
    import socket, sys
    calls = []
    def refuse(self, address, *rest):
        calls.append(address)
        raise OSError("closed")
    socket.socket.connect = refuse
    socket.getaddrinfo = lambda *args, **kwargs: calls.append(args) or []
    from pathlib import Path
    from tests.engine.core import making
    made = making.engine([making.model(1, Path(sys.argv[1]))])
    for _ in range(50):
        assert making.send(made, [{"x": [1, 2, 3]}]).status == 200
    import os, time
    inodes = set()
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        for entry in os.scandir("/proc/self/fd"):
            try:
                target = os.readlink(entry.path)
            except FileNotFoundError:
                continue
            if target.startswith("socket:"):
                inodes.add(target)
        time.sleep(0.05)
    print(len(inodes), len(calls), "pandas" in sys.modules, os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see the sockets of a process")
def test_an_engine_opens_no_connection_and_imports_no_pandas(tmp_path: Path) -> None:
    path = scale(tmp_path / "double.onnx", 2)
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}

    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROBE), str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
        cwd=Path(__file__).parents[3],
    )

    assert ran.stdout.split() == ["0", "0", "False", "1"], ran.stderr


def test_finds_below_the_threshold_are_left_out(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Identity", [f"in_{name}"], [name]) for name in ("boxes", "scores")]
    boxes, scores = ["N", "K", 4], ["N", "K"]
    ports = {"in_boxes": (making.FLOAT, boxes), "in_scores": (making.FLOAT, scores)}
    path = making.save(
        tmp_path / "detector.onnx", nodes, ports, {"boxes": (making.FLOAT, boxes), "scores": (making.FLOAT, scores)}
    )
    made = engine([model(1, path, filter_threshold=0.5)])
    found = [[0.0] * 4, [1.0] * 4, [2.0] * 4]

    answered = rows_of(
        send(
            made,
            [{"in_boxes": found, "in_scores": [0.9, 0.1, 0.5]}, {"in_boxes": found, "in_scores": [0.0, 0.1, 0.2]}],
        )
    )

    assert answered[0]["out"]["scores"] == [0.9, 0.5]
    assert answered[0]["out"]["boxes"] == [0.0] * 4 + [2.0] * 4
    assert answered[1]["out"] == {"boxes": [], "scores": []}


def test_a_loaded_engine_has_rehearsed_its_checks(double: Any) -> None:
    column = {
        "Function": {"input": [{"Column": "out.nope"}, {"Literal": {"Int32": 0}}], "function": {"ListExpr": "Get"}}
    }
    check = {"BinaryExpr": {"left": column, "op": "Gt", "right": {"Literal": {"Float64": 0.5}}}}
    made = engine([double], infer_step(double), {"Check": {"tree": [json.dumps({"Alias": [check, "high"]})]}})

    reply = send(made, ROWS)

    assert made.status()[0][0].status == "Running"
    assert "'high' looks at 'out.nope'; the record has in.x, out.y" in json.loads(reply.body)["error"]
