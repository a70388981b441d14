"""The published tables, looked up in SQLAlchemy's mappers once."""

from __future__ import annotations

import inspect as python
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, PrimaryKeyConstraint, Table, UniqueConstraint, inspect
from sqlalchemy.orm import RelationshipProperty
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression

from app.graphql.published import TABLES, Insertable, Published, Updatable
from app.graphql.scalars import scalar_of


@dataclass(frozen=True, slots=True)
class Attribute:
    """A column on the wire."""

    name: str
    column: str
    scalar: str
    is_required: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A way from a table's rows to another's: those where `remote` equals our `local`."""

    name: str
    target: str
    is_list: bool
    local: str
    remote: str
    order: tuple[tuple[str, bool], ...]
    """Columns and whether they go downwards, for when nobody asks for an order."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A table on the wire; its name is the type's."""

    name: str
    description: str
    table: Table
    key: str
    columns: Mapping[str, Attribute]
    relations: Mapping[str, Relation]
    aliases: Mapping[str, Attribute]
    constraints: tuple[str, ...]
    roots: frozenset[str]
    insert: Insertable | None
    update: Updatable | None

    _sources: list[Any] = field(default_factory=list, repr=False, compare=False)

    def source(self, number: int) -> Any:
        """Return the table's alias `number`: making one copies every column, so they are kept."""
        while len(self._sources) <= number:
            self._sources.append(self.table.alias())
        return self._sources[number]

    @property
    def carried(self) -> list[str]:
        """Return the names of the columns that a sub-select of rows must carry for anything to be built from them."""
        needed = [a.column for a in self.columns.values()] + [r.local for r in self.relations.values()]
        return list(dict.fromkeys([self.key, *needed]))


def _attribute(published: Published, table: Table, name: str, column_name: str) -> Attribute:
    column: Column[Any] = table.c[column_name]
    return Attribute(name, column_name, published.scalars.get(name) or scalar_of(column), not column.nullable)


def _relation(relationship: RelationshipProperty[Any]) -> Relation:
    ((local, remote),) = relationship.local_remote_pairs or ()
    order = []
    for item in relationship.order_by or ():
        is_down = isinstance(item, UnaryExpression) and item.modifier is operators.desc_op
        column: Any = item.element if isinstance(item, UnaryExpression) else item
        order.append((str(column.key), is_down))
    return Relation(
        relationship.key,
        str(relationship.mapper.local_table.description),
        bool(relationship.uselist),
        str(local.key),
        str(remote.key),
        tuple(order),
    )


def _entity(published: Published) -> Entity:
    mapper = inspect(published.row)
    table: Table = mapper.local_table
    unique = [c for c in table.constraints if isinstance(c, UniqueConstraint | PrimaryKeyConstraint)]
    return Entity(
        name=str(table.name),
        description=(python.getdoc(published.row) or "").partition("\n")[0],
        table=table,
        key=mapper.primary_key[0].key,
        columns={name: _attribute(published, table, name, name) for name in published.columns},
        relations={name: _relation(mapper.relationships[name]) for name in published.relations},
        aliases={alias: _attribute(published, table, alias, name) for alias, name in published.aliases.items()},
        constraints=tuple(sorted(str(c.name) for c in unique)),
        roots=published.roots,
        insert=published.insert,
        update=published.update,
    )


Catalog = Mapping[str, Entity]


def make_catalog() -> Catalog:
    """Return the published tables by name."""
    return {entity.name: entity for entity in map(_entity, TABLES)}
