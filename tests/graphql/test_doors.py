"""Every door of the schema, tried with Bob's rows behind it: Ann's answers never depend on them, his rows never change.

The doors are read from the schema, so that a new one is walked through, or fails the walk, on the day it is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
from graphql import GraphQLEnumType, GraphQLInputObjectType, GraphQLObjectType, get_named_type, is_leaf_type
from sqlalchemy import Integer, String, Text, select, text, update
from sqlalchemy import inspect as look
from sqlalchemy.ext.asyncio import AsyncSession

from app.graphql import published as p
from app.graphql.service import Endpoint
from app.schema import deployments, pipelines
from tests.conftest import BOB
from tests.factories import Make
from tests.graphql.conftest import Ask, Refused, World, make_world

TABLES = {t.row.__tablename__: t for t in p.TABLES}
LISTS = [name for name, t in TABLES.items() if p.LIST in t.roots]
SEARCHES = {"search_models": '(args: {search: ""} %s)', "search_pipelines": '(args: {search: ""} %s)'}


def _fields(endpoint: Endpoint, type_: str) -> dict[str, Any]:
    found = endpoint.schema.type_map[type_]
    assert isinstance(found, GraphQLObjectType | GraphQLInputObjectType)
    return dict(found.fields)


def _everything(endpoint: Endpoint, type_: str, depth: int) -> str:
    """Return a selection of every field, aggregates and their nodes too, `depth` relationships deep."""
    parts = []
    for name, field in _fields(endpoint, type_).items():
        below = get_named_type(field.type)
        if is_leaf_type(below):
            parts.append(name)
        elif name in ("aggregate", "max", "min", "sum", "avg"):
            parts.append(f"{name} {{ {_everything(endpoint, below.name, depth)} }}")
        elif depth > 0:
            parts.append(f"{name} {{ {_everything(endpoint, below.name, depth - (name != 'nodes'))} }}")
    return " ".join(parts)


def _orders(endpoint: Endpoint, type_: str, depth: int, *, is_root: bool = True) -> Iterator[str]:
    """Yield every `order_by` there is, `depth` relationships deep; aggregates order the rows of the root alone."""
    for name, field in _fields(endpoint, type_).items():
        below = get_named_type(field.type)
        if isinstance(below, GraphQLEnumType):
            yield f"{{{name}: desc_nulls_last}}"
        elif depth > 0 and isinstance(below, GraphQLInputObjectType) and (is_root or not name.endswith("_aggregate")):
            is_aggregate = name.endswith("_aggregate")
            inside = _orders(endpoint, below.name, depth - (not is_aggregate), is_root=is_aggregate)
            yield from (f"{{{name}: {inner}}}" for inner in inside)


def _conditions(endpoint: Endpoint, type_: str, depth: int) -> Iterator[str]:
    """Yield filters through every relationship and on every column, `depth` relationships deep."""
    for name, field in _fields(endpoint, type_).items():
        below = get_named_type(field.type)
        if name in ("_and", "_or", "_not"):
            continue
        if below.name.endswith("_comparison_exp"):
            yield f"{{{name}: {{_is_null: false}}}}"
            if below.name in ("bigint_comparison_exp", "Int_comparison_exp"):
                yield f"{{{name}: {{_gt: 0}}}}"
        elif depth > 0:
            yield f"{{{name}: {{}}}}"
            yield from (f"{{{name}: {inner}}}" for inner in _conditions(endpoint, below.name, depth - 1))


def _documents(endpoint: Endpoint, anns: World) -> Iterator[str]:
    """Yield what Ann asks: every root field of the schema, by every argument it takes."""
    walked = set()
    for name, field in endpoint.schema.query_type.fields.items():  # type: ignore[union-attr]
        target = get_named_type(field.type).name
        walked.add(name)
        everything = _everything(endpoint, target, 2)
        if name.endswith("_by_pk"):
            yield from (f"{name}(id: {_literal(row.id)}) {{ {everything} }}" for row in anns.rows[target])
            continue
        assert set(field.args) - {"args"} == {"distinct_on", "limit", "offset", "order_by", "where"}
        call = SEARCHES.get(name, "(%s)")
        assert ("args" in field.args) == (name in SEARCHES)
        yield f"{name}{call % 'order_by: {id: asc}'} {{ {everything} }}"
        for order in _orders(endpoint, f"{target}_order_by", 2):
            yield f"{name}{call % f'order_by: [{order}, {{id: asc}}]'} {{ id }}"
        for condition in _conditions(endpoint, f"{target}_bool_exp", 2):
            yield f"{name}{call % f'where: {condition}, order_by: {{id: asc}}'} {{ id }}"
            yield f"{name}{call % f'where: {{_not: {condition}}}, order_by: {{id: asc}}'} {{ id }}"
        for column in TABLES[target].columns:
            if column not in ("conversion", "definition", "engine_config", "id"):
                ordered = f"distinct_on: {column}, order_by: [{{{column}: asc}}, {{id: asc}}]"
                yield f"{name}{call % ordered} {{ id }}"
        yield f"{name}{call % 'order_by: {id: asc}, limit: 2, offset: 1'} {{ id }}"
    assert walked == set(endpoint.schema.query_type.fields)  # type: ignore[union-attr]


def _literal(key: Any) -> str:
    return json.dumps(key if isinstance(key, int) else str(key))


async def _ask_all(ask: Ask, client: httpx.AsyncClient, documents: Iterable[str]) -> dict[str, Any]:
    """Return the answers by what was asked."""
    asked, answers = list(documents), {}
    for part in _parts(asked):
        data = await ask(client, "{ " + " ".join(f"a{n}: {one}" for n, one in enumerate(part)) + " }")
        answers |= {one: data[f"a{n}"] for n, one in enumerate(part)}
    return answers


def _parts(asked: list[str]) -> Iterator[list[str]]:
    """Cut the questions into requests that stay below the limit of fields."""
    part: list[str] = []
    for one in asked:
        if part and len(" ".join([*part, one]).split()) > 500:
            yield part
            part = []
        part.append(one)
    yield part


async def _entangle(make: Make, mine: World, other: World) -> None:
    """Link what is `mine` to what is the `other` one's, as nobody should have made."""
    await make.add(pipelines.ModelTag(model_id=mine.one("model").id, tag_id=other.one("tag").id))
    await make.add(pipelines.PipelineTag(pipeline_pk_id=mine.one("pipeline").id, tag_pk_id=other.one("tag").id))
    await make.add(pipelines.ModelComment(model_pk_id=mine.one("model").id, comment_id=other.one("comment").id))
    await make.add(
        deployments.DeploymentModelConfig(
            deployment_id=mine.one("deployment").id,
            model_config_id=other.one("model_config").id,
            pipeline_version_pk_id=mine.one("pipeline_version").id,
        )
    )
    await make.add(
        deployments.DeploymentPipelineVersion(
            deployment_id=mine.one("deployment").id, pipeline_version_pk_id=other.one("pipeline_version").id
        )
    )


