"""The functions, aggregates and arithmetic of polars 0.18 expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.contract import columns as cols
from engine.runtime.expression_casts import cast_to, null_count
from engine.runtime.expression_types import TYPES, Evaluated, Unknown, array_of, cast, fill, masked, supertype


def arithmetic(op: str, left: Any, right: Any, kind: pa.DataType) -> Any:
    """Compute `left op right` in the type where they meet."""
    if pa.types.is_boolean(kind):
        kind = pa.uint32()
    if not cols.is_number(kind):
        raise TypeError(f"{op} of {kind} is not known")
    if op == "TrueDivide" and not pa.types.is_floating(kind):
        kind = pa.float64()
    one, two = cast(left, kind), cast(right, kind)
    if op == "Plus":
        return pc.add(one, two)
    if op == "Minus":
        return pc.subtract(one, two)
    if op == "Multiply":
        return pc.multiply(one, two)
    return _elementwise(_DIVISIONS[op], one, two, kind)


def _true_divide(a: Any, b: Any) -> Any:
    return a / b if a.dtype.kind == "f" else np.trunc(a / b).astype(a.dtype)


def _floor_divide(a: Any, b: Any) -> Any:
    # In doubles whatever the type: that decides on which side of a whole number a float32 falls.
    return np.floor(a.astype("f8") / b.astype("f8")) if a.dtype.kind == "f" else np.floor_divide(a, b)


_DIVISIONS: dict[str, Callable[[Any, Any], Any]] = {
    "Divide": _true_divide,
    "TrueDivide": _true_divide,
    "FloorDivide": _floor_divide,
    "Modulus": np.fmod,
}


def _elementwise(function: Callable[[Any, Any], Any], left: Any, right: Any, kind: pa.DataType) -> Any:
    """Apply a numpy function to two operands; null where either is null, or where a whole number is divided by zero."""
    is_scalar = isinstance(left, pa.Scalar) and isinstance(right, pa.Scalar)
    one, known_one = masked(left)
    two, known_two = masked(right)
    known = known_one & known_two
    if two.dtype.kind in "iu":
        known &= two != 0
        two = np.where(two == 0, 1, two)
    with np.errstate(all="ignore"):
        values = np.asarray(function(one, two)).astype(cols.NUMPY_TYPES[kind])
    return array_of(values, np.broadcast_to(known, values.shape), is_scalar=is_scalar)


def _as_float(value: Any) -> Any:
    return value if pa.types.is_floating(value.type) else cast(value, pa.float64())


def _numpy(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a numpy function of one operand, in the operand's own type."""
    values, known = masked(value)
    with np.errstate(all="ignore"):
        result = np.asarray(function(values)).astype(values.dtype)
    return array_of(result, known, is_scalar=isinstance(value, pa.Scalar))


def _floats_only(value: Any, function: Callable[[Any], Any]) -> Any:
    return _numpy(value, function) if pa.types.is_floating(value.type) else value


def _of_floats(kernel: Any, otherwise: bool) -> Callable[[Any], Any]:
    """Return a test of floats; every other number, even a null one, has the same answer."""

    def test(value: Any) -> Any:
        if pa.types.is_floating(value.type):
            return kernel(value)
        if not cols.is_number(value.type):
            raise TypeError(f"a test of floats on {value.type}")
        if isinstance(value, pa.Scalar):
            return pa.scalar(otherwise)
        return cols.numeric_array(np.full(len(value), otherwise))

    return test


def _is_not_nan(value: Any) -> Any:
    return pc.fill_null(pc.invert(pc.is_nan(value)), fill_value=True)  # polars 0.18 says so of nulls


def _is_in(value: Any, choices: Any) -> Any:
    supertype(value.type, choices.type)  # texts and numbers do not mix
    # polars 0.18 gives the choices the column's type, so that 0.1 is found among float32 numbers.
    options = cast_to(choices, value.type, is_strict=False)
    return pc.is_in(value, value_set=options, skip_nulls=False)


