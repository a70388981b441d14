"""Running a plan over the log: baseline, windows, scores. Synchronous; call it in a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.assays.plan import Baseline, Given, Moving, Path, Period, Plan, Source, Vector
from app.assays.timeline import Rows, Scan, Timeline, load, to_ms
from engine.assays import (
    BadSpec,
    NoFiniteValues,
    Score,
    Status,
    Summary,
    Window,
    numbers,
    score,
    starts,
    status_of,
    summarize,
    summarize_window,
)
from engine.assays.statistics import Numbers


class NoBaseline(ValueError):
    """The baseline holds nothing to compare with; the message says why."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A path's window beside its baseline."""

    baseline: Summary
    window: Summary
    score: Score


@dataclass(frozen=True, slots=True)
class Analysis:
    """One window: by path what came out, or the reason why nothing did."""

    window: Window
    results: Mapping[str, Compared | str]
    records: int
    elapsed_ms: int
    baseline_start: datetime | None
    baseline_end: datetime | None

    @property
    def reason(self) -> str | None:
        """Return why no path could be compared, None if one could."""
        reasons = [r for r in self.results.values() if isinstance(r, str)]
        return reasons[0] if len(reasons) == len(self.results) else None

    def status(self, plan: Plan) -> Status:
        """Return the worst status of all paths under the plan's thresholds."""
        order = [Status.OK, Status.WARNING, Status.ALERT]
        worst = Status.OK
        for key, result in self.results.items():
            if isinstance(result, Compared):
                limits = plan.thresholds[key]
                worst = max(worst, status_of(result.score.score, limits.warning, limits.alert), key=order.index)
        return worst


def read_baseline(scan: Scan, plan: Plan) -> Given:
    """Return the plan's baseline as summaries; raises `NoBaseline` where it holds no numbers.

    A moving baseline has none of its own.
    """
    baseline = plan.baseline
    if isinstance(baseline, Given):
        return baseline
    if isinstance(baseline, Moving):
        raise NoBaseline("A baseline that moves with the window has no summary of its own.")
    if isinstance(baseline, Vector):
        values = numbers(baseline.values)
        return Given({path.key: _baseline_of(values, path, plan, "The vector") for path in plan.paths})
    rows = load(scan, baseline.source, plan.paths, to_ms(baseline.start), to_ms(baseline.end))
    what = f"The baseline from {baseline.start.isoformat()} to {baseline.end.isoformat()}"
    _check_rows(rows, baseline.source, what)
    summaries = {}
    for path in plan.paths:
        reason = rows.trouble(path.key, is_missing=False)
        if reason:
            raise NoBaseline(f"{what}: {reason}")
        values = numbers(rows.values[path.key])
        if not len(values) and (reason := rows.trouble(path.key, is_missing=True)):
            raise NoBaseline(f"{what}: {reason}")
        summaries[path.key] = _baseline_of(values, path, plan, what)
    return Given(summaries, baseline.start, baseline.end)


def analyse(
    scan: Scan, plan: Plan, first: datetime, step: timedelta, until: datetime, *, limit: int
) -> Iterator[Analysis]:
    """Yield an analysis for each whole window with records; the plan's baseline is read once.

    Raises `NoBaseline`, and `BadSpec` when the windows are more than `limit`.
    """
    plan = _settled(scan, plan)
    line = Timeline(scan, plan.source, plan.paths, until)
    behind = _behind(scan, plan, until)
    found, after = 0, None
    while True:
        for window in starts(first, step, plan.width, until, after=after):
            rows = line.between(window.start, window.end)
            if len(rows.times):
                found += 1
                if found > limit:
                    raise BadSpec(f"The run has more than {limit} windows; choose a shorter time or a longer interval.")
                yield _one(plan, window, rows, behind)
                continue
            following = line.next_time(window.end)
            if following is None:
                return
            if following - window.end > step:
                after = following
                break
        else:
            return


