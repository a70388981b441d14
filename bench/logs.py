"""Measure the log store: `python -m bench.logs [--rows 10000000] [--folder FOLDER] [--cold] [--out FILE]`.

Needs about 300 bytes of disk a row, and starts a server of its own for what goes through HTTP. `--out` writes the
figures as a section of a Markdown page.

Prints medians of the time on the clock and, behind it, of the processor's time alone: on a machine that is shared with
others the second says more. The records are those of a fraud model: 29 numbers in, one out, metadata.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa

from engine.logs.maintain import Policy, maintain_topic
from engine.logs.ordered import read_ordered
from engine.logs.query import Order, Status, TimeRange, read_page, scan
from engine.logs.store import LogStore
from engine.logs.writer import PartitionWriter
from tests.inference.instance import Instance

TOPIC = "workspace-1-pipeline-bench-inference"
PARTITION = "engine-6d5f-abcde"
ARROW = "application/vnd.apache.arrow.file"
MONTH_MS = 30 * 86_400_000
FLOATS = pa.list_(pa.field("inner", pa.float32(), nullable=False))
METADATA = pa.struct(
    [
        pa.field("last_model", pa.string(), nullable=False),
        pa.field("pipeline_version", pa.string(), nullable=False),
        pa.field("elapsed", pa.list_(pa.field("steps", pa.uint64(), nullable=False)), nullable=False),
        pa.field("dropped", pa.list_(pa.string()), nullable=False),
        pa.field("partition", pa.string(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("time", pa.int64(), nullable=False),
        pa.field("in", pa.struct([pa.field("tensor", pa.list_(pa.float32()))]), nullable=False),
        pa.field("out", pa.struct([pa.field("dense_1", FLOATS, nullable=False)]), nullable=False),
        pa.field("metadata", METADATA, nullable=False),
    ]
)


def lists(kind: pa.DataType, values: np.ndarray, width: int) -> pa.Array:
    offsets = np.arange(0, len(values) + 1, width, dtype=np.int32)
    item = pa.Array.from_buffers(kind.value_type, len(values), [None, pa.py_buffer(values)])
    return pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(offsets)], children=[item])


def records(rows: int, first_ms: int, step_ms: float) -> pa.RecordBatch:
    times = (first_ms + np.arange(rows) * step_ms).astype(np.int64)
    rng = np.random.default_rng(first_ms)
    tensor = lists(SCHEMA.field("in").type.field(0).type, rng.random(rows * 29, dtype=np.float32), 29)
    out = lists(FLOATS, rng.random(rows, dtype=np.float32), 1)
    metadata = pa.array(
        [
            {
                "last_model": '{"model_name":"ccfraud","model_sha":"bc85ce596945f876256f41515c7501c399fd97"}',
                "pipeline_version": "0b989008-5f1d-453e-8085-98d97be1b722",
                "elapsed": [53_101, 318_104],
                "dropped": [],
                "partition": PARTITION,
            }
        ]
        * rows,
        type=METADATA,
    )
    arrays = [
        pa.Array.from_buffers(pa.int64(), rows, [None, pa.py_buffer(times)]),
        pa.StructArray.from_arrays([tensor], fields=list(SCHEMA.field("in").type)),
        pa.StructArray.from_arrays([out], fields=list(SCHEMA.field("out").type)),
        metadata,
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def median_ms(work: Callable[[], object], times: int = 31) -> str:
    work()
    taken, busy = [], []
    for _ in range(times):
        start, used = time.perf_counter(), time.process_time()
        work()
        taken.append(time.perf_counter() - start)
        busy.append(time.process_time() - used)
    return f"{statistics.median(taken) * 1000:.2f} ({statistics.median(busy) * 1000:.2f}) ms"


class Rate:
    """Rows a second, by the clock and by the processor."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def start(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def stop(self, rows: int) -> None:
        wall, busy = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        self.found.append((rows / wall, rows / busy))

    def __str__(self) -> str:
        wall, busy = (statistics.median(values) / 1e6 for values in zip(*self.found, strict=True))
        return f"{wall:.3f} ({busy:.3f}) M rows/s"