def _get(lists: Any, index: Any) -> Any:
    """Return one element per list, null where a list is too short; a negative index counts from the end."""
    if not cols.is_list(lists.type):
        raise TypeError(f"list.get of {lists.type}, which is no list")
    values, offsets = cols.list_parts(lists)
    lengths = np.diff(offsets)
    known = cols.validity(lists)
    if isinstance(index, pa.Scalar):
        wanted = np.full(len(lists), index.as_py() if index.is_valid else 0, "i8")
        inside = np.full(len(lists), index.is_valid)
    else:
        wanted, inside = masked(cast(index, pa.int64()))
    wanted = np.where(wanted < 0, wanted + lengths, wanted)
    inside = inside & (wanted >= 0) & (wanted < lengths)
    if known is not None:
        inside &= known
    positions = array_of(np.where(inside, offsets[:-1] + wanted, 0).astype("i8"), inside)
    return values.take(positions)


def _list_sum(lists: Any) -> Any:
    if not cols.is_list(lists.type):
        raise TypeError(f"list.sum of {lists.type}, which is no list")
    values, offsets = cols.list_parts(lists)
    kind = values.type
    if pa.types.is_integer(kind) and kind.bit_width < 32:
        kind = pa.int64()
    filled, known = masked(cast(values, kind))
    clean = np.where(known, filled, 0).astype(filled.dtype)
    with np.errstate(all="ignore"):
        sums = [clean[start:stop].sum() for start, stop in pairwise(offsets.tolist())]
    valid = cols.validity(lists)
    array = np.array(sums, clean.dtype)
    return array_of(array, np.ones(len(array), np.bool_) if valid is None else valid)


def _list_contains(lists: Any, value: Any) -> Any:
    if not cols.is_list(lists.type):
        raise TypeError(f"list.contains of {lists.type}, which is no list")
    values, offsets = cols.list_parts(lists)
    kind = supertype(values.type, value.type)
    if isinstance(value, pa.Scalar):
        wanted = cast(value, kind)
    else:
        wanted = cast(value, kind).take(cols.numeric_array(np.repeat(np.arange(len(lists)), np.diff(offsets))))
    hits = cols.booleans(pc.fill_null(pc.equal(cast(values, kind), wanted), fill_value=False))
    before = np.concatenate(([0], np.cumsum(hits)))
    found = before[offsets[1:]] > before[offsets[:-1]]
    valid = cols.validity(lists)
    return cols.numeric_array(found if valid is None else found & valid)


def _text(value: Any) -> Any:
    if not cols.is_string(value.type):
        raise TypeError(f"a function of texts on {value.type}")
    return value


def _pattern(value: Any) -> str:
    if not isinstance(value, pa.Scalar) or not isinstance(value.as_py(), str):
        raise Unknown("takes its pattern from a column; only a text written into the expression will do")
    return str(value.as_py())


def _contains(value: Any, pattern: Any, parameters: Any) -> Any:
    match = pc.match_substring if (parameters or {}).get("literal") else pc.match_substring_regex
    return match(_text(value), _pattern(pattern))


def _power(base: Any, exponent: Any) -> Any:
    one = _as_float(base)
    return _elementwise(np.power, one, cast(exponent, one.type), one.type)


def _round(value: Any, parameters: Any) -> Any:
    decimals = int((parameters or {}).get("decimals", 0))

    def away_from_zero(values: Any) -> Any:
        scale = values.dtype.type(10.0**decimals)
        scaled = values * scale
        whole = np.trunc(scaled)
        return (whole + np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), 0).astype(values.dtype)) / scale

    return _floats_only(value, away_from_zero)


def _sign(value: Any) -> Any:
    values, known = masked(value)
    known = known & ~np.isnan(values) if values.dtype.kind == "f" else known
    with np.errstate(all="ignore"):
        signs = np.where(known, np.sign(values), 0).astype("i8")
    return array_of(signs, known, is_scalar=isinstance(value, pa.Scalar))


