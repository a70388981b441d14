"""What queries answer: order, pages, figures, paths, nulls; and the one statement they become."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.graphql.documents import Documents
from app.graphql.select import Selector
from app.graphql.selections import Selections, read_variables
from app.graphql.service import Endpoint
from app.graphql.sight import Sight
from app.models.tables import ModelVersion
from tests.conftest import ADA, ANN
from tests.factories import Make
from tests.graphql.conftest import Ask, World
from tests.graphql.documents import QUERIES


async def test_a_query_is_one_statement(ann: httpx.AsyncClient, ask: Ask, anns: World, statements: list[str]) -> None:
    deep = "{ tag { id model_tags { model { id model { name workspace { users { user_id } } } } } } deployment { id } }"

    await ask(ann, deep)

    assert len(statements) == 1


def _compiled(endpoint: Endpoint, query: str, variables: dict[str, Any], caller: Any) -> str:
    document = Documents(endpoint.schema).read(query)
    operation = document.operation(None)
    fields = Selections(endpoint.schema, document, read_variables(endpoint.schema, document, operation, variables))
    return str(Selector(Sight(endpoint.catalog, caller)).query(fields.root(operation)))


@pytest.mark.parametrize("operation", QUERIES, ids=lambda o: o.name)
def test_no_from_names_a_table_of_an_outer_select_again(operation: Any, endpoint: Endpoint) -> None:
    numbers = {k: (1 if isinstance(v, str) and v.startswith("$") else v) for k, v in operation.variables.items()}
    numbers |= {k: "x" for k in numbers if k == "user_id"}
    if operation.name == "Q22":
        numbers["id"] = "0a000000-0000-4000-8000-000000000001"

    for caller in (ANN, ADA):
        sql = _compiled(endpoint, operation.text, numbers, caller)

        sources = re.findall(r"(?:FROM|JOIN|,) (\w+ AS \w+)", sql)
        assert len(sources) == len(set(sources)), sql
        # One source to a FROM: a comma there would be a cartesian product.
        assert [found for found in re.findall(r"FROM ([^()]*?)\s*(?:WHERE|ORDER|\)|$)", sql) if "," in found] == []


async def test_many_rows_come_each_once(ann: httpx.AsyncClient, ask: Ask, anns: World, session: AsyncSession) -> None:
    await session.execute(
        text("INSERT INTO models (name, workspace_id) SELECT 'm' || g, :w FROM generate_series(1, 40) g"),
        {"w": anns.one("workspace").id},
    )
    await session.execute(
        text(
            "INSERT INTO model (model_id, models_pk_id, status) "
            "SELECT m.name, m.id, 'ready' FROM models m, generate_series(1, 25) WHERE m.name LIKE 'm%'"
        )
    )
    await session.commit()
    document = (
        "query($id: bigint!) { workspace_by_pk(id: $id) { models { name models { id model_configs { id } } "
        "models_aggregate { aggregate { count } } } } "
        "tag { id model_tags(limit: 5) { id } } deployment(limit: 3) { deployment_model_configs(limit: 2) { id } } }"
    )

    data = await ask(ann, document, id=anns.one("workspace").id)

    models = [m for m in data["workspace_by_pk"]["models"] if m["name"].startswith("m")]
    assert len(models) == 40
    assert {len(m["models"]) for m in models} == {25}
    assert {m["models_aggregate"]["aggregate"]["count"] for m in models} == {25}
    assert len({v["id"] for m in models for v in m["models"]}) == 1000
    assert [len(t["model_tags"]) for t in data["tag"]] == [1]


async def test_versions_come_newest_first_exactly_if_their_models_do(
    ann: httpx.AsyncClient, ask: Ask, anns: World
) -> None:
    keys = [row.id for row in anns.rows["model"]]
    document = "query($id: bigint!) { workspace_by_pk(id: $id) { models%s { models { id } } } }"
    space = anns.one("workspace").id

    older = await ask(ann, document % "", id=space)
    newer = await ask(ann, document % "(order_by: {updated_at: desc})", id=space)

    assert [v["id"] for v in older["workspace_by_pk"]["models"][0]["models"]] == keys
    assert [v["id"] for v in newer["workspace_by_pk"]["models"][0]["models"]] == keys[::-1]


async def test_lists_are_ordered_paged_and_made_distinct(
    ann: httpx.AsyncClient, ask: Ask, make: Make, anns: World
) -> None:
    keys = [row.id for row in anns.rows["model"]]
    document = """{
        down: model(order_by: {file_size: desc}) { id }
        page: model(order_by: [{file_size: desc_nulls_last}, {id: asc}], limit: 1, offset: 1) { id }
        first: model(distinct_on: [model_id], order_by: [{model_id: asc}, {id: desc}]) { id }
        through: model(order_by: {model: {workspace: {name: asc}}, id: desc}) { id }
        counted: model(order_by: [{model_tags_aggregate: {count: desc}}, {id: asc}]) { id }
        greatest: pipeline(order_by: {pipeline_versions_aggregate: {max: {id: desc}}}) { pipeline_versions { id } }
    }"""

    data = await ask(ann, document)

    ids = {key: [row.get("id") for row in rows] for key, rows in data.items()}
    assert ids["down"] == ids["through"] == keys[::-1]
    assert ids["page"] == [keys[1]]
    assert ids["first"] == [keys[2]]
    assert ids["counted"] == keys
    versions = [row.id for row in anns.rows["pipeline_version"]]
    assert [v["id"] for v in data["greatest"][0]["pipeline_versions"]] == versions[::-1]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("{}", [0, 1, 2]),
        ("{file_size: {_eq: 1}}", [1]),
        ("{file_size: {_neq: 1}}", [0, 2]),
        ("{file_size: {_gt: 0, _lte: 1}}", [1]),
        ("{file_size: {_gte: 1, _lt: 2}}", [1]),
        ("{file_size: {_in: [0, 2]}}", [0, 2]),
        ("{file_size: {_in: []}}", []),
        ("{file_size: {_nin: [0, 2]}}", [1]),
        ('{file_name: {_like: "anns.%"}}', [0, 1, 2]),
        ('{file_name: {_ilike: "ANNS%"}}', [0, 1, 2]),
        ('{file_name: {_nlike: "anns.%"}}', []),
        ('{file_name: {_nilike: "x%"}}', [0, 1, 2]),
        ("{error_summary: {_is_null: true}}", []),
        ("{error_summary: {_is_null: false}}", [0, 1, 2]),
        ("{_or: [{file_size: {_eq: 0}}, {file_size: {_eq: 2}}]}", [0, 2]),
        ("{_or: []}", []),
        ("{_and: []}", [0, 1, 2]),
        ("{_not: {file_size: {_eq: 0}}}", [1, 2]),
        ('{model_tags: {tag: {tag: {_eq: "anns-tag"}}}}', [0]),
        ("{_not: {model_tags: {}}}", [1, 2]),
        ('{conversion: {_contains: {deep: {list: ["anns"]}}}}', [0, 1, 2]),
        ('{conversion: {_contained_in: {framework: "onnx"}}}', []),
        ('{conversion: {_has_key: "framework"}}', [0, 1, 2]),
        ('{conversion: {_has_keys_all: ["framework", "none"]}}', []),
        ('{conversion: {_has_keys_any: ["framework", "none"]}}', [0, 1, 2]),
        ('{created_at: {_gte: "2022-04-19 13:17:59+00:00", _lte: "2100-01-01"}}', [0, 1, 2]),
        ('{sha: {_like: "anns1%"}}', [1]),
        ("{task_id: {_is_null: true}}", []),
        ('{model: {workspace: {users: {user_type: {_eq: "OWNER"}}}}}', [0, 1, 2]),
    ],
)
def test_a_condition_is_valid(where: str, found: list[int], endpoint: Endpoint) -> None:
    Documents(endpoint.schema).read(f"{{ model(where: {where}) {{ id }} }}")


async def test_conditions_find_what_they_say(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    (mark,) = [m for m in test_a_condition_is_valid.pytestmark if m.name == "parametrize"]  # type: ignore[attr-defined]
    cases = mark.args[1]
    document = " ".join(
        f"c{n}: model(where: {where}, order_by: {{id: asc}}) {{ id }}" for n, (where, _) in enumerate(cases)
    )
    places = {row.id: place for place, row in enumerate(anns.rows["model"])}

    data = await ask(ann, f"{{ {document} }}")

    found = {where: [places[row["id"]] for row in data[f"c{n}"]] for n, (where, _) in enumerate(cases)}
    assert found == dict(cases)


async def test_figures_are_taken_over_the_page(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    document = """query($id: bigint!) { workspace_by_pk(id: $id) { models {
        all: models_aggregate { __typename aggregate { __typename count sum { file_size } avg { file_size }
            min { file_size created_at } max { model_id } stddev { file_size } } nodes { id } }
        some: models_aggregate(where: {file_size: {_gt: 0}}, limit: 1) { aggregate {
            count names: count(columns: [model_id], distinct: true) } nodes { file_size } }
        none: models_aggregate(where: {id: {_eq: 0}}) { aggregate { count max { id } } nodes { id } }
        bare: models_aggregate { __typename }
    } } }"""

    data = await ask(ann, document, id=anns.one("workspace").id)

    model = data["workspace_by_pk"]["models"][0]
    figures = model["all"]["aggregate"]
    assert (figures["count"], figures["sum"], figures["avg"]) == (3, {"file_size": 3}, {"file_size": 1.0})
    assert figures["max"] == {"model_id": "anns-model"}
    assert model["some"] == {"aggregate": {"count": 1, "names": 1}, "nodes": [{"file_size": 1}]}
    assert model["none"] == {"aggregate": {"count": 0, "max": {"id": None}}, "nodes": []}
    assert model["bare"] == {"__typename": "model_aggregate"}


async def test_a_path_leads_into_json(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    document = """query($id: bigint!) { model_by_pk(id: $id) { whole: conversion
        arch: conversion(path: "arch") dollar: conversion(path: "$.arch") deep: conversion(path: "deep.list[1]")
        quoted: conversion(path: "$['deep']['list']") none: conversion(path: "accel") } }"""

    data = await ask(ann, document, id=anns.one("model").id)

    row = data["model_by_pk"]
    assert row["whole"]["deep"] == {"list": ["anns", 7]}
    assert (row["arch"], row["dollar"], row["deep"], row["none"]) == ("anns", "anns", 7, None)
    assert row["quoted"] == ["anns", 7]


async def test_values_have_the_forms_of_the_wire(
    ann: httpx.AsyncClient, ask: Ask, anns: World, session: AsyncSession
) -> None:
    await session.execute(text("UPDATE workspace SET created_at = '2023-09-08 21:40:58.356590+00'"))
    await session.commit()
    document = """query($w: bigint!, $m: bigint!, $p: bigint!, $o: uuid!) {
        workspace_by_pk(id: $w) { created_at } model_by_pk(id: $m) { id sha task_id }
        pipeline_version_by_pk(id: $p) { version definition } orchestration_by_pk(id: $o) { id file_size task_id }
        assay { alert_threshold warning_threshold } }"""
    rows = {t: anns.one(t) for t in ("workspace", "model", "pipeline_version", "orchestration")}

    data = await ask(
        ann,
        document,
        w=rows["workspace"].id,
        m=rows["model"].id,
        p=rows["pipeline_version"].id,
        o=str(rows["orchestration"].id),
    )

    assert data["workspace_by_pk"]["created_at"] == "2023-09-08T21:40:58.35659+00:00"
    assert data["model_by_pk"]["id"] == rows["model"].id
    assert data["model_by_pk"]["sha"] == rows["model"].sha.strip()
    assert data["pipeline_version_by_pk"]["version"] == str(rows["pipeline_version"].version)
    assert data["pipeline_version_by_pk"]["definition"] == rows["pipeline_version"].definition
    assert data["orchestration_by_pk"] == {"id": str(rows["orchestration"].id), "file_size": 1, "task_id": None}
    assert data["assay"] == [{"alert_threshold": 0.25, "warning_threshold": None}]


async def test_an_object_of_many_keys_keeps_their_order(ann: httpx.AsyncClient, anns: World) -> None:
    keys = [f"k{(n * 7919) % 149}" for n in range(149)]
    document = f"{{ model(limit: 1) {{ {' '.join(f'{key}: id' for key in keys)} }} }}"

    reply = await ann.post("/v1/graphql", json={"query": document})

    assert list(reply.json()["data"]["model"][0]) == keys


async def test_fragments_directives_and_aliases_are_resolved(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    document = """query Q($yes: Boolean!, $no: Boolean = false) {
        ... on query_root { model(limit: 1) { ...parts id @skip(if: $yes) } }
        model(limit: 1) { extra: status @include(if: $yes) other: sha @include(if: $no) }
        __typename
    }
    fragment parts on model { name: model_id model { name ...deeper } }
    fragment deeper on models { workspace { name } }"""

    data = await ask(ann, document, yes=True)

    parent = {"name": "anns-model", "workspace": {"name": "anns-space"}}
    assert data == {
        "model": [{"name": "anns-model", "model": parent, "extra": "ready"}],
        "__typename": "query_root",
    }


async def test_omitted_is_not_null(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    document = "query($id: bigint) { model(where: {id: {_eq: $id}}) { id } }"

    everything = await ask(ann, document)

    assert len(everything["model"]) == 3


@pytest.mark.parametrize(
    ("term", "count"),
    [("", 3), ("ANNS-MOD", 3), ("anns-tag", 1), ("anns1", 1), (".onnx", 3), ("100%", 0), ("_", 0), ("nothing", 0)],
)
async def test_models_are_searched_by_names_hashes_files_and_tags(
    term: str, count: int, ann: httpx.AsyncClient, ask: Ask, anns: World
) -> None:
    data = await ask(ann, "query($s: String!) { search_models(args: {search: $s}) { id } }", s=term)

    assert len(data["search_models"]) == count


@pytest.mark.parametrize(
    ("term", "count"), [("", 2), ("anns-pipe", 2), ("ANNS-TAG", 2), ("anns-model", 2), ('"', 0), (",", 0), ("zzz", 0)]
)
async def test_pipelines_are_searched_by_names_models_and_tags(
    term: str, count: int, ann: httpx.AsyncClient, ask: Ask, anns: World
) -> None:
    document = (
        "query($s: String!) { search_pipelines(args: {search: $s}, distinct_on: id, order_by: {id: desc}) { id } }"
    )

    data = await ask(ann, document, s=term)

    assert [row["id"] for row in data["search_pipelines"]] == sorted(
        (r["id"] for r in data["search_pipelines"]), reverse=True
    )
    assert len(data["search_pipelines"]) == count


async def test_a_version_looks_as_clients_need_it(ann: httpx.AsyncClient, ask: Ask, make: Make) -> None:
    space = await make.workspace(owner=ANN)
    version: ModelVersion = await make.model_version(space)
    pipeline, pipeline_version = await make.pipeline(space)
    document = """query($m: bigint!, $p: bigint!, $v: bigint!) {
        model_by_pk(id: $m) { updated_at visibility created_on_version model { workspace { id } } }
        pipeline_by_pk(id: $p) { created_at updated_at workspace { id } deployment { id } }
        pipeline_version_by_pk(id: $v) { definition created_at updated_at created_on_version pipeline { id } } }"""

    data = await ask(ann, document, m=version.id, p=pipeline.id, v=pipeline_version.id)

    assert data["model_by_pk"]["visibility"] == "private"
    assert data["model_by_pk"]["model"] == {"workspace": {"id": space.id}}
    assert data["pipeline_by_pk"]["deployment"] is None
    assert data["pipeline_version_by_pk"]["definition"] == {}
    assert data["pipeline_version_by_pk"]["created_on_version"] == "2024.1.0"
