"""What may be written, by whom, and what comes back."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.deployments.tables import Deployment
from app.models.tables import ModelConfig
from app.pipelines.tables import AlertConfiguration, ModelTag, Tag
from app.workspaces.tables import UserDefaultWorkspace, Workspace, WorkspaceUser
from tests.conftest import ANN, BOB
from tests.factories import Make
from tests.graphql.conftest import Ask, Refused, World
from tests.graphql.documents import MUTATIONS

M1_2023, M1_2024 = (next(o.text for o in MUTATIONS if o.name == name) for name in ("M1-2023", "M1-2024.2"))
ANNS_DEFAULT = {"user_id": ANN.id, "workspace_name": "ann@example.test - Default Workspace", "user_type": "OWNER"}
LINK = (
    "mutation($m: bigint!, $t: bigint!) { insert_model_tag(objects: {model_id: $m, tag_id: $t}) "
    "{ returning { model_id tag_id } } }"
)
UNLINK = (
    "mutation($m: bigint!, $t: bigint!) { "
    "delete_model_tag(where: {_and: [{model_id: {_eq: $m}}, {tag_id: {_eq: $t}}]}) "
    "{ returning { model_id tag_id } } }"
)


@pytest.mark.parametrize(("document", "creator"), [(M1_2023, ANN.id), (M1_2024, ANN.email)])
async def test_the_default_workspace_is_made_once(
    document: str, creator: str, ann: httpx.AsyncClient, ask: Ask, session: AsyncSession
) -> None:
    first = await ask(ann, document, **ANNS_DEFAULT)
    second = await ask(ann, document, **ANNS_DEFAULT)

    assert first == second
    row = await session.get_one(Workspace, first["insert_workspace_one"]["id"])
    assert (row.created_by, row.owner_id, row.archived) == (creator, ANN.id, False)
    member = await session.scalar(select(WorkspaceUser).where(WorkspaceUser.workspace_id == row.id))
    assert member is not None
    assert (member.user_id, member.user_type) == (ANN.id, "OWNER")
    default = await session.scalar(
        select(UserDefaultWorkspace.workspace_id).where(UserDefaultWorkspace.user_id == ANN.id)
    )
    assert default == row.id


async def test_a_default_workspace_whose_name_is_taken_gets_another(
    ann: httpx.AsyncClient, ask: Ask, make: Make, session: AsyncSession
) -> None:
    taken = await make.workspace(owner=BOB, name=str(ANNS_DEFAULT["workspace_name"]))

    data = await ask(ann, M1_2023, **ANNS_DEFAULT)

    assert data["insert_workspace_one"]["id"] != taken.id
    found = await ask(
        ann, "query($u: String) { user_default_workspace(where: {user_id: {_eq: $u}}) { workspace { id } } }", u=ANN.id
    )
    assert found["user_default_workspace"] == [{"workspace": data["insert_workspace_one"]}]


@pytest.mark.parametrize(
    "change",
    [{"user_id": BOB.id}, {"user_type": "COLLABORATOR", "workspace_name": "plain"}, {"workspace_name": "other"}],
)
async def test_nobody_makes_a_workspace_for_somebody_else(
    change: dict[str, str], ann: httpx.AsyncClient, ask: Ask
) -> None:
    with pytest.raises(Refused) as refused:
        await ask(ann, M1_2023, **(ANNS_DEFAULT | change))

    assert refused.value.code == "permission-error"
    assert refused.value.path.startswith("$.selectionSet.insert_workspace_one.args")


async def test_a_workspace_belongs_to_who_made_it(ann: httpx.AsyncClient, ask: Ask) -> None:
    made = "name created_by owner_id users { user_id user_type }"
    document = f'mutation {{ insert_workspace_one(object: {{name: "lab"}}) {{ {made} }} }}'

    data = await ask(ann, document)

    assert data["insert_workspace_one"] == {
        "name": "lab",
        "created_by": ANN.email,
        "owner_id": ANN.id,
        "users": [{"user_id": ANN.id, "user_type": "OWNER"}],
    }
    with pytest.raises(Refused, match=r'Uniqueness violation. .*"workspace_name_key"') as refused:
        await ask(ann, document)
    assert refused.value.code == "constraint-violation"
    assert refused.value.path == "$.selectionSet.insert_workspace_one.args.object"


async def test_rows_below_a_workspace_that_was_not_inserted_are_refused(
    ann: httpx.AsyncClient, ask: Ask, make: Make
) -> None:
    await make.workspace(name="lab", owner=BOB)
    document = (
        'mutation($u: String!) { insert_workspace_one(object: {name: "lab", users: {data: {user_id: $u}}}, '
        "on_conflict: {constraint: workspace_name_key, update_columns: []}) { id } }"
    )

    with pytest.raises(
        Refused, match='cannot proceed to insert array relations since insert to table "workspace"'
    ) as no:
        await ask(ann, document, u=ANN.id)

    assert no.value.code == "not-supported"


async def test_members_are_put_out_by_the_rules_of_workspaces(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, ask: Ask, make: Make
) -> None:
    space = await make.workspace(owner=ANN, member=BOB)
    document = next(o.text for o in MUTATIONS if o.name == "M2")

    with pytest.raises(Refused, match="Only an owner") as refused:
        await ask(bob, document, user_id=ANN.id, workspace_id=space.id)
    gone = await ask(ann, document, user_id=BOB.id, workspace_id=space.id)
    again = await ask(ann, document, user_id=BOB.id, workspace_id=space.id)
    with pytest.raises(Refused, match="only owner"):
        await ask(ann, document, user_id=ANN.id, workspace_id=space.id)

    assert refused.value.code == "permission-error"
    assert gone == {"delete_workspace_users": {"affected_rows": 1}}
    assert again == {"delete_workspace_users": {"affected_rows": 0}}


async def test_a_tag_lives_as_long_as_it_is_on_something(
    ann: httpx.AsyncClient, ask: Ask, make: Make, session: AsyncSession
) -> None:
    version = await make.model_version(await make.workspace(owner=ANN))
    made = await ask(ann, 'mutation { insert_tag(objects: {tag: "x"}) { returning { id tag } } }')
    key = made["insert_tag"]["returning"][0]["id"]
    listing = "{ tag(order_by: {id: desc}) { id tag } }"

    before = await ask(ann, listing)
    linked = await ask(ann, LINK, m=version.id, t=key)
    twice = await ask(ann, LINK, m=version.id, t=key)
    during = await ask(ann, listing)
    links = await session.scalar(select(func.count()).select_from(ModelTag))
    unlinked = await ask(ann, UNLINK, m=version.id, t=key)
    missing = await ask(ann, UNLINK, m=version.id, t=key)
    after = await ask(ann, listing)

    row = {"model_id": version.id, "tag_id": key}
    assert before["tag"] == after["tag"] == []
    assert during["tag"] == [{"id": key, "tag": "x"}]
    assert linked["insert_model_tag"]["returning"] == twice["insert_model_tag"]["returning"] == [row]
    assert links == 1
    assert unlinked["delete_model_tag"]["returning"] == [row]
    assert missing["delete_model_tag"]["returning"] == []


async def test_who_takes_a_tag_off_may_put_it_elsewhere(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, ask: Ask, make: Make
) -> None:
    space = await make.workspace(owner=ANN, member=BOB)
    first, second = await make.model_version(space), await make.model_version(space)
    made = await ask(ann, 'mutation { insert_tag(objects: {tag: "x"}) { returning { id } } }')
    key = made["insert_tag"]["returning"][0]["id"]
    await ask(ann, LINK, m=first.id, t=key)

    await ask(bob, UNLINK, m=first.id, t=key)
    moved = await ask(bob, LINK, m=second.id, t=key)

    assert moved["insert_model_tag"]["returning"] == [{"model_id": second.id, "tag_id": key}]


async def test_an_update_moves_updated_at_and_knows_its_values(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    document = (
        "mutation($id: bigint!, $v: String) { update_model(where: {id: {_eq: $id}}, _set: {visibility: $v}) "
        "{ affected_rows returning { visibility } } }"
    )

    done = await ask(ann, document, id=anns.one("model").id, v="public")
    none = await ask(ann, document, id=0, v="public")
    with pytest.raises(Refused) as refused:
        await ask(ann, document, id=anns.one("model").id, v="group")

    assert done["update_model"] == {"affected_rows": 1, "returning": [{"visibility": "public"}]}
    assert none["update_model"] == {"affected_rows": 0, "returning": []}
    assert refused.value.code == "permission-error"


async def test_numbers_can_be_raised(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    document = (
        "mutation($id: bigint!) { update_assay_by_pk(pk_columns: {id: $id}, _inc: {alert_threshold: 0.5}, "
        "_set: {warning_threshold: 0.125}) { alert_threshold warning_threshold } }"
    )

    data = await ask(ann, document, id=anns.one("assay").id)

    assert data["update_assay_by_pk"] == {"alert_threshold": 0.75, "warning_threshold": 0.125}
    with pytest.raises(Refused, match="at least any one"):
        await ask(ann, "mutation { update_assay_by_pk(pk_columns: {id: 1}) { id } }")


async def test_a_stopped_deployment_starts_again(
    ann: httpx.AsyncClient, ask: Ask, anns: World, session: AsyncSession
) -> None:
    row: Deployment = anns.one("deployment")
    document = next(o.text for o in MUTATIONS if o.name == "M8")

    data = await ask(ann, document, id=row.id)

    assert data["update_deployment_by_pk"] == {"id": row.id, "deploy_id": row.deploy_id, "deployed": True}
    revision = row.revision
    await session.refresh(row)
    assert row.deployed
    assert row.revision > revision
    with pytest.raises(Refused) as refused:
        await ask(
            ann,
            f"mutation {{ update_deployment_by_pk(pk_columns: {{id: {row.id}}}, _set: {{deployed: false}}) {{ id }} }}",
        )
    assert refused.value.code == "permission-error"


async def test_a_configuration_without_a_runtime_takes_the_one_before(
    ann: httpx.AsyncClient, ask: Ask, make: Make, session: AsyncSession
) -> None:
    version = await make.model_version(await make.workspace(owner=ANN))
    await make.add(ModelConfig(model_id=version.id, runtime="flight"))
    variables: dict[str, Any] = dict.fromkeys(("runtime", "tensor_fields", "filter_threshold", "input_schema"))
    document = (
        "mutation($model_id: bigint!, $runtime: String, $tensor_fields: jsonb, $filter_threshold: float8, "
        "$input_schema: String) { "
        "insert_model_config(objects: {model_id: $model_id, runtime: $runtime, tensor_fields: $tensor_fields, "
        "filter_threshold: $filter_threshold, input_schema: $input_schema}) "
        "{ returning { id model_id runtime tensor_fields filter_threshold model { id } } } }"
    )

    data = await ask(ann, document, model_id=version.id, **variables)

    row = data["insert_model_config"]["returning"][0]
    assert (row["runtime"], row["tensor_fields"], row["filter_threshold"]) == ("flight", None, None)
    stored = await session.get_one(ModelConfig, row["id"])
    assert stored.tensor_fields is None
    with pytest.raises(Refused) as refused:
        await ask(ann, document, model_id=version.id, **(variables | {"tensor_fields": "a"}))
    assert refused.value.code == "data-exception"


async def test_a_pipeline_is_inserted_with_its_versions(
    ann: httpx.AsyncClient, ask: Ask, make: Make, session: AsyncSession
) -> None:
    space = await make.workspace(owner=ANN)
    document = """mutation($w: bigint!, $d: jsonb) { insert_pipeline(objects: {pipeline_id: "split", workspace_id: $w,
        pipeline_versions: {data: {definition: $d}}}, on_conflict: {constraint: pipeline_pipeline_id_workspace_id_key,
        update_columns: [visibility]})
        { affected_rows returning { owner_id pipeline_versions { definition owner_id } } } }"""
    definition = {"id": "split", "steps": []}

    data = await ask(ann, document, w=space.id, d=definition)

    assert data["insert_pipeline"]["affected_rows"] == 2
    assert data["insert_pipeline"]["returning"] == [
        {"owner_id": ANN.id, "pipeline_versions": [{"definition": definition, "owner_id": ANN.id}]}
    ]
    for wrong in ({"steps": "none"}, [1]):
        with pytest.raises(Refused) as refused:
            await ask(ann, document, w=space.id, d=wrong)
        assert refused.value.code == "data-exception"


async def test_a_mutation_is_kept_whole_or_not_at_all(ann: httpx.AsyncClient, ask: Ask, session: AsyncSession) -> None:
    document = """mutation { a: insert_tag(objects: {tag: "one"}) { returning { id } }
        b: insert_tag(objects: {}) { affected_rows } }"""

    with pytest.raises(Refused, match="Not-NULL violation") as refused:
        await ask(ann, document)

    assert refused.value.path == "$.selectionSet.b.args.objects"
    assert await session.scalar(select(func.count()).select_from(Tag).where(Tag.tag == "one")) == 0


async def test_the_root_fields_of_a_mutation_run_in_order(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    key = anns.one("model").id
    document = f"""mutation {{
        a: update_model(where: {{id: {{_eq: {key}}}}}, _set: {{visibility: "public"}}) {{ returning {{ visibility }} }}
        b: update_model(where: {{visibility: {{_eq: "public"}}}}, _set: {{visibility: "private"}}) {{ affected_rows }}
        c: update_model(where: {{visibility: {{_eq: "public"}}}}, _set: {{visibility: "private"}}) {{ affected_rows }}
    }}"""

    data = await ask(ann, document)

    assert [data["a"]["returning"], data["b"], data["c"]] == [
        [{"visibility": "public"}],
        {"affected_rows": 1},
        {"affected_rows": 0},
    ]


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ("insert_model_tag(objects: {model_id: 0, tag_id: 0}) { returning { id } }", "Foreign key violation"),
        ('insert_alert_configuration(objects: {name: "n", pipeline_version_pk_id: 0}) { returning { id } }', "check"),
        ("insert_pipeline(objects: {workspace_id: %d}) { returning { id } }", "Not-NULL violation"),
    ],
)
async def test_what_the_database_refuses_is_said(
    document: str, kind: str, ann: httpx.AsyncClient, ask: Ask, anns: World
) -> None:
    text = document % anns.one("workspace").id if "%d" in document else document

    with pytest.raises(Refused, match=kind) as refused:
        await ask(ann, f"mutation {{ {text} }}")

    assert refused.value.code == ("permission-error" if kind == "check" else "constraint-violation")


async def test_alerts_of_old_clients_are_kept(
    ann: httpx.AsyncClient, ask: Ask, anns: World, session: AsyncSession
) -> None:
    document = next(o.text for o in MUTATIONS if o.name == "M12")

    data = await ask(
        ann,
        document,
        pipeline_version_id=anns.one("pipeline").id,
        name="n",
        expression="e > 1",
        notifications={"a": [1]},
    )

    row = await session.get_one(AlertConfiguration, data["insert_alert_configuration"]["returning"][0]["id"])
    assert (row.expression, row.notifications) == ("e > 1", {"a": [1]})


@pytest.mark.parametrize(
    "field",
    [
        "delete_workspace(where: {}) { affected_rows }",
        "update_workspace_by_pk(pk_columns: {id: 1}, _set: {}) { id }",
        "insert_model(objects: {}) { affected_rows }",
        'insert_tag(objects: {tag: "x", owner_id: "y"}) { affected_rows }',
        'update_model(where: {}, _set: {status: "ready"}) { affected_rows }',
        "delete_model(where: {}) { affected_rows }",
        'insert_workspace_users(objects: {user_id: "x"}) { affected_rows }',
    ],
)
async def test_other_writes_do_not_exist(field: str, ann: httpx.AsyncClient, ask: Ask) -> None:
    with pytest.raises(Refused) as refused:
        await ask(ann, f"mutation {{ {field} }}")

    assert refused.value.code == "validation-failed"
