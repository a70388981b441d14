"""What a request selects, as a plain tree: fragments and directives resolved, variables put in, limits kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    FieldNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLIncludeDirective,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLSkipDirective,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionNode,
    SelectionSetNode,
    get_directive_values,
    get_named_type,
    is_list_type,
    is_non_null_type,
)
from graphql.execution.values import VariableValues, get_argument_values, get_variable_values

from app.graphql.documents import Document
from app.graphql.errors import Fault, of_graphql

NODE_LIMIT = 1_500
ROOT_LIMIT = 60
LIST_DEPTH_LIMIT = 6
INTROSPECTION = frozenset({"__schema", "__type"})


@dataclass(slots=True)
class Field:
    """A field to answer: under which key, with which arguments, and what of it."""

    key: str
    name: str
    path: str
    args: dict[str, Any] = field(default_factory=dict)
    fields: list[Field] = field(default_factory=list)
    nodes: list[FieldNode] = field(default_factory=list)
    """Where it stands in the document, for introspection."""


class Selections:
    """Reads the selections of one request."""

    def __init__(self, schema: GraphQLSchema, document: Document, variables: VariableValues) -> None:
        self._schema = schema
        self._document = document
        self._variables = variables
        self._nodes = 0

    def root(self, operation: OperationDefinitionNode) -> list[Field]:
        """Return the root fields; raises `Fault` when they ask for too much."""
        type_ = self._schema.mutation_type if is_mutation(operation) else self._schema.query_type
        assert type_ is not None  # noqa: S101 - the schema has both
        fields = self._fields(type_, [operation.selection_set], "$", 0)
        if len(fields) > ROOT_LIMIT:
            raise Fault(f"The query has more than {ROOT_LIMIT} root fields.")
        return fields

    def _fields(self, type_: GraphQLNamedType, sets: Iterable[SelectionSetNode], path: str, lists: int) -> list[Field]:
        if not isinstance(type_, GraphQLObjectType):
            return []
        grouped: dict[str, list[FieldNode]] = {}
        for selection_set in sets:
            self._collect(selection_set.selections, grouped)
        return [self._field(type_, key, nodes, path, lists) for key, nodes in grouped.items()]

    def _field(self, type_: GraphQLObjectType, key: str, nodes: list[FieldNode], path: str, lists: int) -> Field:
        name, path = nodes[0].name.value, f"{path}.selectionSet.{key}"
        if name == "__typename":
            return Field(key, name, path, {"type": type_.name})
        if name in INTROSPECTION:
            return Field(key, name, path, nodes=nodes)
        definition = type_.fields[name]
        try:
            args = get_argument_values(definition, nodes[0], self._variables)
        except GraphQLError as exc:
            raise of_graphql(exc, self._document.node).at(path) from exc
        kind = definition.type.of_type if is_non_null_type(definition.type) else definition.type
        lists += is_list_type(kind)
        if lists > LIST_DEPTH_LIMIT:
            raise Fault(f"The query nests more than {LIST_DEPTH_LIMIT} lists.", path=path)
        below = [node.selection_set for node in nodes if node.selection_set]
        return Field(key, name, path, args, self._fields(get_named_type(definition.type), below, path, lists))

    def _collect(self, selections: Iterable[SelectionNode], grouped: dict[str, list[FieldNode]]) -> None:
        for node in selections:
            self._nodes += 1
            if self._nodes > NODE_LIMIT:
                raise Fault(f"The query asks for more than {NODE_LIMIT} fields.")
            if not self._is_wanted(node):
                continue
            if isinstance(node, FieldNode):
                grouped.setdefault((node.alias or node.name).value, []).append(node)
            elif isinstance(node, InlineFragmentNode):
                self._collect(node.selection_set.selections, grouped)
            elif isinstance(node, FragmentSpreadNode):
                # There are no interfaces or unions: a valid fragment always applies.
                self._collect(self._document.fragments[node.name.value].selection_set.selections, grouped)

    def _is_wanted(self, node: SelectionNode) -> bool:
        skip = get_directive_values(GraphQLSkipDirective, node, self._variables)
        if skip and skip["if"]:
            return False
        include = get_directive_values(GraphQLIncludeDirective, node, self._variables)
        return include is None or bool(include["if"])


def is_mutation(operation: OperationDefinitionNode) -> bool:
    """Tell whether `operation` writes."""
    return operation.operation is OperationType.MUTATION


def read_variables(
    schema: GraphQLSchema, document: Document, operation: OperationDefinitionNode, given: dict[str, Any]
) -> VariableValues:
    """Return the values of the operation's variables; raises `Fault` for the first that does not fit."""
    values = get_variable_values(schema, operation.variable_definitions or (), given, max_errors=1)
    if isinstance(values, list):
        raise of_graphql(values[0], document.node)
    return values
