"""Definitions of any form are read, or refused with a reason: never anything else."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract.definitions import DefinitionError, parse_definition

M = {"name": "m", "version": "v", "sha": "s"}
N = {"name": "n", "version": "v", "sha": "s"}
TREE = {
    "values": {
        "low": {
            "root": {
                "node": "binop",
                "op": "<",
                "left": {"node": "variable", "variant_id": {"name": "m"}, "position": "output", "key": [0, 0]},
                "right": {"node": "fn", "fn": "abs", "arguments": [{"node": "literal", "float": 0.9}]},
            },
            "required_data": [{"name": "m"}],
        }
    },
    "gauges": [],
    "validations": ["low"],
}
GET = {"Function": {"input": [{"Column": "out.y"}, {"Literal": {"Int32": 0}}], "function": {"ListExpr": "Get"}}}
EXPRESSION = {
    "Alias": [
        {
            "Ternary": {
                "predicate": {"BinaryExpr": {"left": GET, "op": "Gt", "right": {"Literal": {"Float64": 0.9}}}},
                "truthy": {"Cast": {"expr": {"Agg": {"Max": {"input": GET}}}, "data_type": "Int8", "strict": True}},
                "falsy": {"Function": {"input": [GET], "function": {"Clip": {"min": {"Int8": 0}, "max": {"Int8": 1}}}}},
            }
        },
        "n",
    ]
}
SOUND = [
    [{"ModelInference": {"models": [M, N]}}, {"AuditResults": {"from": 1, "to": None}}, {"MultiOut": {}}],
    [{"ModelInference": {"models": [M]}}, {"Check": {"tree": [TREE]}}, {"Check": {"tree": [EXPRESSION]}}],
    [{"MetaValueSplit": {"split_key": "k", "control": M, "routes": {"a": N}}}],
    [{"RandomSplit": {"hash_key": None, "weights": [{"model": M, "weight": 2}, {"model": N, "weight": 1}]}}],
    [{"InputDataToType": {"data_type": "f32"}}, {"ColumnsToRows": {}}, {"ColumnsSelect": {"columns": [0]}}],
    [{"RowsToModels": {"rows_to_models": [{"row_index": 0, "model": M}]}}],
    [{"ModelInference": {"models": [M, N]}}, {"Average": {}}],
    [{"ModelInference": {"models": [M, N]}}, {"Nth": {"index": 1}}],
]

anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in below for place in places(inner, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    whole = {"steps": copy.deepcopy(draw(st.sampled_from(SOUND)))}
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(whole)[1:]))
        target: Any = whole
        for key in path[:-1]:
            target = target[key]
        if isinstance(target, dict) and draw(st.booleans()):
            target.pop(path[-1])
        else:
            target[path[-1]] = draw(anything)
        if not whole.get("steps"):
            break
    return whole


def test_sound_definitions_are_read() -> None:
    for steps in SOUND:
        assert len(parse_definition({"steps": steps}).steps) == len(steps)


@settings(max_examples=1000, deadline=None)
@given(damaged())
def test_a_damaged_definition_is_read_or_refused(definition: dict[str, Any]) -> None:
    with contextlib.suppress(DefinitionError):
        parse_definition(definition)


@settings(max_examples=300, deadline=None)
@given(anything)
def test_a_check_of_any_json_is_read_or_refused(tree: Any) -> None:
    steps = [{"ModelInference": {"models": [M]}}, {"Check": {"tree": [json.dumps(tree)]}}]
    with contextlib.suppress(DefinitionError):
        parse_definition({"steps": steps})


def test_the_generation_follows_the_checks() -> None:
    model = {"ModelInference": {"models": [M]}}

    assert parse_definition({"steps": [model]}).generation is None
    assert parse_definition({"steps": [model, {"Check": {"tree": [TREE]}}]}).generation == "check_failures"
    assert parse_definition({"steps": SOUND[1]}).generation == "anomaly"
