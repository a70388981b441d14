"""Records for a store on another machine arrive exactly once, whatever fails between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest

from engine.logs.errors import LogError, LogFull
from engine.logs.spool import SpoolWriter, open_writer
from engine.logs.writer import PartitionWriter
from tests.logs.rows import batch, ids_of
from tests.logs.test_writer import all_ids

TOPIC = "topic"


class Store:
    """A log store behind HTTP that can be away, refuse, or lose its answers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.is_away = False
        self.loses_answers = 0.0
        self.status: int | None = None
        self.largest = 1 << 30
        self.tokens: list[str] = []
        self.posts = 0
        lock = threading.Lock()
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                store.posts += 1
                store.tokens.append(self.headers.get("authorization", ""))
                if store.is_away:
                    self.connection.close()
                    return
                parts = urlsplit(self.path)
                assert parts.path == f"/v1/logs/topic/{TOPIC}/partition/p"
                status = store.status or (413 if len(body) > store.largest else 200)
                if status == 200:
                    sequence = int(parse_qs(parts.query)["sequence"][0])
                    with lock, PartitionWriter(store.root, TOPIC, "p", wait_s=5) as writer:
                        for one in pa.ipc.open_file(body).read_all().to_batches():
                            writer.append(one, sequence=sequence)
                            sequence += one.num_rows
                    if random.random() < store.loses_answers:
                        self.connection.close()
                        return
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def spool(tmp_path: Path, store: Store, **options: object) -> SpoolWriter:
    return SpoolWriter(tmp_path / "spool", store.url, TOPIC, "p", pause_s=0.01, interval_s=0.01, **options)  # type: ignore[arg-type]


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def put(writer: SpoolWriter, ids: range, kind: int = 0) -> None:
    writer.append(batch(ids, kind=kind))
    writer.flush()


def test_records_arrive_in_order(tmp_path: Path, store: Store) -> None:
    with spool(tmp_path, store, token=lambda: "secret") as writer:
        for n in range(10):
            put(writer, range(n * 10, n * 10 + 10), kind=n % 2)
        eventually(lambda: writer.waiting_rows == 0)

    assert all_ids(store.root) == list(range(100))
    assert set(store.tokens) == {"Bearer secret"}


def test_a_store_that_is_away_slows_nobody_and_loses_nothing(tmp_path: Path, store: Store) -> None:
    store.is_away = True
    with spool(tmp_path, store) as writer:
        started = time.perf_counter()
        for n in range(50):
            put(writer, range(n * 10, n * 10 + 10))
        assert time.perf_counter() - started < 2
        eventually(lambda: writer.failures > 1)
        assert writer.waiting_rows == 500

        store.is_away = False
        eventually(lambda: writer.waiting_rows == 0)

    assert all_ids(store.root) == list(range(500))


def test_lost_answers_double_nothing(tmp_path: Path, store: Store) -> None:
    store.loses_answers = 0.5
    with spool(tmp_path, store, send_rows=7) as writer:
        for n in range(40):
            put(writer, range(n * 5, n * 5 + 5))
        eventually(lambda: writer.waiting_rows == 0)

    assert all_ids(store.root) == list(range(200))
    assert store.posts > 200 / 7


def test_what_waits_leaves_after_a_restart(tmp_path: Path, store: Store) -> None:
    store.is_away = True
    writer = spool(tmp_path, store)
    put(writer, range(30))
    writer.close(drain_s=0.0)

    store.is_away = False
    with spool(tmp_path, store) as writer:
        put(writer, range(30, 40))
        eventually(lambda: writer.waiting_rows == 0)

    assert all_ids(store.root) == list(range(40))


def test_a_lost_spool_begins_with_higher_numbers(tmp_path: Path, store: Store) -> None:
    for n in range(2):
        with SpoolWriter(tmp_path / f"spool-{n}", store.url, TOPIC, "p", interval_s=0.01) as writer:
            put(writer, range(n * 10, n * 10 + 10))
            eventually(lambda writer=writer: writer.waiting_rows == 0)

    assert all_ids(store.root) == list(range(20))


def test_a_spool_whose_records_were_lost_begins_with_higher_numbers(tmp_path: Path, store: Store) -> None:
    with spool(tmp_path, store) as writer:
        put(writer, range(10))
        eventually(lambda: writer.waiting_rows == 0)
    (lost,) = (tmp_path / "spool").rglob("*.log")
    lost.unlink()

    with spool(tmp_path, store) as writer:
        put(writer, range(10, 15))
        eventually(lambda: writer.waiting_rows == 0)

    assert all_ids(store.root) == list(range(15))


