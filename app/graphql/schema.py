"""The schema: object types and root fields, generated from the catalog under Hasura's names."""

from __future__ import annotations

from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLBoolean,
    GraphQLField,
    GraphQLFloat,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInt,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    GraphQLString,
)

from app.graphql import published as p
from app.graphql.catalog import Catalog, Entity
from app.graphql.inputs import Inputs, ordered_columns, plain_list, required_list
from app.graphql.scalars import NUMERIC, SCALARS

STATISTICS = ("avg", "stddev", "stddev_pop", "stddev_samp", "var_pop", "var_samp", "variance")


class _Maker:
    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.inputs = Inputs(catalog)
        self.aggregates: dict[str, GraphQLObjectType] = {}
        self.types = {entity.name: self._type(entity) for entity in catalog.values()}

    def _type(self, entity: Entity) -> GraphQLObjectType:
        def fields() -> dict[str, GraphQLField]:
            made = {}
            for attribute in entity.columns.values():
                scalar: Any = SCALARS[attribute.scalar]
                args = {"path": GraphQLArgument(GraphQLString)} if attribute.scalar == "jsonb" else {}
                is_required = attribute.is_required and not args
                made[attribute.name] = GraphQLField(GraphQLNonNull(scalar) if is_required else scalar, args)
            for relation in entity.relations.values():
                target = self.types[relation.target]
                if relation.is_list:
                    args = self.inputs.listing(relation.target)
                    made[relation.name] = GraphQLField(required_list(target), args)
                    made[f"{relation.name}_aggregate"] = GraphQLField(
                        GraphQLNonNull(self.aggregate(relation.target)), self.inputs.listing(relation.target)
                    )
                else:
                    made[relation.name] = GraphQLField(target)
            return made

        return GraphQLObjectType(entity.name, fields, description=entity.description)

    def aggregate(self, name: str) -> GraphQLObjectType:
        if name not in self.aggregates:
            figures = GraphQLField(self._figures(self.catalog[name]))
            nodes = GraphQLField(required_list(self.types[name]))
            self.aggregates[name] = GraphQLObjectType(f"{name}_aggregate", {"aggregate": figures, "nodes": nodes})
        return self.aggregates[name]

    def _figures(self, entity: Entity) -> GraphQLObjectType:
        count = {
            "columns": GraphQLArgument(plain_list(self.inputs.select_columns[entity.name])),
            "distinct": GraphQLArgument(GraphQLBoolean),
        }
        fields: dict[str, GraphQLField] = {"count": GraphQLField(GraphQLNonNull(GraphQLInt), count)}
        ordered = {c: SCALARS[entity.columns[c].scalar] for c in ordered_columns(entity)}
        numbers = {c: SCALARS[a.scalar] for c, a in entity.columns.items() if a.scalar in NUMERIC}
        kinds: list[tuple[str, dict[str, Any]]] = [("max", ordered), ("min", ordered), ("sum", numbers)]
        kinds += [(way, dict.fromkeys(numbers, GraphQLFloat)) for way in STATISTICS]
        for way, columns in kinds:
            if columns:
                inner = {c: GraphQLField(type_) for c, type_ in columns.items()}
                fields[way] = GraphQLField(GraphQLObjectType(f"{entity.name}_{way}_fields", inner))
        return GraphQLObjectType(f"{entity.name}_aggregate_fields", fields)

    def _key(self, entity: Entity) -> dict[str, GraphQLArgument]:
        return {entity.key: GraphQLArgument(GraphQLNonNull(SCALARS[entity.columns[entity.key].scalar]))}

    def query(self) -> GraphQLObjectType:
        fields: dict[str, GraphQLField] = {}
        for entity in self.catalog.values():
            type_ = self.types[entity.name]
            if p.LIST in entity.roots:
                fields[entity.name] = GraphQLField(required_list(type_), self.inputs.listing(entity.name))
            if p.BY_PK in entity.roots:
                fields[f"{entity.name}_by_pk"] = GraphQLField(type_, self._key(entity))
        for name, target in p.FUNCTIONS.items():
            search = GraphQLInputObjectType(f"{name}_args", {"search": GraphQLInputField(GraphQLString)})
            args = {"args": GraphQLArgument(GraphQLNonNull(search)), **self.inputs.listing(target)}
            fields[name] = GraphQLField(required_list(self.types[target]), args)
        return GraphQLObjectType("query_root", fields)

    def mutation(self) -> GraphQLObjectType:
        fields: dict[str, GraphQLField] = {}
        for entity in self.catalog.values():
            fields |= self._writes(entity)
        return GraphQLObjectType("mutation_root", fields)

    def _writes(self, entity: Entity) -> dict[str, GraphQLField]:
        name, roots = entity.name, entity.roots
        made: dict[str, GraphQLField] = {}
        where = GraphQLArgument(GraphQLNonNull(self.inputs.filters[name]))
        response: Any = None
        if roots & {p.INSERT, p.UPDATE, p.DELETE}:
            response = self._response(entity)
        if roots & {p.INSERT, p.INSERT_ONE}:
            row, conflict = self.inputs.inserts[name], GraphQLArgument(self.inputs.conflicts[name])
            if p.INSERT in roots:
                args = {"objects": GraphQLArgument(required_list(row)), "on_conflict": conflict}
                made[f"insert_{name}"] = GraphQLField(response, args)
            if p.INSERT_ONE in roots:
                args = {"object": GraphQLArgument(GraphQLNonNull(row)), "on_conflict": conflict}
                made[f"insert_{name}_one"] = GraphQLField(self.types[name], args)
        if roots & {p.UPDATE, p.UPDATE_BY_PK}:
            changes = {key: GraphQLArgument(type_) for key, type_ in self.inputs.changes(entity).items()}
            if p.UPDATE in roots:
                made[f"update_{name}"] = GraphQLField(response, {**changes, "where": where})
            if p.UPDATE_BY_PK in roots:
                key = GraphQLArgument(GraphQLNonNull(self.inputs.key(entity)))
                made[f"update_{name}_by_pk"] = GraphQLField(self.types[name], {**changes, "pk_columns": key})
        if p.DELETE in roots:
            made[f"delete_{name}"] = GraphQLField(response, {"where": where})
        return made

    def _response(self, entity: Entity) -> GraphQLOutputType:
        fields = {
            "affected_rows": GraphQLField(GraphQLNonNull(GraphQLInt)),
            "returning": GraphQLField(GraphQLNonNull(GraphQLList(GraphQLNonNull(self.types[entity.name])))),
        }
        return GraphQLObjectType(f"{entity.name}_mutation_response", fields)


def make_schema(catalog: Catalog) -> GraphQLSchema:
    """Return the schema of the published tables."""
    maker = _Maker(catalog)
    return GraphQLSchema(maker.query(), maker.mutation())
