"""Every document that clients send is valid against the introspected schema, and is answered."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from graphql import build_client_schema, get_introspection_query, parse, validate

from tests.conftest import ANN
from tests.graphql.conftest import Ask, World
from tests.graphql.documents import MUTATIONS, QUERIES, Operation

OPERATIONS = QUERIES + MUTATIONS


def _filled(operation: Operation, world: World) -> dict[str, Any]:
    def value(given: Any) -> Any:
        if given == "$user":
            return ANN.id
        if isinstance(given, str) and given.startswith("$"):
            return str(key) if not isinstance(key := world.one(given[1:]).id, int) else key
        return given

    return {name: value(given) for name, given in operation.variables.items()}


async def test_all_documents_are_valid_against_the_schema_a_client_rebuilds(ann: httpx.AsyncClient, ask: Ask) -> None:
    question = get_introspection_query(descriptions=True, specified_by_url=False, directive_is_repeatable=False)
    schema = build_client_schema(await ask(ann, question))

    wrong = {o.name: validate(schema, parse(o.text)) for o in OPERATIONS}

    assert {name: errors for name, errors in wrong.items() if errors} == {}


async def test_every_query_is_answered(ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    answers = {}
    for operation in QUERIES:
        key = anns.one("model" if "model_by_pk" in operation.text else "tag").id
        answers[operation.name] = await ask(ann, operation.text.replace("17", str(key)), **_filled(operation, anns))

    assert {name: data for name, data in answers.items() if None in data.values()} == {}


@pytest.mark.parametrize("operation", QUERIES, ids=lambda o: o.name)
async def test_a_query_is_one_statement_however_many_rows_there_are(
    operation: Operation, ann: httpx.AsyncClient, ask: Ask, anns: World, statements: list[str]
) -> None:
    await ask(ann, operation.text, **_filled(operation, anns))

    assert len(statements) == 1


@pytest.mark.parametrize("operation", MUTATIONS, ids=lambda o: o.name)
async def test_a_mutation_is_carried_out(operation: Operation, ann: httpx.AsyncClient, ask: Ask, anns: World) -> None:
    data = await ask(ann, operation.text, **_filled(operation, anns))

    (value,) = data.values()
    assert value is not None
    assert value.get("returning", [1])
