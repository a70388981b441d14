"""Mutations: each root field writes, then selects what it returns, all in the request's one transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import AppError
from app.graphql import writes
from app.graphql.catalog import Entity
from app.graphql.errors import CHECK_FAILED, PERMISSION, UNSUPPORTED, Fault, as_fault, of_database
from app.graphql.filters import matches
from app.graphql.scalars import NUMERIC, bind
from app.graphql.select import Selector
from app.graphql.selections import Field
from app.graphql.sight import Sight


@dataclass(slots=True)
class _Written:
    keys: list[Any]
    affected: int = 0


@dataclass(frozen=True, slots=True)
class _New:
    """A row to insert: what the client gives, what its parent gives, and where in the request it stands."""

    given: dict[str, Any]
    conflict: dict[str, Any] | None
    path: str
    parent: dict[str, Any]


class Mutator:
    """Runs what one caller writes."""

    def __init__(self, session: AsyncSession, sight: Sight) -> None:
        self.session = session
        self.sight = sight
        self.selector = Selector(sight)

    async def run(self, field: Field) -> str:
        """Carry out one root field; returns the text of its answer. Raises `Fault`, with nothing to be kept."""
        if field.name == "__typename":
            return json.dumps(field.args["type"])
        kind, _, rest = field.name.partition("_")
        try:
            match kind:
                case "insert":
                    return await self._insert(rest, field)
                case "update":
                    return await self._update(rest, field)
                case _:
                    return await self._delete(self.sight.catalog[rest], field)
        except AppError as exc:
            raise as_fault(exc, f"{field.path}.args") from exc
        except DBAPIError as exc:
            if fault := of_database(exc):
                place = {"insert": ".args.object" + ("" if rest.endswith("_one") else "s")}.get(kind, ".args")
                raise fault.at(f"{field.path}{place}") from exc
            raise

    # Insert

    async def _insert(self, rest: str, field: Field) -> str:
        is_one = "object" in field.args
        entity = self.sight.catalog[rest.removesuffix("_one") if is_one else rest]
        objects = [field.args["object"]] if is_one else field.args["objects"]
        place = f"{field.path}.args.object" + ("" if is_one else "s")
        done = _Written([])
        for number, given in enumerate(objects):
            path = place if is_one else f"{place}[{number}]"
            key = await self._insert_row(entity, _New(given, field.args.get("on_conflict"), path, {}), done)
            if key is not None:
                done.keys.append(key)
        return await self._answer(entity, field, done, is_one=is_one)

    async def _insert_row(self, entity: Entity, new: _New, done: _Written) -> Any:
        given, path = new.given, new.path
        rule = entity.insert
        assert rule is not None  # noqa: S101 - the schema offers insertable tables only
        own = {name: value for name, value in given.items() if name in rule.columns}
        values = self._preset(entity, own, path)
        await self._check_references(entity, values, path)
        instead = writes.INSTEAD_OF_INSERT.get(entity.name)
        if instead and (made := await instead(self.session, self.sight.caller, given, values)) is not None:
            done.affected += 1
            return made
        if same := await self._same(entity, values):
            done.affected += 1
            return same
        if prepare := writes.BEFORE_INSERT.get(entity.name):
            values = await prepare(self.session, values)
        sql = {
            entity.columns[n].column if n in entity.columns else n: self._bound(entity, n, v) for n, v in values.items()
        }
        key = await self._execute_insert(entity, sql | new.parent, new.conflict)
        nested = {name: given[name] for name in rule.nested if given.get(name)}
        if key is None:
            if nested:
                raise Fault(
                    f'cannot proceed to insert array relations since insert to table "{entity.name}" affects zero rows',
                    UNSUPPORTED,
                    path,
                )
            return None
        done.affected += 1
        if after := writes.AFTER_INSERT.get(entity.name):
            await after(self.session, self.sight.caller, key)
        for name, below in nested.items():
            relation = entity.relations[name]
            target = self.sight.catalog[relation.target]
            for number, child in enumerate(below["data"]):
                here = f"{path}.{name}.data[{number}]"
                row = _New(child, below.get("on_conflict"), here, {relation.remote: key})
                await self._insert_row(target, row, done)
        return key

    def _preset(self, entity: Entity, given: dict[str, Any], path: str) -> dict[str, Any]:
        values = dict(given)
        for name, preset in (entity.insert.presets if entity.insert else {}).items():
            wanted = preset(self.sight.caller)
            if values.get(name) not in (None, wanted):
                raise Fault(CHECK_FAILED, PERMISSION, f"{path}.{name}")
            values[name] = wanted
        return values

    def _bound(self, entity: Entity, name: str, value: Any) -> ColumnElement[Any]:
        attribute = entity.columns.get(name)
        return bind(attribute.scalar if attribute else "String", value)

    async def _check_references(self, entity: Entity, values: dict[str, Any], path: str) -> None:
        """Refuse to refer to rows the caller may not use; ones that do not exist are for the foreign key to refuse."""
        assert entity.insert is not None  # noqa: S101
        for column, target in entity.insert.references.items():
            if values.get(column) is None:
                if not entity.columns[column].is_required and column in entity.insert.columns:
                    raise Fault(CHECK_FAILED, PERMISSION, f"{path}.{column}")
                continue
            usable = await self.session.scalar(self.sight.usable(target, values[column]))
            has_key = bool(entity.table.c[entity.columns[column].column].foreign_keys)
            if usable is False or (usable is None and not has_key):
                raise Fault(CHECK_FAILED, PERMISSION, f"{path}.{column}")

    async def _same(self, entity: Entity, values: dict[str, Any]) -> Any:
        """Return the key of the row that stands already, for tables where a second one would say nothing new."""
        assert entity.insert is not None  # noqa: S101
        names = entity.insert.same
        if not names or any(values.get(name) is None for name in names):
            return None
        columns = entity.table.c
        query = select(columns[entity.key]).where(*(columns[name] == values[name] for name in names))
        return await self.session.scalar(query.order_by(columns[entity.key]).limit(1))

    async def _execute_insert(self, entity: Entity, values: dict[str, Any], conflict: dict[str, Any] | None) -> Any:
        key = entity.table.c[entity.key]
        if conflict is None:
            return await self.session.scalar(insert(entity.table).values(values).returning(key))
        statement = upsert(entity.table).values(values)
        if not conflict["update_columns"]:
            unchanged = statement.on_conflict_do_nothing(constraint=conflict["constraint"])
            return await self.session.scalar(unchanged.returning(key))
        changes = {name: statement.excluded[name] for name in conflict["update_columns"]}
        # The row in the way is changed only if the caller sees it and the clause's own condition holds.
        rows = self.sight.rows(entity.name)
        visible = rows.select(rows.source.c[entity.key])
        if asked := conflict.get("where"):
            visible = visible.where(matches(self.sight, entity, rows.source, asked, "$.on_conflict.where"))
        changed = statement.on_conflict_do_update(
            constraint=conflict["constraint"], set_=changes, where=key.in_(visible)
        )
        return await self.session.scalar(changed.returning(key))

    # Update

    async def _update(self, rest: str, field: Field) -> str:
        is_one = "pk_columns" in field.args
        entity = self.sight.catalog[rest.removesuffix("_by_pk") if is_one else rest]
        changes = self._changes(entity, field)
        rows = self.sight.rows(entity.name)
        if is_one:
            key = bind(entity.columns[entity.key].scalar, field.args["pk_columns"][entity.key])
            condition = rows.source.c[entity.key] == key
        else:
            condition = matches(self.sight, entity, rows.source, field.args["where"], f"{field.path}.args.where")
        keys = await self._keys(entity, rows.select(rows.source.c[entity.key]).where(condition))
        if keys and (instead := writes.INSTEAD_OF_UPDATE.get(entity.name)):
            for key in keys:
                await instead(self.session, self.sight.caller, key)
        elif keys:
            own = entity.table.c
            statement = update(entity.table).where(own[entity.key].in_(keys)).values(changes)
            await self.session.execute(statement.execution_options(synchronize_session=False))
        return await self._answer(entity, field, _Written(keys, len(keys)), is_one=is_one)

    def _changes(self, entity: Entity, field: Field) -> dict[str, Any]:
        rule = entity.update
        assert rule is not None  # noqa: S101 - the schema offers updatable tables only
        changes: dict[str, Any] = {}
        for name, value in (field.args.get("_set") or {}).items():
            allowed = rule.values.get(name)
            if allowed and value not in allowed:
                raise Fault(CHECK_FAILED, PERMISSION, f"{field.path}.args._set.{name}")
            changes[name] = self._bound(entity, name, value)
        for name, value in (field.args.get("_inc") or {}).items():
            if name in changes:
                raise Fault(f"column {name!r} is found in both _set and _inc", path=f"{field.path}.args")
            if entity.columns[name].scalar in NUMERIC:
                changes[name] = entity.table.c[name] + self._bound(entity, name, value)
        if not changes:
            raise Fault("at least any one of _set, _inc operator is expected", path=f"{field.path}.args")
        return changes

    async def _keys(self, entity: Entity, query: Any) -> list[Any]:
        """Return the keys that `query` finds, their rows locked."""
        column = entity.table.c[entity.key]
        locked = select(column).where(column.in_(query)).order_by(column).with_for_update()
        return list(await self.session.scalars(locked))

    # Delete

    async def _delete(self, entity: Entity, field: Field) -> str:
        rows = self.sight.rows(entity.name)
        condition = matches(self.sight, entity, rows.source, field.args["where"], f"{field.path}.args.where")
        keys = await self._keys(entity, rows.select(rows.source.c[entity.key]).where(condition))
        answer = await self._answer(entity, field, _Written(keys, len(keys)), is_one=False)
        if keys and (instead := writes.INSTEAD_OF_DELETE.get(entity.name)):
            await instead(self.session, self.sight.caller, keys)
        elif keys:
            gone = delete(entity.table).where(entity.table.c[entity.key].in_(keys))
            await self.session.execute(gone.execution_options(synchronize_session=False))
        return answer

    # Answer

    async def _answer(self, entity: Entity, field: Field, done: _Written, *, is_one: bool) -> str:
        await self.session.flush()
        if is_one:
            return (await self._rows(entity, done.keys, field.fields))[1:-1] or "null"
        parts = []
        for part in field.fields:
            if part.name == "returning":
                text = await self._rows(entity, done.keys, part.fields)
            elif part.name == "affected_rows":
                text = str(done.affected)
            else:
                text = json.dumps(f"{entity.name}_mutation_response")
            parts.append(f"{json.dumps(part.key)}:{text}")
        return "{" + ",".join(parts) + "}"

    async def _rows(self, entity: Entity, keys: list[Any], fields: list[Field]) -> str:
        return str(await self.session.scalar(self.selector.rows(entity.name, keys, fields)))
