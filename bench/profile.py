"""Show where the time of a request goes: `python -m bench.profile [--seconds 5] [--work FOLDER] [--out FILE]`.

Samples the engine with Linux's `perf` while it is under the same load as in `bench.dataplane`, and sorts the samples by
what was being done. Needs `perf` and `wrk`, and the right to sample other processes.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load, models
from bench.dataplane import ARROW, FOREST_WIDTH, FULL, LOAD_CORE, OUTPUTS, RECORDS, SERVER_CORE
from bench.load import Request, Result
from bench.ours import Engine, Tokens

SAMPLES_PER_S = 2000
KERNEL = "[kernel.kallsyms]"
TO_DISK, TO_CACHE = "writing the log back to the disk", "writing the log: copies into the page cache"
IN_KERNEL = (
    (TO_DISK, ("fsync", "fdatasync")),
    (TO_CACHE, ("pwritev", "ext4_buffered_write", "generic_perform_write")),
    ("network", ("tcp_", "sock_", "inet_", "net_rx")),
    ("waiting", ("epoll", "sched_yield", "idle")),
    ("memory", ("page_fault", "mmap", "brk")),
)
"""What a part of the name of any function of the stack says; the first that fits counts."""
IN_LIBRARIES = (
    ("the model: onnxruntime", ("onnxruntime",)),
    ("writing the log: checksums", ("xxhash", "libz.")),
    ("JSON: simdjson, msgspec", ("simdjson", "msgspec")),
    ("Arrow", ("libarrow", "pyarrow")),
    ("numpy", ("numpy", "multiarray")),
    ("event loop: uvloop", ("uvloop",)),
    ("Python", ("libpython", "/python3", "cpython")),
)
OTHER_KERNEL, OTHER = "the rest of the kernel", "copies and other libraries"


@dataclass(frozen=True)
class Case:
    """A kind of request whose time is looked into."""

    title: str
    model: str
    form: str
    rows: int
    query: str
    connections: int
    log: bool = True


_WIDTHS = {"forest": FOREST_WIDTH, "image": 3 * 224 * 224}
_MODELS = {
    "dense": models.dense,
    "boosted": lambda path: models.trees(path, models.WIDTH, count=32, depth=3),
    "forest": lambda path: models.trees(path, FOREST_WIDTH, count=60, depth=6),
    "image": models.convolutions,
}

UNLOGGED = Case("Arrow, 1,000 rows, no log", "dense", "arrow", 1000, OUTPUTS, 16, log=False)
LOGGED = Case("Arrow, 1,000 rows", "dense", "arrow", 1000, OUTPUTS, 16)
CASES = (
    Case("JSON, 1 row, 1 connection", "dense", "records", 1, FULL, 1),
    Case("JSON, 1,000 rows, outputs", "dense", "records", 1000, OUTPUTS, 16),
    Case("JSON, 1,000 rows, full", "dense", "records", 1000, FULL, 16),
    UNLOGGED,
    LOGGED,
    Case("the same, boosted trees", "boosted", "arrow", 1000, OUTPUTS, 16),
    Case("the same, forest", "forest", "forest", 1000, OUTPUTS, 16),
    Case("Arrow, 1 image", "image", "arrow", 1, OUTPUTS, 4),
)


def classify(stack: list[tuple[str, str]]) -> str:
    """Say what was being done by a stack of (function, library), innermost first."""
    _, library = stack[0]
    if library == KERNEL:
        names = [name for name, where in stack if where == KERNEL or "libc" in where]
        return next((kind for kind, parts in IN_KERNEL if _any_has(names, parts)), OTHER_KERNEL)
    return next((kind for kind, parts in IN_LIBRARIES if _any_has([library], parts)), OTHER)


def _any_has(names: Iterable[str], parts: tuple[str, ...]) -> bool:
    return any(part in name for name in names for part in parts)


def stacks(lines: Iterable[str]) -> Iterator[list[tuple[str, str]]]:
    """Read what `perf script -F ip,sym,dso` prints: a frame a line, an empty line between samples."""
    stack: list[tuple[str, str]] = []
    for line in lines:
        text = line.strip()
        if not text:
            if stack:
                yield stack
            stack = []
            continue
        _, _, rest = text.partition(" ")
        function, _, library = rest.rpartition(" (")
        stack.append((function.split("+")[0], library.rstrip(")")))
    if stack:
        yield stack


def look_into(case: Case, work: Path, seconds: float, tokens: Tokens) -> tuple[Result, Counter[str]]:
    """Load an engine as the case says; returns what the load saw, and samples by kind."""
    width = _WIDTHS.get(case.model, models.WIDTH)
    model = work / f"{case.model}.onnx"
    _MODELS[case.model](model)
    write = models.records_body if case.form == "records" else models.arrow_body
    kind = {"Content-Type": RECORDS} if case.form == "records" else {"Content-Type": ARROW, "Accept": ARROW}
    body, probe = work / "body", work / "probe"
    body.write_bytes(write(models.rows(case.rows, width)))
    probe.write_bytes(write(models.rows(1, width)))
    engine = Engine(work / "engine", model, SERVER_CORE, tokens, probe, log=case.log)
    try:
        request = Request(engine.url + case.query, body, kind | engine.headers)
        load.run(request, case.connections, 1, LOAD_CORE)
        samples = work / "perf.data"
        command = [
            "perf",
            "record",
            "-q",
            "-g",
            "-F",
            str(SAMPLES_PER_S),
            "-o",
            str(samples),
            "-p",
            str(engine.pids[0]),
        ]
        recorder = subprocess.Popen([*command, "--", "sleep", str(seconds + 1)])
        time.sleep(0.5)
        result = load.run(request, case.connections, seconds, LOAD_CORE, engine.pids)
        recorder.wait()
    finally:
        engine.stop()
    printed = subprocess.run(
        ["perf", "script", "-i", str(samples), "-F", "ip,sym,dso"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    return result, Counter(map(classify, stacks(printed.stdout.splitlines())))


def report(found: dict[str, tuple[Result, Counter[str]]]) -> str:
    """Return the section of the page."""
    totals: Counter[str] = Counter()
    for _, kinds in found.values():
        totals += kinds
    lines = [
        "## Where the time of a request goes",
        "",
        "Written by `python -m bench.profile`: microseconds of processor time per request, from samples of the engine "
        "under load. Sampling itself slows the engine a little. "
        f"{platform.machine()}, Python {platform.python_version()}, {datetime.datetime.now(datetime.UTC).date()}.",
        "",
        f"| | {' | '.join(found)} |",
        f"| --- |{' --: |' * len(found)}",
    ]
    for kind, _ in totals.most_common():
        cells = [_us(result, kinds, kind) for result, kinds in found.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    wholes = [f"{1e6 / result.per_cpu_second:,.0f}" for result, _ in found.values()]
    lines.append(f"| all | {' | '.join(wholes)} |")
    kernel = sum(_us_of(*found[LOGGED.title], kind) for kind in (TO_CACHE, TO_DISK))
    bare = 1e6 / found[UNLOGGED.title][0].per_cpu_second
    lines += [
        "",
        f"Of an Arrow request of 1,000 rows the kernel alone takes {kernel:,.0f} µs to take its record over: were all "
        f"else about the log free, logging on against off would be {bare / (bare + kernel):.2f} at most, because a "
        f"request without the log takes no more than {bare:,.0f} µs.",
    ]
    return "\n".join(lines) + "\n"


def _us(result: Result, kinds: Counter[str], kind: str) -> str:
    return f"{_us_of(result, kinds, kind):,.1f}"


def _us_of(result: Result, kinds: Counter[str], kind: str) -> float:
    return 1e6 / result.per_cpu_second * kinds[kind] / kinds.total()


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "potoroo-bench" / "profile")
    parser.add_argument("--out", type=Path)
    options: Any = parser.parse_args(arguments)
    for tool in ("perf", "wrk"):
        if shutil.which(tool) is None:
            raise SystemExit(f"The profile needs {tool} (apt-get install {'linux-perf' if tool == 'perf' else tool}).")
    options.work.mkdir(parents=True, exist_ok=True)
    tokens = Tokens(options.work)
    found = {case.title: look_into(case, options.work, options.seconds, tokens) for case in CASES}
    page = report(found)
    if options.out is not None:
        options.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
