"""Every operation that clients send, as they send it, era by era."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PUBLISHES = (
    "pipeline_publishes { chart_url engine_url engine_config id pipeline_url pipeline_version_id status updated_at "
    "created_by created_at user_images %s }"
)
WORKSPACE_PARTS = "archived created_at created_by name id users { user_id } "


@dataclass(frozen=True)
class Operation:
    """A document, and the variables it goes with; words like `$model` stand for ids of the caller's own rows."""

    name: str
    text: str
    variables: dict[str, Any] = field(default_factory=dict)


def _search(name: str, where: str, *, pipelines: bool, **variables: Any) -> Operation:
    declared = {"workspace_id": "bigint!", "workspace_name": "String!", "user_id": "String!", "deployed": "Boolean"}
    times = {k: "timestamptz!" for k in variables if k.endswith("_at")}
    heads = ", ".join(f"${k}: {(declared | times)[k]}" for k in variables)
    root = "search_pipelines" if pipelines else "search_models"
    rest = "distinct_on: id, order_by: {id: desc}" if pipelines else "order_by: {created_at: desc}"
    picked = (
        "id created_at pipeline_pk_id updated_at version "
        "pipeline { id pipeline_id pipeline_tags { id tag { id tag } } }"
        if pipelines
        else "id"
    )
    clause = f"where: {where}," if where else ""
    called = f"{root}(args: {{search: $search_term}}, {clause} {rest})"
    text = f"query Get($search_term: String!, {heads}) {{ {called} {{ {picked} }} }}"
    return Operation(name, text, {"search_term": "", **variables})


TIMES = {"start_created_at": "2022-04-19 13:17:59+00:00", "end_created_at": "2100-04-19T13:17:59.123456+00:00"}
UPDATED = {"start_updated_at": "2022-04-19 13:17:59", "end_updated_at": "2100-01-01T00:00:00"}
CREATED_CLAUSE = "created_at: {_gte: $start_created_at, _lte: $end_created_at}"
UPDATED_CLAUSE = "updated_at: {_gte: $start_updated_at, _lte: $end_updated_at}"

