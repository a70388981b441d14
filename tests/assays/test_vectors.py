"""The published numbers, to the last digit."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from engine.assays import Aggregation, BinMode, Generation, Metric, Summarizer, numbers, score, summarize
from engine.assays.summary import shares

B_BASE, B_WINDOW = (0, 36, 37, 36, 37, 36, 0), (0, 34, 38, 33, 38, 38, 0)
DECILES = (0, 18, 18, 19, 18, 18, 18, 18, 19, 18, 18, 0), (0, 17, 8, 25, 9, 21, 16, 33, 25, 13, 14, 0)
PSI5 = Summarizer()


def compare(baseline, window, spec=PSI5):
    return score(shares(baseline), shares(window), spec)


def cumulative(counts):
    return tuple(accumulate(shares(counts)))


def test_the_guides_example_holds_bit_for_bit():
    result = compare((0, 36, 36, 37, 36, 36, 0), (0, 31, 32, 43, 36, 36, 4))

    assert result.scores == (
        0,
        0.0044288126945783235,
        0.00284446741288289,
        0.004610114809454446,
        6.021116179797982e-06,
        6.021116179797982e-06,
        0.02513774491992636,
    )
    assert result.score == 0.037033182069201614
    assert result.bin_index is None


@pytest.mark.parametrize(
    ("baseline", "window", "expected"),
    [
        (B_BASE, B_WINDOW, 0.0029273068646199748),
        (B_BASE, (1, 19, 30, 29, 62, 41, 0), 0.15060511096978788),
        (B_BASE, (0, 0, 1, 5, 14, 150, 11), 2.9220486095961196),
        (B_BASE, (0, 0, 0, 0, 0, 0, 10), 8.868575909704893),
        (*DECILES, 0.16591076620684958),
        ((0, 44, 90, 40, 7, 1, 0), (0, 44, 86, 39, 11, 1, 0), 0.011074287819376092),
        ((0, 0, 113, 65, 4, 0, 0), (0, 0, 107, 64, 10, 0, 0), 0.0321620386600679),
    ],
)
def test_recorded_psi_scores_hold_bit_for_bit(baseline, window, expected):
    assert compare(baseline, window).score == expected


def test_an_empty_bin_counts_as_five_thousandths_and_a_nearly_empty_one_as_it_is():
    result = compare(B_BASE, (1, 19, 30, 29, 62, 41, 0))

    assert result.scores[0] == 4.6637149189075455e-05
    assert result.scores[-1] == 0


def test_weights_scale_each_bin_by_its_share_of_all_weights():
    spec = Summarizer(num_bins=10, weights=(0,) * 6 + (1,) * 6)

    result = compare(*DECILES, spec)

    assert result.score == 0.012600694309416988
    assert result.scores[6] == 0.00019654033061397393


def test_sum_of_differences_is_halved():
    result = compare(B_BASE, B_WINDOW, Summarizer(metric=Metric.SUM_DIFF))

    assert result.scores[1:6] == pytest.approx(
        (0.009956893934794486, 0.006648048084512165, 0.01548175581324751, 0.006648048084512165, 0.012142553579017668),
        rel=1e-13,
    )
    assert result.score == pytest.approx(0.025438649748041997, rel=1e-13)


def test_the_largest_difference_names_its_bin():
    result = compare(B_BASE, B_WINDOW, Summarizer(metric=Metric.MAX_DIFF))

    assert result.score == pytest.approx(0.01548175581324751, rel=1e-13)
    assert result.bin_index == 3


def test_cumulative_psi_adds_plain_differences():
    spec = Summarizer(aggregation=Aggregation.CUMULATIVE)

    result = score(cumulative(B_BASE), cumulative(B_WINDOW), spec)

    expected = (0, 0.009956893934794486, 0.0033088458502823492, 0.01879060166352986, 0.012142553579017725, 0, 0)
    assert result.scores == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert result.score == pytest.approx(0.04419889502762442, rel=1e-12)


@pytest.mark.parametrize(
    ("baseline", "window", "expected"),
    [
        ((0.2, 0.21, 0.19, 0.2, 0.2), shares((86, 100, 96, 99, 121)), 0.0127164),
        ((0.222, 0.182, 0.202, 0.194, 0.2), shares((95, 107, 101, 97, 102)), 0.0102068),
        ((0.2, 0.2, 0.2, 0.208, 0.192), (0.0, 0.0, 0.0, 0.0, 1.0), 4.248208819431017),
        ((0.2,) * 5, (1.0, 0.0, 0.0, 0.0, 0.0), 4.1648763041561505),
    ],
)
def test_recorded_scores_of_the_second_generation_hold(baseline, window, expected):
    result = score(baseline, window, Summarizer(generation=Generation.V2))

    assert result.score == pytest.approx(expected, rel=1e-5 if expected < 1 else 1e-14)


def test_a_window_in_one_bin_scores_each_of_the_others_alike():
    result = score((0.2,) * 5, (1.0, 0.0, 0.0, 0.0, 0.0), Summarizer(generation=Generation.V2))

    assert result.scores == pytest.approx((1.2875503299472804, *[0.7193314935522176] * 4), rel=1e-14)


@pytest.mark.parametrize(
    ("num_bins", "expected"), [(5, (36, 37, 36, 37, 36)), (10, (18, 18, 19, 18, 18, 18, 18, 19, 18, 18))]
)
def test_quantiles_of_182_values_are_samples_at_the_nearest_rank(num_bins, expected):
    values = numbers(np.random.default_rng(1).normal(12.9, 0.43, 182).astype(np.float32))

    summary = summarize(values, Summarizer(num_bins=num_bins))

    assert tuple(round(share * 182) for share in summary.aggregated) == (0, *expected, 0)
    assert set(summary.bins.edges) <= set(values.tolist())


def test_quantiles_of_181_values_are_those_of_the_guide():
    summary = summarize(numbers(np.random.default_rng(2).normal(size=181)), PSI5)

    assert [round(share * 181) for share in summary.aggregated] == [0, 36, 36, 37, 36, 36, 0]
    assert summary.bins.labels == ("left_outlier", "q_20", "q_40", "q_60", "q_80", "q_100", "right_outlier")


def test_given_edges_may_leave_out_the_first_which_is_then_the_minimum():
    values = numbers([11.5, 12.5, 13.5, 20.0])
    full = Summarizer(bin_mode=BinMode.PROVIDED, num_bins=2, provided=(11.0, 12.0, 13.0))
    short = Summarizer(bin_mode=BinMode.PROVIDED, num_bins=2, provided=(12.0, 13.0))

    assert summarize(values, full).bins.edges == (11.0, 12.0, 13.0)
    assert summarize(values, short).bins.edges == (11.5, 12.0, 13.0)
    assert summarize(values, full).bins.labels == ("left_outlier", "e_1.20e1", "e_1.30e1", "right_outlier")