async def _change_everything(session: AsyncSession, world: World) -> int:
    """Change what can be changed in the rows of a world, but tags and comments: those show with what they hang on.

    Returns how many columns were changed.
    """
    changed = 0
    for table, rows in world.rows.items():
        if table in ("tag", "comment"):
            continue
        kind = type(rows[0])
        keys = [row.id for row in rows]
        bound = {key for constraint in kind.__table__.foreign_keys for key in [constraint.parent.name]}
        for attribute in look(kind).column_attrs:
            column = attribute.columns[0]
            if column.primary_key or column.name in bound or column.name in ("status", "sha", "user_type", "phase"):
                continue
            if isinstance(column.type, String | Text) and table not in ("workspace_users",):
                value: Any = column.concat("-zzz")
            elif isinstance(column.type, Integer):
                value = column + 1_000_000
            elif column.name in ("created_at", "updated_at"):
                value = column + text("interval '9 years'")
            else:
                continue
            if column.name == "visibility":
                value = "public"
            await session.execute(update(kind).where(kind.id.in_(keys)).values({attribute.key: value}))
            changed += 1
    await session.commit()
    return changed


@pytest.mark.slow
async def test_no_answer_depends_on_what_others_have(
    ann: httpx.AsyncClient, ask: Ask, endpoint: Endpoint, make: Make, anns: World, bobs: World, session: AsyncSession
) -> None:
    await _entangle(make, anns, bobs)
    await _entangle(make, bobs, anns)
    documents = list(_documents(endpoint, anns))
    before = await _ask_all(ask, ann, documents)

    assert await _change_everything(session, bobs) > 40
    session.expunge_all()
    await _drop_default_workspace(session)
    more = await make_world(make, BOB, "more")
    # Bob hangs another model and pipeline of his on Ann's tag, and runs her configuration once more.
    await make.add(pipelines.ModelTag(model_id=more.one("model").id, tag_id=anns.one("tag").id))
    await make.add(pipelines.PipelineTag(pipeline_pk_id=more.one("pipeline").id, tag_pk_id=anns.one("tag").id))
    await make.add(
        deployments.DeploymentModelConfig(
            deployment_id=more.one("deployment").id,
            model_config_id=anns.one("model_config").id,
            pipeline_version_pk_id=more.one("pipeline_version").id,
        )
    )
    after = await _ask_all(ask, ann, documents)

    assert len(documents) > 500
    assert sum(bool(answer) for answer in before.values()) > 250  # the questions ask for something
    assert {asked: (before[asked], after[asked]) for asked in documents if before[asked] != after[asked]} == {}


