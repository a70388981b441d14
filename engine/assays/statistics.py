"""The statistics of a column: count, extremes, mean, median, population standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.floating[Any]]

_SQUARES_FIT = (1e-140, 1e140)
"""Between these magnitudes squares of float64 neither overflow nor vanish."""


class NotNumbers(ValueError):
    """The column holds something that is not a number."""


class NoFiniteValues(ValueError):
    """The column holds no finite number, so nothing can be said about it."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Basic statistics; `count` includes infinities, the others are of the finite values alone."""

    count: int
    min: float
    max: float
    mean: float
    median: float
    std: float


def numbers(values: ArrayLike | Sequence[float | None]) -> Numbers:
    """Return `values` as a flat float array without NaN; None counts as NaN.

    float32 stays float32 and every small integer is exact; wide integers become float64 as on the wire.
    Raises `NotNumbers` for text, dates and the like.
    """
    array: NDArray[Any] = np.asarray(cast("ArrayLike", values))
    if array.dtype == object:
        try:
            array = np.asarray([np.nan if value is None else value for value in array.ravel()], dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as exc:
            raise NotNumbers("The column holds values that are not numbers.") from exc
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiub":
        raise NotNumbers(f"The column holds {array.dtype}, not numbers.")
    array = array.ravel()
    floats: Numbers
    if (kind == "f" and size <= 4) or (kind in "iub" and size <= 2):
        floats = array.astype(np.float32, copy=False)
    else:
        floats = array.astype(np.float64, copy=False)
    missing = np.isnan(floats)
    return floats[~missing] if missing.any() else floats


def describe(values: Numbers, *, is_sorted: bool = False) -> Statistics:
    """Return the statistics of `values`, a result of `numbers`.

    Raises `NoFiniteValues` where there are none. Magnitudes near the limits of float64 are scaled first, so that no
    finite input overflows.
    """
    count = len(values)
    finite = values
    if count and not (np.isfinite(values[0]) and np.isfinite(values[-1]) and np.isfinite(values).all()):
        finite = values[np.isfinite(values)]
    if not len(finite):
        raise NoFiniteValues("There is no finite value." if count else "There is no value.")
    low, high = float(finite.min()), float(finite.max())
    median = _median(finite, is_sorted=is_sorted)
    if low == high:
        return Statistics(count, low, high, low, low, 0.0)
    scale = max(abs(low), abs(high))
    if _SQUARES_FIT[0] < scale < _SQUARES_FIT[1]:
        mean, std = float(finite.mean(dtype=np.float64)), float(finite.std(dtype=np.float64))
    else:
        scaled = finite.astype(np.float64) / scale
        mean, std = float(scaled.mean()) * scale, float(scaled.std()) * scale
    return Statistics(count, low, high, min(max(mean, low), high), median, std)


def _median(finite: Numbers, *, is_sorted: bool) -> float:
    middle, odd = divmod(len(finite), 2)
    if odd:
        return float((finite if is_sorted else np.partition(finite, middle))[middle])
    around = finite if is_sorted else np.partition(finite, middle)
    low = float(around[middle - 1] if is_sorted else around[:middle].max())  # cheaper than asking for both places
    high = float(around[middle])
    total = low + high
    return total / 2 if np.isfinite(total) else low / 2 + high / 2