def _log(value: Any, parameters: Any) -> Any:
    base = math.log(float((parameters or {}).get("base", math.e)))
    return _numpy(_as_float(value), lambda values: np.log(values) / values.dtype.type(base))


def _clip(value: Any, parameters: Any) -> Any:
    ((_, low),) = parameters["min"].items()
    ((_, high),) = parameters["max"].items()
    return _numpy(value, lambda values: np.clip(values, values.dtype.type(low), values.dtype.type(high)))


def _fill_null(value: Any, other: Any) -> Any:
    return _coalesce([value, other])


def _coalesce(values: Sequence[Any]) -> Any:
    kind = values[0].type
    for value in values[1:]:
        kind = supertype(kind, value.type)
    return pc.coalesce(*(cast(value, kind) for value in values))


def _any(value: Any, parameters: Any) -> Any:
    return pc.any(fill(value, 1), skip_nulls=_drops_nulls(parameters), min_count=0)


def _all(value: Any, parameters: Any) -> Any:
    # Where nulls are "dropped", polars 0.18 counts them as false.
    rows = fill(value, 1)
    counted = pc.fill_null(rows, fill_value=False) if _drops_nulls(parameters) else rows
    return pc.all(counted, skip_nulls=False, min_count=0)


def _drops_nulls(parameters: Any) -> bool:
    return bool((parameters or {}).get("drop_nulls", True))