def analyse_windows(scan: Scan, plan: Plan, windows: list[Window]) -> Iterator[Analysis]:
    """Yield an analysis for each of `windows`, in order of time; empty ones have a reason and no results.

    The baseline must be settled: summaries, or moving.
    """
    if not windows:
        return
    line = Timeline(scan, plan.source, plan.paths, windows[-1].end)
    behind = _behind(scan, plan, windows[-1].end)
    for window in windows:
        yield _one(plan, window, line.between(window.start, window.end), behind)


def analyse_values(plan: Plan, values: Sequence[float | None], baseline: Given) -> dict[str, Compared | str]:
    """Compare raw values with the baseline of each path."""
    window = numbers(values)
    return {path.key: _compare(window, baseline.summaries.get(path.key), plan, path) for path in plan.paths}


def _settled(scan: Scan, plan: Plan) -> Plan:
    return plan if isinstance(plan.baseline, Moving) else plan.with_baseline(read_baseline(scan, plan))


def _behind(scan: Scan, plan: Plan, until: datetime) -> Timeline | None:
    return Timeline(scan, plan.baseline.source, plan.paths, until) if isinstance(plan.baseline, Moving) else None


def _one(plan: Plan, window: Window, rows: Rows, behind: Timeline | None) -> Analysis:
    began = time.perf_counter()
    results: dict[str, Compared | str] = {}
    start, end, past = _bounds(plan.baseline, window, behind)
    for path in plan.paths:
        key = path.key
        reason = rows.trouble(key, is_missing=False)
        if not len(rows.times):
            reason = _nothing(rows, plan.source)
        values = numbers(rows.values[key])
        if reason is None and not len(values):
            reason = rows.trouble(key, is_missing=True) or f"{key} is missing in all {len(rows.times)} records."
        if reason is not None:
            results[key] = reason
            continue
        try:
            base = _summary_of(plan, path, past)
        except NoBaseline as exc:
            results[key] = str(exc)
            continue
        results[key] = _compare(values, base, plan, path)
    elapsed_ms = round((time.perf_counter() - began) * 1000)
    return Analysis(window, results, len(rows.times), elapsed_ms, start, end)


def _bounds(
    baseline: Baseline, window: Window, behind: Timeline | None
) -> tuple[datetime | None, datetime | None, Rows | None]:
    if isinstance(baseline, Given | Period):
        return baseline.start, baseline.end, None
    if isinstance(baseline, Moving) and behind is not None:
        period = baseline.before(window)
        return period.start, period.end, behind.between(period.start, period.end)
    return None, None, None


def _summary_of(plan: Plan, path: Path, past: Rows | None) -> Summary | None:
    if isinstance(plan.baseline, Given):
        return plan.baseline.summaries.get(path.key)
    if past is None:
        return None
    _check_rows(past, plan.source, "The baseline before this window")
    return _baseline_of(numbers(past.values[path.key]), path, plan, "The baseline before this window")


def _compare(values: Numbers, base: Summary | None, plan: Plan, path: Path) -> Compared | str:
    if base is None:
        return f"The baseline has no summary of {path.key}."
    try:
        window = summarize_window(values, base.bins, plan.summarizer)
        return Compared(base, window, score(base.aggregated, window.aggregated, plan.summarizer))
    except (BadSpec, NoFiniteValues) as exc:
        return f"{path.key}: {exc}"


def _baseline_of(values: Numbers, path: Path, plan: Plan, what: str) -> Summary:
    try:
        return summarize(values, plan.summarizer)
    except NoFiniteValues as exc:
        raise NoBaseline(f"{what} holds no numbers for {path.key}.") from exc


def _check_rows(rows: Rows, source: Source, what: str) -> None:
    if not len(rows.times):
        raise NoBaseline(f"{what} is empty: {_nothing(rows, source)}")


def _nothing(rows: Rows, source: Source) -> str:
    if not rows.has_others:
        return "There are no records."
    wanted = [f"of model {source.model!r}"] if source.model is not None else []
    if source.locations:
        wanted.append(f"from {', '.join(sorted(source.locations))}")
    return f"There are no records {' '.join(wanted)}, only others."
