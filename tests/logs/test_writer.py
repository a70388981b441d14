"""Writing: groups, the one writer, crashes, full disks."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.logs import manifest, recovery, room
from engine.logs.errors import InvalidRecord, LogFull, LogWriteError, PartitionBusy
from engine.logs.query import TimeRange, read_page
from engine.logs.reader import LogStore
from engine.logs.verify import verify
from engine.logs.writer import PartitionWriter
from tests.logs.rows import batch, ids_of

TOPIC = "topic"
_LITTLE = 64 * 1024
"""What a file system may well take more than a file holds."""


def all_records(root: Path, topic: str = TOPIC) -> list[dict[str, Any]]:
    """Read everything, page by page, with a store that remembers nothing."""
    store = LogStore(root)
    seen: list[dict[str, Any]] = []
    positions: dict[str, int] = {}
    while True:
        page = read_page(store, topic, positions=positions, page_size=10_000)
        if page.table.num_rows == 0:
            return seen
        seen += page.table.to_pylist()
        positions = page.next


def all_ids(root: Path) -> list[int]:
    """Return the ids of all records."""
    return [row["in"]["id"] for row in all_records(root)]


def test_what_was_flushed_is_seen_at_once_and_not_before(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        assert writer.append(batch(range(3))) == 0
        assert writer.append(batch(range(3, 5))) == 3
        assert all_ids(tmp_path) == []

        writer.flush()

        assert all_ids(tmp_path) == [0, 1, 2, 3, 4]
        assert writer.flushes == 1


def test_small_batches_of_a_group_become_one(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        for i in range(64):
            writer.append(batch([i]))
        writer.flush()

    (view,) = LogStore(tmp_path).views(TOPIC)

    assert [int(rows) for segment in view.segments for rows in segment.index["rows"]] == [64]


def test_encoded_messages_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = batch(range(10))
    message = rows.serialize()
    parts = [memoryview(message)[:100], memoryview(message)[100:]]
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        assert writer.append_encoded(rows.schema, message, rows=10, min_time=0, max_time=9) == 0
        assert writer.append_encoded(rows.schema, parts, rows=10, min_time=0, max_time=9) == 10
        writer.append(batch([99]))
        writer.flush()

    assert all_ids(tmp_path) == [*range(10), *range(10), 99]


def test_encoded_messages_of_a_group_share_a_frame(tmp_path: Path) -> None:
    one = {i: batch([i]) for i in range(50)}
    other = batch([100], kind=1)
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        for i, row in one.items():
            writer.append_encoded(one[0].schema, row.serialize(), rows=1, min_time=i, max_time=i)
        writer.append_encoded(other.schema, other.serialize(), rows=1, min_time=100, max_time=100)
        writer.flush()

        for _ in range(2):
            (view,) = LogStore(tmp_path).views(TOPIC)
            assert [int(rows) for segment in view.segments for rows in segment.index["rows"]] == [50, 1]
            assert all_ids(tmp_path) == [*range(50), 100]
            writer.seal()

    assert [checked.problems for checked in verify(LogStore(tmp_path))] == [[]]
    page = read_page(LogStore(tmp_path), TOPIC, time_range=TimeRange(20, 29))
    assert ids_of(page.table) == list(range(20, 30))


def test_a_partition_has_one_writer(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, TOPIC, "p"), PartitionWriter(tmp_path, TOPIC, "q"):
        with pytest.raises(PartitionBusy, match=f"process {os.getpid()}.*topic/p"):
            PartitionWriter(tmp_path, TOPIC, "p")
        code = f"from engine.logs.writer import PartitionWriter\nPartitionWriter({str(tmp_path)!r}, {TOPIC!r}, 'p')"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "PartitionBusy" in other.stderr

    PartitionWriter(tmp_path, TOPIC, "p").close()


def test_positions_go_on_after_a_restart(tmp_path: Path) -> None:
    for start in range(0, 50, 10):
        with PartitionWriter(tmp_path, TOPIC, "p", segment_rows=25) as writer:
            assert writer.end == start
            writer.append(batch(range(start, start + 10)))

    assert all_ids(tmp_path) == list(range(50))


def test_syncing_does_not_meet_a_file_that_sealing_closed(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, TOPIC, "p", segment_rows=5, fsync_interval_s=60) as writer:
        writer.append(batch(range(5)))
        writer.flush()
        segment = recovery.OpenSegment(tmp_path / "x", 0, 0.0, os.open(tmp_path / "x", os.O_CREAT | os.O_RDWR))
        inside, go_on = threading.Event(), threading.Event()
        real = os.fdatasync

        def fdatasync(fd: int) -> None:
            inside.set()
            go_on.wait(10)
            real(fd)

        with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(2) as pool:
            patched.setattr(os, "fdatasync", fdatasync)
            syncing = pool.submit(segment.sync)
            assert inside.wait(10)
            closing = pool.submit(segment.close)
            time.sleep(0.05)
            go_on.set()
            syncing.result(10)
            closing.result(10)
        segment.sync()
        for n in range(5, 400, 5):
            writer.append(batch(range(n, n + 5)))
            writer.flush()
            assert writer.sync_flushed() == n + 5

    assert all_ids(tmp_path) == list(range(400))


def test_numbers_survive_seals_and_restarts(tmp_path: Path) -> None:
    for _ in range(2):
        with PartitionWriter(tmp_path, TOPIC, "p", segment_rows=10) as writer:
            for first in range(1, 50, 7):
                writer.append(batch(range(first, first + 7)), sequence=first)
                writer.flush()

    assert all_ids(tmp_path) == list(range(1, 50))


@pytest.mark.parametrize(
    "bad",
    [
        pa.record_batch({"x": [1]}),
        pa.record_batch({"x": [1], "time": pa.array([1], pa.int64())}),
        pa.record_batch({"time": pa.array([1], pa.int32())}),
        pa.record_batch({"time": pa.array([1], pa.int64()), "x": pa.nulls(1)}),
        pa.record_batch({"time": pa.array([1], pa.int64()), "x": pa.array(["a"]).dictionary_encode()}),
        pa.record_batch({"time": pa.array([None], pa.int64())}),
    ],
)
def test_what_no_log_can_hold_is_refused_and_leaves_no_trace(tmp_path: Path, bad: pa.RecordBatch) -> None:
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        with pytest.raises(InvalidRecord):
            writer.append(bad)
        writer.append(batch([1]))

    assert all_ids(tmp_path) == [1]


def test_a_torn_tail_is_cut_and_counted(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        writer.append(batch(range(5)))
        writer.flush()
        whole = writer.bytes_written
        writer.append(batch(range(5, 10)))
        writer.append(batch(range(10, 15), kind=1))
    (path,) = (tmp_path / TOPIC / "p").glob("*.log")
    content = path.read_bytes()

    for size in (len(content) - 1, len(content) - 200, whole + 1, whole + 63, whole + 64, whole + 200):
        path.write_bytes(content[:size])
        assert all_ids(tmp_path) == list(range(5))
        with PartitionWriter(tmp_path, TOPIC, "p") as writer:
            assert writer.torn_bytes == size - whole
            writer.append(batch([99]))
        assert all_ids(tmp_path) == [*range(5), 99]

    assert manifest.load(tmp_path / TOPIC / "p").torn_tails == 6


def test_garbage_in_the_tail_after_a_power_cut_is_cut_too(tmp_path: Path) -> None:
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        writer.append(batch(range(5)))
        writer.flush()
        whole = writer.bytes_written
        writer.append(batch(range(5, 10)))
    folder = tmp_path / TOPIC / "p"
    (path,) = folder.glob("*.log")
    content = bytearray(path.read_bytes())
    content[whole + 64 + 50 : whole + 64 + 250] = bytes(200)
    path.write_bytes(bytes(content))
    (folder / "writer.lock").write_text("1\nanother-boot\n")

    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        assert writer.end == 5

    assert all_ids(tmp_path) == list(range(5))


def test_a_failed_write_leaves_the_partition_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    failing = False

    def pwritev(fd: int, buffers: list[memoryview], offset: int) -> int:
        if not failing:
            return real(fd, buffers, offset)
        real(fd, [memoryview(buffers[0])[:100]], offset)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pwritev", pwritev)
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        for error, kind in ((errno.ENOSPC, LogFull), (errno.EDQUOT, LogFull), (errno.EIO, LogWriteError)):
            failing = True
            writer.append(batch([7], kind=1))
            with pytest.raises(kind):
                writer.flush()
            failing = False
            position = writer.append(batch([error]))
            writer.flush()
            assert writer.end == position + 1

    assert all_ids(tmp_path) == [errno.ENOSPC, errno.EDQUOT, errno.EIO]


def test_a_full_disk_refuses_records_and_the_log_recovers_when_there_is_room(tmp_path: Path) -> None:
    """A process has a limit on file sizes in place of a full disk: the kernel cuts a write off in its middle."""
    code = textwrap.dedent(f"""
        import resource, signal
        from engine.logs.errors import LogFull
        from engine.logs.writer import PartitionWriter
        from tests.logs.rows import batch
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        kept, refused, n = [], 0, 0
        writer = PartitionWriter({str(tmp_path)!r}, {TOPIC!r}, "p")
        while refused < 20:
            ids = range(n, n + 40)
            n += 40
            writer.append(batch(ids))
            try:
                writer.flush()
                kept += ids
            except LogFull as exc:
                assert "took no records" in str(exc), exc
                refused += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for _ in range(5):
            writer.append(batch([n]))
            writer.flush()
            kept.append(n)
            n += 1
        writer.close()
        print(kept)
    """)

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    kept = eval(ran.stdout)
    assert len(kept) > 45
    assert all_ids(tmp_path) == kept
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_room_set_aside_for_a_growing_file_is_given_back(tmp_path: Path) -> None:
    with (tmp_path / "probe").open("wb") as probe:
        if not room.set_aside(probe.fileno(), 0, 4096):
            pytest.skip("the file system sets no room aside")

    def unused() -> int:
        found = [path.stat() for path in (tmp_path / "logs").rglob("*.log")]
        return max(each.st_blocks * 512 - each.st_size for each in found)

    def fill(writer: PartitionWriter, size_bytes: int) -> None:
        while writer.bytes_written < size_bytes:
            writer.append(batch(range(1000)))
            writer.flush()

    def open_writer() -> PartitionWriter:
        return PartitionWriter(tmp_path / "logs", TOPIC, "p", fsync_interval_s=0)

    writer = open_writer()
    fill(writer, room.FROM_BYTES // 2)
    assert unused() < _LITTLE, "a small log takes no more than it needs"
    fill(writer, 3 * room.FROM_BYTES)
    assert room.FROM_BYTES // 4 < unused() <= room.MOST_BYTES
    writer.close()
    assert unused() < _LITTLE, "an orderly end gives it back"

    writer = open_writer()
    fill(writer, 2 * room.FROM_BYTES)
    assert unused() > room.FROM_BYTES // 4
    writer.seal()
    assert unused() < _LITTLE, "and so does sealing"
    rows = writer.end
    writer.close()
    assert all_ids(tmp_path / "logs") == [*range(1000)] * (rows // 1000)


def test_a_file_system_without_room_to_set_aside_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "set_aside", lambda *_: False)
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        while writer.bytes_written < 2 * room.FROM_BYTES:
            writer.append(batch(range(1000)))
            writer.flush()
        rows = writer.end

    assert len(all_ids(tmp_path)) == rows


def test_a_partition_that_cannot_be_opened_for_want_of_room_is_full(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import resource
        from engine.contract.deployment import LogDocument
        from engine.logs.errors import LogFull
        from engine.logs.writer import PartitionWriter
        from engine.server.commit import Logs, RecordsLost
        from engine.server.metrics import Metrics
        from tests.logs.rows import batch
        limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        limit(10)
        try:
            PartitionWriter({str(tmp_path)!r}, {TOPIC!r}, "p")
        except LogFull:
            print("full")
        logs = Logs(LogDocument(root={str(tmp_path)!r}), "p", Metrics())
        logs.open({TOPIC!r})
        try:
            logs.append({TOPIC!r}, batch([1]))
        except RecordsLost:
            print("lost")
        limit(resource.RLIM_INFINITY)
        logs.append({TOPIC!r}, batch([2]))
        print(logs.flush())
        logs.close()
    """)

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == ["full", "lost", "set()"]
    assert all_ids(tmp_path) == [2]