async def _drop_default_workspace(session: AsyncSession) -> None:
    """Leave Bob without a default workspace, so that another world can have one."""
    await session.execute(text("DELETE FROM user_default_workspace WHERE user_id = :user"), {"user": BOB.id})
    await session.commit()


async def _rows(session: AsyncSession) -> dict[tuple[str, Any], dict[str, Any]]:
    """Return all rows of all published tables."""
    found = {}
    for name, table in TABLES.items():
        columns = table.row.__table__
        for row in (await session.execute(select(columns))).mappings():
            found[name, row["id"]] = dict(row)
    return found


def _bobs_keys(bobs: World) -> set[tuple[str, Any]]:
    return {(table, row.id) for table, rows in bobs.rows.items() for row in rows}


def _value(type_: Any) -> str:
    """Return a value of a leaf type, as it is written in a document."""
    kinds = {"String": '"taken"', "Boolean": "true", "jsonb": "{steps: []}", "bpchar": '"taken"', "float8": "0.5"}
    name = get_named_type(type_).name
    if str(type_).startswith("["):
        return "[]"
    return kinds.get(name, '"taken"' if name.startswith("_") else "7")


def _attacks(endpoint: Endpoint, anns: World, bobs: World) -> Iterator[tuple[str, str, bool]]:
    """Yield for every mutation of the schema the ways in which Ann may try to reach Bob's rows.

    What is no attack, and must succeed, is marked: it shows that the attacks beside it fail for the right reason.
    """
    for name, field in endpoint.schema.mutation_type.fields.items():  # type: ignore[union-attr]
        kind, _, rest = name.partition("_")
        table = rest.removesuffix("_by_pk").removesuffix("_one")
        target = get_named_type(field.type).name
        everything = _everything(endpoint, target, 2)
        by_key = [f"{{id: {{_eq: {_literal(row.id)}}}}}" for row in bobs.rows[table]]
        if kind == "delete":
            assert set(field.args) == {"where"}
            for where in ("{}", *by_key, f"{{_or: [{', '.join(by_key)}]}}"):
                yield name, f"{name}(where: {where}) {{ {everything} }}", False
        elif kind == "update":
            changes = [f"{op}: {{{_set(endpoint, field.args[op])}}}" for op in field.args if op.startswith("_")]
            assert changes
            assert set(field.args) - {"where", "pk_columns"} <= {"_set", "_inc"}
            keys = [f"pk_columns: {{id: {_literal(row.id)}}}" for row in bobs.rows[table]]
            targets = keys if "pk_columns" in field.args else [f"where: {w}" for w in ("{}", *by_key)]
            for chosen in targets:
                for change in changes:
                    yield name, f"{name}({chosen}, {change}) {{ {everything} }}", False
        else:
            assert kind == "insert", f"no walk knows the door {name}"
            many = "objects" in field.args
            assert set(field.args) == {"objects" if many else "object", "on_conflict"}
            insertable = TABLES[table].insert
            assert insertable is not None
            yield name, f"{name}({_argument(many, _own(endpoint, table, anns))}) {{ {everything} }}", True
            for given in _objects(endpoint, table, anns, bobs):
                argument = _argument(many, given)
                yield name, f"{name}({argument}) {{ {everything} }}", False
                for constraint in endpoint.schema.type_map[f"{table}_constraint"].values:  # type: ignore[attr-defined]
                    clause = f"on_conflict: {{constraint: {constraint}, update_columns: []}}"
                    yield name, f"{name}({argument}, {clause}) {{ {everything} }}", False


def _set(endpoint: Endpoint, argument: Any) -> str:
    columns = _fields(endpoint, get_named_type(argument.type).name)
    values = {c: '"public"' if c == "visibility" else _value(f.type) for c, f in columns.items()}
    return ", ".join(f"{c}: {value}" for c, value in values.items())


def _argument(many: bool, values: dict[str, str]) -> str:
    row = ", ".join(f"{column}: {value}" for column, value in values.items())
    return f"objects: [{{{row}}}]" if many else f"object: {{{row}}}"


