"""The scalar types of the schema, and how their values are bound to SQL."""

from __future__ import annotations

import math
import uuid
from typing import Any

from graphql import (
    BooleanValueNode,
    EnumValueNode,
    FloatValueNode,
    GraphQLBoolean,
    GraphQLFloat,
    GraphQLScalarType,
    GraphQLString,
    IntValueNode,
    ListValueNode,
    NullValueNode,
    ObjectValueNode,
    StringValueNode,
    ValueNode,
)
from sqlalchemy import (
    CHAR,
    REAL,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Double,
    Float,
    String,
    Text,
    Uuid,
    cast,
    literal,
    null,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from app.graphql.errors import DATA, Fault, Unreadable

_BIGINT = range(-(2**63), 2**63)


def _refuse(name: str, value: Any) -> Unreadable:
    return Unreadable(f"invalid input syntax for type {name}: {repr(value)[:80]}")


def _bigint(value: Any) -> int:
    if isinstance(value, str) and value.strip().lstrip("+-").isascii() and value.strip().lstrip("+-").isdigit():
        value = int(value) if len(value) < 40 else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value not in _BIGINT:
        raise _refuse("bigint", value)
    return value


def _float8(value: Any) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _refuse("double precision", value) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse("double precision", value)
    try:
        number = float(value)
    except OverflowError:
        raise _refuse("double precision", value) from None
    if not math.isfinite(number):
        raise _refuse("double precision", value)
    return number


def _uuid(value: Any) -> uuid.UUID:
    try:
        return uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise _refuse("uuid", value) from None


def _text(name: str) -> Any:
    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise _refuse(name, value)
        return value

    return parse


def _any(value: Any) -> Any:
    return value


def _plain(node: ValueNode) -> Any:
    """Return a constant literal as the plain value it spells."""
    if isinstance(node, NullValueNode):
        return None
    if isinstance(node, IntValueNode):
        return int(node.value) if len(node.value) < 40 else float(node.value)
    if isinstance(node, FloatValueNode):
        return float(node.value)
    if isinstance(node, StringValueNode | BooleanValueNode | EnumValueNode):
        return node.value
    if isinstance(node, ListValueNode):
        return [_plain(item) for item in node.values]
    if isinstance(node, ObjectValueNode):
        return {field.name.value: _plain(field.value) for field in node.fields}
    raise Unreadable("a constant is expected here")


def _scalar(name: str, parse: Any, description: str) -> GraphQLScalarType:
    return GraphQLScalarType(
        name,
        description=description,
        coerce_input_value=parse,
        coerce_input_literal=lambda node: parse(_plain(node)),
        coerce_output_value=_any,
    )


SCALARS: dict[str, GraphQLScalarType] = {
    "Boolean": GraphQLBoolean,
    "Float": GraphQLFloat,
    "String": GraphQLString,
    "bigint": _scalar("bigint", _bigint, "A 64-bit integer."),
    "bpchar": _scalar("bpchar", _text("character"), "Text of a fixed length."),
    "float8": _scalar("float8", _float8, "A number of double precision."),
    "jsonb": _scalar("jsonb", _any, "Any JSON value."),
    "timestamptz": _scalar("timestamptz", _text("timestamp with time zone"), "A moment, as Postgres reads it."),
    "uuid": _scalar("uuid", _uuid, "A UUID."),
}

TEXTUAL = frozenset({"String", "bpchar"})
NUMERIC = frozenset({"bigint", "Float", "float8"})
ORDERED = frozenset(SCALARS) - {"jsonb", "Boolean"}

_BY_TYPE: tuple[tuple[type[Any], str], ...] = (
    (BigInteger, "bigint"),
    (Boolean, "Boolean"),
    (REAL, "Float"),
    (Double, "float8"),
    (Float, "float8"),
    (CHAR, "bpchar"),
    (JSONB, "jsonb"),
    (DateTime, "timestamptz"),
    (Uuid, "uuid"),
    (String, "String"),
)


def scalar_of(column: Column[Any]) -> str:
    """Return the name of the scalar that `column` has on the wire."""
    return next(name for kind, name in _BY_TYPE if isinstance(column.type, kind))


_SQL: dict[str, Any] = {
    "Boolean": Boolean(),
    "Float": REAL(),
    "String": Text(),
    "bigint": BigInteger(),
    "bpchar": Text(),
    "float8": Double(),
    "jsonb": JSONB(none_as_null=False),
    "uuid": Uuid(),
}


def bind(scalar: str, value: Any) -> ColumnElement[Any]:
    """Return `value`, as the scalar's parser left it, as an SQL value; None is SQL's NULL."""
    if value is None:
        return null()
    if _has_nul(value):
        raise Fault("Text cannot hold the character U+0000.", DATA)
    if scalar == "timestamptz":
        return cast(literal(value, Text()), TIMESTAMP(timezone=True))
    return literal(value, _SQL[scalar])


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, list):
        return any(map(_has_nul, value))
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    return False


def shown(scalar: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return `column` as an expression whose SQL type is the scalar's."""
    is_text = scalar in TEXTUAL and not (isinstance(column.type, String) and not isinstance(column.type, CHAR))
    return cast(column, Text()) if is_text else column
