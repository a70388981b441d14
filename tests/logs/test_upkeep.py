"""Sealing what was left behind, merging, Parquet, archive, retention, verification, export and import."""

from __future__ import annotations

import errno
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileSystem
from typer.testing import CliRunner

from app.logs.cli import logs
from engine.logs import frames, groups, manifest, transfer
from engine.logs.errors import LogError
from engine.logs.maintain import Policy, Report, maintain, maintain_topic
from engine.logs.ordered import read_ordered
from engine.logs.query import Order, TimeRange, read_page, scan
from engine.logs.reader import LogStore
from engine.logs.transfer import Format
from engine.logs.verify import verify
from engine.logs.writer import PartitionWriter
from tests.logs.rows import batch, ids_of

TOPIC = "topic"
QUIET = Policy(cold_after_s=None, grace_s=0, merge_batch_rows=0, merge_segments=1000)


def fill(root: Path, groups: int = 40, rows: int = 5, segment_rows: int = 50, kinds: int = 1) -> None:
    with PartitionWriter(root, TOPIC, "p", segment_rows=segment_rows, clock=lambda: 1000.0) as writer:
        for n in range(groups):
            writer.append(batch(range(n * rows, (n + 1) * rows), kind=n % kinds))
            writer.flush()


def everything(store: LogStore) -> list[int]:
    return ids_of(list(scan(store, TOPIC)))


def upkeep(root: Path, policy: Policy, now: float = 2000.0) -> Report:
    report = maintain_topic(root, TOPIC, policy, now=now)
    assert report.problems == []
    return report


def test_what_a_writer_left_behind_is_sealed_when_it_is_idle(tmp_path: Path) -> None:
    fill(tmp_path, groups=3)
    with PartitionWriter(tmp_path, TOPIC, "busy") as writer:
        writer.append(batch([1000]))
        writer.flush()
        assert upkeep(tmp_path, QUIET, now=10.0**10).sealed == 1

    assert manifest.load(tmp_path / TOPIC / "p").end == 15
    assert sorted(everything(LogStore(tmp_path))) == [*range(15), 1000]


def test_small_batches_and_small_segments_are_merged(tmp_path: Path) -> None:
    fill(tmp_path)
    store = LogStore(tmp_path)
    before = everything(store)

    report = upkeep(tmp_path, Policy(cold_after_s=None, merge_segments=3, grace_s=0))

    (view,) = store.views(TOPIC)
    assert report.merged == 4
    assert [len(segment.index) for segment in view.segments] == [1]
    assert everything(store) == before == list(range(200))


def test_cold_segments_become_parquet_and_read_the_same(tmp_path: Path) -> None:
    fill(tmp_path)
    store = LogStore(tmp_path)
    hot = read_page(store, TOPIC, page_size=200).table

    assert upkeep(tmp_path, Policy(cold_after_s=100, grace_s=0)).cooled == 4

    assert len(list((tmp_path / TOPIC / "p").glob("*.parquet"))) == 4
    cold = read_page(store, TOPIC, page_size=200).table
    assert cold.schema.equals(hot.schema, check_metadata=True)
    assert cold.equals(hot)
    newest = read_ordered(store, TOPIC, page_size=30).table
    assert ids_of(newest) == list(range(199, 169, -1))
    columns = list(scan(store, TOPIC, TimeRange(60, 64), columns=["out.y", "metadata.last_model", "out.nope"]))
    assert [b.schema.names for b in columns] == [["time", "out.y", "metadata.last_model"]]
    assert [v for b in columns for v in b["out.y"].to_pylist()] == [[i / 2] for i in range(60, 65)]


def test_a_segment_of_two_schemas_becomes_two_parquet_files(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, TOPIC, "p", segment_rows=20) as writer:
        writer.append(batch(range(12)))
        writer.append(batch(range(12, 20), kind=1))
        writer.flush()
        writer.seal()

    upkeep(tmp_path, Policy(cold_after_s=0, grace_s=0), now=10.0**10)

    store = LogStore(tmp_path)
    assert [(s.start, s.end) for s in store.view(TOPIC, "p").segments] == [(0, 12), (12, 20)]
    assert everything(store) == list(range(20))


def test_many_short_runs_stay_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path, kinds=2)

    upkeep(tmp_path, Policy(cold_after_s=0, grace_s=0))
    again = upkeep(tmp_path, Policy(cold_after_s=0, grace_s=0))

    assert again.cooled == 0
    assert not list((tmp_path / TOPIC / "p").glob("*.parquet"))
    assert everything(LogStore(tmp_path)) == list(range(200))


