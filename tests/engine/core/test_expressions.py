"""Validations of the newer kind give what polars 0.18.15 gives, which the SDK writes them with."""

from __future__ import annotations

import base64
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine.contract.checks import DefinitionError
from engine.contract.expressions import parse_named
from engine.contract.failures import InferenceFailure
from engine.runtime.expression_types import fill
from engine.runtime.expressions import _Evaluation, anomalies
from tests.engine.core.making import arrow_bytes

WORKER = Path(__file__).with_name("polars_worker.py")


class Polars:
    """The real polars, behind a pipe."""

    def __init__(self, python: Path) -> None:
        self.process = subprocess.Popen(
            [str(python), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "POLARS_MAX_THREADS": "1"},
        )

    def evaluate(self, source: str, table: pa.Table) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"source": source, "table": base64.b64encode(arrow_bytes(table)).decode()}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def polars_python() -> Path:
    """Return the Python of a venv with polars 0.18.15; make it once, outside the checkout."""
    folder = Path(os.environ.get("POTOROO_TEST_POLARS", Path(tempfile.gettempdir()) / "potoroo-test-polars-0.18.15"))
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, check=False)
        if made.returncode == 0:
            install = [str(python), "-m", "pip", "install", "-q", "polars==0.18.15"]
            made = subprocess.run(install, capture_output=True, check=False, timeout=300)
        if made.returncode != 0:
            pytest.skip(f"polars 0.18.15 cannot be installed beside the checkout: {made.stderr.decode()[-200:]}")
        (folder / "ready").touch()
    return python


@pytest.fixture(scope="module")
def polars() -> Iterator[Polars]:
    worker = Polars(polars_python())
    yield worker
    worker.close()


FLOATS = [0.0, 1.0, -1.0, 0.5, 0.9, 0.1, 2.5, -3.25, 7.0, 1e6, math.nan, math.inf, -math.inf, None]
INTS = [0, 1, -1, 2, 3, 5, -7, 100, 300, None]
TEXTS = ["", "a", "abc", "Abc", "b.c", "ünïcode", None]

FIELDS = {
    "in.i64": (pa.int64(), st.sampled_from([*INTS, 70_000, 2**40])),
    "in.i32": (pa.int32(), st.sampled_from([*INTS, 70_000])),
    "in.i8": (pa.int8(), st.sampled_from([0, 1, -1, 5, None])),
    "in.u8": (pa.uint8(), st.sampled_from([0, 1, 2, 200, None])),
    "in.u32": (pa.uint32(), st.sampled_from([0, 1, 2, 70_000, None])),
    "out.f32": (pa.float32(), st.sampled_from(FLOATS)),
    "out.f64": (pa.float64(), st.sampled_from(FLOATS)),
    "in.flag": (pa.bool_(), st.sampled_from([True, False, None])),
    "in.text": (pa.string(), st.sampled_from(TEXTS)),
    "out.score": (
        pa.list_(pa.float32()),
        st.one_of(st.none(), st.lists(st.sampled_from(FLOATS[:-1]), max_size=3)),
    ),
    "in.ids": (pa.list_(pa.int64()), st.one_of(st.none(), st.lists(st.sampled_from(INTS[:-1]), max_size=3))),
}
NUMBERS = [
    "in.i64",
    "in.i32",
    "in.i8",
    "in.u8",
    "in.u32",
    "out.f32",
    "out.f64",
]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(2, 5))  # see `per_row`
    columns = {
        name: pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), kind)
        for name, (kind, values) in FIELDS.items()
    }
    return pa.table(columns)


def column(name: str) -> str:
    return f'pl.col("{name}")'


literals = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "2",
        "0.5",
        "0.9",
        "0.1",
        "300",
        "70000",
        "2.5",
        "1000000.0",
    ]
)
leaves = st.one_of(
    st.sampled_from([column(name) for name in NUMBERS]),
    st.tuples(st.sampled_from(["out.score", "in.ids"]), st.integers(-2, 2)).map(
        lambda pair: f"{column(pair[0])}.list.get({pair[1]})"
    ),
    st.sampled_from([f"{column('out.score')}.list.sum()", f"{column('in.ids')}.list.sum()"]),
)


AGGREGATES = ["max()", "min()", "sum()", "median()", "count()", "first()", "last()", "null_count()", "n_unique()"]