QUERIES: list[Operation] = [
    Operation(
        "Q1",
        'query UserDefaultWorkspace($user_id: String = "") { user_default_workspace(where: {user_id: {_eq: $user_id}}) '
        f"{{ workspace {{ {WORKSPACE_PARTS} pipelines {{ id }} models {{ models {{ id }} }} }} }} }}",
        {"user_id": "$user"},
    ),
    *(
        Operation(
            name,
            "query WorkspaceById($id: bigint!) { workspace_by_pk(id: $id) "
            f"{{ {WORKSPACE_PARTS} models{order} {{ id models {{ id }} }} pipelines {{ id }} }} }}",
            {"id": "$workspace"},
        )
        for name, order in (("Q2", ""), ("Q2-2025.1", "(order_by: {updated_at: desc})"))
    ),
    *(
        Operation(
            name,
            f"query T {{ {root} {{ id tag model_tags {{ model {{ id model_id models_pk_id model_version }} }} "
            "pipeline_tags { pipeline { id pipeline_id pipeline_versions { id version } } } } }",
        )
        for name, root in (("Q3", "tag(order_by: {id: desc})"), ("Q4", "tag_by_pk(id: 17)"))
    ),
    Operation(
        "Q5",
        "query ModelsByTagId($tag_id: bigint!) { tag_by_pk(id: $tag_id) { model_tags { model "
        "{ id model_id model_version sha file_name updated_at visibility } } } }",
        {"tag_id": "$tag"},
    ),
    Operation(
        "Q6",
        "query PipelinesByTagId($tag_id: bigint!) { tag_by_pk(id: $tag_id) { pipeline_tags { pipeline "
        "{ id pipeline_id created_at updated_at owner_id } } } }",
        {"tag_id": "$tag"},
    ),
    *(
        Operation(
            f"Q7-{era}",
            "query ModelById { model_by_pk(id: 17) { id model_id model_version models_pk_id sha file_name image_path "
            f"updated_at visibility model_tags {{ tag {{ id tag }} }} {more} }} }}",
        )
        for era, more in (
            ("2023.1", ""),
            ("2023.2", "status"),
            ("2023.4", 'status arch: conversion(path: "arch")'),
            ("2024.1", 'status arch: conversion(path: "arch") accel: conversion(path: "accel") created_on_version'),
            (
                "2025.2",
                'status error_summary arch: conversion(path: "arch") accel: conversion(path: "accel") '
                "created_on_version model { workspace { id name } }",
            ),
        )
    ),
    *(
        Operation(
            name,
            f"query ModelByName($model_id: String!, $model_version: String! {heads}) {{ model(where: {{_and: ["
            f"{{model_id: {{_eq: $model_id}}}}, {{model_version: {{_eq: $model_version}}}} {more}]}}) "
            "{ id model_id model_version } }",
            {"model_id": "anns-model", "model_version": "x", **extra},
        )
        for name, heads, more, extra in (
            ("Q8", "", "", {}),
            (
                "Q8b",
                ", $workspace_id: bigint!, $workspace_name: String!",
                ", {model: {workspace: {id: {_eq: $workspace_id}, name: {_eq: $workspace_name}}}}",
                {"workspace_id": "$workspace", "workspace_name": "anns-space"},
            ),
        )
    ),
    Operation(
        "Q9-all",
        "query GetModels($search_term: String!) { search_models(args: {search: $search_term}, "
        "order_by: {created_at: desc}) { id } }",
        {"search_term": ""},
    ),
    _search(
        "Q9-object",
        f"{{_and: {{owner_id: {{_eq: $user_id}}, {CREATED_CLAUSE}}}}}",
        pipelines=False,
        user_id="u",
        **TIMES,
    ),
    _search(
        "Q9-list",
        f"{{_and: [{{owner_id: {{_eq: $user_id}}}}, {{{CREATED_CLAUSE}}}, {{model: {{workspace: "
        "{id: {_eq: $workspace_id}, name: {_eq: $workspace_name}}}}]}",
        pipelines=False,
        user_id="u",
        workspace_id="$workspace",
        workspace_name="anns-space",
        **TIMES,
    ),
    _search(
        "Q10-object",
        f"{{_and: {{pipeline: {{deployment: {{deployed: {{_eq: $deployed}}}}}}, {CREATED_CLAUSE}, {UPDATED_CLAUSE}}}}}",
        pipelines=True,
        deployed=False,
        **TIMES,
        **UPDATED,
    ),
    _search(
        "Q10-list",
        "{_and: [{pipeline: {_and: [{deployment: {deployed: {_eq: $deployed}}}, {workspace: "
        f"{{id: {{_eq: $workspace_id}}}}}}]}}}}, {{{CREATED_CLAUSE}}}]}}",
        pipelines=True,
        deployed=True,
        workspace_id="$workspace",
        **TIMES,
    ),
    Operation("Q11", "query ListPipelines { pipeline(order_by: {id: desc}) { id pipeline_tags { tag { id tag } } } }"),
    Operation(
        "Q12",
        "query PipelineByName($pipeline_name: String!) { pipeline(where: {pipeline_id: {_eq: "
        "$pipeline_name}}, order_by: {created_at: desc}) { id } }",
        {"pipeline_name": "anns-pipeline"},
    ),
    Operation(
        "Q12b",
        "query PipelineByName($pipeline_name: String!, $workspace_id: bigint!, $workspace_name: String!) "
        "{ pipeline(, where: {_and: [{pipeline_id: {_eq: $pipeline_name}}, {workspace_id: {_eq: $workspace_id}}, "
        "{workspace: {name: {_eq: $workspace_name}}}]}, order_by: {created_at: desc}) "
        "{ id workspace { id name } } }",
        {"pipeline_name": "anns-pipeline", "workspace_id": "$workspace", "workspace_name": "anns-space"},
    ),
    *(
        Operation(
            f"Q13-{era}",
            "query PipelineById($pipeline_id: bigint!) { pipeline_by_pk(id: $pipeline_id) { id pipeline_id created_at "
            f"updated_at visibility owner_id pipeline_versions(order_by: {{id: desc}}) {{ id {publishes} }} "
            f"pipeline_tags {{ tag {{ id tag }} }} {more} }} }}",
            {"pipeline_id": "$pipeline"},
        )
        for era, publishes, more in (
            ("2023.1", "", ""),
            ("2023.4", PUBLISHES % "", ""),
            ("2024.2", PUBLISHES % "created_on_version", "workspace { id name }"),
        )
    ),
    Operation(
        "Q14",
        "query PipelineModels($pipeline_id: bigint!) { pipeline_by_pk(id: $pipeline_id) { id deployment "
        "{ deployment_model_configs_aggregate(distinct_on: deployment_id) { nodes { model_config { model { model "
        "{ name } } } } } } } }",
        {"pipeline_id": "$pipeline"},
    ),
    Operation(
        "Q15",
        "query GetDeploymentForPipeline($pipeline_id: bigint!) { pipeline_by_pk(id: $pipeline_id) "
        "{ deployment { id deploy_id deployed engine_config } } }",
        {"pipeline_id": "$pipeline"},
    ),
    *(
        Operation(
            f"Q16-{era}",
            "query PipelineVariantById($variant_id: bigint!) { pipeline_version_by_pk(id: $variant_id) { id created_at "
            "updated_at version definition pipeline { id } deployment_pipeline_versions { created_at updated_at "
            "deployment { id } } deployment_model_configs { model_config { id model { id model { id name } } } } "
            f"{more} }} }}",
            {"variant_id": "$pipeline_version"},
        )
        for era, more in (("2023.1", ""), ("2024.1", f"created_on_version {PUBLISHES % 'created_on_version'}"))
    ),
    Operation(
        "Q17",
        "query DeploymentById($deployment_id: bigint!) { deployment_by_pk(id: $deployment_id) { id "
        "deploy_id deployed engine_config pipeline { pipeline_id } deployment_model_configs { model_config { id } } "
        "deployment_pipeline_versions(order_by: {pipeline_version: {id: desc}}) { pipeline_version { id } } } }",
        {"deployment_id": "$deployment"},
    ),
    Operation(
        "Q18",
        "query DeploymentByName($deployment_name: String!) { deployment(where: {deploy_id: {_eq: "
        "$deployment_name}}) { id } }",
        {"deployment_name": "anns-pipeline"},
    ),
    Operation(
        "Q19",
        "query ListDeployments { deployment { id deploy_id deployed deployment_model_configs "
        "{ model_config { id } } } }",
    ),
    Operation(
        "Q20",
        "query QueryLimitStatus($id: bigint!) { deployment(where: {id: {_eq: $id}}) { id deployed limit_status } }",
        {"id": "$deployment"},
    ),
    Operation(
        "Q21",
        "query ModelConfigById($model_config_id: bigint!) { model_config_by_pk(id: $model_config_id) { id "
        "filter_threshold model { id } runtime tensor_fields dynamic_batching_config openai input_schema "
        "output_schema continuous_batching_config } }",
        {"model_config_id": "$model_config"},
    ),
    Operation(
        "Q22",
        "query GetOrchestration($id: uuid!) { orchestration_by_pk(id: $id) { id name file_name owner_id sha "
        "status task_id workspace_id created_at updated_at image_path created_on_version file_size created_by } }",
        {"id": "$orchestration"},
    ),
    Operation(
        "Q23",
        "query GetAssay($id: bigint) { assay(where: {id: {_eq: $id}}) { id name active status "
        "warning_threshold alert_threshold pipeline_name } }",
        {"id": "$assay"},
    ),
    Operation(
        "Q23b",
        "query GetAssayById($assay_id: bigint!) { assay_by_pk(id: $assay_id) { id name active status "
        "warning_threshold alert_threshold pipeline_name pipeline_id created_on_version } }",
        {"assay_id": "$assay"},
    ),
    Operation(
        "Q24",
        "query CommentById($comment_id: bigint!) { comment_by_pk(id: $comment_id) { id updated_at message "
        "user_id model_variant_comments { model { id file_name model_id sha owner_id visibility updated_at } } "
        "pipeline_comments { pipeline { id owner_id updated_at visibility } } } }",
        {"comment_id": "$comment"},
    ),
]

