"""Pieces of SQL that build JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Text, cast, func, literal
from sqlalchemy.dialects.postgresql import JSON

_PAIRS = 50
"""How many pairs `json_build_object` takes."""


def json_object(pairs: Sequence[tuple[str, ColumnElement[Any]]]) -> ColumnElement[Any]:
    """Return a JSON object of `pairs`, in their order, however many they are."""
    chunks = []
    for start in range(0, max(len(pairs), 1), _PAIRS):
        flat = [x for key, value in pairs[start : start + _PAIRS] for x in (literal(key, Text()), value)]
        chunks.append(func.json_build_object(*flat, type_=JSON()))
    if len(chunks) == 1:
        return chunks[0]
    # Longer ones are joined as text: `json`, unlike `jsonb`, keeps the order of the keys.
    joined: ColumnElement[Any] = func.left(cast(chunks[0], Text()), -1)
    for chunk in chunks[1:-1]:
        joined = joined.concat(literal(",")).concat(func.left(func.substr(cast(chunk, Text()), 2), -1))
    last = func.substr(cast(chunks[-1], Text()), 2)
    return cast(joined.concat(literal(",")).concat(last), JSON())


def text_value(value: str) -> ColumnElement[Any]:
    """Return `value` as text."""
    return literal(value, Text())
