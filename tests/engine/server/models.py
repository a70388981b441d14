"""Tiny models and documents for tests of the server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
DTYPES = {FLOAT: "f4", DOUBLE: "f8"}


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def linear(path: Path, width: int = 3, outputs: int = 1, kind: int = FLOAT, seed: int = 0) -> Path:
    """`y = x W + b`, and a second output that counts the positive inputs."""
    generator = np.random.default_rng(seed)
    dtype = DTYPES[kind]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["ones"], to=INT64),
        helper.make_node("ReduceSum", ["ones", "axis"], ["count"], keepdims=0),
    ]
    weights = [
        numpy_helper.from_array(generator.normal(0, 1, (width, outputs)).astype(dtype), "w"),
        numpy_helper.from_array(generator.normal(0, 1, outputs).astype(dtype), "b"),
        numpy_helper.from_array(np.zeros(1, dtype), "zero"),
        numpy_helper.from_array(np.array([1], "i8"), "axis"),
    ]
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", kind, ["batch", width])],
        [
            helper.make_tensor_value_info("y", kind, ["batch", outputs]),
            helper.make_tensor_value_info("count", INT64, ["batch"]),
        ],
        weights,
    )


def over_the_batch(path: Path, width: int = 3) -> Path:
    """A model whose rows depend on each other: it subtracts the mean of the batch."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", width])],
        [],
    )


def largest(path: Path, width: int = 3) -> Path:
    """A model whose output grows with the input: as many of the largest numbers as are positive, and one."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["ones"], to=INT64),
        helper.make_node("ReduceSum", ["ones"], ["positives"], keepdims=0),
        helper.make_node("Add", ["positives", "one"], ["count"]),
        helper.make_node("TopK", ["x", "count"], ["y", "places"], axis=1),
    ]
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", "count"])],
        [numpy_helper.from_array(np.zeros(1, "f4"), "zero"), numpy_helper.from_array(np.array([1], "i8"), "one")],
    )


def slow(path: Path, rounds: int = 40, size: int = 700) -> Path:
    """A model that takes tens of milliseconds."""
    weight = (np.random.default_rng(0).normal(0, size**-0.5, (size, size))).astype("f4")
    nodes = [helper.make_node("Tile", ["x", "times"], ["t0"])]
    for index in range(rounds):
        nodes.append(helper.make_node("MatMul", [f"t{index}", "w"], [f"m{index}"]))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [f"t{index + 1}"]))
    nodes.append(helper.make_node("ReduceSum", [f"t{rounds}", "axis"], ["y"], keepdims=1))
    weights = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([1, size], "i8"), "times"),
        numpy_helper.from_array(np.array([1], "i8"), "axis"),
    ]
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 1])],
        weights,
    )


def reference(name: str, model: Path) -> dict[str, str]:
    return {"name": name, "version": f"{name}-v1", "sha": hashlib.sha256(model.read_bytes()).hexdigest()}


def document(
    folder: Path,
    models: dict[str, Path],
    pipelines: dict[str, list[dict[str, Any]]] | None = None,
    *,
    config: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A document of some models, and by default a pipeline of one step for each."""
    references = {name: reference(name, path) for name, path in models.items()}
    if pipelines is None:
        pipelines = {name: [{"ModelInference": {"models": [references[name]]}}] for name in models}
    return {
        "deployment_id": 7,
        "deploy_id": "shop",
        "revision": 1,
        "workspace_id": 3,
        "replica": "engine-abc-1",
        "pipelines": [
            {"id": name, "version": f"{name}-p1", "definition": {"id": name, "steps": steps}, "topic": f"topic-{name}"}
            for name, steps in pipelines.items()
        ],
        "models": [
            {
                **references[name],
                "model_version_id": number,
                "framework": "onnx",
                "path": str(path),
                "config": {"id": number, "runtime": "onnx", "tensor_fields": ["tensor"]} | (config or {}),
            }
            for number, (name, path) in enumerate(models.items(), 1)
        ],
        "host": "127.0.0.1",
        "log": {"root": str(folder / "logs")},
        "status_file": str(folder / "status.json"),
    } | fields
