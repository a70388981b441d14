"""Counts, sums and other figures over a list of rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Double, FromClause, cast, func, tuple_

from app.graphql.building import json_object, text_value
from app.graphql.catalog import Entity
from app.graphql.scalars import shown
from app.graphql.schema import STATISTICS
from app.graphql.selections import Field


def figures(entity: Entity, page: FromClause, field: Field) -> list[tuple[str, ColumnElement[Any]]]:
    """Return the figures that `field` asks for over the rows of `page`."""
    pairs: list[tuple[str, ColumnElement[Any]]] = []
    for part in field.fields:
        if part.name == "__typename":
            pairs.append((part.key, text_value(f"{entity.name}_aggregate_fields")))
        elif part.name == "count":
            pairs.append((part.key, _count(entity, page, part.args)))
        else:
            pairs.append((part.key, _object(entity, page, part)))
    return pairs


def _count(entity: Entity, page: FromClause, args: dict[str, Any]) -> ColumnElement[Any]:
    columns = [shown(entity.columns[c].scalar, page.c[entity.columns[c].column]) for c in args.get("columns") or ()]
    if not columns:
        return func.count()
    counted: Any = columns[0] if len(columns) == 1 else tuple_(*columns)
    return func.count(counted.distinct() if args.get("distinct") else counted)


def _object(entity: Entity, page: FromClause, field: Field) -> ColumnElement[Any]:
    pairs: list[tuple[str, ColumnElement[Any]]] = []
    for part in field.fields:
        if part.name == "__typename":
            pairs.append((part.key, text_value(f"{entity.name}_{field.name}_fields")))
            continue
        attribute = entity.columns[part.name]
        column = shown(attribute.scalar, page.c[attribute.column])
        figure = getattr(func, field.name)(column)
        pairs.append((part.key, cast(figure, Double()) if field.name in STATISTICS else figure))
    return json_object(pairs)
