"""Validations of the older kind: a tree of comparisons that ought to hold for every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

COMPARISONS = frozenset({">", ">=", "==", "<", "<=", "in"})
ARITHMETIC = frozenset({"+", "-"})
FUNCTIONS = frozenset({"abs"})

LiteralValue = int | float | str | list[Any]


class DefinitionError(Exception):
    """A pipeline definition that makes no sense; the text says which step and why."""


class Constant(msgspec.Struct, frozen=True):
    """A number, text or list written into the expression."""

    value: LiteralValue

    def render(self) -> str:
        """Return the expression's text."""
        return str(self.value)


class Variable(msgspec.Struct, frozen=True):
    """One element of an input or output tensor of a model: `champ.outputs[0][0]`."""

    model: str
    position: Literal["input", "output"]
    key: tuple[int, ...]

    def render(self) -> str:
        """Return the expression's text."""
        return f"{self.model}.{self.position}s" + "".join(f"[{index}]" for index in self.key)


class Operation(msgspec.Struct, frozen=True):
    """Two operands and what is done with them."""

    op: str
    left: Node
    right: Node

    def render(self) -> str:
        """Return the expression's text; operations within it stand in brackets."""
        return f"{_bracketed(self.left)} {self.op} {_bracketed(self.right)}"


class Call(msgspec.Struct, frozen=True):
    """A function of one argument."""

    function: str
    arguments: tuple[Node, ...]

    def render(self) -> str:
        """Return the expression's text."""
        return f"{self.function}({', '.join(argument.render() for argument in self.arguments)})"


Node = Constant | Variable | Operation | Call


class Validation(msgspec.Struct, frozen=True):
    """A named predicate; a row for which it is false has failed."""

    name: str
    root: Node
    text: str


def _bracketed(node: Node) -> str:
    return f"({node.render()})" if isinstance(node, Operation) else node.render()


def parse_tree(tree: Mapping[str, Any]) -> tuple[Validation, ...]:
    """Return the validations of a check tree; alerts (`gauges`) in it concern metrics, not rows, and are left out.

    Raises `DefinitionError`.
    """
    values = tree.get("values")
    validations = tree.get("validations")
    if not isinstance(values, Mapping) or not isinstance(validations, list):
        raise DefinitionError("a check tree needs the keys values (an object) and validations (a list)")
    found = []
    for name in validations:
        entry = values.get(name)
        if not isinstance(entry, Mapping) or "root" not in entry:
            raise DefinitionError(f"validation {name!r} has no expression among the tree's values")
        root = parse_node(entry["root"], str(name))
        if not isinstance(root, Operation) or root.op not in COMPARISONS:
            raise DefinitionError(f"validation {name!r} is {root.render()}, which is not a comparison")
        found.append(Validation(str(name), root, root.render()))
    return tuple(found)


def parse_node(node: Any, name: str) -> Node:
    """Return a typed node of the tree of validation `name`; raises `DefinitionError`."""
    kind = node.get("node") if isinstance(node, Mapping) else None
    try:
        if kind == "binop":
            if node["op"] not in COMPARISONS | ARITHMETIC:
                raise DefinitionError(f"validation {name!r}: unknown operator {node['op']!r}")
            return Operation(node["op"], parse_node(node["left"], name), parse_node(node["right"], name))
        if kind == "variable":
            return _variable(node, name)
        if kind == "literal":
            return _constant(node, name)
        if kind == "fn":
            return _call(node, name)
    except (KeyError, TypeError, AttributeError) as exc:
        raise DefinitionError(f"validation {name!r}: a {kind} node lacks {exc}") from exc
    raise DefinitionError(f"validation {name!r}: unknown kind of node {kind!r}")


def _variable(node: Mapping[str, Any], name: str) -> Variable:
    position, key = node["position"], node["key"]
    if position not in ("input", "output"):
        raise DefinitionError(f"validation {name!r}: a variable's position is input or output, not {position!r}")
    if not key or not all(type(index) is int and index >= 0 for index in key):
        raise DefinitionError(f"validation {name!r}: a variable's key is a list of tensor and element numbers")
    model = node["variant_id"]["name"]
    if not isinstance(model, str):
        raise DefinitionError(f"validation {name!r}: a variable's model is a name, not {model!r}")
    return Variable(model, position, tuple(key))


def _constant(node: Mapping[str, Any], name: str) -> Constant:
    for kind in ("integer", "float", "timedelta", "list"):
        if node.get(kind) is not None:
            return Constant(node[kind])
    raise DefinitionError(f"validation {name!r}: a literal without a value")


def _call(node: Mapping[str, Any], name: str) -> Call:
    arguments = tuple(parse_node(argument, name) for argument in node["arguments"])
    if node["fn"] not in FUNCTIONS:
        raise DefinitionError(f"validation {name!r}: {node['fn']} cannot be computed for a row; abs can")
    if len(arguments) != 1:
        raise DefinitionError(f"validation {name!r}: abs takes one argument")
    return Call(node["fn"], arguments)


def variables(node: Node) -> Iterator[Variable]:
    """Yield every variable of an expression."""
    if isinstance(node, Variable):
        yield node
    elif isinstance(node, Operation):
        yield from variables(node.left)
        yield from variables(node.right)
    elif isinstance(node, Call):
        for argument in node.arguments:
            yield from variables(argument)
