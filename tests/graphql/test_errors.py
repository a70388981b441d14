"""Errors have Hasura's shape; what asks for too much is refused; the schema says only what is published."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import httpx
import pytest
from graphql import build_client_schema, get_introspection_query, print_type

from app.graphql import routes
from app.graphql.service import Endpoint
from tests.graphql.conftest import Ask, Refused, World

STOCK = get_introspection_query(specified_by_url=False, directive_is_repeatable=False, schema_description=False)


async def _send(client: httpx.AsyncClient, body: Any, **headers: str) -> dict[str, Any]:
    reply = await client.post(
        "/v1/graphql", content=body if isinstance(body, bytes) else json.dumps(body), headers=headers
    )
    assert reply.status_code == 200
    answer: dict[str, Any] = reply.json()
    return answer


def _code(answer: dict[str, Any]) -> str:
    assert set(answer) == {"errors"}
    (error,) = answer["errors"]
    assert set(error) == {"message", "extensions"}
    assert set(error["extensions"]) == {"path", "code"}
    assert "Traceback" not in error["message"]
    return str(error["extensions"]["code"])


async def test_nobody_learns_nothing(nobody: httpx.AsyncClient) -> None:
    answer = await _send(nobody, {"query": "{ model { id } }"})

    assert _code(answer) == "invalid-headers"
    assert answer["errors"][0]["message"] == "Missing 'Authorization' or 'Cookie' header in JWT authentication mode"


async def test_a_wrong_token_is_an_invalid_jwt(nobody: httpx.AsyncClient) -> None:
    answer = await _send(nobody, {"query": STOCK}, Authorization="Bearer wrong")

    assert _code(answer) == "invalid-jwt"
    assert answer["errors"][0]["message"].startswith("Could not verify JWT: ")


@pytest.mark.parametrize(
    ("query", "code", "path"),
    [
        ("{ foo }", "validation-failed", "$.selectionSet.foo"),
        ("{ model { foo } }", "validation-failed", "$.selectionSet.model.selectionSet.foo"),
        ("{ model(foo: 1) { id } }", "validation-failed", "$.selectionSet.model.args.foo"),
        ("{ model(where: {foo: {}}) { id } }", "validation-failed", "$.selectionSet.model.args.where.foo"),
        ("{ model", "validation-failed", "$.query"),
        ("", "validation-failed", "$.query"),
        ("{ model_by_pk { id } }", "validation-failed", "$.selectionSet.model_by_pk"),
        ('{ model_by_pk(id: "x") { id } }', "parse-failed", "$.selectionSet.model_by_pk.args.id"),
        ("{ model_by_pk(id: 9223372036854775808) { id } }", "parse-failed", "$.selectionSet.model_by_pk.args.id"),
        ("{ model_by_pk(id: 1.5) { id } }", "parse-failed", "$.selectionSet.model_by_pk.args.id"),
        ('{ orchestration_by_pk(id: "x") { id } }', "parse-failed", "$.selectionSet.orchestration_by_pk.args.id"),
        (
            "query($id: bigint!) { model_by_pk(id: $id) { id } }",
            "validation-failed",
            "$.selectionSet.model_by_pk.args.id",
        ),
        ('{ model(where: {created_at: {_eq: "x"}}) { id } }', "data-exception", "$.selectionSet.model.args"),
        ("{ model(where: {id: {_eq: null}}) { id } }", "validation-failed", "$.selectionSet.model.args.where.id._eq"),
        ("{ model(where: {_not: null}) { id } }", "validation-failed", "$.selectionSet.model.args.where._not"),
        ("{ model(limit: -1) { id } }", "validation-failed", "$.selectionSet.model.args.limit"),
        ("{ model(distinct_on: id, order_by: {sha: asc}) { id } }", "validation-failed", "$.selectionSet.model.args"),
        (
            '{ model { conversion(path: "[") } }',
            "parse-failed",
            "$.selectionSet.model.selectionSet.conversion.args.path",
        ),
        ('{ model(where: {model_id: {_eq: "a\\u0000b"}}) { id } }', "data-exception", "$"),
        ('{ search_models(args: {search: "\\u0000"}) { id } }', "data-exception", "$"),
        ("subscription { model { id } }", "validation-failed", "$"),
        ("query A { tag { id } } query B { tag { id } }", "validation-failed", "$"),
    ],
)
async def test_errors_name_the_place_and_the_kind(
    query: str, code: str, path: str, ann: httpx.AsyncClient, ask: Ask
) -> None:
    with pytest.raises(Refused) as refused:
        await ask(ann, query)

    assert (refused.value.code, refused.value.path) == (code, path)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"query": 1}', b"{}", b'{"query": "{tag{id}}", "variables": []}', b"\xff\xfe",
     b"[" * 100_000, b'{"query": "{tag{id}}", "operationName": 5}', b'{"query": "{tag{id}}", "variables": {"a": NaN}}'],
)  # fmt: skip
async def test_a_body_that_is_no_request_is_refused(body: bytes, ann: httpx.AsyncClient) -> None:
    assert _code(await _send(ann, body)) in ("invalid-json", "parse-failed")


async def test_a_body_beyond_the_limit_is_refused(ann: httpx.AsyncClient) -> None:
    assert _code(await _send(ann, {"query": " " * (routes.BODY_LIMIT + 1)})) == "unexpected"


async def test_other_methods_are_refused_in_the_same_shape(ann: httpx.AsyncClient) -> None:
    reply = await ann.get("/v1/graphql")

    assert reply.status_code == 405
    assert "errors" in reply.json()


def _nested(depth: int) -> str:
    return "{ pipeline { " + "workspace { pipelines { " * depth + "id" + " }" * (2 * depth) + " } }"


@pytest.mark.parametrize(
    "query",
    [
        _nested(12),
        _nested(4_000),
        _nested(6),
        "{ " + "tag { id } " * 300 + "}",
        "{ " + " ".join(f"a{n}: tag {{ id }}" for n in range(100)) + " }",
        "{ model(where: " + "{_and: [" * 400 + "{}" + "]}" * 400 + ") { id } }",
        "{ model(where: {conversion: {_eq: " + "[" * 2_000 + "]" * 2_000 + "}}) { id } }",
        "{ tag { " + "id " * 100_000 + "} }",
        "{ ...f0 } "
        + " ".join(f"fragment f{n} on query_root {{ ...f{n + 1} ...f{n + 1} }}" for n in range(20))
        + " fragment f20 on query_root { __typename }",
        "{ __schema { types { fields { type { fields { type { fields { type { fields { name } } } } } } } } } }",
    ],
    ids=lambda q: q[:40] + str(len(q)),
)
async def test_what_asks_for_too_much_is_refused_quickly(query: str, ann: httpx.AsyncClient) -> None:
    started = time.monotonic()

    answer = await _send(ann, {"query": query})

    assert _code(answer) == "validation-failed"
    assert time.monotonic() - started < 5


async def test_a_deep_value_is_refused_or_answered(ann: httpx.AsyncClient) -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"_and": [deep]}
    query = "query($w: model_bool_exp) { model(where: $w) { id } }"

    answer = await _send(ann, {"query": query, "variables": {"w": deep}})

    assert "data" in answer or _code(answer) == "validation-failed"


async def test_introspection_is_compressed_and_rebuilds_the_schema(ann: httpx.AsyncClient) -> None:
    async with ann.stream("POST", "/v1/graphql", json={"query": STOCK}, headers={"Accept-Encoding": "gzip"}) as reply:
        packed = b"".join([chunk async for chunk in reply.aiter_raw()])
    plain = await ann.post("/v1/graphql", json={"query": STOCK}, headers={"Accept-Encoding": "identity"})

    assert len(packed) < 40_000
    assert gzip.decompress(packed) == plain.content
    schema = build_client_schema(plain.json()["data"])
    assert schema.query_type is not None
    assert schema.query_type.name == "query_root"
    assert schema.subscription_type is None
    assert {d.name for d in schema.directives} >= {"include", "skip", "deprecated"}


async def test_introspection_goes_along_with_tables(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    query = (
        "query Q($n: String!) { t: __type(name: $n) { name } model(limit: 1) { model_id } "
        "__schema { queryType { name } } }"
    )

    data = await ask(ann, query, n="tag")

    assert data == {
        "t": {"name": "tag"},
        "model": [{"model_id": "anns-model"}],
        "__schema": {"queryType": {"name": "query_root"}},
    }


def test_the_names_of_scalars_are_exact(endpoint: Endpoint) -> None:
    def type_of(table: str, column: str) -> str:
        return str(endpoint.schema.type_map[table].fields[column].type).rstrip("!")  # type: ignore[union-attr]

    exact = {
        ("assay", "alert_threshold"): "Float",
        ("assay", "warning_threshold"): "Float",
        ("model_config", "filter_threshold"): "float8",
        ("model_config", "model_id"): "bigint",
        ("model", "model_id"): "String",
        ("model", "sha"): "bpchar",
        ("model", "conversion"): "jsonb",
        ("model", "updated_at"): "timestamptz",
        ("pipeline", "pipeline_id"): "String",
        ("deployment", "pipeline_id"): "bigint",
        ("deployment", "deployed"): "Boolean",
        ("orchestration", "id"): "uuid",
        ("orchestration", "task_id"): "uuid",
        ("model", "task_id"): "String",
    }
    assert {key: type_of(*key) for key in exact} == exact


def test_constraints_are_named_as_clients_know_them(endpoint: Endpoint) -> None:
    assert "workspace_name_key" in print_type(endpoint.schema.type_map["workspace_constraint"])
    cut = "deployment_model_configs_deployment_id_model_config_id_pipeline"
    assert cut in print_type(endpoint.schema.type_map["deployment_model_configs_constraint"])


def test_only_the_contract_s_root_fields_are_published(endpoint: Endpoint) -> None:
    assert endpoint.schema.query_type is not None
    assert endpoint.schema.mutation_type is not None
    keyed = {
        *("workspace", "model", "model_config", "pipeline", "pipeline_version"),
        *("deployment", "tag", "orchestration", "assay", "comment"),
    }
    listed = {"user_default_workspace", "model", "pipeline", "deployment", "tag", "assay"}
    functions = {"search_models", "search_pipelines"}
    assert set(endpoint.schema.query_type.fields) == {f"{name}_by_pk" for name in keyed} | listed | functions
    assert len(endpoint.schema.mutation_type.fields) == 19
