"""Selections compiled to SQL: a request's whole answer is built by one statement of correlated sub-selects."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Text,
    cast,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, distinct_on

from app.graphql import search
from app.graphql.aggregates import figures
from app.graphql.building import json_object, text_value
from app.graphql.catalog import Entity, Relation
from app.graphql.errors import PARSE, Fault
from app.graphql.filters import matches
from app.graphql.ordering import Default, ordered
from app.graphql.published import FUNCTIONS
from app.graphql.scalars import bind, shown
from app.graphql.selections import INTROSPECTION, Field
from app.graphql.sight import Rows, Sight

_PLACE = "row_place"
_EMPTY: ColumnElement[Any] = literal_column("'[]'::json")


class Selector:
    """Compiles what one caller selects."""

    def __init__(self, sight: Sight) -> None:
        self.sight = sight

    def query(self, fields: list[Field]) -> Select[Any]:
        """Return the statement whose one value is the text of the answer to the root `fields`."""
        pairs = [(f.key, self._root(f)) for f in fields if f.name not in INTROSPECTION]
        return select(cast(json_object(pairs), Text()))

    def _root(self, field: Field) -> ColumnElement[Any]:
        if field.name == "__typename":
            return text_value(field.args["type"])
        if target := FUNCTIONS.get(field.name):
            rows = self.sight.rows(target)
            term = field.args["args"].get("search") or ""
            return self._list(rows, field, where=search.SEARCHES[field.name](self.sight, rows.source, term))
        if field.name.endswith("_by_pk"):
            entity = self.sight.catalog[field.name.removesuffix("_by_pk")]
            rows = self.sight.rows(entity.name)
            key = bind(entity.columns[entity.key].scalar, field.args[entity.key])
            return self._one(rows, rows.source.c[entity.key] == key, field)
        return self._list(self.sight.rows(field.name), field)

    def rows(self, name: str, keys: list[Any], fields: list[Field]) -> Select[Any]:
        """Return the statement whose one value is the text of the list of the just written rows `keys`."""
        rows = self.sight.written(name, keys)
        order = aggregate_order_by(self._row(rows.entity, rows.source, fields), rows.source.c[rows.entity.key])
        return rows.select(cast(func.coalesce(func.json_agg(order), _EMPTY), Text()))

    # Rows

    def _row(
        self, entity: Entity, source: FromClause, fields: list[Field], outer: Field | None = None
    ) -> ColumnElement[Any]:
        return json_object([(f.key, self._value(entity, source, f, outer)) for f in fields])

    def _value(self, entity: Entity, source: FromClause, field: Field, outer: Field | None) -> ColumnElement[Any]:
        if field.name == "__typename":
            return text_value(entity.name)
        if attribute := entity.columns.get(field.name):
            column = shown(attribute.scalar, source.c[attribute.column])
            path = field.args.get("path")
            return column if path is None else column.op("#>")(literal(_json_path(path, field.path), ARRAY(Text())))
        if relation := entity.relations.get(field.name):
            rows = self.sight.rows(relation.target)
            joined = rows.source.c[relation.remote] == source.c[relation.local]
            if relation.is_list:
                return self._list(rows, field, joined, _default_order(entity, relation, outer))
            return self._one(rows, joined, field)
        relation = entity.relations[field.name.removesuffix("_aggregate")]
        rows = self.sight.rows(relation.target)
        return self._aggregate(rows, field, rows.source.c[relation.remote] == source.c[relation.local], relation.order)

    def _one(self, rows: Rows, where: ColumnElement[bool], field: Field) -> ColumnElement[Any]:
        return rows.select(self._row(rows.entity, rows.source, field.fields)).where(where).scalar_subquery()

    def _list(
        self,
        rows: Rows,
        field: Field,
        where: ColumnElement[bool] | None = None,
        default: Default = (),
    ) -> ColumnElement[Any]:
        if any(field.args.get(name) is not None for name in ("limit", "offset", "distinct_on")):
            page = self._page(rows, field, where, default)
            row = self._row(rows.entity, page, field.fields, field)
            agg = func.json_agg(aggregate_order_by(row, page.c[_PLACE]))
            return select(func.coalesce(agg, _EMPTY)).select_from(page).correlate_except(page).scalar_subquery()
        order, _ = ordered(self.sight, rows, field, default)
        row = self._row(rows.entity, rows.source, field.fields, field)
        query = rows.select(func.coalesce(func.json_agg(aggregate_order_by(row, *order)), _EMPTY))
        return self._filtered(query, rows, field, where).scalar_subquery()

    def _filtered(self, query: Select[Any], rows: Rows, field: Field, where: ColumnElement[bool] | None) -> Select[Any]:
        if where is not None:
            query = query.where(where)
        if asked := field.args.get("where"):
            query = query.where(matches(self.sight, rows.entity, rows.source, asked, f"{field.path}.args.where"))
        return query

    def _page(
        self,
        rows: Rows,
        field: Field,
        where: ColumnElement[bool] | None,
        default: Default,
    ) -> Subquery:
        """Return the rows that limit, offset and distinct_on leave, with the place of each in the order."""
        order, distinct = ordered(self.sight, rows, field, default)
        place = func.row_number().over(order_by=order).label(_PLACE)
        columns = [rows.source.c[name] for name in rows.entity.carried]
        query = self._filtered(rows.select(*columns, place), rows, field, where).order_by(*order)
        if distinct:
            query = query.ext(distinct_on(*distinct))
        for name in ("limit", "offset"):
            amount = field.args.get(name)
            if amount is not None and amount < 0:
                raise Fault(f"unexpected negative value for {name!r}", path=f"{field.path}.args.{name}")
        if (limit := field.args.get("limit")) is not None:
            query = query.limit(limit)
        if (offset := field.args.get("offset")) is not None:
            query = query.offset(offset)
        return query.subquery()

    def _aggregate(self, rows: Rows, field: Field, where: ColumnElement[bool], default: Default) -> ColumnElement[Any]:
        page = self._page(rows, field, where, default)
        pairs: list[tuple[str, ColumnElement[Any]]] = []
        for part in field.fields:
            if part.name == "__typename":
                pairs.append((part.key, text_value(f"{rows.entity.name}_aggregate")))
            elif part.name == "nodes":
                row = self._row(rows.entity, page, part.fields, field)
                agg = func.json_agg(aggregate_order_by(row, page.c[_PLACE]))
                pairs.append((part.key, func.coalesce(agg, _EMPTY)))
            else:
                pairs.append((part.key, json_object(figures(rows.entity, page, part))))
        query = select(json_object(pairs)).select_from(page).correlate_except(page)
        # The condition makes one group of all rows, even when nothing but names of types is asked for.
        return query.having(func.count() >= 0).scalar_subquery()


def _default_order(entity: Entity, relation: Relation, outer: Field | None) -> Default:
    """Return how a relationship is ordered when nobody says.

    Versions of a model come newest first exactly if the list of models around them was asked for by `updated_at`
    descending: those clients take the first version as the newest, all others the last.
    """
    if entity.name == "models" and relation.name == "models" and outer is not None:
        asked = outer.args.get("order_by") or ()
        return (("id", any(str(item.get("updated_at")).startswith("desc") for item in asked)),)
    return relation.order


_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\[\"([^\"]*)\"\]|\['([^']*)'\]")


def _json_path(path: str, place: str) -> list[str]:
    """Return the steps of a path into a JSON value; a leading `$` is optional."""
    rest = path.removeprefix("$")
    steps, position = [], 0
    while position < len(rest):
        found = _STEP.match(rest, position)
        if found is None or "\0" in path:
            raise Fault(f"parse json path error: {path[:80]!r}", PARSE, f"{place}.args.path")
        steps.append(next(group for group in found.groups() if group is not None))
        position = found.end()
    return steps
