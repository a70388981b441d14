"""Validations of the newer kind: polars 0.18 expressions in their JSON form, read into typed nodes.

Only what can be computed for rows of one request is known; everything else is refused when a pipeline is deployed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from engine.contract.checks import DefinitionError

BINARY_OPERATORS = frozenset({
    "Eq", "NotEq", "Lt", "LtEq", "Gt", "GtEq", "EqValidity", "NotEqValidity",
    "Plus", "Minus", "Multiply", "Divide", "TrueDivide", "FloorDivide", "Modulus", "And", "Or", "Xor",
})  # fmt: skip
AGGREGATES = frozenset(["Min", "Max", "Mean", "Sum", "Count", "Median", "First", "Last", "NUnique", "Std", "Var"])
NUMBER_TYPES = frozenset({
    "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64",
})  # fmt: skip
CAST_TYPES = NUMBER_TYPES | {"Utf8", "Boolean"}
FUNCTIONS: dict[tuple[str, ...], int] = {
    ("Boolean", "IsNull"): 1,
    ("Boolean", "IsNotNull"): 1,
    ("Boolean", "IsNan"): 1,
    ("Boolean", "IsNotNan"): 1,
    ("Boolean", "IsFinite"): 1,
    ("Boolean", "IsInfinite"): 1,
    ("Boolean", "IsNot"): 1,
    ("Boolean", "IsIn"): 2,
    ("Boolean", "Any"): 1,
    ("Boolean", "All"): 1,
    ("Boolean", "AnyHorizontal"): 0,
    ("Boolean", "AllHorizontal"): 0,
    ("ListExpr", "Get"): 2,
    ("ListExpr", "Sum"): 1,
    ("ListExpr", "Contains"): 2,
    ("StringExpr", "Contains"): 2,
    ("StringExpr", "StartsWith"): 2,
    ("StringExpr", "EndsWith"): 2,
    ("StringExpr", "Length"): 1,
    ("StringExpr", "NChars"): 1,
    ("StringExpr", "Lowercase"): 1,
    ("StringExpr", "Uppercase"): 1,
    ("Pow", "Generic"): 2,
    ("Pow", "Sqrt"): 1,
    ("Pow", "Cbrt"): 1,
    ("Abs",): 1,
    ("Floor",): 1,
    ("Ceil",): 1,
    ("Round",): 1,
    ("Sign",): 1,
    ("Exp",): 1,
    ("Log",): 1,
    ("Log1p",): 1,
    ("Clip",): 1,
    ("FillNull",): 2,
    ("Coalesce",): 0,
    ("NullCount",): 1,
}
"""Functions that are known, with the number of their inputs (0: any number)."""

_GROUPS = frozenset({"Boolean", "ListExpr", "StringExpr", "Pow"})


class Column(msgspec.Struct, frozen=True):
    """A column of the flattened record: `in.tensor`, `out.dense_1`, `out_<model>.<field>`."""

    name: str


class Literal(msgspec.Struct, frozen=True):
    """A value written into the expression; its type name is polars' (`Float64`), or `Null`."""

    type: str
    value: Any


class Series(msgspec.Struct, frozen=True):
    """A list of values written into the expression (the right side of `is_in`)."""

    type: str
    values: tuple[Any, ...]


class Binary(msgspec.Struct, frozen=True):
    """Two operands and what is done with them."""

    op: str
    left: Node
    right: Node


class Cast(msgspec.Struct, frozen=True):
    """A conversion to another type."""

    input: Node
    type: str
    is_strict: bool


class Ternary(msgspec.Struct, frozen=True):
    """when / then / otherwise."""

    predicate: Node
    truthy: Node
    falsy: Node


class Function(msgspec.Struct, frozen=True):
    """A function of its inputs, row by row; `parameters` are those that are not expressions."""

    name: tuple[str, ...]
    inputs: tuple[Node, ...]
    parameters: Any = None


class Aggregate(msgspec.Struct, frozen=True):
    """One value computed from all rows of the request."""

    name: str
    input: Node
    parameters: Any = None


class RowCount(msgspec.Struct, frozen=True):
    """The number of rows of the request."""


Node = Column | Literal | Series | Binary | Cast | Ternary | Function | Aggregate | RowCount


class NamedExpression(msgspec.Struct, frozen=True):
    """One validation: its name becomes `anomaly.<name>`."""

    name: str
    root: Node