def grown(numbers: st.SearchStrategy[str], aggregates: list[str]) -> st.SearchStrategy[str]:
    operands = st.one_of(numbers, literals.map(lambda text: f"pl.lit({text})"))
    return st.one_of(
        st.tuples(st.sampled_from(["out.f32", "out.f64"]), st.sampled_from(["//", "%"]), operands).map(
            lambda parts: f"({column(parts[0])} {parts[1]} {parts[2]})"
        ),
        st.tuples(numbers, st.sampled_from(["+", "-", "*", "/"]), operands).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        st.tuples(operands, st.sampled_from(["+", "-", "*", "/"]), numbers).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        st.tuples(
            numbers,
            st.sampled_from(
                [
                    "abs()",
                    "sign()",
                    "sqrt()",
                    "floor()",
                    "ceil()",
                    "round(1)",
                    "fill_null(2)",
                    "cast(pl.Float64)",
                    "cast(pl.Float32)",
                    "cast(pl.Int64,strict=False)",
                    "clip(0,2)",
                    "exp()",
                    "log1p()",
                    "log10()",
                    *aggregates,
                ]
            ),
        ).map(lambda parts: f"{parts[0]}.{parts[1]}"),
        st.tuples(leaves, operands if not aggregates else literals, numbers).map(
            lambda parts: f"pl.when({parts[0]} > {parts[1]}).then({parts[2]}).otherwise({parts[0]})"
        ),
        # Of an aggregate, coalesce of polars 0.18 gives its own value for every row.
        st.tuples(leaves, operands).map(lambda parts: f"pl.coalesce({parts[0]}, {parts[1]})"),
        st.tuples(numbers, st.sampled_from(["2", "0.5", "-1"])).map(lambda parts: f"({parts[0]} ** {parts[1]})"),
    )


numbers = st.recursive(leaves, lambda inner: grown(inner, AGGREGATES), max_leaves=4)
# polars 0.18 compares a column with an aggregate (or one row with another) as if NaN were in order; we never do.
per_row = st.recursive(leaves, lambda inner: grown(inner, []), max_leaves=4)
comparisons = st.tuples(numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.one_of(numbers, literals)).map(
    lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
)
predicates = st.one_of(
    comparisons,
    st.tuples(
        per_row,
        st.sampled_from(
            [
            "is_null()", "is_not_null()", "is_nan()", "is_not_nan()", "is_finite()", "is_infinite()",
            "is_in([1,2])", "is_in([0.5,1.0,None])", "is_between(0,2)", "eq_missing(1)", "ne_missing(1)",
            "eq_missing(None)",
        ]
        ),
    ).map(lambda parts: f"{parts[0]}.{parts[1]}"),
    st.sampled_from([
        column("in.flag"),
        f"({column('in.flag')} == True)",
        f"({column('in.text')} == 'a')",
        f"({column('in.text')} != 'abc')",
        f"({column('in.text')} > 'a')",
        f"({column('in.text')} == None)",
        f"{column('in.text')}.is_null()",
        f"{column('in.text')}.is_in(['a', 'abc'])",
        f"{column('in.text')}.str.contains('b.c')",
        f"{column('in.text')}.str.contains('b.c', literal=True)",
        f"{column('in.text')}.str.starts_with('a')",
        f"{column('in.text')}.str.ends_with('c')",
        f"({column('in.text')}.str.lengths() > 3)",
        f"({column('in.text')}.str.n_chars() > 3)",
        f"({column('in.text')}.str.to_lowercase() == 'abc')",
        f"({column('in.text')}.str.to_uppercase() == 'ABC')",
        f"{column('out.score')}.list.contains(1.0)",
        f"{column('out.score')}.list.contains(1)",
        f"{column('in.ids')}.list.contains(5)",
        "(pl.count() > 3)",
        f"({column('in.i64')} >= {column('in.i64')}.max())",
        f"({column('in.i32')} < {column('in.i32')}.median())",
    ]),
)  # fmt: skip
booleans = st.recursive(
    predicates,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&", "|", "^"]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        inner.map(lambda one: f"(~{one})"),
        inner.map(lambda one: f"{one}.any()"),
        inner.map(lambda one: f"{one}.all()"),
        # Of an aggregate, the horizontal ones of polars 0.18 forget nulls.
        st.tuples(predicates, predicates).map(lambda parts: f"pl.any_horizontal({parts[0]}, {parts[1]})"),
        st.tuples(predicates, predicates).map(lambda parts: f"pl.all_horizontal({parts[0]}, {parts[1]})"),
        st.tuples(inner, inner, inner).map(lambda parts: f"pl.when({parts[0]}).then({parts[1]}).otherwise({parts[2]})"),
    ),
    max_leaves=4,
)


def value_of(answer: Any) -> Any:
    return float(answer["float"]) if isinstance(answer, dict) else answer


def is_same(ours: Any, theirs: Any, tolerance: float) -> bool:
    if ours is None or theirs is None or isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs or (ours is not None and theirs is not None and bool(ours) == bool(theirs))
    if math.isnan(ours) or math.isnan(theirs):
        return math.isnan(ours) and math.isnan(theirs)
    return bool(ours == theirs) or math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)


