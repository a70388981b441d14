"""Measure drift detection: `python -m bench.assays [--rows 10000000] [--peers FOLDER | --no-peers]`.

One window over a million logged rows, an interactive run of thirty windows over ten million, the clock with a thousand
assays an hour, and the same column given to evidently and nannyml, each in an environment of its own that is made at
the first run outside the checkout. Medians of the time on the clock and, behind them, of the processor's time alone: on
a machine that is shared with others the second says more. The aims stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from app.assays.analysis import Compared, analyse, analyse_windows, read_baseline
from app.assays.plan import Path as ValuePath
from app.assays.plan import Period, Plan, Source, Thresholds
from app.assays.timeline import scan_of
from bench.logs import records
from engine.assays import Summarizer, Window, numbers, score, summarize, summarize_window
from engine.assays.summary import shares
from engine.logs.maintain import Policy, maintain_topic
from engine.logs.writer import PartitionWriter

TOPIC = "workspace-1-pipeline-fraud-inference"
START = datetime(2023, 1, 1, tzinfo=UTC)
DAYS = 31
PEERS = {"evidently": ["evidently", "pandas<3"], "nannyml": ["nannyml", "pandas<3", "statsmodels"]}
PEER = """
import json, sys, time, warnings
import numpy as np, pandas as pd
warnings.simplefilter("ignore")
reference, current = (pd.DataFrame({"x": np.load(path)}) for path in sys.argv[2:4])
def median(work, times=5):
    work()
    clock, cpu = [], []
    for _ in range(times):
        start, used = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return sorted(clock)[times // 2], sorted(cpu)[times // 2]
found = {}
if sys.argv[1] == "evidently":
    from evidently import Report
    from evidently.legacy.calculations.stattests.psi import psi_stat_test
    from evidently.legacy.core import ColumnType
    from evidently.metrics import ValueDrift
    report = Report([ValueDrift(column="x", method="psi")])
    found["evidently, PSI report"] = median(lambda: report.run(current, reference).dict())
    bare = lambda: psi_stat_test.func(reference.x, current.x, ColumnType.Numerical, 0.1)
    found["evidently, PSI function alone"] = median(bare)
else:
    import nannyml
    for method in ("jensen_shannon", "hellinger"):  # it has no PSI; these too compare shares of bins
        fitted = nannyml.UnivariateDriftCalculator(column_names=["x"], continuous_methods=[method], chunk_number=1)
        fitted = fitted.fit(reference)
        found[f"nannyml, {method}, fitted baseline"] = median(lambda: fitted.calculate(current))
print(json.dumps(found))
"""


class Taken(float):
    """Seconds on the clock, and of the processor alone."""

    cpu: float


def median(work: Callable[[], object], times: int = 5) -> Taken:
    work()
    clock, processor = [], []
    for _ in range(times):
        start, cpu = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
    found = Taken(statistics.median(clock))
    found.cpu = statistics.median(processor)
    return found


def show(what: str, taken: Taken, aim_s: float | None = None) -> None:
    aim = "" if aim_s is None else f"   aim ≤ {aim_s * 1000:g} ms{'' if taken <= aim_s else '   MISSED'}"
    print(f"{what:<64} {taken * 1000:>9.1f} ms   cpu {taken.cpu * 1000:>7.1f} ms{aim}", flush=True)


def write_log(folder: Path, rows: int) -> None:
    """Write a month of `rows` records, drifting a little, as an engine would have."""
    writer = PartitionWriter(folder, TOPIC, "engine-1")
    step_ms = DAYS * 86_400_000 / rows
    size = 100_000
    for first in range(0, rows, size):
        count = min(size, rows - first)
        writer.append(records(count, int(START.timestamp() * 1000 + first * step_ms), step_ms))
        writer.flush()
    writer.close()
    maintain_topic(folder, TOPIC, Policy())


def plan(start: datetime, end: datetime, width: timedelta, field: str = "out.dense_1.0") -> Plan:
    side, name, index = field.split(".")
    path = ValuePath("in" if side == "in" else "out", name, (int(index),))
    source = Source(TOPIC, "ccfraud")
    return Plan(source, (path,), Summarizer(), Period(source, start, end), width, {path.key: Thresholds(0.1, 0.25)})


def measure_log(folder: Path, rows: int) -> None:
    scan = scan_of(str(folder))
    day = timedelta(days=1)
    whole = plan(START, START + day, timedelta(days=DAYS * 1_000_000 / rows))
    settled = whole.with_baseline(read_baseline(scan, whole))
    window = Window(START + day, START + day + whole.width)

    def one(this: Plan = settled) -> None:
        (found,) = analyse_windows(scan, this, [window])
        result = next(iter(found.results.values()))
        assert isinstance(result, Compared)
        assert found.records > 0.99 * min(1_000_000, rows)

    show("one window over 1 M logged rows, against a kept baseline", median(one), 0.5)
    of_input = plan(START, START + day, whole.width, "in.tensor.3")
    one_input = of_input.with_baseline(read_baseline(scan, of_input))
    show("the same of one of 29 inputs", median(lambda: one(one_input)), 0.5)

    daily = plan(START, START + day, day)

    def month() -> None:
        results = list(analyse(scan, daily, START + day, day, START + DAYS * day, limit=1000))
        assert len(results) == DAYS - 1

    show(f"interactive run, {DAYS - 1} daily windows over {rows / 1e6:g} M rows", median(month, 3), 5.0)
    hourly = replace(daily, width=timedelta(hours=24))

    def overlapping() -> None:
        list(analyse(scan, hourly, START + day, timedelta(hours=1), START + 8 * day, limit=1000))

    show("interactive run, 145 windows of 24 hours, one an hour", median(overlapping, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{'largest resident memory of it all':<64} {peak:>9.0f} MB   aim < 500 MB{'' if peak < 500 else '   MISSED'}"
    )


def measure_clock(folder: Path, rows: int) -> None:
    """Compute an hour of 200 pipelines × 5 columns without the database: the part that grows with the log."""
    scan = scan_of(str(folder))
    hour = timedelta(hours=1)
    one = plan(START, START + hour, hour)
    settled = one.with_baseline(read_baseline(scan, one))
    window = Window(START + 30 * hour, START + 31 * hour)
    taken = median(lambda: list(analyse_windows(scan, settled, [window])), 50)
    show(f"one hourly window ({rows // (DAYS * 24)} rows)", taken, 0.36)
    each = taken.cpu
    print(f"{'200 pipelines × 5 columns hourly, no database':<64} {each * 100 / 3.6:>9.3f} % of a core   aim < 10")


def measure_column(folder: Path, peers: Path | None) -> None:
    rng = np.random.default_rng(1)
    reference, current = (rng.normal(m, 1, 1_000_000).astype(np.float32) for m in (0.0, 0.1))
    spec = Summarizer(num_bins=10)
    base = summarize(numbers(reference), spec)

    def psi() -> float:  # what the peers compute
        return score(base.aggregated, shares(base.bins.count(current)), spec).score

    def psi_anew() -> float:
        made = summarize(numbers(reference), spec)
        return score(made.aggregated, shares(made.bins.count(current)), spec).score

    def whole() -> float:  # what an assay keeps of a window
        return score(base.aggregated, summarize_window(numbers(current), base.bins, spec).aggregated, spec).score

    kept, anew, with_statistics = median(psi), median(psi_anew), median(whole)
    show("PSI of 1 M floats against a kept baseline", kept)
    show("PSI of 1 M floats, baseline of 1 M cut anew", anew)
    show("PSI, median and the other statistics against a kept baseline", with_statistics)
    if peers is None:
        return
    paths = [folder / "reference.npy", folder / "current.npy"]
    for path, values in zip(paths, (reference, current), strict=True):
        np.save(path, values)
    for name, packages in PEERS.items():
        python = ready(peers / name, packages)
        if python is None:
            print(f"{name} could not be installed here; nothing to compare with.")
            continue
        command = [str(python), "-c", PEER, name, *map(str, paths)]
        environment = os.environ | {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if run.returncode:
            print(f"{name} did not run: {run.stderr.strip().splitlines()[-1][:200]}")
            continue
        for what, (seconds, cpu) in json.loads(run.stdout.strip().splitlines()[-1]).items():
            ours = kept if "fitted" in what else anew
            factor = cpu / ours.cpu
            print(
                f"{what:<64} {seconds * 1000:>9.1f} ms   cpu {cpu * 1000:>7.1f} ms   {factor:.1f} × ours   aim ≥ 5"
                f"{'' if factor >= 5 else '   MISSED'}",
                flush=True,
            )


def ready(folder: Path, packages: list[str]) -> Path | None:
    """Return the interpreter of an environment with `packages`, made at need; None where that cannot be."""
    python, stamp = folder / "bin" / "python", folder / "potoroo-bench-ready"
    if stamp.exists():
        return python
    print(f"installing {', '.join(packages)} into {folder} …", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False, capture_output=True)
    if made.returncode == 0:
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
        made = subprocess.run(pip, check=False, capture_output=True)
    if made.returncode:
        return None
    stamp.touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="for the log; a temporary one by default")
    parser.add_argument("--peers", type=Path, default=Path("~/.cache/potoroo-bench").expanduser())
    parser.add_argument("--no-peers", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        began = time.perf_counter()
        if subprocess.run([sys.executable, "-c", WRITE, str(folder), str(given.rows)], check=False).returncode:
            sys.exit("The log could not be written.")
        print(f"{given.rows:,} rows written in {time.perf_counter() - began:.1f} s", flush=True)
        measure_log(folder, given.rows)
        measure_clock(folder, given.rows)
        measure_column(folder, None if given.no_peers else given.peers)


WRITE = """
import sys
from pathlib import Path
from bench.assays import write_log
write_log(Path(sys.argv[1]), int(sys.argv[2]))
"""
"""In a process of its own: what writing needs does not count as memory of a run."""

if __name__ == "__main__":
    main()