def test_odd_values_survive_parquet_or_stay(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            pa.field("time", pa.int64(), nullable=False),
            pa.field(
                "out",
                pa.struct(
                    [
                        pa.field("nan", pa.list_(pa.float32())),
                        pa.field("fixed", pa.list_(pa.float64(), 2)),
                        pa.field("half", pa.float16()),
                        pa.field("flag", pa.bool_()),
                        pa.field("count", pa.uint64(), nullable=False),
                        pa.field("deep", pa.list_(pa.list_(pa.field("x", pa.int8(), nullable=False)))),
                        pa.field("when", pa.timestamp("us", tz="UTC")),
                        pa.field("raw", pa.large_binary()),
                    ]
                ),
            ),
            pa.field("shaped", pa.fixed_shape_tensor(pa.float32(), [2, 2]).storage_type),
        ]
    )
    row = {
        "time": 1,
        "out": {
            "nan": [math.nan, math.inf], "fixed": [1.0, 2.0], "half": 1.5, "flag": True, "count": 2**64 - 1,
            "deep": [[1], [], [2, 3]], "when": 5, "raw": b"\0\xff",
        },
        "shaped": [1.0, 2.0, 3.0, 4.0],
    }  # fmt: skip
    rows = pa.RecordBatch.from_pylist([row] * 3, schema=schema)
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        writer.append(rows)
        writer.seal()

    upkeep(tmp_path, Policy(cold_after_s=0, grace_s=0), now=10.0**10)

    table = read_page(LogStore(tmp_path), TOPIC).table
    assert table.schema.equals(schema, check_metadata=True)
    assert repr(table.to_pylist()) == repr(rows.to_pylist())


def varied(rows: int, *, ambiguous: bool = False) -> pa.RecordBatch:
    """Numbers that mostly differ and numbers that repeat, edges of their types, nulls, and names with dots."""
    rng = random.Random(rows)
    edges = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 3.4e38]
    inner = pa.struct([pa.field("c", pa.int32()), pa.field("d", pa.list_(pa.float32()))])
    alike = pa.struct([*inner, pa.field("b.c", pa.string())] if ambiguous else list(inner))
    schema = pa.schema(
        [
            pa.field("time", pa.int64(), nullable=False),
            pa.field("in", pa.struct([pa.field("a.b", inner), pa.field("a", alike), pa.field("x", pa.float64())])),
            pa.field("differ", pa.list_(pa.float32())),
            pa.field("repeat", pa.list_(pa.float32())),
            pa.field("long", pa.int64()),
            pa.field("natural", pa.uint64(), nullable=False),
            pa.field("short", pa.int8(), nullable=False),
            pa.field("half", pa.float16()),
            pa.field("text", pa.string(), metadata={b"k": b"v"}),
        ]
    )
    return pa.RecordBatch.from_pylist(
        [
            {
                "time": n // 7,
                "in": None if n % 11 == 0 else {
                    "a.b": {"c": n, "d": [rng.random()]},
                    "a": None if n % 5 == 0 else {"c": -n, "d": None} | ({"b.c": "z"} if ambiguous else {}),
                    "x": edges[n] if n < len(edges) else rng.random(),
                },
                "differ": None if n % 13 == 0 else [rng.choice([*edges, rng.random(), None]) for _ in range(n % 3)],
                "repeat": [0.1] * (n % 3),
                "long": rng.choice([-(2**63), 2**63 - 1, rng.randrange(2**62), None]),
                "natural": rng.choice([2**64 - 1, 0, n]),
                "short": n % 256 - 128,
                "half": 1.5,
                "text": "same" if n % 2 else str(n),
            }
            for n in range(rows)
        ],
        schema=schema,
    )  # fmt: skip


def cooled(root: Path, rows: pa.RecordBatch) -> LogStore:
    """Return a store whose only segment holds these rows, and is cold."""
    with PartitionWriter(root, TOPIC, "p") as writer:
        for first in range(0, rows.num_rows, 1_000):
            writer.append(rows.slice(first, 1_000))
        writer.seal()
    assert upkeep(root, Policy(cold_after_s=0, grace_s=0), now=10.0**10).cooled == 1
    store = LogStore(root)
    assert [path.suffix for path in (root / TOPIC / "p").glob("0*") if path.suffix != ".idx"] == [".parquet"]
    return store


