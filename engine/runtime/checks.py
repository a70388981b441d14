"""Evaluate validations of the older kind over the models that ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract.checks import Constant, Node, Operation, Validation, Variable
from engine.contract.failures import BadInput

if TYPE_CHECKING:
    from engine.runtime.pipeline import Ran

_OPERATIONS: dict[str, Any] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "<": np.less,
    "<=": np.less_equal,
    "+": np.add,
    "-": np.subtract,
}


def failed_checks(validation: Validation, ran: Sequence[Ran], rows: int) -> list[int]:
    """Return the rows for which the validation is false; raises `BadInput` when a row lacks the element it looks at."""
    holds = np.broadcast_to(np.asarray(_evaluate(validation.root, ran, rows), dtype=bool), (rows,))
    return [int(row) for row in np.flatnonzero(~holds)]


def _evaluate(node: Node, ran: Sequence[Ran], rows: int) -> Any:
    if isinstance(node, Constant):
        return node.value
    if isinstance(node, Variable):
        return _variable(node, ran, rows)
    if not isinstance(node, Operation):
        return np.abs(_evaluate(node.arguments[0], ran, rows))
    left, right = _evaluate(node.left, ran, rows), _evaluate(node.right, ran, rows)
    if node.op == "in":
        values = right if isinstance(right, list) else [right]
        return np.isin(left, values) if values else np.zeros(rows, bool)
    try:
        return _OPERATIONS[node.op](left, right)
    except (TypeError, np.exceptions.DTypePromotionError) as exc:
        raise BadInput(f"the validation {node.render()} compares values of different kinds") from exc


def _variable(node: Variable, ran: Sequence[Ran], rows: int) -> np.ndarray[Any, Any]:
    """Return one element per row: the key's first number chooses the tensor, the others the element."""
    found = next(entry for entry in reversed(ran) if entry.model.document.name == node.model)
    if node.position == "output":
        batch = found.output.batch
        names = batch.schema.names
    else:
        batch = found.input
        names = found.model.columns(batch.schema.names, from_step=found.from_step)
    tensor, *element = node.key
    if tensor >= len(names):
        raise BadInput(f"the validation looks at {node.render()}; the model has {len(names)} {node.position}s")
    array = batch.column(names[tensor])
    if batch.num_rows != rows:
        raise BadInput(f"the validation {node.render()} needs one row per input row")
    return _element(array, element, node)


def _element(array: pa.Array, element: list[int], node: Variable) -> np.ndarray[Any, Any]:
    for index in element:
        if not cols.is_list(array.type):
            if index == 0:
                continue
            raise BadInput(f"the validation looks at {node.render()}, which has no such element", row=0)
        values, offsets = cols.list_parts(array)
        starts, lengths = offsets[:-1], np.diff(offsets)
        short = np.flatnonzero(lengths <= index)
        if len(short):
            raise BadInput(f"the validation looks at {node.render()}, which has no such element", row=int(short[0]))
        array = values.take(cols.numeric_array(np.ascontiguousarray(starts + index)))
    if cols.is_list(array.type):
        raise BadInput(f"the validation compares {node.render()}, which is a list and not a value", row=0)
    if cols.is_number(array.type):
        return cols.numbers(array)
    return np.array(array.to_pylist())