_PLAIN = {"visibility": '"private"', "tensor_fields": '["tensor"]', "runtime": '"onnx"', "batch_config": "null"}
_PLAIN |= {"input_schema": "null", "output_schema": "null", "user_type": '"OWNER"'}


def _own(endpoint: Endpoint, table: str, anns: World) -> dict[str, str]:
    """Return a row that Ann may insert."""
    insertable = TABLES[table].insert
    assert insertable is not None
    fields = _fields(endpoint, f"{table}_insert_input")
    given = [c for c in insertable.columns if c in fields and c not in (*insertable.presets, "created_by")]
    plain = {c: _PLAIN.get(c) or _value(fields[c].type) for c in given}
    return plain | {c: _literal(anns.one(t).id) for c, t in insertable.references.items()}


def _objects(endpoint: Endpoint, table: str, anns: World, bobs: World) -> Iterator[dict[str, str]]:
    """Yield rows to insert that refer to one of Bob's, are in his name, take his names, or bring such rows along."""
    insertable = TABLES[table].insert
    assert insertable is not None
    fields, own = _fields(endpoint, f"{table}_insert_input"), _own(endpoint, table, anns)
    for column, other in insertable.references.items():
        yield own | {column: _literal(bobs.one(other).id)}
    for column in insertable.presets:
        if column in fields:
            yield own | {column: _literal(BOB.id)}
    for column in ("name", "pipeline_id", "tag"):
        if column in own:
            yield own | {column: _literal(str(getattr(bobs.one(table), column)))}
    for nested in insertable.nested:
        (inner,) = [r.target for r in endpoint.catalog[table].relations.values() if r.name == nested]
        rows = TABLES[inner].insert
        assert rows is not None
        for column in rows.presets:
            if column in _fields(endpoint, f"{inner}_insert_input"):
                values = _own(endpoint, inner, anns) | {column: _literal(BOB.id)}
                data = ", ".join(f"{c}: {v}" for c, v in values.items())
                yield own | {nested: f"{{data: [{{{data}}}]}}"}


async def test_no_mutation_reaches_what_others_have(
    ann: httpx.AsyncClient, ask: Ask, endpoint: Endpoint, make: Make, anns: World, bobs: World, session: AsyncSession
) -> None:
    await _entangle(make, bobs, anns)
    keys = _bobs_keys(bobs)
    refs = {(t, str(key)) for t, key in keys}
    before = await _rows(session)
    tried, codes = set(), []
    foreign = re.compile("|".join(map(re.escape, _words_of(bobs))))

    for name, document, is_harmless in _attacks(endpoint, anns, bobs):
        tried.add(name)
        unexpected = None
        try:
            data = await ask(ann, f"mutation {{ {document} }}")
        except Refused as exc:
            codes.append(exc.code)
            unexpected = (document, exc.message) if is_harmless else None
        else:
            assert not foreign.search(json.dumps(data)), document
        assert unexpected is None
        session.expunge_all()
        now = await _rows(session)
        assert {key: (before[key], now.get(key)) for key in keys if before[key] != now.get(key)} == {}, document
        new = [(t, row) for (t, _), row in now.items() if (t, row["id"]) not in before]
        for table, row in new:
            held = {(to, str(row[column])) for column, to in _foreign_keys(table) if row[column] is not None}
            assert held & refs == set(), (document, row)
            assert row.get("user_id") != BOB.id, (document, row)
            assert row.get("owner_id") != BOB.id, (document, row)
            before[table, row["id"]] = row

    assert tried == set(endpoint.schema.mutation_type.fields)  # type: ignore[union-attr]
    assert codes.count("permission-error") > 10, codes
    # A conflict over a name is told in the words that clients know for a taken default workspace.
    assert set(codes) <= {"permission-error", "constraint-violation", "not-supported"}, codes


def _words_of(bobs: World) -> list[str]:
    """Return texts that are in Bob's rows alone, and that Ann cannot have brought along."""
    rows = [row for rows in bobs.rows.values() for row in rows]
    values = {str(getattr(row, a.key)) for row in rows for a in look(type(row)).column_attrs}
    return [
        "bobs.onnx",
        "bobs0",
        "bobs-model",
        *(v for v in values if re.fullmatch("[0-9a-f-]{36}", v) and v != BOB.id),
    ]


def _foreign_keys(table: str) -> Iterator[tuple[str, str]]:
    for key in TABLES[table].row.__table__.foreign_keys:
        yield key.parent.name, key.column.table.name
