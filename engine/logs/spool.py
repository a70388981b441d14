"""Records for a log store on another machine: kept here first, sent there in the background, each one exactly once.

A spool is a partition in a folder of its own. Its writer answers when the record is in that folder; a thread sends
what is there to the store's HTTP API and goes on where it stopped after any failure of network, store or machine.
Rows are numbered, and the store leaves out numbers that it has. What is sent is on this machine's disk first, so that
a power cut does not make a number stand for two rows; a spool that was lost begins again with higher numbers.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import msgspec
import pyarrow as pa

from engine.logs import manifest
from engine.logs.errors import LogError, LogFull
from engine.logs.frames import Buffer
from engine.logs.manifest import write_durably
from engine.logs.query import PageBuilder, as_table, chunks
from engine.logs.store import LogStore
from engine.logs.writer import PartitionWriter

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

_STATE = "spool.json"
_ARROW = "application/vnd.apache.arrow.file"
_LONGEST_PAUSE_S = 30.0


class _State(msgspec.Struct):
    base: int
    """Number of the row at position 0."""
    acknowledged: int = 0
    """Position up to which the store has everything."""


class SpoolWriter:
    """Writes to a partition of a distant log store; takes the place of a `PartitionWriter`.

    `append` and `append_encoded` collect, and `flush` returns when the records are in the spool's folder. Once more
    than `limit_bytes` wait there, `flush` raises `LogFull` until the store has taken some. Raises `PartitionBusy`
    while another process holds the spool.
    """

    def __init__(
        self,
        folder: Path | str,
        url: str,
        topic: str,
        partition: str,
        *,
        token: Callable[[], str] = lambda: "",
        limit_bytes: int = 1 << 30,
        fsync_interval_s: float = 1.0,
        send_rows: int = 10_000,
        send_bytes: int = 16 << 20,
        interval_s: float = 0.2,
        pause_s: float = 0.5,
        wait_s: float = 0.0,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.rows_sent = 0
        self.rows_rejected = 0
        """Rows that the store refused for good, because it cannot hold them."""
        self.failures = 0
        """Failed attempts to send since the last one that succeeded."""
        self._url = f"{_api(url)}/topic/{quote(topic, safe='')}/partition/{quote(partition, safe='')}"
        self._token = token
        self._limit_bytes = limit_bytes
        self._send_rows, self._send_bytes = send_rows, send_bytes
        self._interval_s, self._pause_s = interval_s, pause_s
        self._writer = PartitionWriter(
            folder,
            topic,
            partition,
            fsync_interval_s=fsync_interval_s,
            segment_bytes=max(limit_bytes // 8, 1 << 16),
            wait_s=wait_s,
        )
        self._store = LogStore(folder)
        self._folder = self._writer.folder
        self._state = self._load()
        self._waiting_bytes = self._store.view(topic, partition).size_bytes
        self._counted = 0
        self._wake = threading.Condition()
        self._closing = False
        self._drain_until = 0.0
        self._thread = threading.Thread(target=self._send_all, name=f"spool-{partition}", daemon=True)
        self._thread.start()

    def _load(self) -> _State:
        path = self._folder / _STATE
        if path.exists():
            known = msgspec.json.decode(path.read_bytes(), type=_State)
            if known.acknowledged <= self._writer.end:
                return known
        # room for a million rows a millisecond between this spool and one that was here before and got lost
        state = _State(base=int(time.time() * 1000) << 20)
        write_durably(path, msgspec.json.encode(state))
        return state

    @property
    def end(self) -> int:
        """Position after the last row that was flushed."""
        return self._writer.end

    @property
    def waiting_rows(self) -> int:
        """Count the rows that the store does not have yet."""
        return self._writer.end - self._state.acknowledged

    @property
    def waiting_bytes(self) -> int:
        """Size of the spool's files."""
        return self._waiting_bytes + self._writer.bytes_written - self._counted

    def append(self, record: pa.RecordBatch) -> int:
        """Collect a batch for the next flush and return the position of its first row."""
        return self._writer.append(record)

    def append_encoded(
        self, schema: pa.Schema, message: Buffer | Sequence[Buffer], *, rows: int, min_time: int, max_time: int
    ) -> int:
        """Collect an encoded record-batch message for the next flush and return the position of its first row."""
        return self._writer.append_encoded(schema, message, rows=rows, min_time=min_time, max_time=max_time)

    def flush(self) -> None:
        """Hand everything collected to the operating system; raises `LogFull` when the spool has reached its limit."""
        if self.waiting_bytes >= self._limit_bytes:
            self._writer.discard()
            raise LogFull(
                f"The log store at {self._url} has not taken records for a while, and {self._limit_bytes} bytes wait "
                "for it already; no more are kept."
            )
        self._writer.flush()

    def sync(self) -> None:
        """Flush, and wait until the records are on this machine's disk."""
        self.flush()
        self._writer.sync()

    def close(self, drain_s: float = 5.0) -> None:
        """Flush, give what waits a last chance to leave, and let the spool go; the rest leaves when it is opened
        again.
        """
        if self._closing:
            return
        try:
            self._writer.flush()
        finally:
            with self._wake:
                self._drain_until = time.monotonic() + drain_s
                self._closing = True
                self._wake.notify()
            self._thread.join()
            self._writer.close()

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        import httpx

        with httpx.Client(timeout=30.0) as client:
            while not (self._closing and (self.waiting_rows == 0 or time.monotonic() >= self._drain_until)):
                if self.waiting_rows == 0:
                    self._sleep(self._interval_s)
                    continue
                try:
                    sent = self._send_some(client)
                except Exception as exc:  # the thread must outlive whatever the network and the disk come up with
                    sent = False
                    log.warning("spool.failed topic=%s error=%s", self.topic, exc)
                if sent:
                    self.failures = 0
                    continue
                self.failures += 1
                pause_s = min(self._pause_s * 2 ** min(self.failures - 1, 10), _LONGEST_PAUSE_S)
                self._sleep(pause_s * random.uniform(0.8, 1.2))

    def _sleep(self, seconds: float) -> None:
        with self._wake:
            if self._closing:
                seconds = min(seconds, 0.05)
            self._wake.wait(seconds)

    def _send_some(self, client: httpx.Client) -> bool:
        """Send the next rows; return whether there is progress."""
        import httpx

        start = self._state.acknowledged
        page, following = self._next_rows(start, self._writer.sync_flushed())
        content = _file(as_table(page.batches))
        headers = {"content-type": _ARROW}
        if token := self._token():
            headers["authorization"] = f"Bearer {token}"
        try:
            answer = client.post(
                self._url, params={"sequence": self._state.base + start + 1}, content=content, headers=headers
            )
        except httpx.HTTPError as exc:
            log.info("spool.unreachable topic=%s error=%s", self.topic, exc)
            return False
        if answer.status_code == 413 and following - start > 1:
            self._send_rows = max((following - start) // 2, 1)
            return True
        if answer.status_code in {400, 413}:
            log.error("spool.rejected topic=%s rows=%d answer=%s", self.topic, following - start, answer.text[:500])
            self.rows_rejected += following - start
        elif answer.status_code != 200:
            log.info("spool.refused topic=%s status=%d", self.topic, answer.status_code)
            return False
        else:
            self.rows_sent += following - start
        self._acknowledge(following)
        return True

    def _next_rows(self, start: int, end: int) -> tuple[PageBuilder, int]:
        page = PageBuilder(self._send_rows, self._send_bytes)
        view = self._store.view(self.topic, self.partition)
        position = max(start, view.start)
        for chunk in chunks(view, position, min(end, view.end)):
            # a gap in the numbers, as a power cut can leave one, would shift the rows behind it
            if page.schema_key not in {None, chunk.schema_key} or (page.batches and chunk.first != position):
                break
            taken = page.add(chunk)
            position = chunk.position(taken - 1) + 1
            if page.is_full or taken < chunk.count:
                break
        return page, position

    def _acknowledge(self, position: int) -> None:
        self._state.acknowledged = position
        content = msgspec.json.encode(self._state)
        temporary = self._folder / f".{_STATE}.tmp"
        temporary.write_bytes(content)
        temporary.replace(self._folder / _STATE)  # if a power cut undoes this, rows are sent twice and kept once
        self._prune(position)
        written = self._writer.bytes_written
        self._waiting_bytes = self._store.view(self.topic, self.partition).size_bytes
        self._counted = written

    def _prune(self, position: int) -> None:
        """Delete files that the store has wholly taken over."""
        if self._writer.end == position and self._waiting_bytes >= self._limit_bytes // 8:
            self._writer.roll()
        gone = [entry for entry in manifest.load(self._folder).segments if entry.end <= position]
        if not gone:
            return
        with manifest.changing(self._folder) as changed:
            changed.segments = [entry for entry in changed.segments if entry.end > position]
            changed.start = changed.segments[0].start if changed.segments else changed.end
        for entry in gone:
            (self._folder / entry.file).unlink(missing_ok=True)
            (self._folder / entry.index).unlink(missing_ok=True)


def _api(url: str) -> str:
    """Return the URL of the log-store API behind what an operator gave: it may name the server alone."""
    trimmed = url.rstrip("/")
    return trimmed if urlsplit(trimmed).path else f"{trimmed}/v1/logs"


def _file(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue()).tobytes()


def is_remote(root: str) -> bool:
    """Tell whether a log root is the URL of a store on another machine."""
    return root.startswith(("http://", "https://"))


def open_writer(
    root: str,
    topic: str,
    partition: str,
    *,
    spool: str | None = None,
    token_file: str | None = None,
    fsync_interval_s: float = 1.0,
    limit_bytes: int = 1 << 30,
    wait_s: float = 0.0,
) -> PartitionWriter | SpoolWriter:
    """Return the writer of a partition: of a folder on this machine, or of a store at a URL by way of a spool.

    Raises `PartitionBusy` if another process holds it for longer than `wait_s`.
    """
    if not is_remote(root):
        return PartitionWriter(root, topic, partition, fsync_interval_s=fsync_interval_s, wait_s=wait_s)
    if spool is None:
        raise LogError("A log store at a URL needs a folder for the spool.")

    def token() -> str:
        return Path(token_file).read_text().strip() if token_file else ""

    return SpoolWriter(
        spool,
        root,
        topic,
        partition,
        token=token,
        limit_bytes=limit_bytes,
        fsync_interval_s=fsync_interval_s,
        wait_s=wait_s,
    )
