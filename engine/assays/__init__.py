"""Drift arithmetic: bins, statistics, scores and windows. Pure numpy, no I/O, no clock.

`Summarizer` says how a column is looked at, `summarize` makes a `Summary` of a baseline, `summarize_window` one of a
window in the baseline's bins, `score` compares the two. The two generations of the wire API bin differently; the
scores are the same arithmetic.
"""

from engine.assays.bins import Bins, bins_of
from engine.assays.scores import Score, Status, score, status_of
from engine.assays.spec import Aggregation, BadSpec, BinMode, Generation, Metric, Summarizer
from engine.assays.statistics import NoFiniteValues, NotNumbers, Statistics, describe, numbers
from engine.assays.summary import Summary, summarize, summarize_window
from engine.assays.windows import Window, last_start, starts

__all__ = [
    "Aggregation",
    "BadSpec",
    "BinMode",
    "Bins",
    "Generation",
    "Metric",
    "NoFiniteValues",
    "NotNumbers",
    "Score",
    "Statistics",
    "Status",
    "Summarizer",
    "Summary",
    "Window",
    "bins_of",
    "describe",
    "last_start",
    "numbers",
    "score",
    "starts",
    "status_of",
    "summarize",
    "summarize_window",
]
