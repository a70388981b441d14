"""The input types of the schema: filters, orders, and what is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLInt,
    GraphQLList,
    GraphQLNonNull,
    GraphQLString,
)

from app.graphql.catalog import Catalog, Entity
from app.graphql.scalars import NUMERIC, ORDERED, SCALARS, TEXTUAL

_DIRECTIONS = ("asc", "asc_nulls_first", "asc_nulls_last", "desc", "desc_nulls_first", "desc_nulls_last")
ORDER_BY = GraphQLEnumType("order_by", {name: name for name in _DIRECTIONS}, description="Which way to sort.")


def required_list(of: Any) -> Any:
    """Return `[of!]!`."""
    return GraphQLNonNull(GraphQLList(GraphQLNonNull(of)))


def plain_list(of: Any) -> Any:
    """Return `[of!]`."""
    return GraphQLList(GraphQLNonNull(of))


def _enum(name: str, values: Iterable[str], description: str) -> GraphQLEnumType:
    return GraphQLEnumType(name, {value: value for value in values}, description=description)


def _comparison(name: str) -> GraphQLInputObjectType:
    scalar = SCALARS[name]
    operators: dict[str, Any] = dict.fromkeys(("_eq", "_neq", "_gt", "_gte", "_lt", "_lte"), scalar)
    operators |= {"_in": plain_list(scalar), "_nin": plain_list(scalar), "_is_null": GraphQLBoolean}
    if name in TEXTUAL:
        operators |= dict.fromkeys(("_like", "_nlike", "_ilike", "_nilike"), scalar)
    if name == "jsonb":
        operators |= {"_contains": scalar, "_contained_in": scalar, "_has_key": GraphQLString}
        operators |= {"_has_keys_all": plain_list(GraphQLString), "_has_keys_any": plain_list(GraphQLString)}
    return GraphQLInputObjectType(
        f"{name}_comparison_exp",
        {op: GraphQLInputField(type_) for op, type_ in operators.items()},
        description=f"Conditions on a column of type {name}; all of them must hold.",
    )


class Inputs:
    """The input types of every published table, each made once."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._aggregate_orders: dict[str, GraphQLInputObjectType] = {}
        self.comparisons = {name: _comparison(name) for name in SCALARS}
        self.select_columns = {
            e.name: _enum(f"{e.name}_select_column", e.columns, f"Columns of {e.name}.") for e in catalog.values()
        }
        self.filters = {e.name: self._filter(e) for e in catalog.values()}
        self.orders = {e.name: self._order(e) for e in catalog.values()}
        self.inserts = {e.name: self._insert(e) for e in catalog.values() if e.insert}
        self.conflicts = {e.name: self._conflict(e) for e in catalog.values() if e.insert}
        self.array_inserts = {e.name: self._array_insert(e) for e in catalog.values() if e.insert}

    def _filter(self, entity: Entity) -> GraphQLInputObjectType:
        name = f"{entity.name}_bool_exp"

        def fields() -> dict[str, GraphQLInputField]:
            own = self.filters[entity.name]
            made: dict[str, Any] = {"_and": plain_list(own), "_or": plain_list(own), "_not": own}
            for attribute in [*entity.columns.values(), *entity.aliases.values()]:
                made[attribute.name] = self.comparisons[attribute.scalar]
            made |= {r.name: self.filters[r.target] for r in entity.relations.values()}
            return {key: GraphQLInputField(made[key]) for key in made}

        return GraphQLInputObjectType(name, fields, description=f"Conditions on rows of {entity.name}.")

    def _order(self, entity: Entity) -> GraphQLInputObjectType:
        def fields() -> dict[str, GraphQLInputField]:
            made: dict[str, Any] = dict.fromkeys(entity.columns, ORDER_BY)
            for relation in entity.relations.values():
                if relation.is_list:
                    made[f"{relation.name}_aggregate"] = self._aggregate_order(relation.target)
                else:
                    made[relation.name] = self.orders[relation.target]
            return {key: GraphQLInputField(made[key]) for key in made}

        return GraphQLInputObjectType(
            f"{entity.name}_order_by", fields, description=f"An order of rows of {entity.name}."
        )

    def _aggregate_order(self, name: str) -> GraphQLInputObjectType:
        made = self._aggregate_orders
        if name not in made:
            columns = {c: GraphQLInputField(ORDER_BY) for c in ordered_columns(self.catalog[name])}
            fields = {"count": GraphQLInputField(ORDER_BY)}
            for way in ("max", "min"):
                by = GraphQLInputObjectType(f"{name}_{way}_order_by", columns)
                fields[way] = GraphQLInputField(by)
            made[name] = GraphQLInputObjectType(f"{name}_aggregate_order_by", fields)
        return made[name]

    def _insert(self, entity: Entity) -> GraphQLInputObjectType:
        rule = entity.insert
        assert rule is not None  # noqa: S101 - asked for insertable tables only

        def fields() -> dict[str, GraphQLInputField]:
            made = {
                name: GraphQLInputField(SCALARS[entity.columns[name].scalar])
                for name in entity.columns
                if name in rule.columns
            }
            for name in rule.nested:
                made[name] = GraphQLInputField(self.array_inserts[entity.relations[name].target])
            return made

        return GraphQLInputObjectType(f"{entity.name}_insert_input", fields, description=f"A new row of {entity.name}.")

    def _array_insert(self, entity: Entity) -> GraphQLInputObjectType:
        fields = {
            "data": GraphQLInputField(required_list(self.inserts[entity.name])),
            "on_conflict": GraphQLInputField(self.conflicts[entity.name]),
        }
        return GraphQLInputObjectType(f"{entity.name}_arr_rel_insert_input", fields)

    def _conflict(self, entity: Entity) -> GraphQLInputObjectType:
        constraint = _enum(f"{entity.name}_constraint", entity.constraints, f"Unique constraints of {entity.name}.")
        columns = entity.update.columns if entity.update else ("_PLACEHOLDER",)
        column = _enum(f"{entity.name}_update_column", columns, f"Columns of {entity.name} that may be changed.")
        fields = {
            "constraint": GraphQLInputField(GraphQLNonNull(constraint)),
            "update_columns": GraphQLInputField(required_list(column), default_value=[]),
            "where": GraphQLInputField(self.filters[entity.name]),
        }
        return GraphQLInputObjectType(f"{entity.name}_on_conflict", fields)

    def changes(self, entity: Entity) -> dict[str, GraphQLInputType]:
        """Return the arguments of an update that say what changes."""
        assert entity.update is not None  # noqa: S101 - asked for updatable tables only
        columns = {c: GraphQLInputField(SCALARS[entity.columns[c].scalar]) for c in entity.update.columns}
        made: dict[str, GraphQLInputType] = {"_set": GraphQLInputObjectType(f"{entity.name}_set_input", columns)}
        numbers = {c: field for c, field in columns.items() if entity.columns[c].scalar in NUMERIC}
        if numbers:
            made["_inc"] = GraphQLInputObjectType(f"{entity.name}_inc_input", numbers)
        return made

    def key(self, entity: Entity) -> GraphQLInputObjectType:
        """Return the input that names one row by its key."""
        fields = {entity.key: GraphQLInputField(GraphQLNonNull(SCALARS[entity.columns[entity.key].scalar]))}
        return GraphQLInputObjectType(f"{entity.name}_pk_columns_input", fields)

    def listing(self, name: str) -> dict[str, GraphQLArgument]:
        """Return the arguments of a list of rows of the table `name`."""
        return {
            "distinct_on": GraphQLArgument(plain_list(self.select_columns[name])),
            "limit": GraphQLArgument(GraphQLInt),
            "offset": GraphQLArgument(GraphQLInt),
            "order_by": GraphQLArgument(plain_list(self.orders[name])),
            "where": GraphQLArgument(self.filters[name]),
        }


def ordered_columns(entity: Entity) -> list[str]:
    """Return the columns of `entity` that have a greatest and a least value."""
    return [a.name for a in entity.columns.values() if a.scalar in ORDERED and a.scalar != "uuid"]
