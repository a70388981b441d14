"""Documents: parsed, limited, validated, and kept by their text."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    Node,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    parse,
    validate,
)
from graphql.validation import MaxIntrospectionDepthRule, specified_rules

from app.graphql.errors import VALIDATION, Fault, of_graphql

TEXT_LIMIT = 65_536
TOKEN_LIMIT = 4_000
DEPTH_LIMIT = 24
FIELD_LIMIT = 600
SAME_KEY_LIMIT = 50
_KEPT = 512

_RULES = [*specified_rules, MaxIntrospectionDepthRule]


@dataclass(frozen=True, slots=True)
class Document:
    """A valid document and its parts."""

    node: DocumentNode
    operations: dict[str, OperationDefinitionNode]
    fragments: dict[str, FragmentDefinitionNode]

    def operation(self, name: str | None) -> OperationDefinitionNode:
        """Return the operation to run; raises `Fault` when `name` does not settle which."""
        if name is None:
            if len(self.operations) == 1:
                return next(iter(self.operations.values()))
            raise Fault("exactly one operation has to be present in the document when operationName is not specified")
        if name not in self.operations:
            raise Fault(f"no such operation found in the document: {name!r}")
        return self.operations[name]


class Documents:
    """Documents by their text; the ones used last are kept, refused ones too."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self._schema = schema
        self._kept: OrderedDict[str, Document | Fault] = OrderedDict()

    def read(self, text: str) -> Document:
        """Return the document `text` spells; raises `Fault` when it is not valid or asks for too much."""
        if text in self._kept:
            self._kept.move_to_end(text)
            found = self._kept[text]
        else:
            try:
                found = self._check(text)
            except Fault as fault:
                found = fault
            self._kept[text] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        if isinstance(found, Fault):
            raise Fault(found.message, found.reason, found.path)
        return found

    def _check(self, text: str) -> Document:
        if len(text) > TEXT_LIMIT:
            raise Fault(f"The query is longer than {TEXT_LIMIT} characters.", VALIDATION, "$.query")
        try:
            node = parse(text, max_lexical_tokens=TOKEN_LIMIT, allow_empty_selection_sets=False)
            _check_size(node)
            errors = validate(self._schema, node, _RULES, max_errors=1)
        except GraphQLError as exc:
            raise Fault(f"not a valid graphql query: {exc.message}", VALIDATION, "$.query") from exc
        except RecursionError:
            raise Fault("The query is nested too deeply.", VALIDATION, "$.query") from None
        if errors:
            raise of_graphql(errors[0], node)
        operations = {
            (d.name.value if d.name else ""): d for d in node.definitions if isinstance(d, OperationDefinitionNode)
        }
        if any(o.operation is OperationType.SUBSCRIPTION for o in operations.values()):
            raise Fault("subscriptions are not supported", VALIDATION)
        fragments = {d.name.value: d for d in node.definitions if isinstance(d, FragmentDefinitionNode)}
        return Document(node, operations, fragments)


def _check_size(document: DocumentNode) -> None:
    """Refuse what would keep validation busy for long: deep nesting, many fields, one key again and again."""
    fields = 0
    stack: list[tuple[Node, int]] = [(definition, 0) for definition in document.definitions]
    while stack:
        node, depth = stack.pop()
        if depth > DEPTH_LIMIT:
            raise Fault(f"The query is nested more than {DEPTH_LIMIT} levels deep.", VALIDATION, "$.query")
        fields += isinstance(node, FieldNode | FragmentSpreadNode)
        if fields > FIELD_LIMIT:
            raise Fault(f"The query selects more than {FIELD_LIMIT} fields.", VALIDATION, "$.query")
        if isinstance(node, SelectionSetNode):
            keys = Counter((s.alias or s.name).value for s in node.selections if isinstance(s, FieldNode))
            if keys and max(keys.values()) > SAME_KEY_LIMIT:
                raise Fault(f"A field is selected more than {SAME_KEY_LIMIT} times.", VALIDATION, "$.query")
            depth += 1
        for key in node.keys:
            child = getattr(node, key, None)
            if isinstance(child, list | tuple):
                # Lists and objects of values count too; lists of definitions and arguments do not nest.
                deeper = depth + (key in ("values", "fields"))
                stack.extend((item, deeper) for item in child if isinstance(item, Node))
            elif isinstance(child, Node):
                stack.append((child, depth))
