"""No row of a workspace shows to anybody who is not in it, by any door; and none can be changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from graphql import GraphQLObjectType, get_named_type, is_leaf_type
from sqlalchemy import inspect as look
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.graphql import published as p
from app.graphql.catalog import Entity
from app.graphql.service import Endpoint
from app.schema import deployments, models, pipelines, workspaces
from tests.conftest import ANN
from tests.factories import Make
from tests.graphql.conftest import Ask, Refused, World

TABLES = [t.row.__tablename__ for t in p.TABLES]
KEYED = [t.row.__tablename__ for t in p.TABLES if p.BY_PK in t.roots]
LISTED = [t.row.__tablename__ for t in p.TABLES if p.LIST in t.roots]


@pytest.fixture
async def entangled(make: Make, anns: World, bobs: World) -> tuple[World, World]:
    """Both worlds, with links between them as nobody should have made: shared tags, foreign models in deployments."""
    for mine, other in ((anns, bobs), (bobs, anns)):
        await make.add(pipelines.ModelTag(model_id=mine.one("model").id, tag_id=other.one("tag").id))
        await make.add(pipelines.PipelineTag(pipeline_pk_id=mine.one("pipeline").id, tag_pk_id=other.one("tag").id))
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
    await make.add(pipelines.ModelComment(model_pk_id=bobs.one("model").id, comment_id=anns.one("comment").id))
    return anns, bobs


def _everything(type_: GraphQLObjectType, depth: int) -> str:
    """Return a selection of all that can be selected, `depth` relationships deep."""
    parts = []
    for name, field in type_.fields.items():
        below = get_named_type(field.type)
        if is_leaf_type(below):
            parts.append(name)
        elif depth > 0 and isinstance(below, GraphQLObjectType) and not name.endswith("_aggregate"):
            parts.append(f"{name} {{ {_everything(below, depth - 1)} }}")
    return " ".join(parts)


def _type(endpoint: Endpoint, name: str) -> GraphQLObjectType:
    found = endpoint.schema.type_map[name]
    assert isinstance(found, GraphQLObjectType)
    return found


def _secrets(bobs: World, anns: World) -> list[str]:
    """Return the texts that only Bob's rows hold: his word, and the UUIDs of his rows."""

    def values(world: World) -> set[str]:
        rows = [row for rows in world.rows.values() for row in rows]
        found = {str(getattr(row, a.key)) for row in rows for a in look(type(row)).column_attrs}
        return {value for value in found if len(value) == 36}

    return ["bobs-model", "bobs-pipeline", "bobs-space", "bobs.onnx", '"bobs"', *(values(bobs) - values(anns))]


def _assert_clean(text: str, secrets: list[str]) -> None:
    assert [secret for secret in secrets if secret in text] == []


@pytest.fixture
def secrets(entangled: tuple[World, World]) -> list[str]:
    anns, bobs = entangled
    return [s for s in _secrets(bobs, anns) if s not in (ANN.id,)]


@pytest.mark.parametrize("table", LISTED)
async def test_a_list_holds_own_rows_and_what_hangs_on_them_only(
    table: str, ann: httpx.AsyncClient, ask: Ask, endpoint: Endpoint, secrets: list[str]
) -> None:
    data = await ask(ann, f"{{ {table} {{ {_everything(_type(endpoint, table), 2)} }} }}")

    assert data[table]
    _assert_clean(json.dumps(data), secrets)
    assert "never-published" not in json.dumps(data)


async def test_a_foreign_row_has_no_key(
    ann: httpx.AsyncClient, ada: httpx.AsyncClient, ask: Ask, entangled: tuple[World, World]
) -> None:
    _, bobs = entangled
    tables = [table for table in KEYED if table != "tag"]  # the worlds share their tags
    asked = " ".join(f'{table}_by_pk(id: "{bobs.one(table).id}") {{ id }}' for table in tables)
    document = f"{{ {asked} }}"

    hers = await ask(ann, document)
    admins = await ask(ada, document)

    assert hers == {f"{table}_by_pk": None for table in tables}
    # A comment is seen by its author and by who sees what it is on, and by administrators therefore.
    assert all(admins.values())