@pytest.mark.parametrize(("noted", "ambiguous"), [(True, False), (True, True), (False, False)])
def test_all_kinds_of_numbers_read_the_same_when_cold(tmp_path: Path, noted: bool, ambiguous: bool) -> None:
    rows = varied(9_000, ambiguous=ambiguous)
    store = cooled(tmp_path, rows)
    if not noted:  # as it was written before the sizes of row groups were noted
        (path,) = (tmp_path / TOPIC / "p").glob("*.idx")
        index = np.frombuffer(path.read_bytes(), dtype=frames.INDEX_DTYPE).copy()
        index["length"] = 0
        path.write_bytes(index.tobytes())

    whole = read_page(store, TOPIC, page_size=9_000).table
    assert whole.schema.equals(rows.schema, check_metadata=True)
    assert repr(whole.to_pylist()) == repr(rows.to_pylist())
    for start, size in ((0, 1), (17, 2_000), (2_999, 5_000), (8_999, 10)):
        part = read_page(store, TOPIC, positions={"p": start}, page_size=size).table
        assert repr(part.to_pylist()) == repr(rows.slice(start, size).to_pylist())
    span = read_page(store, TOPIC, time_range=TimeRange(500, 900), page_size=10_000).table
    assert repr(span.to_pylist()) == repr(rows.slice(3_500, 2_807).to_pylist())
    assert [checked.problems for checked in verify(store)] == [[]]


PATHS: list[list[str | tuple[str, ...]]] = [
    ["in.a.b.c"],
    [("in", "a.b", "c"), ("in", "a", "c")],
    ["in.x", "text", "in.x"],
    ["in", "in.a.d"],
    ["nope", "in.nope", "in.a.nope", "short.nope"],
    ["metadata", "differ", "time"],
]


@pytest.mark.parametrize("paths", PATHS)
def test_columns_of_a_cold_segment_are_those_of_a_hot_one(tmp_path: Path, paths: list[str | tuple[str, ...]]) -> None:
    rows = varied(2_000, ambiguous=True)
    with PartitionWriter(tmp_path / "hot", TOPIC, "p") as writer:
        writer.append(rows)
        writer.seal()
    stores = LogStore(tmp_path / "hot"), cooled(tmp_path / "cold", rows)

    hot, cold = (pa.Table.from_batches(scan(store, TOPIC, columns=paths)) for store in stores)

    assert cold.schema.equals(hot.schema, check_metadata=True)
    assert repr(cold.to_pylist()) == repr(hot.to_pylist())


def test_a_cold_segment_is_read_by_what_is_wanted_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cooled(tmp_path, batch(range(30_000), width=30))
    (segment,) = store.view(TOPIC, "p").segments
    starts, counts = segment.index["position"].tolist(), segment.index["rows"].tolist()
    read: list[list[int]] = []
    whole = pq.ParquetFile.read_row_groups

    def read_row_groups(self: pq.ParquetFile, groups: list[int], columns: list[str] | None = None, **how: bool) -> Any:
        read.append(groups)
        table = whole(self, groups, columns=columns, **how)
        assert columns is None or sum(field.type.num_fields or 1 for field in table.schema) == len(columns)
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", read_row_groups)

    def needed(start: int, rows: int) -> list[int]:
        return [n for n, at in enumerate(starts) if at < start + rows and at + counts[n] > start]

    assert len(starts) > 6
    for start, rows in ((0, 10), (starts[1] - 5, 10), (starts[2], counts[2]), (starts[2], counts[2] + 1), (777, 9_000)):
        read.clear()
        assert ids_of(read_page(store, TOPIC, positions={"p": start}, page_size=rows).table) == [
            *range(start, start + rows)
        ]
        assert [*chain(*read)] == needed(start, rows)
    read.clear()
    assert read_page(store, TOPIC, time_range=TimeRange(9_000, 9_001)).table.num_rows == 2
    assert [*chain(*read)] == needed(9_000, 2)
    read.clear()
    assert sum(rows.num_rows for rows in scan(store, TOPIC, columns=["in.tensor", "metadata.last_model"])) == 30_000
    assert [*chain(*read)] == list(range(len(starts)))


@pytest.mark.parametrize(("width", "rows", "most"), [(1, 20_000, 16_384), (100, 20_000, 4_000), (100_000, 300, 50)])
def test_row_groups_are_the_smaller_the_larger_a_row_is(tmp_path: Path, width: int, rows: int, most: int) -> None:
    tensor = pa.array(np.zeros(rows * width, "f4"))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype="i4") * width), tensor)
    store = cooled(tmp_path, pa.RecordBatch.from_arrays([pa.array(range(rows)), lists], names=["time", "x"]))

    (segment,) = store.view(TOPIC, "p").segments
    assert most // 4 < segment.index["rows"].max() <= most
    assert segment.index["length"].max() <= 16 << 20