def parse_named(tree: Any) -> NamedExpression:
    """Read one validation from the JSON value of a polars expression; raises `DefinitionError`."""
    try:
        if isinstance(tree, Mapping) and set(tree) == {"Alias"}:
            if not isinstance(tree["Alias"], list) or len(tree["Alias"]) != 2:
                raise DefinitionError("an Alias holds an expression and a name")
            inner, name = tree["Alias"]
            root = parse(inner)
        else:
            root = parse(tree)
            name = next(columns(root), Column("literal")).name
    except RecursionError as exc:
        raise DefinitionError("a validation is nested too deeply") from exc
    if not isinstance(name, str) or not name:
        raise DefinitionError("a validation needs a name (alias)")
    if name == "count":
        raise DefinitionError("a validation cannot be named count: anomaly.count is the number of anomalies")
    return NamedExpression(name, root)


def parse(node: Any) -> Node:
    """Read one node; raises `DefinitionError` naming what is not known."""
    if node == "Count":
        return RowCount()
    if not isinstance(node, Mapping) or len(node) != 1:
        raise DefinitionError(f"not a polars 0.18 expression: {_short(node)}")
    kind, body = next(iter(node.items()))
    try:
        return _parse_kind(kind, body)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise DefinitionError(f"a {kind} of the expression is not as polars 0.18 writes it: {_short(body)}") from exc


def _parse_kind(kind: str, body: Any) -> Node:
    if kind == "Column" and isinstance(body, str):
        return Column(body)
    if kind == "Literal":
        return _literal(body)
    if kind in ("Alias", "KeepName"):
        return parse(body[0] if kind == "Alias" else body)
    if kind == "BinaryExpr":
        if body["op"] not in BINARY_OPERATORS:
            raise DefinitionError(f"operator {body['op']!r} is not known")
        return Binary(body["op"], parse(body["left"]), parse(body["right"]))
    if kind == "Cast":
        if body["data_type"] not in CAST_TYPES:
            raise DefinitionError(f"a cast to {_short(body['data_type'])} is not known")
        return Cast(parse(body["expr"]), body["data_type"], bool(body.get("strict", True)))
    if kind == "Ternary":
        return Ternary(parse(body["predicate"]), parse(body["truthy"]), parse(body["falsy"]))
    if kind == "Function":
        return _function(body)
    if kind == "Agg":
        return _aggregate(body)
    raise DefinitionError(f"{kind} is not known in validations")


def _literal(body: Any) -> Node:
    if body == "Null":
        return Literal("Null", None)
    ((kind, value),) = body.items()
    if kind == "Series":
        if value["datatype"] not in CAST_TYPES:
            raise DefinitionError(f"a list of {_short(value['datatype'])} is not known")
        return Series(value["datatype"], tuple(value["values"]))
    if kind not in CAST_TYPES:
        raise DefinitionError(f"a literal of type {kind} is not known")
    if kind in ("Float32", "Float64") and value is None:
        value = float("nan")
    return Literal(kind, value)


def _function(body: Mapping[str, Any]) -> Function:
    name: tuple[str, ...]
    parameters = None
    spec = body["function"]
    if isinstance(spec, str):
        name = (spec,)
    else:
        ((group, inner),) = spec.items()
        if group not in _GROUPS:
            name, parameters = (group,), inner
        elif isinstance(inner, str):
            name = (group, inner)
        else:
            ((function, parameters),) = inner.items()
            name = (group, function)
    if name not in FUNCTIONS:
        raise DefinitionError(f"function {'.'.join(name)} is not known in validations")
    inputs = tuple(parse(node) for node in body["input"])
    wanted = FUNCTIONS[name]
    if not inputs or (wanted and len(inputs) != wanted):
        raise DefinitionError(f"function {'.'.join(name)} takes {wanted or 'some'} inputs, not {len(inputs)}")
    return Function(name, inputs, parameters)


def _aggregate(body: Mapping[str, Any]) -> Aggregate:
    ((name, inner),) = body.items()
    if name not in AGGREGATES:
        raise DefinitionError(f"aggregate {name} is not known in validations")
    if name in ("Min", "Max"):
        return Aggregate(name, parse(inner["input"]), bool(inner.get("propagate_nans")))
    if name in ("Std", "Var"):
        return Aggregate(name, parse(inner[0]), int(inner[1]))
    return Aggregate(name, parse(inner))


def columns(node: Node) -> Iterator[Column]:
    """Yield every column that an expression looks at."""
    if isinstance(node, Column):
        yield node
    for child in _children(node):
        yield from columns(child)


def _children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Binary):
        return (node.left, node.right)
    if isinstance(node, Cast | Aggregate):
        return (node.input,)
    if isinstance(node, Ternary):
        return (node.predicate, node.truthy, node.falsy)
    return node.inputs if isinstance(node, Function) else ()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