@pytest.mark.parametrize("table", KEYED)
async def test_no_relationship_leads_out_of_ones_own_rows(
    table: str,
    ann: httpx.AsyncClient,
    ask: Ask,
    endpoint: Endpoint,
    entangled: tuple[World, World],
    secrets: list[str],
) -> None:
    anns, _ = entangled
    document = f'{{ {table}_by_pk(id: "{anns.one(table).id}") {{ {_everything(_type(endpoint, table), 2)} }} }}'

    data = await ask(ann, document)

    assert data[f"{table}_by_pk"] is not None
    _assert_clean(json.dumps(data), secrets)


def _walks(endpoint: Endpoint, entity: Entity, depth: int) -> Iterator[tuple[tuple[str, ...], Entity]]:
    """Yield every way along relationships from `entity`, and the table it ends at."""
    if depth == 0:
        return
    for relation in entity.relations.values():
        target = endpoint.catalog[relation.target]
        yield (relation.name,), target
        for rest, end in _walks(endpoint, target, depth - 1):
            yield (relation.name, *rest), end


@pytest.mark.parametrize("table", LISTED)
async def test_no_filter_tells_what_foreign_rows_hold(
    table: str, ann: httpx.AsyncClient, ada: httpx.AsyncClient, ask: Ask, endpoint: Endpoint, entangled: Any
) -> None:
    _, bobs = entangled
    oracles, answers = [], {}
    for number, (way, end) in enumerate(_walks(endpoint, endpoint.catalog[table], 3)):
        if end.name in ("tag", "comment"):
            continue
        key = bobs.one(end.name).id
        condition = f"{{id: {{_eq: {json.dumps(key if isinstance(key, int) else str(key))}}}}}"
        for step in reversed(way):
            condition = f"{{{step}: {condition}}}"
        own = bobs.one(table).id
        oracles.append(f"a{number}: {table}(where: {{_and: [{condition}, {{id: {{_neq: {own}}}}}]}}) {{ id }}")
    for start in range(0, len(oracles), 20):
        answers |= await ask(ann, f"{{ {' '.join(oracles[start : start + 20])} }}")

    assert {key: rows for key, rows in answers.items() if rows} == {}


async def test_counts_and_orders_know_own_rows_only(
    ann: httpx.AsyncClient, ada: httpx.AsyncClient, ask: Ask, entangled: tuple[World, World]
) -> None:
    anns, _ = entangled
    document = (
        "query($id: bigint!) { tag_by_pk(id: $id) { model_tags_aggregate { aggregate { count max { model_id } } "
        "nodes { model { model_id } } } } deployment(order_by: {deployment_model_configs_aggregate: {count: desc}}) "
        "{ deployment_model_configs_aggregate { aggregate { count } } "
        "deployment_pipeline_versions_aggregate { aggregate { count } } } }"
    )

    hers = await ask(ann, document, id=anns.one("tag").id)
    admins = await ask(ada, document, id=anns.one("tag").id)

    counted = hers["tag_by_pk"]["model_tags_aggregate"]
    assert counted["aggregate"]["count"] == 1
    assert counted["nodes"] == [{"model": {"model_id": "anns-model"}}]
    assert [d["deployment_model_configs_aggregate"]["aggregate"]["count"] for d in hers["deployment"]] == [1]
    assert [d["deployment_pipeline_versions_aggregate"]["aggregate"]["count"] for d in hers["deployment"]] == [1]
    assert admins["tag_by_pk"]["model_tags_aggregate"]["aggregate"]["count"] == 2
    assert len(admins["deployment"]) == 2


@pytest.mark.parametrize("function", ["search_models", "search_pipelines"])
async def test_a_search_finds_own_rows_only(
    function: str,
    ann: httpx.AsyncClient,
    ask: Ask,
    endpoint: Endpoint,
    entangled: tuple[World, World],
    secrets: list[str],
) -> None:
    anns, _ = entangled
    target = p.FUNCTIONS[function]
    everything = _everything(_type(endpoint, target), 2)

    all_rows = f'{function}(args: {{search: ""}}) {{ {everything} }}'
    his_rows = f'{function}(args: {{search: "bobs-model"}}) {{ id }}'

    data = await ask(ann, f"{{ a: {all_rows} b: {his_rows} }}")

    assert {row["id"] for row in data["a"]} == {row.id for row in anns.rows[target]}
    assert data["b"] == []
    _assert_clean(json.dumps(data), secrets)