_M1 = (
    "mutation CreateDefaultUserWorkspace($user_id: String!, $workspace_name: String!, $user_type: String %s) "
    "{ insert_workspace_one(object: {name: $workspace_name, %s "
    "users: {data: {user_id: $user_id, user_type: $user_type}}, archived: false, "
    "user_default_workspaces: {data: {user_id: $user_id}}}, "
    "on_conflict: {constraint: workspace_name_key, update_columns: []}) { id } }"
)
_M1_VARIABLES = {"user_id": "$user", "workspace_name": "ann@example.test - Default Workspace", "user_type": "OWNER"}

MUTATIONS: list[Operation] = [
    Operation("M1-2023", _M1 % ("", "created_by: $user_id,"), _M1_VARIABLES),
    Operation(
        "M1-2024.2", _M1 % (", $user_email: String", "owner_id: $user_id, created_by: $user_email,"), _M1_VARIABLES
    ),
    Operation(
        "M2",
        "mutation DeleteWorkspaceUser($user_id: String!, $workspace_id: bigint!) { delete_workspace_users("
        "where: {user_id: {_eq: $user_id}, _and: {workspace_id: {_eq: $workspace_id}}}) { affected_rows } }",
        {"user_id": "nobody", "workspace_id": "$workspace"},
    ),
    Operation(
        "M3",
        "mutation CreateTag($tag_text: String!) { insert_tag(objects: {tag: $tag_text}) { returning { id tag } } }",
        {"tag_text": "new"},
    ),
    Operation(
        "M4-add",
        "mutation AddTagToModel($model_id: bigint!, $tag_id: bigint!) { insert_model_tag(objects: "
        "{model_id: $model_id, tag_id: $tag_id}) { returning { model_id tag_id } } }",
        {"model_id": "$model", "tag_id": "$tag"},
    ),
    Operation(
        "M4-remove",
        "mutation RemoveTagFromModel($model_id: bigint!, $tag_id: bigint!) { delete_model_tag(where: "
        "{_and: [{model_id: {_eq: $model_id}}, {tag_id: {_eq: $tag_id}}]}) { returning { model_id tag_id } } }",
        {"model_id": "$model", "tag_id": "$tag"},
    ),
    Operation(
        "M5-add",
        "mutation AddTagToPipeline($pipeline_id: bigint!, $tag_id: bigint!) { insert_pipeline_tag("
        "objects: {pipeline_pk_id: $pipeline_id, tag_pk_id: $tag_id}) { returning { pipeline_pk_id tag_pk_id } } }",
        {"pipeline_id": "$pipeline", "tag_id": "$tag"},
    ),
    Operation(
        "M5-remove",
        "mutation RemoveTagFromPipeline($pipeline_id: bigint!, $tag_id: bigint!) "
        "{ delete_pipeline_tag(where: {_and: [{pipeline_pk_id: {_eq: $pipeline_id}}, {tag_pk_id: {_eq: $tag_id}}]}) "
        "{ returning { pipeline_pk_id tag_pk_id } } }",
        {"pipeline_id": "$pipeline", "tag_id": "$tag"},
    ),
    Operation(
        "M6",
        "mutation UpdateModelVisibility($model_pk: bigint!, $visibility: String) { update_model(where: "
        "{id: {_eq: $model_pk}}, _set: {visibility: $visibility}) { returning { id model_id model_version file_name "
        "visibility updated_at } } }",
        {"model_pk": "$model", "visibility": "public"},
    ),
    Operation(
        "M7",
        "mutation UpdatePipelineVisibility($pipeline_id: bigint!, $visibility: String) { update_pipeline("
        "where: {id: {_eq: $pipeline_id}}, _set: {visibility: $visibility}) { returning { id pipeline_id created_at "
        "updated_at visibility owner_id pipeline_versions(order_by: {id: desc}) { id } } } }",
        {"pipeline_id": "$pipeline", "visibility": "public"},
    ),
    Operation(
        "M8",
        "mutation Deploy($id: bigint!) { update_deployment_by_pk(pk_columns: {id: $id}, _set: {deployed: "
        "true}) { id deploy_id deployed } }",
        {"id": "$deployment"},
    ),
    Operation(
        "M9",
        "mutation ReplaceModel($deployment_id: bigint!, $model_config_id: bigint!) { "
        "insert_deployment_model_configs(objects: {deployment_id: $deployment_id, model_config_id: "
        "$model_config_id}) { returning { id deployment_id model_config_id } } }",
        {"deployment_id": "$deployment", "model_config_id": "$model_config"},
    ),
    Operation(
        "M10",
        "mutation ConfigureModel($model_id: bigint!, $runtime: String, $tensor_fields: jsonb, "
        "$filter_threshold: float8, $input_schema: String, $output_schema: String, $batch_config: String) { "
        "insert_model_config(objects: {filter_threshold: $filter_threshold, model_id: $model_id, runtime: $runtime, "
        "tensor_fields: $tensor_fields, input_schema: $input_schema, output_schema: $output_schema, batch_config: "
        "$batch_config}) { returning { id model_id runtime tensor_fields filter_threshold input_schema output_schema "
        "batch_config model { id } } } }",
        {
            "model_id": "$model",
            "runtime": "onnx",
            "tensor_fields": ["a"],
            "filter_threshold": None,
            "input_schema": None,
            "output_schema": None,
            "batch_config": None,
        },
    ),
    *(
        Operation(
            f"M11-{kind}",
            f"mutation SetActive($id: bigint!, ${kind}: Float!) {{ update_assay_by_pk(pk_columns: "
            f"{{id: $id}}, _set: {{{kind}: ${kind}}}) {{ id active }} }}",
            {"id": "$assay", kind: 0.5},
        )
        for kind in ("alert_threshold", "warning_threshold")
    ),
    Operation(
        "M12",
        "mutation CreateAlertConfiguration($pipeline_version_id: bigint, $name: String, $expression: String, "
        "$notifications: jsonb) { insert_alert_configuration(objects: {name: $name, expression: $expression, "
        "notifications: $notifications, pipeline_version_pk_id: $pipeline_version_id}) { returning { id } } }",
        {
            "pipeline_version_id": "$pipeline",
            "name": "n",
            "expression": "e",
            "notifications": {"email": [{"to": "jo@example.org"}]},
        },
    ),
    Operation(
        "M14-add",
        "mutation AddCommentToModel($model_pk_id: bigint!, $comment_id: bigint!) { "
        "insert_model_variant_comment(objects: {model_pk_id: $model_pk_id, comment_id: $comment_id}) { returning "
        "{ model_pk_id comment_id } } }",
        {"model_pk_id": "$model", "comment_id": "$comment"},
    ),
    Operation(
        "M14-remove",
        "mutation RemoveCommentFromModel($model_id: bigint!, $comment_id: bigint!) { "
        "delete_model_variant_comment(where: {_and: [{model_id: {_eq: $model_id}}, {comment_id: {_eq: "
        "$comment_id}}]}) { returning { model_pk_id comment_id } } }",
        {"model_id": "$model", "comment_id": "$comment"},
    ),
]