def test_old_segments_move_away_and_are_read_from_there(tmp_path: Path) -> None:
    root, archive = tmp_path / "log", tmp_path / "archive"
    fill(root)
    policy = Policy(cold_after_s=0, grace_s=0, archive_uri=f"file://{archive}", archive_after_s=0)
    upkeep(root, policy)

    assert upkeep(root, policy).archived == 4

    upkeep(root, policy, now=3000.0)
    assert not list((root / TOPIC / "p").glob("*.parquet"))
    assert len(list(archive.rglob("*.parquet"))) == 4
    store = LogStore(root)
    assert everything(store) == list(range(200))
    assert [checked.problems for checked in verify(store)] == [[]] * 4

    gone = upkeep(root, Policy(keep_s=1, grace_s=0), now=10.0**10)
    upkeep(root, Policy(keep_s=1, grace_s=0), now=10.0**10 + 1)
    assert gone.deleted_rows == 200
    assert not list(archive.rglob("*.parquet"))


@pytest.mark.s3
def test_old_segments_move_to_s3_and_are_read_from_there(tmp_path: Path, s3_url: str) -> None:
    fill(tmp_path)
    store = LogStore(tmp_path)
    page = read_page(store, TOPIC, page_size=33)
    newest = read_ordered(store, TOPIC, page_size=33)
    policy = Policy(cold_after_s=0, grace_s=0, archive_uri=s3_url, archive_after_s=0)
    upkeep(tmp_path, policy)

    assert upkeep(tmp_path, policy).archived == 4
    upkeep(tmp_path, policy, now=3000.0)

    assert not list((tmp_path / TOPIC / "p").glob("*.parquet"))
    assert everything(store) == list(range(200))
    assert ids_of(read_page(store, TOPIC, positions=page.next).table) == list(range(33, 200))
    assert ids_of(read_ordered(store, TOPIC, cursor=newest.cursor).table) == list(range(166, -1, -1))
    checked = list(verify(store))
    assert [one.problems for one in checked] == [[]] * 4
    assert all(one.file.startswith("s3://blobs/") and "secret" not in one.file for one in checked)

    reading = scan(store, TOPIC, max_batch_rows=5)
    next(reading)
    assert upkeep(tmp_path, Policy(keep_s=1, grace_s=0), now=10.0**10).deleted_rows == 200
    upkeep(tmp_path, Policy(keep_s=1, grace_s=0), now=10.0**10 + 1)
    filesystem, path = FileSystem.from_uri(s3_url)
    left = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    assert not [one.path for one in left if one.is_file]
    assert everything(store) == []


def test_a_reader_on_its_way_survives_that_everything_is_rewritten(tmp_path: Path) -> None:
    fill(tmp_path)
    store = LogStore(tmp_path)
    page = read_page(store, TOPIC, page_size=33)
    ordered = read_ordered(store, TOPIC, page_size=33)
    reading = scan(store, TOPIC, max_batch_rows=5)
    streamed = ids_of(next(reading))

    upkeep(tmp_path, Policy(cold_after_s=0, merge_segments=2, grace_s=0))
    upkeep(tmp_path, QUIET, now=3000.0)

    assert ids_of(read_page(store, TOPIC, positions=page.next).table) == list(range(33, 200))
    rest = read_ordered(store, TOPIC, cursor=ordered.cursor)
    assert ids_of(rest.table) == list(range(166, -1, -1))
    assert streamed + ids_of(list(reading)) == list(range(200))


PAGER = """
import sys
import pyarrow as pa
from engine.logs.query import Order, read_page
from engine.logs.store import LogStore

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

store = LogStore(sys.argv[1])
positions, rows, most = {}, 0, 0
read_page(store, "topic", page_size=100)
before = resident()
while True:
    page = read_page(store, "topic", order=Order(sys.argv[2]), page_size=100, positions=positions)
    if not page.table.num_rows:
        break
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, page.table.schema) as writer:
        writer.write_table(page.table)
    rows += page.table.num_rows
    positions = page.next
    most = max(most, resident())
print(rows, most - before)
"""


MANY_FILES = """
import resource, sys
from engine.logs.ordered import read_ordered
from engine.logs.query import Order, read_page, scan
from engine.logs.store import LogStore
from tests.logs.rows import ids_of

resource.setrlimit(resource.RLIMIT_NOFILE, (220, 220))
store = LogStore(sys.argv[1])
everything = list(range(1_500))
for order, wanted in ((Order.ASC, everything), (Order.DESC, everything[::-1])):
    positions, seen = {}, []
    while (page := read_page(store, "topic", order=order, page_size=40, positions=positions)).table.num_rows:
        seen += ids_of(page.table)
        positions = page.next
    assert seen == wanted
    cursor, seen = None, []
    while True:
        page = read_ordered(store, "topic", order=order, page_size=40, cursor=cursor)
        seen += ids_of(page.table)
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == wanted
assert [i for rows in scan(store, "topic") for i in ids_of(rows)] == everything
"""