@pytest.mark.parametrize("table", ["model", "pipeline"])
async def test_an_update_reaches_own_rows_only(
    table: str, ann: httpx.AsyncClient, ask: Ask, entangled: tuple[World, World], session: AsyncSession
) -> None:
    anns, bobs = entangled
    change = f'update_{table}(where: {{}}, _set: {{visibility: "public"}})'
    document = f"mutation {{ {change} {{ affected_rows returning {{ id }} }} }}"

    data = await ask(ann, document)

    assert {r["id"] for r in data[f"update_{table}"]["returning"]} == {r.id for r in anns.rows[table]}
    kind = type(bobs.one(table))
    foreign = await session.scalars(
        select(kind.visibility)
        .where(kind.id.in_([r.id for r in bobs.rows[table]]))
        .execution_options(populate_existing=True)
    )
    assert set(foreign) == {"private"}


@pytest.mark.parametrize(("table", "change"), [("deployment", "deployed: true"), ("assay", "alert_threshold: 9")])
async def test_a_foreign_row_cannot_be_updated_by_its_key(
    table: str, change: str, ann: httpx.AsyncClient, ask: Ask, entangled: tuple[World, World], session: AsyncSession
) -> None:
    _, bobs = entangled
    row = bobs.one(table)
    document = f"mutation {{ update_{table}_by_pk(pk_columns: {{id: {row.id}}}, _set: {{{change}}}) {{ id }} }}"

    data = await ask(ann, document)

    assert data == {f"update_{table}_by_pk": None}
    await session.refresh(row)
    assert getattr(row, "deployed", False) is False
    assert getattr(row, "alert_threshold", 0.25) == 0.25


@pytest.mark.parametrize("table", ["model_tag", "pipeline_tag", "model_variant_comment", "pipeline_comment"])
async def test_a_delete_without_a_condition_reaches_own_rows_only(
    table: str, ann: httpx.AsyncClient, ask: Ask, entangled: tuple[World, World], session: AsyncSession
) -> None:
    _, bobs = entangled

    data = await ask(ann, f"mutation {{ delete_{table}(where: {{}}) {{ affected_rows returning {{ id }} }} }}")

    assert data[f"delete_{table}"]["affected_rows"] > 0
    kind = type(bobs.one(table))
    assert await session.scalar(select(kind.id).where(kind.id == bobs.one(table).id)) is not None


async def test_a_foreign_member_cannot_be_put_out(
    ann: httpx.AsyncClient, ask: Ask, entangled: tuple[World, World], session: AsyncSession
) -> None:
    _, bobs = entangled
    space = bobs.one("workspace").id
    document = f"mutation {{ delete_workspace_users(where: {{workspace_id: {{_eq: {space}}}}}) {{ affected_rows }} }}"

    data = await ask(ann, document)

    assert data["delete_workspace_users"]["affected_rows"] == 0
    kept = select(workspaces.WorkspaceUser.id).where(workspaces.WorkspaceUser.workspace_id == space)
    assert await session.scalar(kept) is not None


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        ("insert_model_tag(objects: {model_id: %d, tag_id: %d}) { returning { id } }", ("model", "-tag")),
        (
            "insert_pipeline_tag(objects: {pipeline_pk_id: %d, tag_pk_id: %d}) { returning { id } }",
            ("pipeline", "-tag"),
        ),
        ("insert_model_tag(objects: {model_id: %d, tag_id: %d}) { returning { tag { tag } } }", ("-model", "tag")),
        ("insert_model_config(objects: {model_id: %d}) { returning { id } }", ("model",)),
        ('insert_pipeline(objects: {pipeline_id: "new", workspace_id: %d}) { returning { id } }', ("workspace",)),
        (
            "insert_deployment_model_configs(objects: {deployment_id: %d, model_config_id: %d}) { returning { id } }",
            ("deployment", "-model_config"),
        ),
        (
            "insert_deployment_model_configs(objects: {deployment_id: %d, model_config_id: %d}) { returning { id } }",
            ("-deployment", "model_config"),
        ),
        (
            'insert_alert_configuration(objects: {name: "n", pipeline_version_pk_id: %d}) { returning { id } }',
            ("pipeline",),
        ),
        (
            "insert_model_variant_comment(objects: {model_pk_id: %d, comment_id: %d}) { returning { id } }",
            ("model", "-comment"),
        ),
        (
            "insert_pipeline_comment(objects: {pipeline_pk_id: %d, comment_pk_id: %d}) { returning { id } }",
            ("-pipeline", "comment"),
        ),
    ],
)
async def test_nothing_can_be_hung_on_a_foreign_row(
    document: str, keys: tuple[str, ...], ann: httpx.AsyncClient, ask: Ask, anns: World, bobs: World
) -> None:
    """Keys are Bob's, or Ann's with a dash."""
    ids = tuple(anns.one(k[1:]).id if k.startswith("-") else bobs.one(k).id for k in keys)

    with pytest.raises(Refused) as refused:
        await ask(ann, f"mutation {{ {document % ids} }}")

    assert refused.value.code == "permission-error"