def test_what_is_sent_is_on_the_disk_before(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        real(fd)
        if "spool" in os.readlink(f"/proc/self/fd/{fd}"):
            synced.append((store.posts, os.fstat(fd).st_size))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with spool(tmp_path, store, fsync_interval_s=3600.0) as writer:
        for n in range(3):
            put(writer, range(n * 10, n * 10 + 10))
            size = next((tmp_path / "spool").rglob("*.log")).stat().st_size
            eventually(lambda writer=writer: writer.waiting_rows == 0)
            assert (n, size) in synced

    assert store.posts == 3


def test_the_limit_refuses_records_until_some_have_left(tmp_path: Path, store: Store) -> None:
    store.is_away = True
    kept: list[int] = []
    with spool(tmp_path, store, limit_bytes=200_000) as writer:
        refused = 0
        for n in range(200):
            ids = range(n * 20, n * 20 + 20)
            try:
                put(writer, ids)
                kept += ids
            except LogFull:
                refused += 1
        assert refused > 50
        assert writer.waiting_bytes < 220_000

        store.is_away = False
        eventually(lambda: writer.waiting_rows == 0)
        eventually(lambda: writer.waiting_bytes < 200_000)
        put(writer, range(10_000, 10_010))
        kept += range(10_000, 10_010)
        eventually(lambda: writer.waiting_rows == 0)

    assert all_ids(store.root) == kept


def test_sent_files_are_deleted(tmp_path: Path, store: Store) -> None:
    with spool(tmp_path, store, limit_bytes=1 << 20) as writer:
        for n in range(60):
            put(writer, range(n * 200, n * 200 + 200))
        eventually(lambda: writer.waiting_rows == 0)
        eventually(lambda: writer.waiting_bytes < 400_000)

    assert all_ids(store.root) == list(range(12_000))
    assert sum(path.stat().st_size for path in (tmp_path / "spool").rglob("*.log")) < 400_000


def test_parts_become_smaller_when_the_store_says_so(tmp_path: Path, store: Store) -> None:
    store.largest = 4_000
    with spool(tmp_path, store) as writer:
        put(writer, range(200))
        eventually(lambda: writer.waiting_rows == 0)

    assert all_ids(store.root) == list(range(200))


def test_records_that_the_store_cannot_hold_do_not_block_the_rest(tmp_path: Path, store: Store) -> None:
    store.status = 400
    with spool(tmp_path, store) as writer:
        put(writer, range(5))
        eventually(lambda: writer.waiting_rows == 0)
        assert writer.rows_rejected == 5
        store.status = None
        put(writer, range(5, 10))
        eventually(lambda: writer.waiting_rows == 0)

    assert all_ids(store.root) == list(range(5, 10))


def test_the_root_decides_which_writer_it_is(tmp_path: Path, store: Store) -> None:
    with open_writer(str(tmp_path / "here"), TOPIC, "p") as writer:
        assert isinstance(writer, PartitionWriter)
    token = tmp_path / "token"
    token.write_text("from-a-file\n")
    with open_writer(store.url, TOPIC, "p", spool=str(tmp_path / "s"), token_file=str(token)) as writer:
        assert isinstance(writer, SpoolWriter)
        put(writer, range(3))
    assert ids_of(batch(range(3))) == all_ids(store.root)
    assert store.tokens == ["Bearer from-a-file"]
    with pytest.raises(LogError, match="spool"):
        open_writer(store.url, TOPIC, "p")


SPOOL_UNDER_LOAD = """
import itertools, os, sys
from engine.logs.spool import SpoolWriter
from tests.logs.rows import batch
writer = SpoolWriter(sys.argv[1], sys.argv[2], "topic", "p", interval_s=0.005, pause_s=0.01, send_rows=50)
for n in itertools.count(int(sys.argv[3])):
    writer.append(batch([n]))
    writer.flush()
    os.write(1, b"%d\\n" % n)
"""


@pytest.mark.slow
def test_kills_under_load_lose_and_double_nothing(tmp_path: Path, store: Store) -> None:
    store.loses_answers = 0.2
    answered: list[int] = []
    for run in range(6):
        arguments = [str(tmp_path / "spool"), store.url, str(run * 1_000_000)]
        with subprocess.Popen([sys.executable, "-c", SPOOL_UNDER_LOAD, *arguments], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline:
                lines.append(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.readlines()
        answered += [int(line) for line in lines if line.endswith(b"\n")]
    store.loses_answers = 0.0
    with spool(tmp_path, store) as writer:
        eventually(lambda: writer.waiting_rows == 0)

    stored = all_ids(store.root)
    assert len(set(stored)) == len(stored)
    assert not set(answered) - set(stored)
    assert len(stored) - len(answered) <= 6
