"""`order_by` and `distinct_on`, through relationships too."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, FromClause, func

from app.graphql.catalog import Entity, Relation
from app.graphql.errors import Fault
from app.graphql.scalars import shown
from app.graphql.selections import Field
from app.graphql.sight import Rows, Sight

Order = list[ColumnElement[Any]]
Default = tuple[tuple[str, bool], ...]
"""The order when nobody asks for one: columns, and whether they go downwards."""


def _directed(column: ColumnElement[Any], direction: str) -> ColumnElement[Any]:
    way, _, nulls = direction.partition("_")
    result: ColumnElement[Any] = column.desc() if way == "desc" else column.asc()
    if nulls:
        result = result.nulls_first() if nulls == "nulls_first" else result.nulls_last()
    return result


def ordered(sight: Sight, rows: Rows, field: Field, default: Default) -> tuple[Order, Order]:
    """Return the order of a list of `rows` and the columns it is distinct on; the key always comes last.

    Raises `Fault` when `distinct_on` does not lead the order.
    """
    entity, source, wanted = rows.entity, rows.source, field.args.get("order_by") or []
    asked: list[tuple[str, ColumnElement[Any]]] = []
    for item in wanted:
        asked += _terms(sight, entity, source, item, f"{field.path}.args.order_by")
    distinct = list(dict.fromkeys(field.args.get("distinct_on") or ()))
    if distinct and asked and {name for name, _ in asked[: len(distinct)]} != set(distinct):
        raise Fault('"distinct_on" columns must match initial "order_by" columns', path=f"{field.path}.args")
    if not asked:
        asked = [(name, source.c[entity.columns[name].column].asc()) for name in distinct]
        rest = [(name, is_down) for name, is_down in default if name not in distinct]
        asked += [(name, source.c[name].desc() if is_down else source.c[name].asc()) for name, is_down in rest]
    if all(name != entity.key for name, _ in asked):
        # Among equals the key decides, in the direction of the first term: newest first stays newest first.
        key: ColumnElement[Any] = source.c[entity.key]
        asked.append((entity.key, key.desc() if _is_down(wanted) else key.asc()))
    columns: Order = [source.c[entity.columns[name].column] for name in distinct]
    return [term for _, term in asked], columns


def _is_down(value: Any) -> bool:
    """Tell whether the first direction in `value` is downwards."""
    while isinstance(value, list | dict):
        given = [x for x in (value.values() if isinstance(value, dict) else value) if x is not None]
        if not given:
            return False
        value = given[0]
    return str(value).startswith("desc")


def _terms(
    sight: Sight, entity: Entity, rows: FromClause, item: dict[str, Any], path: str
) -> list[tuple[str, ColumnElement[Any]]]:
    terms: list[tuple[str, ColumnElement[Any]]] = []
    for key, value in item.items():
        if value is None:
            continue
        if attribute := entity.columns.get(key):
            terms.append((key, _directed(rows.c[attribute.column], value)))
        elif relation := entity.relations.get(key):
            terms += [(f"{key}.{n}", term) for n, term in _through(sight, relation, rows, value, path)]
        else:
            relation = entity.relations[key.removesuffix("_aggregate")]
            terms += [(f"{key}.{n}", term) for n, term in _aggregated(sight, relation, rows, value)]
    return terms


class _Chain:
    """Values of related rows as columns: each becomes a scalar sub-select."""

    def __init__(self, sight: Sight, relation: Relation, outer: FromClause) -> None:
        self.rows = sight.rows(relation.target)
        self.joined = self.rows.source.c[relation.remote] == outer.c[relation.local]

    def value(self, column: Any) -> ColumnElement[Any]:
        return self.rows.select(column).where(self.joined).scalar_subquery()


def _through(
    sight: Sight, relation: Relation, outer: FromClause, item: dict[str, Any], path: str
) -> list[tuple[str, ColumnElement[Any]]]:
    terms: list[tuple[str, ColumnElement[Any]]] = []
    for name, value in _paths(sight, relation, item, path):
        chain = _Chain(sight, relation, outer)
        terms.append((".".join(name), _directed(_deep(sight, chain, relation.target, name), value)))
    return terms


def _paths(sight: Sight, relation: Relation, item: dict[str, Any], path: str) -> list[tuple[tuple[str, ...], str]]:
    entity = sight.catalog[relation.target]
    found: list[tuple[tuple[str, ...], str]] = []
    for key, value in item.items():
        if value is None:
            continue
        if key in entity.columns:
            found.append(((key,), value))
        elif key in entity.relations:
            found += [((key, *rest), way) for rest, way in _paths(sight, entity.relations[key], value, path)]
        else:
            raise Fault("ordering by an aggregate of a related row's list is not supported", "not-supported", path)
    return found


def _deep(sight: Sight, chain: _Chain, name: str, keys: tuple[str, ...]) -> ColumnElement[Any]:
    entity, source = sight.catalog[name], chain.rows.source
    if len(keys) == 1:
        return chain.value(source.c[entity.columns[keys[0]].column])
    relation = entity.relations[keys[0]]
    return chain.value(_deep(sight, _Chain(sight, relation, source), relation.target, keys[1:]))


def _aggregated(
    sight: Sight, relation: Relation, outer: FromClause, item: dict[str, Any]
) -> list[tuple[str, ColumnElement[Any]]]:
    entity = sight.catalog[relation.target]
    terms: list[tuple[str, ColumnElement[Any]]] = []
    for key, value in item.items():
        if value is None:
            continue
        if key == "count":
            terms.append((key, _directed(_Chain(sight, relation, outer).value(func.count()), value)))
            continue
        for name, direction in value.items():
            if direction is not None:
                chain = _Chain(sight, relation, outer)
                column = shown(entity.columns[name].scalar, chain.rows.source.c[entity.columns[name].column])
                terms.append((f"{key}.{name}", _directed(chain.value(getattr(func, key)(column)), direction)))
    return terms
