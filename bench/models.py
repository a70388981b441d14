"""Models and requests for the bench, made here so that nothing has to be fetched."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 29


def dense(path: Path, widths: tuple[int, ...] = (WIDTH, 10, 1), seed: int = 7) -> Path:
    """Write a small dense network with a sigmoid at its end: the size of a fraud model."""
    generator = np.random.default_rng(seed)
    nodes, weights = [], []
    before = "dense_input"
    for index, (width, following) in enumerate(pairwise(widths)):
        weight = generator.normal(0, width**-0.5, (width, following)).astype("f4")
        bias = generator.normal(0, 0.1, following).astype("f4")
        weights += [numpy_helper.from_array(weight, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        nodes.append(helper.make_node("Gemm", [before, f"w{index}", f"b{index}"], [f"z{index}"]))
        last = index == len(widths) - 2
        after = "dense_1" if last else f"a{index}"
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"z{index}"], [after]))
        before = after
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("dense_input", TensorProto.FLOAT, ["batch", widths[0]])],
        [helper.make_tensor_value_info("dense_1", TensorProto.FLOAT, ["batch", widths[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def convolutions(path: Path, size: int = 224, channels: int = 112, layers: int = 8) -> Path:
    """Write an image network that takes about as long per image as ResNet50."""
    generator = np.random.default_rng(3)
    nodes, weights = [], []
    before, width = "data", 3
    for index in range(layers):
        weight = generator.normal(0, (9 * width) ** -0.5, (channels, width, 3, 3)).astype("f4")
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        stride = 2 if index in (0, 2, 4) else 1
        nodes.append(
            helper.make_node(
                "Conv", [before, f"w{index}"], [f"c{index}"], kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        before, width = f"r{index}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["out"], axis=1))
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", channels])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


def trees(path: Path, width: int = WIDTH, count: int = 100, depth: int = 6, seed: int = 5) -> Path:
    """Write an ensemble of full binary trees: boosted trees are many and flat, a forest's fewer and deep."""
    generator = np.random.default_rng(seed)
    inner, nodes = 2**depth - 1, 2 ** (depth + 1) - 1
    ids = np.tile(np.arange(nodes), count)
    is_inner = ids < inner
    total = nodes * count
    leaves = np.flatnonzero(~is_inner)
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["variable"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=np.repeat(np.arange(count), nodes).tolist(),
        nodes_nodeids=ids.tolist(),
        nodes_featureids=np.where(is_inner, generator.integers(0, width, total), 0).tolist(),
        nodes_modes=["BRANCH_LEQ" if each else "LEAF" for each in is_inner],
        nodes_values=np.where(is_inner, generator.normal(0, 1, total), 0).astype("f4").tolist(),
        nodes_truenodeids=np.where(is_inner, 2 * ids + 1, 0).tolist(),
        nodes_falsenodeids=np.where(is_inner, 2 * ids + 2, 0).tolist(),
        target_treeids=np.repeat(np.arange(count), nodes)[leaves].tolist(),
        target_nodeids=ids[leaves].tolist(),
        target_ids=[0] * len(leaves),
        target_weights=generator.normal(0, 1 / count, len(leaves)).astype("f4").tolist(),
    )
    graph = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("variable", TensorProto.FLOAT, ["batch", 1])],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def rows(count: int, width: int = WIDTH, seed: int = 1) -> np.ndarray[Any, Any]:
    """Return rows of ordinary numbers, of ten decimals as in a table that somebody exported."""
    return np.random.default_rng(seed).normal(0, 1, (count, width)).round(10)


def records_body(values: np.ndarray[Any, Any]) -> bytes:
    """Return rows as clients send them in JSON."""
    return json.dumps([{"tensor": row} for row in values.tolist()], separators=(",", ":")).encode()


def arrow_body(values: np.ndarray[Any, Any]) -> bytes:
    """Return rows as clients send them in Arrow: lists of float32."""
    import pyarrow as pa

    flat = pa.Array.from_buffers(pa.float32(), values.size, [None, pa.py_buffer(values.astype("f4").reshape(-1))])
    offsets = (np.arange(len(values) + 1) * values.shape[1]).astype("i4")
    lists = pa.Array.from_buffers(pa.list_(pa.float32()), len(values), [None, pa.py_buffer(offsets)], children=[flat])
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_arrays([lists], names=["tensor"])
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def deployment(
    model: Path, folder: Path, *, port: int = 0, log: bool = True, access: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """Return the document of an engine that serves one model as pipeline `bench`."""
    sha = hashlib.sha256(model.read_bytes()).hexdigest()
    reference = {"name": "bench-model", "version": "5b1c4e6a-0f3f-4d39-9f1e-7d6a4f1d2c3b", "sha": sha}
    config = {"id": 1, "runtime": "onnx", "tensor_fields": ["tensor"]}
    document: dict[str, Any] = {
        "deployment_id": 1,
        "deploy_id": "bench",
        "revision": 1,
        "workspace_id": 1,
        "replica": "engine-5d8f7c9b6-x7k2p",
        "pipelines": [
            {
                "id": "bench",
                "version": "0e1d2c3b-4a59-4687-9786-a5b4c3d2e1f0",
                "definition": {"id": "bench", "steps": [{"ModelInference": {"models": [reference]}}]},
                "topic": "workspace-1-pipeline-bench-inference",
            }
        ],
        "models": [
            {**reference, "model_version_id": 1, "framework": "onnx", "path": str(model.resolve()), "config": config}
        ],
        "host": "127.0.0.1",
        "port": port,
        "status_file": str(folder / "status.json"),
        "log": {"root": str(folder / "logs"), "enabled": log},
        "access": access,
    }
    return document | fields
