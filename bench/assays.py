"""Measure drift detection: `python -m bench.assays [--rows 10000000] [--peers FOLDER | --no-peers] [--out FILE]`.

One window over a million logged rows, an interactive run of thirty windows over ten million, the clock with a thousand
assays an hour, and the same column given to evidently and nannyml, each in an environment of its own that is made at
the first run outside the checkout. Medians of the time on the clock and, behind them, of the processor's time alone: on
a machine that is shared with others the second says more. The aims stand beside. With `--out` a section of Markdown for
docs/performance.md is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from app.assays.analysis import Compared, analyse, analyse_windows, read_baseline
from app.assays.plan import Path as ValuePath
from app.assays.plan import Period, Plan, Source, Thresholds
from app.assays.timeline import scan_of
from bench.logs import records
from engine.assays import BinMode, Generation, Summarizer, Window, numbers, score, summarize, summarize_window
from engine.assays.summary import shares
from engine.logs.maintain import Policy, maintain_topic
from engine.logs.writer import PartitionWriter

TOPIC = "workspace-1-pipeline-fraud-inference"
START = datetime(2023, 1, 1, tzinfo=UTC)
DAYS = 31
BINS = 20
"""As many as evidently cuts a column of a million values into."""
PEERS = {
    "evidently": ["evidently==0.7.23", "pandas==2.3.3", "numpy==2.4.6", "scipy==1.17.1"],
    "nannyml": ["nannyml==0.13.1", "pandas==2.3.3", "numpy==2.4.6", "scipy==1.17.1", "statsmodels==0.15.0"],
}
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
    value = report.run(current, reference).dict()["metrics"][0]["value"]
    assert 0.005 < float(value) < 0.02, value
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


@dataclass
class Report:
    """What was measured: printed as it comes, written as tables in the end."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    peers: list[tuple[str, str, str, str]] = field(default_factory=list)

    def time(self, what: str, taken: Taken, aim_s: float | None = None) -> None:
        aim = "" if aim_s is None else f"≤ {aim_s * 1000:g} ms"
        self._add(
            self.rows,
            what,
            f"{taken * 1000:.1f} ms",
            f"{taken.cpu * 1000:.1f} ms",
            aim,
            aim_s is None or taken <= aim_s,
        )

    def size(self, what: str, mib: float, aim_mib: float) -> None:
        self._add(self.rows, what, f"{mib:.0f} MB", "", f"< {aim_mib:g} MB", mib < aim_mib)

    def share(self, what: str, percent: float, aim: float | None = None) -> None:
        self._add(
            self.rows, what, "", f"{percent:.2f} %", "" if aim is None else f"< {aim:g} %", aim is None or percent < aim
        )

    def peer(self, what: str, taken: Taken, times_ours: float | None) -> None:
        factor = "" if times_ours is None else f"{times_ours:.1f} × ours"
        aim = "" if times_ours is None else "≥ 5 ×"
        self._add(
            self.peers,
            what,
            f"{taken * 1000:.1f} ms",
            f"{taken.cpu * 1000:.1f} ms" + (f", {factor}" if factor else ""),
            aim,
            times_ours is None or times_ours >= 5,
        )

    def note(self, what: str, reason: str) -> None:
        self._add(self.peers, what, reason, "", "", True)

    def _add(
        self, rows: list[tuple[str, str, str, str]], what: str, clock: str, cpu: str, aim: str, is_met: bool
    ) -> None:
        rows.append((what, clock, cpu, aim if is_met else f"{aim}, **missed**"))
        print(f"{what:<72} {clock:>12} {cpu:>26}   {aim}{'' if is_met else '   MISSED'}", flush=True)

    def section(self) -> str:
        """Return the section of the page on performance."""
        lines = [
            "## Drift assays",
            "",
            "Written by `make bench` (`python -m bench.assays`). Medians of the time on the clock and of the "
            f"processor; {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy "
            f"{np.__version__}, load average {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d', time.gmtime())}.",
            "",
            "| what | clock | processor | aim |",
            "| --- | --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in self.rows),
            "",
            "The same column of a million float32, another million as baseline. Factors compare processor times: a "
            "peer that keeps a fitted baseline with ours that does, the others with ours that cuts equal bins anew. "
            "nannyml has no PSI; its two methods that compare shares of bins stand in for it.",
            "",
            "| what | clock | processor | aim |",
            "| --- | --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in self.peers),
        ]
        return "\n".join(lines) + "\n"