WRITER_UNDER_LOAD = """
import itertools, os, sys
from engine.logs.verify import verify
from engine.logs.writer import PartitionWriter
from tests.logs.rows import batch
writer = PartitionWriter(sys.argv[1], "topic", sys.argv[2], segment_rows=400, fsync_interval_s=0.05)
number = int(sys.argv[3])
rows = batch(range(16))
for n in itertools.count(number):
    ids = []
    for k in range(1 + n % 3):
        ids.append(n * 10 + k)
        writer.append(batch([n * 10 + k]))
    if n % 5 == 0:
        ids += range(n * 10 + 5, n * 10 + 9)
        writer.append(batch(ids[-4:], kind=n % 2))
    writer.flush()
    os.write(1, (",".join(map(str, ids)) + "\\n").encode())  # the reply: these are answered now
"""


def killed_under_load(root: Path, partition: str, number: int, after_s: float) -> list[int]:
    """Run a writer, kill it, and return what it had answered."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER_UNDER_LOAD, str(root), partition, str(number)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        deadline = time.monotonic() + after_s
        lines = [first]
        while time.monotonic() < deadline:
            lines.append(process.stdout.readline())
        os.killpg(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    return [int(i) for line in lines if line.endswith(b"\n") for i in line.split(b",")]


@pytest.mark.slow
def test_twenty_kills_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    answered: list[int] = []
    for run in range(20):
        answered += killed_under_load(tmp_path, "p", run * 1_000_000, 0.05 + 0.01 * (run % 7))
        stored = all_ids(tmp_path)
        assert len(set(stored)) == len(stored)
        assert not set(answered) - set(stored)

    unanswered = set(stored) - set(answered)
    assert len(unanswered) <= 20 * 7  # at most the write of the moment of each kill
    assert len(answered) > 2_000
    with PartitionWriter(tmp_path, TOPIC, "p") as writer:
        assert writer.end == len(stored)


@pytest.mark.slow
def test_readers_beside_a_writer_see_whole_records_in_order(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER_UNDER_LOAD, str(tmp_path), "p", "0"], stdout=subprocess.DEVNULL
    ) as process:
        store = LogStore(tmp_path)
        seen: list[int] = []
        positions: dict[str, int] = {}
        given_up = time.monotonic() + 60.0
        deadline = given_up
        while time.monotonic() < deadline:
            if seen and deadline == given_up:  # the writer is there
                deadline = time.monotonic() + 3.0
            page = read_page(store, TOPIC, positions=positions, page_size=1000)
            page.table.validate(full=True)
            seen += ids_of(page.table)
            positions = page.next
        process.kill()

    assert len(seen) > 1_000
    assert all_ids(tmp_path)[: len(seen)] == seen
