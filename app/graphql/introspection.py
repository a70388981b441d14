"""Introspection: answered by graphql-core, kept by the text of the question, compressed once."""

from __future__ import annotations

import gzip
from collections import OrderedDict
from dataclasses import dataclass

import msgspec
from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLSchema,
    OperationDefinitionNode,
    SelectionSetNode,
    execute_sync,
)

from app.graphql.documents import Document
from app.graphql.errors import Fault
from app.graphql.selections import INTROSPECTION, Field

_KEPT = 32
_LEVEL = 6


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, plain and compressed."""

    plain: bytes
    packed: bytes


class Introspection:
    """What the schema says of itself."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self._schema = schema
        self._kept: OrderedDict[tuple[str, str | None], Answer] = OrderedDict()

    def kept(self, text: str, operation: str | None) -> Answer | None:
        """Return the answer to a question asked before."""
        return self._kept.get((text, operation))

    def keep(self, text: str, operation: str | None, plain: bytes) -> Answer:
        """Remember the answer to a question without variables."""
        answer = Answer(plain, gzip.compress(plain, _LEVEL, mtime=0))
        self._kept[text, operation] = answer
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return answer

    def parts(
        self, document: Document, operation: OperationDefinitionNode, fields: list[Field], variables: dict[str, object]
    ) -> dict[str, bytes]:
        """Return the JSON of each introspection field among the root `fields`, by its key."""
        result = execute_sync(self._schema, _alone(document, operation, fields), variable_values=variables)
        if not isinstance(result, ExecutionResult) or result.errors or result.data is None:
            raise Fault(result.errors[0].message if result.errors else "The introspection failed.")
        return {key: msgspec.json.encode(value) for key, value in result.data.items()}


def _alone(document: Document, operation: OperationDefinitionNode, fields: list[Field]) -> DocumentNode:
    """Return a document that asks for the introspection fields among `fields` and nothing else."""
    nodes = tuple(node for f in fields if f.name in INTROSPECTION for node in f.nodes)
    alone = OperationDefinitionNode(
        operation=operation.operation,
        variable_definitions=operation.variable_definitions,
        selection_set=SelectionSetNode(selections=nodes),
    )
    return DocumentNode(definitions=(alone, *document.fragments.values()))