@pytest.mark.parametrize("cold", [False, True])
def test_a_log_of_many_files_is_read_with_few_descriptors(tmp_path: Path, cold: bool) -> None:
    fill(tmp_path, groups=300, segment_rows=5)
    if cold:
        assert upkeep(tmp_path, Policy(cold_after_s=0, grace_s=0, merge_segments=1000)).cooled == 300

    ran = subprocess.run([sys.executable, "-c", MANY_FILES, str(tmp_path)], capture_output=True, text=True, check=False)

    assert ran.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("order", list(Order))
def test_a_readers_memory_is_bounded_by_its_page(tmp_path: Path, order: Order) -> None:
    base = batch(range(100), width=20_000)
    with PartitionWriter(tmp_path, TOPIC, "p", segment_rows=1_500, fsync_interval_s=60) as writer:
        for _ in range(60):
            writer.append(base)
            writer.flush()
        writer.seal()
    size = LogStore(tmp_path).describe(TOPIC).size_bytes

    ran = subprocess.run(
        [sys.executable, "-c", PAGER, str(tmp_path), order], capture_output=True, text=True, check=True
    )

    rows, grown = map(int, ran.stdout.split())
    assert rows == 6_000
    assert size > 450_000_000
    assert grown < 160_000_000


def test_a_topic_that_is_in_trouble_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for topic in ("broken", "failing", TOPIC):
        with PartitionWriter(tmp_path, topic, "p", clock=lambda: 1000.0) as writer:
            writer.append(batch(range(10)))
            writer.seal()
    (tmp_path / "broken" / "p" / "manifest.json").write_bytes(b"{")
    real = manifest.write_durably

    def write_durably(path: Path, content: bytes | memoryview) -> None:
        if "failing" in path.parts:
            raise OSError(errno.EIO, "Input/output error")
        real(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write_durably", write_durably)
        report = maintain(tmp_path, Policy(keep_s=1, grace_s=0), now=10.0**9)

    assert report.deleted_rows == 10
    assert everything(LogStore(tmp_path)) == []
    assert any("broken" in problem for problem in report.problems)
    assert any("Input/output error" in problem for problem in report.problems)
    assert ids_of(read_page(tmp_path, "failing").table) == list(range(10))
    assert maintain(tmp_path, Policy(keep_s=1, grace_s=0), now=10.0**9).deleted_rows == 10
    damaged = [one for one in verify(LogStore(tmp_path)) if one.problems]
    assert [(one.topic, one.file) for one in damaged] == [("broken", "manifest.json")]


class FullDisk:
    """A disk that has no room beyond what a folder takes at the beginning."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._size = self.taken()
        self._real = manifest.write_durably
        monkeypatch.setattr(manifest, "write_durably", self._write_durably)

    def taken(self) -> int:
        return sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file())

    def _write_durably(self, path: Path, content: bytes | memoryview) -> None:
        if self.taken() + len(content) > self._size:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._real(path, content)


def two_partitions(root: Path, rows: int = 40_000) -> None:
    """Write eight segments, in turns older and newer, that take more than what is put by."""
    for n in range(4):
        for name in ("p", "q"):
            with PartitionWriter(root, TOPIC, name, clock=lambda: 1000.0) as writer:
                writer.append(batch(range(n * rows, (n + 1) * rows), times=[1_000_000 + n] * rows))
                writer.seal()


@pytest.mark.parametrize("put_by", [True, False])
@pytest.mark.parametrize("left", [0, 80_000])
def test_retention_frees_a_disk_that_is_full_to_the_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, put_by: bool
) -> None:
    two_partitions(tmp_path)
    upkeep(tmp_path, QUIET)
    by_bytes = Policy(cold_after_s=None, keep_bytes=LogStore(tmp_path).describe(TOPIC).size_bytes * 5 // 16)
    policy = by_bytes if left else Policy(cold_after_s=None, keep_s=100)
    reserve = tmp_path / ".reserve"
    assert reserve.stat().st_size == 1 << 20
    number = reserve.stat().st_ino
    if not put_by:
        reserve.unlink()
    store = LogStore(tmp_path)
    page = read_page(store, TOPIC, page_size=10)
    reading = scan(store, TOPIC, max_batch_rows=50)
    streamed = ids_of(next(reading))
    disk = FullDisk(tmp_path, monkeypatch)
    before = disk.taken()

    report = upkeep(tmp_path, policy)

    assert disk.taken() < before - 4_000_000
    assert (number in {path.stat().st_ino for path in tmp_path.rglob("manifest.json")}) is put_by
    assert report.deleted_rows == 320_000 - left
    assert len(everything(store)) == left
    assert ids_of(page.table) == list(range(10))
    assert streamed + ids_of(next(reading)) == list(range(100))
    assert [checked.problems for checked in verify(store)] == [[]] * (left // 40_000)
    assert store.describe(TOPIC).partitions == dict.fromkeys("pq", (160_000 - left // 2, 160_000))
    assert reserve.stat().st_size == 1 << 20
    upkeep(tmp_path, policy, now=3000.0)
    assert len([*tmp_path.rglob("*.log"), *tmp_path.rglob(".*tmp")]) == left // 40_000


@pytest.mark.parametrize("put_by", [True, False])
def test_a_crash_while_a_full_disk_is_freed_is_got_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put_by: bool
) -> None:
    two_partitions(tmp_path, 1_000)
    upkeep(tmp_path, QUIET)
    if not put_by:
        (tmp_path / ".reserve").unlink()

    attempts: list[Path] = []

    def write_durably(path: Path, content: bytes) -> None:
        attempts.append(path)
        raise OSError(errno.ENOSPC, "No space left on device") if len(attempts) == 1 else KeyboardInterrupt

    def write_over(reserve: Path, path: Path, content: bytes) -> None:
        reserve.replace(path.with_name(".manifest.json.1.tmp"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write_durably", write_durably)
        if put_by:
            patched.setattr(manifest, "write_over", write_over)
        with pytest.raises(KeyboardInterrupt):
            maintain_topic(tmp_path, TOPIC, Policy(cold_after_s=None, keep_s=1), now=2000.0)

    upkeep(tmp_path, Policy(cold_after_s=None, keep_s=1, grace_s=0), now=2001.0)
    upkeep(tmp_path, Policy(cold_after_s=None, keep_s=1, grace_s=0), now=2002.0)
    assert everything(LogStore(tmp_path)) == []
    assert not list(tmp_path.rglob("*.log"))
    assert [checked.problems for checked in verify(LogStore(tmp_path))] == []


@pytest.mark.parametrize("cold_after_s", [None, 0.0])
def test_rewriting_on_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_after_s: float | None
) -> None:
    fill(tmp_path)
    disk = FullDisk(tmp_path, monkeypatch)
    before = disk.taken()

    report = maintain_topic(tmp_path, TOPIC, Policy(cold_after_s=cold_after_s, merge_segments=3), now=2000.0)

    assert any("No space left" in problem for problem in report.problems)
    assert disk.taken() == before
    assert everything(LogStore(tmp_path)) == list(range(200))


@pytest.mark.slow
def test_readers_see_everything_while_segments_are_merged_cooled_and_moved(tmp_path: Path) -> None:
    root = tmp_path / "log"
    policy = Policy(
        merge_segments=3, cold_after_s=0, grace_s=0.5, archive_uri=f"file://{tmp_path / 'archive'}", archive_after_s=0
    )
    seen: dict[int, list[int]] = {0: [], 1: []}
    newest: list[list[int]] = []
    done = threading.Event()
    totals = Report()

    def page_on(number: int) -> None:
        store = LogStore(root)
        positions: dict[str, int] = {}
        while True:
            was_done = done.is_set()
            page = read_page(store, TOPIC, positions=positions, page_size=(37, 1000)[number])
            seen[number] += ids_of(page.table)
            positions = page.next
            if not page.table.num_rows and was_done:
                return

    def look_at_the_newest() -> None:
        store = LogStore(root)
        while not done.is_set():
            first = read_ordered(store, TOPIC, page_size=300)
            ids = ids_of(first.table)
            if first.cursor is not None:
                ids += ids_of(read_ordered(store, TOPIC, page_size=300, cursor=first.cursor).table)
            newest.append(ids)

    def keep_up() -> None:
        while not done.is_set():
            totals.add(maintain_topic(root, TOPIC, policy))

    works = [lambda: page_on(0), lambda: page_on(1), look_at_the_newest, keep_up]
    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(work) for work in works]
        try:
            with PartitionWriter(root, TOPIC, "p", segment_rows=250) as writer:
                deadline = time.monotonic() + 4
                count = 0
                while time.monotonic() < deadline or count < 3_000:
                    writer.append(batch(range(count, count + 10)))
                    writer.flush()
                    count += 10
                    time.sleep(0.002)
        finally:
            done.set()
        for work in running:
            work.result(60)

    assert seen[0] == seen[1] == list(range(count))
    assert len(newest) > 3
    for ids in newest:
        assert ids == list(range(ids[0], ids[0] - len(ids), -1)) if ids else True
    assert min(totals.merged, totals.cooled, totals.archived, totals.files_removed) > 0
    assert totals.problems == []


def test_retention_by_age_deletes_from_the_front(tmp_path: Path) -> None:
    for day in range(4):
        clock = 1000.0 + day * 86_400
        with PartitionWriter(tmp_path, TOPIC, "p", segment_rows=10, clock=lambda clock=clock: clock) as writer:
            writer.append(batch(range(day * 10, day * 10 + 10)))
            writer.seal()
    store = LogStore(tmp_path)
    before = read_page(store, TOPIC, page_size=25, order=Order.DESC)

    report = upkeep(tmp_path, Policy(keep_s=1.5 * 86_400, cold_after_s=None), now=1000.0 + 3 * 86_400)

    assert (report.deleted_segments, report.deleted_rows) == (2, 20)
    assert store.describe(TOPIC).partitions["p"] == (20, 40)
    assert everything(store) == list(range(20, 40))
    assert ids_of(read_page(store, TOPIC, positions={"p": 3}).table) == list(range(20, 40))
    assert ids_of(read_page(store, TOPIC, order=Order.DESC, positions=before.next).table) == []
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        assert writer.append(batch([99])) == 40


def test_partitions_that_nothing_is_left_of_are_forgotten(tmp_path: Path) -> None:
    fill(tmp_path)
    with PartitionWriter(tmp_path, TOPIC, "busy") as writer:
        for at in (10.0**10, 10.0**10 + 1000, 2 * 10.0**10):
            upkeep(tmp_path, Policy(keep_s=1, grace_s=0), now=at)
        writer.append(batch([1]))

    assert LogStore(tmp_path).partitions(TOPIC) == ["busy"]
    assert everything(LogStore(tmp_path)) == [1]


def test_imported_history_is_as_old_as_its_import(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, TOPIC, "import", clock=lambda: 10.0**9) as writer:
        writer.append(batch([1, 2, 3]))
        writer.seal()

    assert upkeep(tmp_path, Policy(keep_s=86_400), now=10.0**9 + 3600).deleted_rows == 0
    assert upkeep(tmp_path, Policy(keep_s=86_400), now=10.0**9 + 90_000).deleted_rows == 3


def test_retention_by_bytes_deletes_the_oldest_of_all_partitions(tmp_path: Path) -> None:
    for n, name in enumerate(["a", "b", "a", "b"]):
        with PartitionWriter(tmp_path, TOPIC, name, clock=lambda n=n: 1000.0 + n) as writer:
            writer.append(batch(range(n * 100, n * 100 + 100)))
            writer.seal()
    store = LogStore(tmp_path)
    size = store.describe(TOPIC).size_bytes

    upkeep(tmp_path, Policy(keep_bytes=size // 2 + 1000, cold_after_s=None, merge_segments=1000))

    assert sorted(everything(store)) == list(range(200, 400))


def test_replaced_files_stay_for_the_grace_period(tmp_path: Path) -> None:
    fill(tmp_path)
    upkeep(tmp_path, Policy(cold_after_s=0, grace_s=60), now=2000.0)
    assert len(list((tmp_path / TOPIC / "p").glob("*.log"))) == 4

    assert upkeep(tmp_path, Policy(cold_after_s=0, grace_s=60), now=2061.0).files_removed == 8

    assert not list((tmp_path / TOPIC / "p").glob("*.log"))


def test_what_a_crash_left_half_done_is_swept(tmp_path: Path) -> None:
    fill(tmp_path)
    folder = tmp_path / TOPIC / "p"
    for name in ("00000000000000000000-abc.parquet", ".00000000000000000000-abc.seg.tmp", "x.idx"):
        (folder / name).write_bytes(b"half")

    upkeep(tmp_path, QUIET, now=10.0**10)

    assert not list(folder.glob("*abc*"))
    assert everything(LogStore(tmp_path)) == list(range(200))


@pytest.mark.parametrize("cold", [False, True])
def test_damage_is_found(tmp_path: Path, cold: bool) -> None:
    fill(tmp_path)
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        writer.append(batch([500]))
        writer.flush()
    if cold:
        upkeep(tmp_path, Policy(cold_after_s=0, grace_s=0))
    folder = tmp_path / TOPIC / "p"
    sealed = manifest.load(folder).segments[1].file
    open_file = next(path.name for path in folder.glob("*.log") if int(path.stem) == 200)
    assert [checked.problems for checked in verify(LogStore(tmp_path))] == [[]] * 5

    for name in (sealed, open_file):
        content = bytearray((folder / name).read_bytes())
        content[len(content) * 3 // 5] ^= 0xFF
        (folder / name).write_bytes(bytes(content))

    damaged = {checked.file for checked in verify(LogStore(tmp_path)) if checked.problems}
    assert damaged == {sealed, open_file}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("flag", [frames.HASHED, 0], ids=["XXH3", "CRC-32 of older files"])
def test_a_flipped_bit_is_found_in_every_kind_of_record(tmp_path: Path, flag: int, large: bool) -> None:
    record = pa.record_batch({"time": pa.array([1]), "x": pa.array(["a" * (200_000 if large else 200)])})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "HASHED", flag)
        with PartitionWriter(tmp_path, TOPIC, "p") as writer:
            writer.append(record)
            writer.flush()
    (path,) = (tmp_path / TOPIC / "p").glob("*.log")
    assert [checked.problems for checked in verify(LogStore(tmp_path))] == [[]]

    path.write_bytes(path.read_bytes().replace(b"aaaa", b"aaba", 1))

    (damaged,) = verify(LogStore(tmp_path))
    assert damaged.problems


@pytest.mark.parametrize("form", list(Format))
def test_an_export_imports_to_the_same_records(tmp_path: Path, form: Format) -> None:
    fill(tmp_path / "one")
    store = LogStore(tmp_path / "one")

    files = list(transfer.export(store, TOPIC, tmp_path / "out", form=form, file_bytes=1))
    paths = transfer.in_order([file.path for file in files])
    for _ in range(2):
        for number, path in enumerate(paths):
            transfer.import_file(tmp_path / "two", TOPIC, "import", path, source=number)

    other = LogStore(tmp_path / "two")
    assert everything(other) == list(range(200))
    if form is not Format.JSON:
        assert read_page(other, TOPIC).table.equals(read_page(store, TOPIC).table)


def test_an_interrupted_export_goes_on(tmp_path: Path) -> None:
    fill(tmp_path, kinds=2)
    store = LogStore(tmp_path)
    first = transfer.export(store, TOPIC, tmp_path / "out")
    done = [next(first), next(first)]
    first.close()

    rest = list(transfer.export(store, TOPIC, tmp_path / "out"))

    assert [file.path.name for file in done] == ["pipeline_logs-1.arrow", "pipeline_logs-2.arrow"]
    assert rest[0].path.name == "pipeline_logs-3.arrow"
    tables = [pa.ipc.open_file(file.path).read_all() for file in [*done, *rest]]
    assert [i for table in tables for i in ids_of(table)] == list(range(200))
    with pytest.raises(LogError, match="other options"):
        list(transfer.export(store, TOPIC, tmp_path / "out", form=Format.JSON))


@pytest.mark.parametrize("form", list(Format))
def test_an_interrupted_import_goes_on(tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "one")
    files = list(transfer.export(LogStore(tmp_path / "one"), TOPIC, tmp_path / "out", form=form))
    real = transfer.rows_of
    left = [2]

    def rows_of(path: Path, form: Format) -> Iterator[pa.RecordBatch]:
        for whole in real(path, form):
            for at in range(0, whole.num_rows, 30):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                yield whole.slice(at, 30)

    monkeypatch.setattr(transfer, "rows_of", rows_of)
    with pytest.raises(KeyboardInterrupt):
        transfer.import_file(tmp_path / "two", TOPIC, "import", files[0].path, source=0)
    assert everything(LogStore(tmp_path / "two")) == list(range(60))

    left[0] = 10**9
    added = transfer.import_file(tmp_path / "two", TOPIC, "import", files[0].path, source=0)

    assert added == 140
    assert everything(LogStore(tmp_path / "two")) == list(range(200))


def test_the_command_exports_imports_counts_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTOROO_HOME", str(tmp_path / "home"))
    fill(tmp_path / "home" / "logs")
    run = CliRunner()

    assert run.invoke(logs, ["export", TOPIC, str(tmp_path / "out"), "--format", "json"]).exit_code == 0
    files = [str(path) for path in (tmp_path / "out").glob("pipeline*.json")]
    for _ in range(2):
        assert run.invoke(logs, ["import", "other", *files]).exit_code == 0
    counted = json.loads(run.invoke(logs, ["stats", "--json"]).stdout)
    checked = run.invoke(logs, ["verify", "--json"])

    assert [(one["topic"], one["end"]) for one in counted] == [("other", 200), (TOPIC, 200)]
    assert checked.exit_code == 0
    assert json.loads(checked.stdout)["rows"] == 400
    shown = run.invoke(logs, ["stats"])
    assert shown.exit_code == 0
    assert [line.split("│")[1].strip() for line in shown.stdout.splitlines() if "│" in line] == ["other", TOPIC]
    again = run.invoke(logs, ["export", TOPIC, str(tmp_path / "out"), "--format", "json"])
    assert "200/200 rows" in again.stderr
    assert run.invoke(logs, ["export", "nothing", str(tmp_path / "no")]).exit_code != 0
