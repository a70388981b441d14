"""Counters and histograms of one process, in Prometheus' text form.

A plain dict of numbers, because the fast paths count a whole batch at once and the processes of one replica add theirs
up: every series is a sum, so merging is addition.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

LATENCY_BOUNDS_NS = [int(base * 10**power) for power in range(4, 11) for base in (1, 2.5, 5)]
ROW_BOUNDS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536]

HELP: dict[str, tuple[str, str]] = {
    "latency_histogram_ns": ("histogram", "Time from the whole request to its reply, nanoseconds."),
    "tensor_throughput_batch_count": ("counter", "Rows answered."),
    "potoroo_engine_requests_total": ("counter", "Inference requests, by HTTP status."),
    "potoroo_engine_request_bytes_total": ("counter", "Bytes of inference request bodies."),
    "potoroo_engine_reply_bytes_total": ("counter", "Bytes of inference replies."),
    "potoroo_engine_batch_rows": ("histogram", "Rows of one run of a pipeline."),
    "potoroo_engine_batched_requests": ("histogram", "Requests answered by one run of a pipeline."),
    "potoroo_engine_fast_requests_total": ("counter", "Requests answered by a fast path."),
    "potoroo_engine_run_ns": ("histogram", "Time of one run of a pipeline's steps, nanoseconds."),
    "potoroo_engine_step_ns": (
        "histogram",
        "Time of one step (its number from 0 and its kind), nanoseconds; only of pipelines of several steps: "
        "the time of a lone step is `potoroo_engine_run_ns`.",
    ),
    "potoroo_engine_model_rows_total": ("counter", "Rows a model inferred on."),
    "potoroo_engine_model_ns": ("histogram", "Time of one run of a model, nanoseconds."),
    "potoroo_engine_queue_depth": ("gauge", "Requests waiting or running."),
    "potoroo_engine_connections": ("gauge", "Open client connections."),
    "potoroo_engine_refusals_total": ("counter", "Requests refused, by reason."),
    "potoroo_engine_log_rows_total": ("counter", "Rows handed to the inference log."),
    "potoroo_engine_log_dropped_rows_total": ("counter", "Rows answered whose record could not be kept."),
    "potoroo_engine_log_waiting_rows": ("gauge", "Rows that wait for a log store on another machine."),
    "potoroo_engine_log_rejected_rows_total": ("counter", "Rows that a log store on another machine refused for good."),
    "potoroo_engine_access_age_seconds": ("gauge", "Seconds since the access document was fetched."),
}


def labels(**pairs: str) -> str:
    """Return a label set as Prometheus writes it."""
    inner = ",".join(
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
        for name, value in pairs.items()
    )
    return f"{{{inner}}}"


class Histogram:
    """Counts per bucket; `observe` may count several equal values at once."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: list[int]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def observe(self, value: int, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def series(self, name: str, label_set: str) -> Iterable[tuple[tuple[str, str], float]]:
        """Yield what Prometheus keeps of it."""
        running = 0
        inner = label_set[1:-1]
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            running += count
            yield (f"{name}_bucket", f'{{{inner}{"," if inner else ""}le="{bound}"}}'), running
        yield (f"{name}_count", label_set), running
        yield (f"{name}_sum", label_set), self.total


class Counter:
    """One number that grows; whoever counts often keeps it and raises `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Metrics:
    """All series of this process."""

    def __init__(self) -> None:
        self._gauges: dict[tuple[str, str], float] = {}
        self._counters: dict[tuple[str, str], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def counter(self, name: str, label_set: str) -> Counter:
        """Return a counter, made on first use."""
        found = self._counters.get((name, label_set))
        if found is None:
            found = self._counters.setdefault((name, label_set), Counter())
        return found

    def add(self, name: str, label_set: str, amount: float = 1) -> None:
        """Raise a counter."""
        self.counter(name, label_set).value += amount

    def set(self, name: str, label_set: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name, label_set] = value

    def histogram(self, name: str, label_set: str, bounds: list[int] = LATENCY_BOUNDS_NS) -> Histogram:
        """Return a histogram, made on first use; keep it where it is used often."""
        return self._histograms.setdefault((name, label_set), Histogram(bounds))

    def snapshot(self) -> dict[tuple[str, str], float]:
        """Return all numbers as of now."""
        numbers = self._gauges | {key: counter.value for key, counter in list(self._counters.items())}
        for (name, label_set), histogram in list(self._histograms.items()):
            numbers.update(histogram.series(name, label_set))
        return numbers


def merge(snapshots: Iterable[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Add up the numbers of several processes."""
    total: dict[tuple[str, str], float] = {}
    for snapshot in snapshots:
        for key, value in snapshot.items():
            total[key] = total.get(key, 0) + value
    return total


def render(numbers: Mapping[tuple[str, str], float]) -> bytes:
    """Write numbers as Prometheus reads them."""
    families: dict[str, list[str]] = {}
    for (name, label_set), value in numbers.items():
        family = name
        for suffix in ("_bucket", "_count", "_sum"):
            if name.endswith(suffix) and name.removesuffix(suffix) in HELP:
                family = name.removesuffix(suffix)
        text = str(int(value)) if value == int(value) else repr(value)
        families.setdefault(family, []).append(f"{name}{label_set} {text}")
    lines = []
    for family, (kind, text) in HELP.items():
        if family in families:
            lines += [f"# HELP {family} {text}", f"# TYPE {family} {kind}", *families[family]]
    return ("\n".join(lines) + "\n").encode()
