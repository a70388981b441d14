"""Tiny ONNX models for tests, made on the spot."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper


def linear(features: int = 3, *, opset: int = 17, domain: str = "", seed: int = 0, ir: int = 8) -> bytes:
    """A model `y = x·w` with `x: float[N, features]` and `y: float[N, 1]`."""
    return _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], domain=domain)],
        [helper.make_tensor("w", TensorProto.FLOAT, [features, 1], [float(seed + n) for n in range(features)])],
        features,
        opset=opset,
        domain=domain,
        ir=ir,
    ).SerializeToString()


def with_missing_data() -> bytes:
    """A model whose weights lie in a file that does not come with it."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 1], [1.0, 2.0, 3.0])
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights], 3).SerializeToString()


def with_missing_data_in_a_branch() -> bytes:
    """The same, hidden in a constant inside a branch of an `If`."""
    value = helper.make_tensor("v", TensorProto.FLOAT, [1, 1], [1.0])
    value.ClearField("float_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="../../secret.bin")
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 1])
    branch = helper.make_graph([helper.make_node("Constant", [], ["z"], value=value)], "branch", [], [out])
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return _model([node], [condition], 3).SerializeToString()


def without_shape_agreement() -> bytes:
    """A model that is well-formed and cannot be run: the shapes do not fit."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [7, 1], [0.0] * 7)
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights], 3).SerializeToString()


def _model(
    nodes: list[Any], weights: list[Any], features: int, *, opset: int = 17, domain: str = "", ir: int = 8
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        weights,
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="tests")