async def test_a_conflict_clause_does_not_reach_a_row_one_cannot_see(
    ann: httpx.AsyncClient, ask: Ask, bobs: World, session: AsyncSession
) -> None:
    space = bobs.one("workspace")
    document = (
        f"mutation {{ insert_workspace_one(object: {{name: {json.dumps(space.name)}}}, "
        "on_conflict: {constraint: workspace_name_key}) { id name created_by } }"
    )

    assert await ask(ann, document) == {"insert_workspace_one": None}


async def test_a_tag_nobody_sees_can_be_used_by_who_made_it_alone(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, ask: Ask, anns: World, bobs: World
) -> None:
    made = await ask(bob, 'mutation { insert_tag(objects: {tag: "bobs-idea"}) { returning { id tag } } }')
    key = made["insert_tag"]["returning"][0]["id"]
    link = "mutation { insert_model_tag(objects: {model_id: %d, tag_id: %d}) { returning { tag { tag } } } }"

    with pytest.raises(Refused, match="check constraint"):
        await ask(ann, link % (anns.one("model").id, key))
    data = await ask(bob, link % (bobs.one("model").id, key))

    assert data["insert_model_tag"]["returning"] == [{"tag": {"tag": "bobs-idea"}}]


async def test_what_an_insert_returns_leads_no_further_than_a_query(
    ann: httpx.AsyncClient, ask: Ask, endpoint: Endpoint, entangled: tuple[World, World], secrets: list[str]
) -> None:
    anns, _ = entangled
    everything = _everything(_type(endpoint, "model_tag"), 3)
    document = "mutation { insert_model_tag(objects: {model_id: %d, tag_id: %d}) { returning { %s } } }"

    data = await ask(ann, document % (anns.rows["model"][1].id, anns.one("tag").id, everything))

    _assert_clean(json.dumps(data), secrets)


async def test_an_administrator_sees_every_workspace(
    ada: httpx.AsyncClient, ask: Ask, anns: World, bobs: World
) -> None:
    data = await ask(ada, "{ model { id } pipeline { id } tag { id } deployment { id } assay { id } }")

    for table, rows in data.items():
        assert {r["id"] for r in rows} >= {w.one(table).id for w in (anns, bobs)}


async def test_every_published_table_is_in_the_walk(anns: World) -> None:
    assert set(TABLES) == set(anns.rows)


@pytest.mark.parametrize("kind", [models.ModelVersion, deployments.Deployment, pipelines.Tag])
async def test_our_own_columns_are_not_published(kind: Any, endpoint: Endpoint) -> None:
    own = {"inspection", "observed", "phase", "revision", "reason"} | ({"owner_id"} if kind is pipelines.Tag else set())

    assert not own & set(_type(endpoint, kind.__tablename__).fields)
