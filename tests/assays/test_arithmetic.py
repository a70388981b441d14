"""What holds for every column, not only for the recorded ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.assays import (
    Aggregation,
    BadSpec,
    BinMode,
    Bins,
    Generation,
    Metric,
    NoFiniteValues,
    NotNumbers,
    Status,
    Summarizer,
    describe,
    numbers,
    score,
    status_of,
    summarize,
    summarize_window,
)
from engine.assays.bins import scientific, window_names


def columns(min_size: int = 1):
    wide = st.floats(allow_nan=False, allow_infinity=False)
    narrow = st.floats(allow_nan=False, allow_infinity=False, width=32)
    few = st.sampled_from([0.0, -1.5, 2.0, 7.25])
    return st.one_of(
        hnp.arrays(np.float64, st.integers(min_size, 60), elements=wide),
        hnp.arrays(np.float32, st.integers(min_size, 60), elements=narrow),
        hnp.arrays(np.float32, st.integers(min_size, 60), elements=few),
        hnp.arrays(np.int64, st.integers(min_size, 60)),
        hnp.arrays(np.uint8, st.integers(min_size, 60)),
    ).map(numbers)


@st.composite
def specs(draw):
    generation = draw(st.sampled_from(Generation))
    modes = set(BinMode) - ({BinMode.QUANTILE_WITH_OUTLIERS} if generation is Generation.V1 else set())
    mode = draw(st.sampled_from(sorted(modes)))
    num_bins = draw(st.integers(1, 12))
    provided: tuple[float, ...] = ()
    if mode is BinMode.PROVIDED:
        size = num_bins + draw(st.integers(0, 1))
        floats = st.floats(-1e6, 1e6) | st.floats(allow_nan=False, allow_infinity=False)
        provided = tuple(sorted(draw(st.lists(floats, min_size=size, max_size=size))))
    spec = Summarizer(mode, num_bins, provided, generation=generation, metric=draw(st.sampled_from(Metric)))
    if draw(st.booleans()) and spec.bin_count:
        weights = draw(st.lists(st.floats(0, 100), min_size=spec.bin_count, max_size=spec.bin_count))
        spec = spec.with_weights([w + 0.01 for w in weights])
    return spec


@given(columns(), specs())
def test_densities_add_up_to_one(values, spec):
    summary = summarize(values, spec)

    assert len(summary.aggregated) == len(summary.bins) == spec.bin_count
    assert spec.bin_count == 0 or math.isclose(sum(summary.aggregated), 1)
    assert all(0 <= share <= 1 for share in summary.aggregated)


@given(columns(), columns(), specs())
def test_a_score_is_never_below_zero_and_always_finite(baseline, window, spec):
    base = summarize(baseline, spec)

    result = score(base.aggregated, summarize_window(window, base.bins, spec).aggregated, spec)

    assert 0 <= result.score < math.inf
    assert all(0 <= each < math.inf for each in result.scores)
    assert (result.bin_index is not None) == (spec.metric is Metric.MAX_DIFF and spec.bin_count > 0)


@given(columns(), columns(), st.sampled_from(Aggregation), st.sampled_from(Metric), st.sampled_from(Generation))
def test_without_bins_any_two_columns_score_zero(baseline, window, aggregation, metric, generation):
    spec = Summarizer(BinMode.NONE, aggregation=aggregation, metric=metric, generation=generation)
    base = summarize(baseline, spec)

    result = score(base.aggregated, summarize_window(window, base.bins, spec).aggregated, spec)

    assert result.score == 0
    assert len(result.scores) == (0 if generation is Generation.V1 else 1)


@given(columns(), specs(), st.sampled_from(Aggregation))
def test_equal_data_score_zero(values, spec, aggregation):
    spec = Summarizer(
        spec.bin_mode, spec.num_bins, spec.provided, None, aggregation, spec.metric, generation=spec.generation
    )
    base = summarize(values, spec)

    result = score(base.aggregated, summarize_window(values, base.bins, spec).aggregated, spec)

    assert result.score == 0


@given(columns(), specs(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(values, spec, random):
    shuffled = values.copy()
    random.shuffle(shuffled)
    base, again = summarize(values, spec), summarize(shuffled, spec)

    assert base.bins == again.bins
    assert base.aggregated == again.aggregated
    assert summarize_window(values, base.bins, spec).aggregated == base.aggregated


@given(columns(), columns(), specs())
def test_counting_by_comparison_is_counting_one_by_one(baseline, window, spec):
    bins = summarize(baseline, spec).bins
    expected = [0] * len(bins)
    for value in window.tolist():
        place = sum(edge < value for edge in bins.edges)
        if bins.has_left_outlier and value == bins.edges[0]:
            place = 1
        if expected:
            expected[place] += 1

    assert bins.count(window) == expected


@given(columns(), st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=49, max_size=90), st.booleans())
def test_many_edges_count_as_few_do(values, edges, has_left_outlier):
    edges = sorted(edges)
    bins = Bins(tuple(edges), tuple(map(str, range(len(edges) + 1))), has_left_outlier)
    halves = [
        Bins(tuple(edges[:40]), tuple(map(str, range(41))), has_left_outlier),
        Bins(tuple(edges[40:]), ("",), False),
    ]

    assert bins.count(values)[:40] == halves[0].count(values)[:40]
    assert sum(bins.count(values)) == len(values)
    assert bins.count(values)[41:] == halves[1].count(values)[1:]


@given(columns())
def test_statistics_are_finite_and_in_order(values):
    stats = describe(values)

    assert stats.count == len(values)
    assert stats.min <= stats.mean <= stats.max
    assert stats.min <= stats.median <= stats.max
    assert 0 <= stats.std < math.inf


@given(hnp.arrays(np.float64, st.integers(2, 200), elements=st.floats(-1e6, 1e6)))
def test_statistics_are_those_of_numpy(values):
    stats = describe(numbers(values))

    assert stats.mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-9)
    assert stats.median == np.median(values)
    assert stats.std == pytest.approx(np.std(values), rel=1e-9, abs=1e-9)


@given(hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e6, 1e6)), st.integers(1, 20))
def test_quantiles_of_the_second_generation_are_numpys(values, num_bins):
    edges = summarize(numbers(values), Summarizer(num_bins=num_bins, generation=Generation.V2)).bins.edges

    expected = [np.quantile(values, k / num_bins) for k in range(1, num_bins)]
    assert list(edges) == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("generation", Generation)
@pytest.mark.parametrize("mode", [BinMode.QUANTILE, BinMode.EQUAL])
def test_a_constant_column_lies_in_one_bin(generation, mode):
    spec = Summarizer(mode, 5, generation=generation)

    summary = summarize(numbers([3.25] * 7), spec)

    assert sorted(summary.aggregated)[-2:] == [0.0, 1.0]
    assert summary.aggregated[0] == (1.0 if len(summary.bins) == 5 else 0.0)
    assert summary.statistics.std == 0


def test_one_row_is_enough():
    summary = summarize(numbers([5]), Summarizer())

    assert summary.bins.edges == (5.0,) * 6
    assert summary.statistics == describe(numbers([5]))
    assert summary.aggregated == (0, 1, 0, 0, 0, 0, 0)


def test_missing_values_do_not_count():
    assert numbers([1.0, None, float("nan"), 2.0]).tolist() == [1.0, 2.0]
    assert numbers(np.array([np.nan, 1], dtype=np.float32)).dtype == np.float32


def test_infinities_are_outliers_but_not_part_of_the_statistics():
    base = summarize(numbers([1.0, 2.0, 3.0, 4.0, 5.0]), Summarizer())

    window = summarize_window(numbers([3.0, float("inf"), float("-inf")]), base.bins, Summarizer())

    assert window.statistics == describe(numbers([3.0])).__class__(3, 3.0, 3.0, 3.0, 3.0, 0.0)
    assert window.aggregated[0] == window.aggregated[-1] == 1 / 3


@pytest.mark.parametrize("values", [[], [None, float("nan")], [float("inf")]])
def test_nothing_finite_says_so(values):
    with pytest.raises(NoFiniteValues):
        summarize(numbers(values), Summarizer())
    with pytest.raises(NoFiniteValues):
        describe(numbers(values))


@pytest.mark.parametrize("values", [["a", "b"], [object()], [b"x"], np.array(["2023-01-01"], dtype="datetime64[s]")])
def test_text_and_dates_are_not_numbers(values):
    with pytest.raises(NotNumbers):
        numbers(values)


def test_values_between_two_floats_are_compared_exactly():
    edge = 0.1  # lies between two float32 values
    just_above = np.float32(0.1)
    bins = Bins((edge,), ("low", "high"), has_left_outlier=False)

    assert float(just_above) > edge
    assert bins.count(numbers(np.array([just_above]))) == [0, 1]
    assert bins.count(numbers(np.array([np.nextafter(just_above, np.float32(0))]))) == [1, 0]


def test_edges_are_compared_as_places():
    spec = Summarizer(aggregation=Aggregation.EDGES, num_bins=2)
    base = summarize(numbers([0.0, 1.0, 2.0]), spec)

    window = summarize_window(numbers([10.0, 11.0, 12.0]), base.bins, spec)

    assert base.aggregated == (0.0, 1.0, 2.0, 2.0)
    assert window.aggregated == (10.0, 11.0, 12.0, 12.0)
    assert score(base.aggregated, window.aggregated, spec).score == 40


@pytest.mark.parametrize(
    ("number", "text"),
    [(12.6, "1.26e1"), (236238.66, "2.36e5"), (-0.53, "-5.30e-1"), (0, "0.00e0"), (1e-300, "1.00e-300")],
)
def test_names_of_edges_have_the_shortest_exponent(number, text):
    assert scientific(number) == text


def test_labels_of_the_second_generation():
    values = numbers([236238.66, 500000.0, 2000000.0])

    def labels(mode, n, provided=()):
        return summarize(values, Summarizer(mode, n, provided, generation=Generation.V2)).bins.labels

    assert labels(BinMode.QUANTILE, 5) == ("< 20%", "20% - 40%", "40% - 60%", "60% - 80%", "> 80%")
    assert labels(BinMode.QUANTILE, 1) == ("<= 100%",)
    assert labels(BinMode.EQUAL, 2) == ("< 2.36e5", "2.36e5 - 1.12e6", "1.12e6 - 2.00e6", "> 2.00e6")
    assert labels(BinMode.PROVIDED, 2, (3e5, 6e5)) == ("< 3.00e5", "3.00e5 - 6.00e5", "> 6.00e5")
    assert labels(BinMode.QUANTILE_WITH_OUTLIERS, 2) == ("< 2.36e5", "0% - 50%", "50% - 100%", "> 2.00e6")


def test_a_window_names_its_bins_after_their_edges():
    bins = summarize(numbers([12.0, 12.5, 13.0]), Summarizer(num_bins=2)).bins

    assert window_names(bins) == ("left_outlier", "e_1.25e1", "e_1.30e1", "right_outlier")


def test_weights_for_outlier_bins_that_do_not_exist_lose_their_ends():
    spec = Summarizer(weights=(9, 1, 1, 1, 1, 1, 9), generation=Generation.V2)

    assert spec.bin_weights == (1,) * 5


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_bins": 0},
        {"num_bins": 100_000},
        {"weights": (1.0,)},
        {"weights": (0.0,) * 7},
        {"weights": (-1.0,) + (1.0,) * 6},
        {"weights": (math.inf,) + (1.0,) * 6},
        {"bin_mode": BinMode.PROVIDED},
        {"bin_mode": BinMode.PROVIDED, "provided": (1.0, 2.0)},
        {"bin_mode": BinMode.PROVIDED, "num_bins": 2, "provided": (2.0, 1.0)},
        {"bin_mode": BinMode.PROVIDED, "num_bins": 2, "provided": (2.0, math.nan)},
        {"provided": (1.0,)},
        {"bin_mode": BinMode.QUANTILE_WITH_OUTLIERS},
    ],
)
def test_contradictions_are_refused(kwargs):
    with pytest.raises(BadSpec):
        Summarizer(**kwargs)


def test_reaching_a_threshold_passes_it():
    assert status_of(0.25, 0.1, 0.25) is Status.ALERT
    assert status_of(0.1, 0.1, 0.25) is Status.WARNING
    assert status_of(0.0, None, 0.25) is Status.OK
    assert status_of(9.0, None, None) is Status.OK


@settings(max_examples=25)
@given(st.integers(1, 200_000))
def test_chunks_do_not_lose_a_value(size):
    values = numbers(np.arange(size, dtype=np.float64))

    assert sum(Bins((10.0, 70_000.0), ("a", "b", "c"), True).count(values)) == size
