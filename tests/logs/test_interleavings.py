"""Any interleaving of appends, seals, compaction, retention and reads gives each retained record once, in order."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.logs.maintain import Policy, maintain_topic
from engine.logs.ordered import read_ordered
from engine.logs.query import Order, Status, TimeRange, read_page, scan
from engine.logs.store import LogStore
from engine.logs.writer import PartitionWriter
from tests.logs.rows import batch, ids_of

TOPIC = "workspace-1-pipeline-p-inference"
PARTITIONS = ["engine-a", "engine-b"]
NOTHING_DUE = Policy(merge_segments=1000, merge_batch_rows=0, cold_after_s=None, grace_s=0)


class Walk:
    """A reader on its way through the topic."""

    def __init__(self, order: Order, page_size: int, byte_limit: int) -> None:
        self.order = order
        self.page_size = page_size
        self.byte_limit = byte_limit
        self.positions: dict[str, int] = {}
        self.seen: list[int] = []
        self.began_with: set[int] = set()
        self.is_done = False


def die(writer: PartitionWriter) -> None:
    """Let go of everything as the operating system does for a process that was killed."""
    writer._stop_thread()
    for segment in [*writer._full, writer._active]:
        if segment is not None:
            segment.close()
    os.close(writer._lock_fd)
    writer._closed = True


class LogMachine(RuleBasedStateMachine):
    """The store beside a plain list of what was appended."""

    @initialize(rows=st.integers(3, 40))
    def begin(self, rows: int) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="log-"))
        self.archived = Path(tempfile.mkdtemp(prefix="archive-"))
        self.segment_rows = rows
        self.next_id = 0
        self.records: dict[str, list[tuple[int, int]]] = {name: [] for name in PARTITIONS}
        self.writers = {name: self.open(name) for name in PARTITIONS}
        self.store = LogStore(self.root)
        self.walks: list[Walk] = []
        self.now = 1_000.0

    def open(self, name: str) -> PartitionWriter:
        return PartitionWriter(
            self.root, TOPIC, name, fsync_interval_s=60, segment_rows=self.segment_rows, clock=lambda: 1_000.0
        )

    def teardown(self) -> None:
        if hasattr(self, "writers"):
            for writer in self.writers.values():
                writer.close()
            self.check_everything()
            shutil.rmtree(self.root)
            shutil.rmtree(self.archived)

    @rule(
        name=st.sampled_from(PARTITIONS),
        count=st.integers(1, 30),
        kind=st.sampled_from([0, 0, 0, 1]),
        jitter=st.lists(st.integers(-5, 5), min_size=30, max_size=30),
        flush=st.sampled_from([True, True, False]),
        encoded=st.booleans(),
    )
    def append(self, name: str, count: int, kind: int, jitter: list[int], flush: bool, encoded: bool) -> None:
        ids = range(self.next_id, self.next_id + count)
        times = [max(i + j, 0) for i, j in zip(ids, jitter, strict=False)]
        self.next_id += count
        first = self.append_rows(name, batch(ids, times, kind), encoded)
        assert first == len(self.records[name])
        self.records[name] += zip(ids, times, strict=True)
        if flush:
            self.writers[name].flush()

    def append_rows(self, name: str, rows: pa.RecordBatch, encoded: bool) -> int:
        if not encoded:
            return self.writers[name].append(rows)
        firsts = []
        for at in range(rows.num_rows):
            row = rows.slice(at, 1)
            time = row.column(0)[0].as_py()
            message = row.serialize()
            firsts.append(self.writers[name].append_encoded(row.schema, message, rows=1, min_time=time, max_time=time))
        return firsts[0]

    @rule(name=st.sampled_from(PARTITIONS))
    def seal(self, name: str) -> None:
        self.writers[name].seal()

    @rule(name=st.sampled_from(PARTITIONS))
    def restart(self, name: str) -> None:
        self.writers[name].close()
        self.writers[name] = self.open(name)

    @rule(name=st.sampled_from(PARTITIONS), torn=st.binary(max_size=200), cut=st.integers(0, 5_000))
    def crash(self, name: str, torn: bytes, cut: int) -> None:
        """Die in the middle of a write."""
        writer = self.writers[name]
        writer.discard()
        del self.records[name][writer.end :]
        flushed = writer._active.size if writer._active is not None else 0
        ids = range(self.next_id, self.next_id + 2)
        self.next_id += 2
        writer.append(batch(ids[:1]))
        writer.append(batch(ids[1:], kind=1))
        writer.flush()
        die(writer)
        if writer._active is None:  # the write filled the segment; let it be whole
            self.records[name] += [(i, i) for i in ids]
        else:
            path = writer._active.path
            os.truncate(path, flushed + cut % (path.stat().st_size - flushed))
            with path.open("ab") as file:
                file.write(torn)
        self.writers[name] = self.open(name)

    @rule()
    def look_anew(self) -> None:
        self.store = LogStore(self.root)

    @rule(size=st.integers(1, 4))
    def merge(self, size: int) -> None:
        self.maintain(Policy(merge_segments=size, merge_batch_rows=1 << 20, cold_after_s=None, grace_s=0))

    @rule()
    def cool(self) -> None:
        self.maintain(Policy(merge_segments=1000, merge_batch_rows=0, cold_after_s=0, grace_s=0))

    @rule()
    def archive(self) -> None:
        uri = f"file://{self.archived}"
        quiet = {"merge_segments": 1000, "merge_batch_rows": 0, "grace_s": 0}
        self.maintain(Policy(**quiet, cold_after_s=0, archive_uri=uri, archive_after_s=0))

    @rule(size=st.integers(0, 40_000))
    def retain(self, size: int) -> None:
        self.maintain(Policy(merge_segments=1000, merge_batch_rows=0, cold_after_s=None, grace_s=0, keep_bytes=size))

    def maintain(self, policy: Policy) -> None:
        self.now += 1
        report = maintain_topic(self.root, TOPIC, policy, now=self.now)
        assert report.problems == []

    def retained(self) -> dict[str, list[tuple[int, int]]]:
        """What a reader must find now: what was flushed and not deleted."""
        out = {}
        for name, span in self.store.describe(TOPIC).partitions.items():
            assert span.end == self.writers[name].end
            out[name] = self.records[name][span.start : span.end]
        return out

    @rule(order=st.sampled_from(list(Order)), size=st.integers(1, 50), limit=st.sampled_from([300, 2_000, 10**7]))
    def begin_walk(self, order: Order, size: int, limit: int) -> None:
        walk = Walk(order, size, limit)
        walk.began_with = {i for rows in self.retained().values() for i, _ in rows}
        self.walks.append(walk)

    @precondition(lambda self: self.walks)
    @rule(which=st.integers(0, 100), pages=st.integers(1, 5))
    def walk_on(self, which: int, pages: int) -> None:
        walk = self.walks[which % len(self.walks)]
        for _ in range(pages):
            self.one_page(walk)

    def one_page(self, walk: Walk) -> None:
        page = read_page(
            self.store,
            TOPIC,
            order=walk.order,
            page_size=walk.page_size,
            positions=walk.positions,
            byte_limit=walk.byte_limit,
        )
        assert page.table.num_rows <= walk.page_size
        walk.seen += ids_of(page.table)
        if page.next:
            walk.positions = page.next
        walk.is_done = page.status is Status.ALL
        if page.table.num_rows == 0:
            assert page.status is Status.ALL

    @invariant()
    def walks_are_sound(self) -> None:
        for walk in getattr(self, "walks", []):
            assert len(set(walk.seen)) == len(walk.seen)
            for rows in self.records.values():
                mine = set(walk.seen)
                order = [i for i, _ in rows if i in mine]
                theirs = set(order)
                got = [i for i in walk.seen if i in theirs]
                assert got == (order if walk.order is Order.ASC else order[::-1])

    def check_everything(self) -> None:
        retained = self.retained()
        alive = {i for rows in retained.values() for i, _ in rows}
        for walk in self.walks:
            for _ in range(5 + 3 * len(alive)):
                if walk.is_done and walk.order is Order.DESC:
                    break
                before = len(walk.seen)
                self.one_page(walk)
                if len(walk.seen) == before:
                    break
            want = alive if walk.order is Order.ASC else alive & walk.began_with
            assert want <= set(walk.seen)
        self.walks_are_sound()
        self.check_order_of_time(retained)
        for low, high in ((0, 10**9), (10, 60), (self.next_id // 2, self.next_id // 2)):
            inside = {i for rows in retained.values() for i, time in rows if low <= time <= high}
            assert sorted(ids_of(list(scan(self.store, TOPIC, TimeRange(low, high))))) == sorted(inside)
            found = [b.num_rows for b in scan(self.store, TOPIC, TimeRange(low, high), columns=["out.y"])]
            assert sum(found) == len(inside)

    def check_order_of_time(self, retained: dict[str, list[tuple[int, int]]]) -> None:
        keyed = [(time, name, at, i) for name, rows in retained.items() for at, (i, time) in enumerate(rows)]
        for order in Order:
            want = [i for *_, i in sorted(keyed, reverse=order is Order.DESC)]
            seen: list[int] = []
            cursor = None
            while True:
                page = read_ordered(self.store, TOPIC, order=order, page_size=7, cursor=cursor)
                seen += ids_of(page.table)
                cursor = page.cursor
                if cursor is None:
                    break
            assert seen == want


TestInterleavings = LogMachine.TestCase
TestInterleavings.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