def peak_mb() -> float:
    """Return the largest resident memory so far; `getrusage` would count that of the parent process too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def write_log(folder: Path, rows: int) -> None:
    """Write a month of `rows` records as an engine would have."""
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


def measure_log(folder: Path, rows: int, report: Report) -> None:
    scan = scan_of(str(folder))
    day = timedelta(days=1)
    whole = plan(START, START + day, timedelta(days=DAYS * 1_000_000 / rows))
    settled = whole.with_baseline(read_baseline(scan, whole))
    window = Window(START + day, START + day + whole.width)

    def one(this: Plan = settled) -> None:
        (found,) = analyse_windows(scan, this, [window])
        result = next(iter(found.results.values()))
        assert isinstance(result, Compared)
        assert found.records > 0.96 * min(1_000_000, rows)

    report.time("one window over 1 M logged rows, against a kept baseline", median(one), 0.5)
    of_input = plan(START, START + day, whole.width, "in.tensor.3")
    one_input = of_input.with_baseline(read_baseline(scan, of_input))
    report.time("the same of one of 29 inputs", median(lambda: one(one_input)), 0.5)

    daily = plan(START, START + day, day)

    def month() -> None:
        results = list(analyse(scan, daily, START + day, day, START + DAYS * day, limit=1000))
        assert len(results) == DAYS - 1

    report.time(f"interactive run, {DAYS - 1} daily windows over {rows / 1e6:g} M rows", median(month, 3), 5.0)
    hourly = replace(daily, width=timedelta(hours=24))

    def overlapping() -> None:
        list(analyse(scan, hourly, START + day, timedelta(hours=1), START + 8 * day, limit=1000))

    report.time("interactive run, 145 windows of 24 hours, one an hour", median(overlapping, 1))
    report.size("largest resident memory of these runs", peak_mb(), 500)


def measure_clock(report: Report, pipelines: int) -> None:
    """Let the scheduler compute some hours of 200 pipelines × 5 columns, in a process and a database of its own."""
    command = [sys.executable, "-m", "bench.assays_clock", "--json", "--pipelines", str(pipelines)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"The clock could not be measured: {run.stderr[-2000:]}")
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assays = found["assays"]
    report.share(f"scheduler with {assays} assays of 1 window an hour, share of a core", found["scheduler_percent"], 10)
    report.share("the database beside it", found["database_percent"])
    report.size("largest resident memory of the scheduler", found["memory_mb"], 500)


def measure_column(folder: Path, peers: Path | None, report: Report) -> None:
    rng = np.random.default_rng(1)
    reference, current = (rng.normal(m, 1, 1_000_000).astype(np.float32) for m in (0.0, 0.1))
    spec = Summarizer(num_bins=BINS, generation=Generation.V2)  # whose bins are the peers': no outliers
    base = summarize(numbers(reference), spec)

    def psi() -> float:  # what the peers compute
        return score(base.aggregated, shares(base.bins.count(current)), spec).score

    def psi_anew(spec: Summarizer = spec) -> float:
        made = summarize(numbers(reference), spec)
        return score(made.aggregated, shares(made.bins.count(current)), spec).score

    def whole() -> float:  # what an assay keeps of a window
        return score(base.aggregated, summarize_window(numbers(current), base.bins, spec).aggregated, spec).score

    assert psi() == psi_anew() == whole()
    assert 0.005 < psi() < 0.02  # two normal distributions a tenth apart: 0.01
    equal = Summarizer(BinMode.EQUAL, BINS, generation=Generation.V2)  # as evidently does
    kept, anew, by_rank, with_statistics = (
        median(psi),
        median(lambda: psi_anew(equal)),
        median(psi_anew),
        median(whole),
    )
    report.peer(f"Potoroo, PSI of {BINS} bins, kept baseline", kept, None)
    report.peer(f"Potoroo, PSI of {BINS} equal bins, baseline cut anew", anew, None)
    report.peer(f"Potoroo, PSI of {BINS} quantiles, baseline sorted anew", by_rank, None)
    report.peer("Potoroo, PSI, median and other statistics, kept baseline", with_statistics, None)
    if peers is None:
        return
    paths = [folder / "reference.npy", folder / "current.npy"]
    for path, values in zip(paths, (reference, current), strict=True):
        np.save(path, values)
    for name, packages in PEERS.items():
        python = ready(peers / name, packages)
        if python is None:
            report.note(name, "could not be installed here")
            continue
        command = [str(python), "-c", PEER, name, *map(str, paths)]
        environment = os.environ | {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if run.returncode:
            report.note(name, f"did not run: {run.stderr.strip().splitlines()[-1][:200]}")
            continue
        for what, (seconds, cpu) in json.loads(run.stdout.strip().splitlines()[-1]).items():
            taken = Taken(seconds)
            taken.cpu = cpu
            ours = kept if "fitted" in what else anew
            report.peer(f"{packages[0].replace('==', ' ')}{what.removeprefix(name)}", taken, cpu / ours.cpu)


def ready(folder: Path, packages: list[str]) -> Path | None:
    """Return the interpreter of an environment with `packages`, made at need; None where that cannot be."""
    python, stamp = folder / "bin" / "python", folder / "potoroo-bench-ready"
    wanted = "\n".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {', '.join(packages)} into {folder} …", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False, capture_output=True)
    if made.returncode == 0:
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
        made = subprocess.run(pip, check=False, capture_output=True)
    if made.returncode:
        return None
    stamp.write_text(wanted)
    return python


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the section if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--pipelines", type=int, default=200, help="of five assays each, for the clock")
    parser.add_argument("--folder", type=Path, help="for the log; a temporary one by default")
    parser.add_argument("--peers", type=Path, default=Path("~/.cache/potoroo-bench").expanduser())
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--install-only", action="store_true", help="make the peers' environments, measure nothing")
    parser.add_argument("--out", type=Path, help="the file to write the section into")
    given = parser.parse_args(arguments)
    if given.install_only:
        for name, packages in PEERS.items():
            print(f"{name}: {ready(given.peers / name, packages) or 'could not be installed'}")
        return
    report = Report()
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        began = time.perf_counter()
        if subprocess.run([sys.executable, "-c", WRITE, str(folder), str(given.rows)], check=False).returncode:
            sys.exit("The log could not be written.")
        print(f"{given.rows:,} rows written in {time.perf_counter() - began:.1f} s", flush=True)
        measure_log(folder, given.rows, report)
        measure_clock(report, given.pipelines)
        measure_column(folder, None if given.no_peers else given.peers, report)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(report.section())


WRITE = """
import sys
from pathlib import Path
from bench.assays import write_log
write_log(Path(sys.argv[1]), int(sys.argv[2]))
"""
"""In a process of its own: what writing needs does not count as memory of a run."""

if __name__ == "__main__":
    main()