def file_of(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


figures: list[tuple[str, str, str]] = []


def say(what: str, value: str, aim: str = "") -> None:
    figures.append((what, value, aim))
    print(f"{what:<66} {value:>30}   {aim}", flush=True)


def measure_append(folder: Path, rows: int, encoded: bool, total: int = 1_000_000, fsync_s: float = 1.0) -> Rate:
    batch = records(rows, 0, 1)
    message = batch.serialize()
    rate = Rate()
    for n in range(3):
        with PartitionWriter(folder, f"append-{rows}-{encoded}-{fsync_s}-{n}", "p", fsync_interval_s=fsync_s) as writer:
            groups = min(total // rows, 20_000)
            rate.start()
            for _ in range(groups):
                if encoded:
                    writer.append_encoded(SCHEMA, message, rows=rows, min_time=0, max_time=rows)
                else:
                    writer.append(batch)
                writer.flush()
            rate.stop(groups * rows)
    return rate


def measure_singles(folder: Path, group: int) -> Rate:
    batch = records(1, 0, 1)
    rate = Rate()
    for n in range(3):
        with PartitionWriter(folder, f"single-{group}-{n}", "p") as writer:
            rate.start()
            for _ in range(max(30_000 // group, 50)):
                for _ in range(group):
                    writer.append(batch)
                writer.flush()
            rate.stop(writer.rows_written)
    return rate


def measure_encoded_singles(folder: Path, group: int) -> Rate:
    message = records(1, 0, 1).serialize().to_pybytes()
    rate = Rate()
    for n in range(3):
        with PartitionWriter(folder, f"encoded-{group}-{n}", "p") as writer:
            rate.start()
            for _ in range(max(60_000 // group, 50)):
                for _ in range(group):
                    writer.append_encoded(SCHEMA, message, rows=1, min_time=0, max_time=0)
                writer.flush()
            rate.stop(writer.rows_written)
    return rate


def fill(folder: Path, rows: int) -> Rate:
    step = MONTH_MS / rows
    base = records(1000, 0, step)
    rate = Rate()
    rate.start()
    with PartitionWriter(folder, TOPIC, PARTITION) as writer:
        for first in range(0, rows, 1000):
            times = (first * step + np.arange(1000) * step).astype(np.int64)
            column = pa.Array.from_buffers(pa.int64(), 1000, [None, pa.py_buffer(times)])
            writer.append(pa.RecordBatch.from_arrays([column, *base.columns[1:]], schema=SCHEMA))
            writer.flush()
        rate.stop(rows)
    return rate


def read_hour(store: LogStore, start_ms: int) -> int:
    positions: dict[str, int] = {}
    rows = 0
    while True:
        page = read_page(
            store, TOPIC, page_size=10_000, positions=positions, time_range=TimeRange(start_ms, start_ms + 3_599_999)
        )
        if page.table.num_rows:
            file_of(page.table)
        rows += page.table.num_rows
        positions = page.next
        if page.status is Status.ALL:
            return rows


def measure_reads(folder: Path, rows: int, label: str) -> None:
    store = LogStore(folder)
    rnd = random.Random(7)
    taken = median_ms(lambda: file_of(read_page(store, TOPIC, order=Order.DESC, page_size=1000).table))
    say(f"{label}: newest 1,000 of {rows:,}, serialised", taken, "aim 3 ms, stretch 1 ms")
    taken = median_ms(lambda: file_of(read_ordered(store, TOPIC, page_size=1000).table))
    say(f"{label}: newest 1,000 in the order of time, serialised", taken)
    taken = median_ms(lambda: LogStore(folder).describe(TOPIC))
    say(f"{label}: a new process's first look", taken)

    def a_range() -> None:
        at = {PARTITION: rnd.randrange(rows - 10_000)}
        assert file_of(read_page(store, TOPIC, page_size=10_000, positions=at).table).size

    taken = median_ms(a_range)
    say(f"{label}: a 10,000-row range, serialised", taken, "aim 5 ms, stretch 2 ms")
    per_hour = read_hour(store, 3_600_000)
    taken = median_ms(lambda: read_hour(store, rnd.randrange(MONTH_MS - 3_600_000)))
    say(f"{label}: one hour of a month ({per_hour:,} rows), serialised", taken, "aim 50 ms over HTTP")

    def one_column() -> None:
        span = TimeRange(86_400_000, 2 * 86_400_000)
        assert sum(batch.num_rows for batch in scan(store, TOPIC, span, columns=["out.dense_1"]))

    taken = median_ms(one_column, 11)
    say(f"{label}: one column of one day ({rows // 30:,} rows)", taken)


PAGER = """
import json, sys
from engine.logs.query import Order, read_page
from engine.logs.store import LogStore

def resident():
    lines = open("/proc/self/status").read().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}
    return found["RssAnon"], found["VmRSS"]

store = LogStore(sys.argv[1])
positions, rows, most = {}, 0, [0.0, 0.0]
read_page(store, sys.argv[2], page_size=10_000)
before = resident()
while True:
    page = read_page(store, sys.argv[2], order=Order(sys.argv[3]), page_size=10_000, positions=positions)
    if not page.table.num_rows:
        break
    rows += page.table.num_rows
    positions = page.next
    most = [max(pair) for pair in zip(most, resident())]
print(json.dumps({"rows": rows, "own": most[0] - before[0], "all": most[1] - before[1]}))
"""


def measure_pager(folder: Path, rows: int, order: Order) -> None:
    """Page through everything in a process of its own, and see how much memory that takes."""
    ran = subprocess.run(
        [sys.executable, "-c", PAGER, str(folder), TOPIC, str(order)], capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout)
    assert found["rows"] == rows, found
    value = f"{found['own']:.0f} MiB; mapped files included {found['all']:.0f} MiB"
    say(f"memory of a reader that pages through all {rows:,} rows, {order}", value, "bounded by its page")


def iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()


class Api:
    """The log through a server of our own."""

    def __init__(self, home: Path, folder: Path) -> None:
        os.environ["POTOROO_LOG_URL"] = str(folder)
        self.instance = Instance(home)

    def __enter__(self) -> Api:
        try:
            self.instance.start()
            self.instance.sign_in()
            definition = {"steps": []}
            body = {"pipeline_id": "bench", "workspace_id": self.instance.workspace, "definition": definition}
            self.instance.call("pipelines/create", body)
            asked = {"workspace_id": self.instance.workspace, "pipeline_name": "bench"}
            assert self.instance.call("plateau/get_topic_name", asked).json() == {"topic_name": TOPIC}
        except BaseException:
            self.instance.stop_everything()
            raise
        self.client = httpx.Client(base_url=self.instance.base, headers=self.instance.headers, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.instance.stop_everything()

    def records(self, positions: dict[str, int], **query: object) -> tuple[int, str, dict[str, int]]:
        """Return the rows, the status and the positions of a page."""
        answer = self.client.post(
            f"/v1/logs/topic/{TOPIC}/records", params=query, json=positions, headers={"accept": ARROW}
        )
        schema = pa.ipc.open_file(answer.raise_for_status().content)
        rows = sum(schema.get_batch(i).num_rows for i in range(schema.num_record_batches))
        if not rows:
            return 0, "All", positions
        status = json.loads(schema.schema.metadata[b"status"])
        return rows, status["status"], status["next"]

    def hour(self, start_ms: int) -> int:
        """Read an hour as exports do: page by page of a range of time."""
        span = {"time.start": iso(start_ms), "time.end": iso(start_ms + 3_599_999)}
        rows, positions, status = 0, {}, ""
        while status != "All":
            more, status, positions = self.records(positions, page_size=10_000, **span)
            rows += more
        return rows

    def hour_in_order(self, start_ms: int) -> int:
        """Read an hour in the order of time, by cursor."""
        asked = {
            "pipeline_name": "bench", "workspace_id": self.instance.workspace, "page_size": 10_000, "order": "Asc",
            "start_time": iso(start_ms), "end_time": iso(start_ms + 3_599_999),
        }  # fmt: skip
        rows, cursor = 0, None
        while True:
            answer = self.client.post(
                "/v1/api/pipelines/get_logs", json=asked | {"cursor": cursor}, headers={"accept": ARROW}
            )
            rows += pa.ipc.open_file(answer.raise_for_status().content).read_all().num_rows
            cursor = answer.headers.get("x-iteration-cursor")
            if cursor is None:
                return rows


def measure_http(home: Path, folder: Path, rows: int, label: str) -> None:
    rnd = random.Random(7)
    with Api(home, folder) as api:
        per_hour = api.hour(36_000_000)
        assert abs(per_hour - rows / 720) <= 2, per_hour
        assert api.hour_in_order(36_000_000) == per_hour
        some_hour: Callable[[], int] = lambda: rnd.randrange(MONTH_MS - 3_600_000)  # noqa: E731
        taken = median_ms(lambda: api.hour(some_hour()))
        say(f"{label}: one hour of a month ({per_hour:,} rows) over HTTP, Arrow", taken, "aim 50 ms")
        taken = median_ms(lambda: api.hour_in_order(some_hour()))
        say(f"{label}: the same hour by get_logs, in the order of time", taken, "aim 50 ms")
        taken = median_ms(lambda: api.records({}, page_size=1000, order="desc"))
        say(f"{label}: newest 1,000 of {rows:,} over HTTP, Arrow", taken)


def section(rows: int) -> str:
    """Return the figures as a section of a Markdown page."""
    lines = [
        "## Log store",
        "",
        f"Written by `python -m bench.logs --rows {rows}`. A record has 29 numbers in, one out and metadata. Times are "
        "medians by the clock; in brackets the processor's time of the measuring process alone.",
        f"Load average while measuring {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, pyarrow {pa.__version__}, "
        f"Python {sys.version.split()[0]}, {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "",
        "| what | measured | aim |",
        "| --- | --- | --- |",
        *(f"| {what} | {value} | {aim} |" for what, value, aim in figures),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--cold", action="store_true", help="measure Parquet, too")
    parser.add_argument("--out", type=Path, help="write the figures to this file, as a section in Markdown")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="bench-"))  # a short path: a Unix socket's name has little room
    folder = Path(tempfile.mkdtemp(prefix="bench-logs-", dir=options.folder))
    try:
        for group in (64, 1000):
            rate = measure_append(folder, group, encoded=True)
            say(f"append encoded groups of {group}", str(rate), "aim 2 M, stretch 5 M")
            rate = measure_append(folder, group, encoded=False)
            say(f"append batches of {group}", str(rate), "aim 2 M, stretch 5 M")
        rate = measure_append(folder, 1000, encoded=True, total=200_000, fsync_s=0)
        say("append encoded groups of 1000, each one synced", str(rate))
        for group in (1, 16, 64):
            say(f"append single-row batches, {group} to a write", str(measure_singles(folder, group)))
        for group in (1, 16, 64):
            say(f"append encoded single rows, {group} to a write", str(measure_encoded_singles(folder, group)))
        rate = fill(folder, options.rows)
        say(f"fill {options.rows:,} rows, seals included", str(rate))
        measure_reads(folder, options.rows, "hot")
        for order in Order:
            measure_pager(folder, options.rows, order)
        measure_http(home / "hot", folder, options.rows, "hot")
        if options.cold:
            start = time.perf_counter()
            report = maintain_topic(folder, TOPIC, Policy(cold_after_s=0, grace_s=0), now=time.time() + 1)
            say(f"cool {report.cooled} segments to Parquet", f"{time.perf_counter() - start:.1f} s")
            size = LogStore(folder).describe(TOPIC).size_bytes
            say("bytes a row afterwards", f"{size / options.rows:.0f}")
            measure_reads(folder, options.rows, "cold")
            measure_http(home / "cold", folder, options.rows, "cold")
        if options.out is not None:
            options.out.write_text(section(options.rows))
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