def our_values(expression: str, table: pa.Table) -> list[Any]:
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    value = _Evaluation(columns, table.num_rows).evaluate(parse_named(json.loads(expression)).root).value
    return list(fill(value, table.num_rows).to_pylist())


def compare(polars: Polars, source: str, table: pa.Table) -> None:
    answer = polars.evaluate(source, table)
    assume("error" not in answer)

    ours = our_values(answer["json"], table)
    theirs = [value_of(value) for value in answer["values"]]

    tolerance = 1e-5 if "f32" in source or "Float32" in source or "score" in source else 1e-9
    for row, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        assert is_same(one, two, tolerance), (source, row, one, two, answer["type"], ours, theirs)


relaxed = settings(
    max_examples=int(os.environ.get("POTOROO_TEST_EXAMPLES", "120")),
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@relaxed
@given(source=booleans, table=tables())
def test_conditions_hold_where_polars_says_so(polars: Polars, source: str, table: pa.Table) -> None:
    compare(polars, source, table)


@relaxed
@given(source=numbers, table=tables())
def test_numbers_are_those_of_polars(polars: Polars, source: str, table: pa.Table) -> None:
    compare(polars, source, table)


def get(column: str, index: int = 0) -> dict[str, Any]:
    inputs = [{"Column": column}, {"Literal": {"Int32": index}}]
    return {"Function": {"input": inputs, "function": {"ListExpr": "Get"}, "options": {}}}


def over(column: str, limit: float, name: str) -> Any:
    right = {"Literal": {"Float64": limit}}
    return parse_named({"Alias": [{"BinaryExpr": {"left": get(column), "op": "Gt", "right": right}}, name]})


def batch(**columns: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def test_columns_of_every_dataset_can_be_checked() -> None:
    datasets = [
        ("in", batch(tensor=pa.array([[1.0], [2.0]]))),
        ("out", batch(y=pa.array([[3.0], [4.0]]))),
        ("out_chal-a", batch(y=pa.array([[5.0], [6.0]]))),
    ]
    checks = [over("in.tensor", 1.5, "a"), over("out.y", 9, "b"), over("out_chal-a.y", 5.5, "c")]

    found = anomalies(checks, datasets, 2)

    assert [(name, marks.tolist()) for name, marks in found] == [
        ("a", [False, True]),
        ("b", [False, False]),
        ("c", [False, True]),
    ]


def test_a_literal_of_64_bits_does_not_widen_a_float32_column() -> None:
    scores = pa.array([[0.9]], pa.list_(pa.float32()))
    equal = {"BinaryExpr": {"left": get("out.y"), "op": "Eq", "right": {"Literal": {"Float64": 0.9}}}}

    found = anomalies([parse_named({"Alias": [equal, "same"]})], [("out", batch(y=scores))], 1)

    assert found[0][1].tolist() == [True]


def test_a_null_condition_is_no_anomaly() -> None:
    found = anomalies([over("out.y", 0, "high")], [("out", batch(y=pa.array([[], [1.0]], pa.list_(pa.float64()))))], 2)

    assert found[0][1].tolist() == [False, True]


def test_a_check_of_a_column_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InferenceFailure, match=r"'high' looks at 'out.z'; the record has out.y"):
        anomalies([over("out.z", 0, "high")], [("out", batch(y=pa.array([[1.0]])))], 1)


def test_a_check_that_is_no_condition_is_refused() -> None:
    with pytest.raises(InferenceFailure, match="not true or false"):
        anomalies([parse_named({"Alias": [get("out.y"), "high"]})], [("out", batch(y=pa.array([[1.0]])))], 1)


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"Alias": [{"Explode": {"Column": "x"}}, "n"]}, "Explode is not known"),
        ({"Alias": [{"Column": "x"}, "count"]}, "cannot be named count"),
        ({"Alias": [{"Function": {"input": [{"Column": "x"}], "function": "Kurtosis"}}, "n"]}, "Kurtosis"),
        ({"Alias": [{"BinaryExpr": {"left": {"Column": "x"}, "op": "Matmul", "right": {"Column": "y"}}}, "n"]}, "Matm"),
        ({"Alias": [{"BinaryExpr": {"left": {"Column": "x"}}}, "n"]}, "BinaryExpr"),
        ({"Alias": [{"Literal": {"Object": 1}}, "n"]}, "literal of type Object"),
        ({"Alias": "x"}, "not as polars|needs a name|Alias"),
        ([], "not a polars"),
    ],
)
def test_what_cannot_be_computed_is_refused_when_it_is_read(tree: Any, reason: str) -> None:
    with pytest.raises(DefinitionError, match=reason):
        parse_named(tree)


def test_an_expression_without_alias_is_named_after_its_column() -> None:
    assert parse_named({"Column": "out.flag"}).name == "out.flag"
