"""`where`: conditions on rows, and on rows they are related to, as SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Text, and_, false, literal, not_, or_, true
from sqlalchemy.dialects.postgresql import ARRAY

from app.graphql.catalog import Attribute, Entity
from app.graphql.errors import Fault
from app.graphql.scalars import bind, shown
from app.graphql.sight import Sight

Operator = Callable[[ColumnElement[Any], ColumnElement[Any]], ColumnElement[bool]]

_OPERATORS: dict[str, Operator] = {
    "_eq": lambda column, value: column == value,
    "_neq": lambda column, value: column != value,
    "_gt": lambda column, value: column > value,
    "_gte": lambda column, value: column >= value,
    "_lt": lambda column, value: column < value,
    "_lte": lambda column, value: column <= value,
    "_like": lambda column, value: column.like(value),
    "_nlike": lambda column, value: column.not_like(value),
    "_ilike": lambda column, value: column.ilike(value),
    "_nilike": lambda column, value: column.not_ilike(value),
    "_contains": lambda column, value: column.op("@>")(value),
    "_contained_in": lambda column, value: column.op("<@")(value),
}


def matches(sight: Sight, entity: Entity, rows: FromClause, where: dict[str, Any], path: str) -> ColumnElement[bool]:
    """Return the condition `where` on `rows` of `entity`; related rows count only as far as the caller sees them."""
    parts: list[ColumnElement[bool]] = []
    for key, value in where.items():
        if value is None:
            raise Fault(f"unexpected null value for {key!r}", path=f"{path}.{key}")
        here = f"{path}.{key}"
        if key == "_and":
            parts += [matches(sight, entity, rows, item, here) for item in value]
        elif key == "_or":
            options = [matches(sight, entity, rows, item, here) for item in value]
            parts.append(or_(*options) if options else false())
        elif key == "_not":
            parts.append(not_(matches(sight, entity, rows, value, here)))
        elif relation := entity.relations.get(key):
            target = sight.rows(relation.target)
            inner = matches(sight, target.entity, target.source, value, here)
            joined = target.source.c[relation.remote] == rows.c[relation.local]
            parts.append(target.select(literal(1)).where(joined, inner).exists())
        else:
            attribute = entity.columns.get(key) or entity.aliases[key]
            parts += [_compare(attribute, rows, op, operand, here) for op, operand in value.items()]
    return and_(true(), *parts)


def _compare(attribute: Attribute, rows: FromClause, op: str, operand: Any, path: str) -> ColumnElement[bool]:
    if operand is None:
        raise Fault(f"unexpected null value for type '{attribute.scalar}'", path=f"{path}.{op}")
    column = shown(attribute.scalar, rows.c[attribute.column])
    result: ColumnElement[bool]
    if op == "_is_null":
        result = column.is_(None) if operand else column.is_not(None)
    elif op in ("_in", "_nin"):
        values = [bind(attribute.scalar, item) for item in operand]
        result = column.in_(values) if op == "_in" else column.not_in(values)
    elif op == "_has_key":
        result = column.op("?", return_type=true().type)(bind("String", operand))
    elif op in ("_has_keys_all", "_has_keys_any"):
        keys = literal([_checked(key) for key in operand], ARRAY(Text()))
        result = column.op("?&" if op == "_has_keys_all" else "?|", return_type=true().type)(keys)
    else:
        result = _OPERATORS[op](column, bind(attribute.scalar, operand))
    return result


def _checked(key: str) -> str:
    bind("String", key)
    return key