def _horizontal(kernel: Any, values: Sequence[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = kernel(result, value)
    return result


_SIMPLE: dict[tuple[str, ...], Callable[..., Any]] = {
    ("Boolean", "IsNull"): pc.is_null,
    ("Boolean", "IsNotNull"): pc.is_valid,
    ("Boolean", "IsNan"): _of_floats(pc.is_nan, otherwise=False),
    ("Boolean", "IsNotNan"): _of_floats(_is_not_nan, otherwise=True),
    ("Boolean", "IsFinite"): _of_floats(pc.is_finite, otherwise=True),
    ("Boolean", "IsInfinite"): _of_floats(pc.is_inf, otherwise=False),
    ("Boolean", "IsNot"): pc.invert,
    ("Boolean", "IsIn"): _is_in,
    ("ListExpr", "Get"): _get,
    ("ListExpr", "Sum"): _list_sum,
    ("ListExpr", "Contains"): _list_contains,
    ("StringExpr", "StartsWith"): lambda value, start: pc.starts_with(_text(value), _pattern(start)),
    ("StringExpr", "EndsWith"): lambda value, end: pc.ends_with(_text(value), _pattern(end)),
    ("StringExpr", "Length"): lambda value: cast(pc.binary_length(_text(value)), pa.uint32()),
    ("StringExpr", "NChars"): lambda value: cast(pc.utf8_length(_text(value)), pa.uint32()),
    ("StringExpr", "Lowercase"): lambda value: pc.utf8_lower(_text(value)),
    ("StringExpr", "Uppercase"): lambda value: pc.utf8_upper(_text(value)),
    ("Pow", "Generic"): _power,
    ("Pow", "Sqrt"): lambda value: _numpy(_as_float(value), np.sqrt),
    ("Pow", "Cbrt"): lambda value: _numpy(_as_float(value), np.cbrt),
    ("Abs",): lambda value: _numpy(value, np.abs),
    ("Floor",): lambda value: _floats_only(value, np.floor),
    ("Ceil",): lambda value: _floats_only(value, np.ceil),
    ("Sign",): _sign,
    ("Exp",): lambda value: _numpy(_as_float(value), np.exp),
    ("Log1p",): lambda value: _numpy(_as_float(value), np.log1p),
    ("FillNull",): _fill_null,
    ("NullCount",): lambda value: pa.scalar(null_count(value), pa.uint32()),
}
_WITH_PARAMETERS: dict[tuple[str, ...], Callable[..., Any]] = {
    ("Boolean", "Any"): _any,
    ("Boolean", "All"): _all,
    ("StringExpr", "Contains"): _contains,
    ("Round",): _round,
    ("Log",): _log,
    ("Clip",): _clip,
}
_OF_MANY: dict[tuple[str, ...], Callable[[Sequence[Any]], Any]] = {
    ("Boolean", "AnyHorizontal"): lambda values: _horizontal(pc.or_kleene, values),
    ("Boolean", "AllHorizontal"): lambda values: _horizontal(pc.and_kleene, values),
    ("Coalesce",): _coalesce,
}


def call(name: tuple[str, ...], inputs: Sequence[Evaluated], parameters: Any) -> Any:
    """Compute a function of its inputs."""
    values = [entry.value for entry in inputs]
    if name in _OF_MANY:
        return _OF_MANY[name](values)
    if name in _WITH_PARAMETERS:
        return _WITH_PARAMETERS[name](*values, parameters)
    return _SIMPLE[name](*values)


def aggregate(name: str, values: pa.Array, parameters: Any) -> pa.Scalar:
    """Compute one value of all rows."""
    if name == "Count":
        return pa.scalar(len(values), pa.uint32())
    if name in ("First", "Last"):
        return values[0 if name == "First" else -1] if len(values) else pa.scalar(None, values.type)
    if name == "NUnique":
        return cast(pc.count_distinct(values, mode="all"), pa.uint32())
    if pa.types.is_boolean(values.type) and name in ("Min", "Max"):
        return getattr(pc, name.lower())(values)
    kind = values.type
    if pa.types.is_boolean(kind):
        kind = pa.uint32()
    numbers = cast(values, kind)
    if name == "Sum":
        return _sum(numbers)
    known = numbers.drop_null()
    plain = cols.numbers(known)
    result_type = kind if kind == pa.float32() or name in ("Min", "Max") else pa.float64()
    if not len(plain):
        return pa.scalar(None, result_type)
    with np.errstate(all="ignore"):
        return (
            pa.scalar(_AGGREGATES[name](plain, parameters), TYPES["Float64"]).cast(result_type, safe=False)
            if (pa.types.is_floating(result_type))
            else pa.scalar(int(_AGGREGATES[name](plain, parameters)), result_type)
        )


def _sum(numbers: pa.Array) -> pa.Scalar:
    kind = numbers.type
    if pa.types.is_integer(kind) and kind.bit_width < 32:
        kind = pa.int64()
    values, known = masked(cast(numbers, kind))
    if not len(values):
        return pa.scalar(0, kind)
    with np.errstate(all="ignore"):
        total = np.where(known, values, 0).astype(values.dtype).sum(dtype=values.dtype).item()
    return pa.scalar(total, kind)


def _extreme(fold: Any) -> Callable[[Any, Any], Any]:
    def extreme(values: Any, propagate_nans: Any) -> Any:
        if values.dtype.kind == "f" and not propagate_nans:
            kept = values[~np.isnan(values)]
            return fold(kept) if len(kept) else values[0]
        return fold(values)

    return extreme


def _median(values: Any, _: Any) -> Any:
    """Return the middle of the values in order, NaN counted as the largest."""
    ordered = np.sort(values.astype("f8"))
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


_AGGREGATES: dict[str, Callable[[Any, Any], Any]] = {
    "Min": _extreme(np.min),
    "Max": _extreme(np.max),
    "Mean": lambda values, _: values.mean(dtype="f8"),
    "Median": _median,
    "Std": lambda values, ddof: values.astype("f8").std(ddof=ddof) if len(values) > ddof else 0.0,
    "Var": lambda values, ddof: values.astype("f8").var(ddof=ddof) if len(values) > ddof else 0.0,
}
