"""Evaluate validations of the newer kind: polars 0.18 expressions, over Arrow arrays, with polars' own rules of types.

Values are arrays of the request's rows, or scalars that stand for every row. A literal takes the type of the column it
meets when it fits; other types meet in their supertype. Division by a whole zero gives null, where polars stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.contract import columns as cols
from engine.contract.expressions import (
    Aggregate,
    Binary,
    Cast,
    Column,
    Function,
    Literal,
    NamedExpression,
    Node,
    RowCount,
    Series,
    Ternary,
)
from engine.contract.failures import InferenceFailure
from engine.runtime import expression_functions as functions
from engine.runtime.expression_casts import cast_to
from engine.runtime.expression_types import TYPES, Evaluated, Unknown, cast, fill, literal_type, supertype

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]

_COMPARISONS: dict[str, Any] = {
    "Eq": pc.equal,
    "NotEq": pc.not_equal,
    "Lt": pc.less,
    "LtEq": pc.less_equal,
    "Gt": pc.greater,
    "GtEq": pc.greater_equal,
}
_LOGIC: dict[str, tuple[Any, Any]] = {
    "And": (pc.and_kleene, pc.bit_wise_and),
    "Or": (pc.or_kleene, pc.bit_wise_or),
    "Xor": (pc.xor, pc.bit_wise_xor),
}


def anomalies(
    expressions: Sequence[NamedExpression], datasets: Sequence[tuple[str, pa.RecordBatch]], rows: int
) -> list[tuple[str, Flags]]:
    """Return for each validation the rows for which it is true; null counts as false.

    Raises `InferenceFailure` when one looks at a column that is not there, or mixes types that do not mix.
    """
    columns = dict(_flattened(datasets))
    return [(expression.name, _flags(expression, columns, rows)) for expression in expressions]


def _flattened(datasets: Sequence[tuple[str, pa.RecordBatch]]) -> Iterator[tuple[str, pa.Array]]:
    for name, batch in datasets:
        for field, array in zip(batch.schema, batch.columns, strict=True):
            yield from _leaves(f"{name}.{field.name}", array)


def _leaves(path: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    if not pa.types.is_struct(array.type):
        yield path, array
        return
    for field, child in zip(array.type, array.flatten(), strict=True):
        yield from _leaves(f"{path}.{field.name}", child)


def _flags(expression: NamedExpression, columns: dict[str, pa.Array], rows: int) -> Flags:
    try:
        value = _Evaluation(columns, rows).evaluate(expression.root).value
    except (pa.ArrowException, TypeError) as exc:
        raise InferenceFailure(f"Validation {expression.name!r} cannot be computed: {exc}", status=400) from exc
    except Unknown as exc:
        raise InferenceFailure(f"Validation {expression.name!r} {exc}", status=400) from exc
    if pa.types.is_null(value.type):
        return np.zeros(rows, np.bool_)
    if not pa.types.is_boolean(value.type):
        raise InferenceFailure(f"Validation {expression.name!r} gives {value.type}, not true or false.", status=400)
    if isinstance(value, pa.Scalar):
        return np.full(rows, bool(value.as_py()))
    return cols.booleans(pc.fill_null(value, fill_value=False))


class _Evaluation:
    """One expression over one request."""

    def __init__(self, columns: dict[str, pa.Array], rows: int) -> None:
        self.columns = columns
        self.rows = rows

    def evaluate(self, node: Node) -> Evaluated:
        match node:
            case Column(name):
                return self.column(name)
            case Literal(kind, value):
                return Evaluated(pa.scalar(value, TYPES[kind]), is_literal=True)
            case Series(kind, values):
                return Evaluated(pa.array(values, TYPES[kind]))
            case Binary(op, left, right):
                return Evaluated(self.binary(op, self.evaluate(left), self.evaluate(right)))
            case Cast(inner, kind, is_strict):
                return Evaluated(cast_to(self.evaluate(inner).value, TYPES[kind], is_strict=is_strict))
            case Ternary(predicate, truthy, falsy):
                return Evaluated(self.ternary(predicate, truthy, falsy))
            case Function(name, inputs, parameters):
                return Evaluated(functions.call(name, [self.evaluate(entry) for entry in inputs], parameters))
            case Aggregate(name, inner, parameters):
                values = fill(self.evaluate(inner).value, self.rows)
                return Evaluated(functions.aggregate(name, values, parameters))
            case RowCount():
                return Evaluated(pa.scalar(self.rows, pa.uint32()))

    def column(self, name: str) -> Evaluated:
        array = self.columns.get(name)
        if array is None:
            raise Unknown(f"looks at {name!r}; the record has {', '.join(self.columns)}")
        return Evaluated(array)

    def ternary(self, predicate: Node, truthy: Node, falsy: Node) -> Any:
        left, right = self.evaluate(truthy), self.evaluate(falsy)
        kind = supertype(left.value.type, right.value.type)
        condition = pc.fill_null(self.evaluate(predicate).value, fill_value=False)
        return pc.if_else(condition, cast(left.value, kind), cast(right.value, kind))

    def binary(self, op: str, left: Evaluated, right: Evaluated) -> Any:
        if op in ("EqValidity", "NotEqValidity"):
            return _equal_with_nulls(op, left, right)
        for side, other in ((left, right), (right, left)):
            if side.is_literal and pa.types.is_null(side.value.type) and op in ("Eq", "NotEq"):
                return pc.is_null(other.value) if op == "Eq" else pc.is_valid(other.value)
        if op in _LOGIC:
            on_flags, on_numbers = _LOGIC[op]
            if pa.types.is_boolean(left.value.type) and pa.types.is_boolean(right.value.type):
                return on_flags(left.value, right.value)
            kind = literal_type(left, right)
            return on_numbers(cast(left.value, kind), cast(right.value, kind))
        kind = literal_type(left, right)
        if op in _COMPARISONS:
            return _COMPARISONS[op](cast(left.value, kind), cast(right.value, kind))
        return functions.arithmetic(op, left.value, right.value, kind)


def _equal_with_nulls(op: str, left: Evaluated, right: Evaluated) -> Any:
    """Compare so that null equals null and nothing else."""
    kind = literal_type(left, right)
    one, two = cast(left.value, kind), cast(right.value, kind)
    same = pc.fill_null(pc.equal(one, two), fill_value=False)
    both = pc.and_(pc.is_null(one), pc.is_null(two))
    result = pc.or_(same, both)
    return result if op == "EqValidity" else pc.invert(result)
