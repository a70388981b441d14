"""The recorded cases of the vendor's platform: which there are, and whether an answer is the recorded one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDERS = ("ccfraud", "houseprice", "demandcurve", "imdb", "onnx-multi-io")

VALIDATIONS = {
    "out.dense_1[0] > 0.95": (
        '{"Alias":[{"BinaryExpr":{"left":{"Function":{"input":[{"Column":"out.dense_1"},{"Literal":{"Int32":0}}],'
        '"function":{"ListExpr":"Get"},"options":{}}},"op":"Gt","right":{"Literal":{"Float64":0.95}}}},"%s"]}'
    ),
    "outputs[0][0] < 1500000.0": json.dumps(
        {
            "values": {
                "%s": {
                    "root": {
                        "node": "binop",
                        "op": "<",
                        "left": {
                            "node": "variable",
                            "variant_id": {"name": "m0"},
                            "position": "output",
                            "key": [0, 0],
                        },
                        "right": {"node": "literal", "float": 1500000.0},
                    },
                    "required_data": [],
                }
            },
            "gauges": [],
            "validations": ["%s"],
        }
    ),
}


def cases(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return every case of ONNX models, with its folder's name."""
    found = []
    for name in FOLDERS:
        for case in json.loads((folder / name / "cases.json").read_text())["cases"]:
            described = case.get("steps") or [case["model"]]
            if all(entry["framework"] == "onnx" for entry in described):
                found.append((name, case))
    return found


def config(entry: dict[str, Any]) -> dict[str, Any]:
    """Return how a case's model is configured."""
    configure = entry.get("configure") or {}
    return {"tensor_fields": configure.get("tensor_fields") or configure.get("input_columns")}


def flat(value: Any) -> list[Any]:
    return [item for entry in value for item in flat(entry)] if isinstance(value, list) else [value]


def is_close(got: Any, want: Any, tolerance: dict[str, float]) -> bool:
    got, want = flat(got), flat(want)
    return len(got) == len(want) and all(
        abs(one - two) <= max(tolerance["abs"], tolerance["rel"] * abs(two)) for one, two in zip(got, want, strict=True)
    )


def check(columns: dict[str, list[Any]], rows: int, case: dict[str, Any]) -> None:
    """Assert that an answer's flattened columns are those that were recorded."""
    expected, tolerance = case["expected"], case["tolerance"]
    assert rows == expected["rows"]
    for name, want in expected.get("columns", {}).items():
        assert is_close(columns[name], want, tolerance), name
    for name, want in expected.get("head", {}).items():
        assert is_close(columns[name][: len(want)], want, tolerance), name
    if picked := expected.get("filter"):
        passing = [row for row, value in enumerate(columns[picked["column"]]) if flat(value)[0] > picked["gt"]]
        for name, want in expected["row_index_to_value"].items():
            assert passing == [int(row) for row in want]
            assert is_close([columns[name][row] for row in passing], list(want.values()), tolerance)
    for name in expected.get("columns_present", []):
        assert name in columns
    for name, want in expected.get("true_rows", {}).items():
        assert [row for row, mark in enumerate(columns[name]) if mark] == want
    if failing := expected.get("failing_rows"):
        assert [row for row, failures in enumerate(columns["check_failures"]) if failures] == failing
    for name, want in expected.get("failing_values", {}).items():
        assert is_close([columns[name][row] for row in expected["failing_rows"]], want, tolerance)
