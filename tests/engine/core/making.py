"""Small ONNX models, and engines that run them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
from onnx import TensorProto, helper

from engine.contract.deployment import (
    DeploymentDocument,
    LogDocument,
    ModelConfigDocument,
    ModelDocument,
    PipelineDocument,
)
from engine.runtime.engine import Engine, InferReply, InferRequest

ARROW = "application/vnd.apache.arrow.file"
RECORDS = "application/json; format=pandas-records"
SDK_QUERY = "dataset%5B%5D=%2A&dataset.exclude%5B%5D=metadata&dataset.separator=."

FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64

Dims = Sequence[int | str | None]
Ports = Mapping[str, tuple[int, Dims]]


def save(path: Path, nodes: list[Any], inputs: Ports, outputs: Ports, constants: Sequence[Any] = ()) -> Path:
    """Write a model of these nodes."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in outputs.items()],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def scale(path: Path, factor: float, width: int = 3, source: str = "x", target: str = "y", kind: int = FLOAT) -> Path:
    """Write a model that multiplies its input by a number."""
    constant = helper.make_tensor("factor", kind, [], [factor])
    node = helper.make_node("Mul", [source, "factor"], [target])
    return save(path, [node], {source: (kind, ["N", width])}, {target: (kind, ["N", width])}, [constant])


def total(path: Path, source: str = "x", target: str = "total") -> Path:
    """Write a model that adds up each row."""
    axes = helper.make_tensor("axes", INT64, [1], [1])
    node = helper.make_node("ReduceSum", [source, "axes"], [target], keepdims=1)
    return save(path, [node], {source: (FLOAT, ["N", "K"])}, {target: (FLOAT, ["N", 1])}, [axes])


def echo(path: Path, kind: int, dims: Dims, source: str = "x", target: str = "y") -> Path:
    """Write a model that gives back its input."""
    return save(
        path, [helper.make_node("Identity", [source], [target])], {source: (kind, dims)}, {target: (kind, dims)}
    )


def model(
    number: int, path: Path, name: str | None = None, *, accel: Any = "none", runtime: str = "onnx", **config: Any
) -> ModelDocument:
    """Describe a model version to an engine."""
    name = name or path.stem
    sha = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "0" * 64
    return ModelDocument(
        model_version_id=number,
        name=name,
        version=f"00000000-0000-4000-8000-{number:012d}",
        sha=sha,
        framework="onnx",
        path=str(path),
        accel=accel,
        config=ModelConfigDocument(id=number, runtime=runtime, **config),
        record={"model_version": {"name": name}, "config": {"id": number}},
    )


def ref(document: ModelDocument) -> dict[str, str]:
    """Name a model version as a step does."""
    return {"name": document.name, "version": document.version, "sha": document.sha}


def infer_step(*documents: ModelDocument) -> dict[str, Any]:
    """Return a ModelInference step."""
    return {"ModelInference": {"models": [ref(document) for document in documents]}}


def document(models: Sequence[ModelDocument], *steps: Mapping[str, Any], **settings: Any) -> DeploymentDocument:
    """Describe a deployment of one pipeline named `p`."""
    pipeline = PipelineDocument(
        id="p", version="pipeline-version", definition={"id": "p", "steps": list(steps)}, topic="workspace-1-pipeline-p"
    )
    return DeploymentDocument(
        deployment_id=1,
        deploy_id="p",
        revision=1,
        workspace_id=1,
        replica="engine-1",
        pipelines=[pipeline],
        models=list(models),
        log=settings.pop("log", LogDocument(root="unused")),
        **settings,
    )


def engine(models: Sequence[ModelDocument], *steps: Mapping[str, Any], **settings: Any) -> Engine:
    """Load an engine of one pipeline; without steps it runs the first model."""
    made = Engine(document(models, *(steps or (infer_step(models[0]),)), **settings))
    made.load()
    return made


def send(to: Engine, rows: Any, **request: Any) -> InferReply:
    """Infer on rows in pandas-records JSON, or on an Arrow table."""
    if isinstance(rows, pa.Table | pa.RecordBatch):
        request.setdefault("content_type", ARROW)
        body = arrow_bytes(rows)
    else:
        request.setdefault("content_type", RECORDS)
        body = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    return to.infer(InferRequest(pipeline="p", body=body, **request))


def rows_of(reply: InferReply) -> Any:
    """Return the JSON of an answered inference."""
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


def table_of(reply: InferReply) -> pa.Table:
    """Return the table of an inference answered in Arrow."""
    assert reply.status == 200, reply.body
    return pa.ipc.open_file(reply.body).read_all()


def error_of(reply: InferReply) -> str:
    """Return the message of a refused inference."""
    assert reply.status == 400, (reply.status, reply.body)
    return str(json.loads(reply.body)["error"])


def arrow_bytes(rows: pa.Table | pa.RecordBatch, compression: str | None = None) -> bytes:
    """Write an Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write(rows)
    return bytes(sink.getvalue())
