"""Appending to a partition: one writer, one write per group of records.

`append` and `append_encoded` only collect; `flush` hands everything collected to the operating system in one write
and returns when it is there, so that a killed process loses nothing that was flushed. A thread of the writer's own
makes it durable against power cuts every `fsync_interval_s`, and seals full segments, off the caller's path.

A writer may be used from several threads: a lock makes each call atomic, and a `flush` covers what any thread
appended before. It must not be carried over a fork.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from engine.logs import layout, records, recovery
from engine.logs.errors import LogFull, LogWriteError, PartitionBusy
from engine.logs.frames import Buffer
from engine.logs.groups import Group, Item, assemble, lone, write_all
from engine.logs.recovery import OpenSegment

_SEQUENCES = (list, tuple)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def acquire(folder: Path, name: str, wait_s: float) -> int:
    """Take the writer's lock of a partition and return its descriptor; raises `PartitionBusy` after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / layout.WRITER_LOCK
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # the empty folder was just cleared away
            continue
        if _locked(fd, path):
            return fd
        if time.monotonic() >= deadline:
            holder = _holder(fd)
            os.close(fd)
            raise PartitionBusy(f"Another writer (process {holder}) holds the log {name}.")
        os.close(fd)
        time.sleep(0.01)


def _locked(fd: int, path: Path) -> bool:
    """Lock the file, and tell whether it is still the one at `path`: upkeep removes partitions that are empty."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(fd).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode("ascii", "replace").split("\n")[0] or "unknown"


class PartitionWriter:
    """The one writer of a partition; over all processes of the machine there is never a second.

    Raises `PartitionBusy` when another holds the partition for longer than `wait_s`, and `LogFull` or `LogWriteError`
    when the partition cannot be opened.
    """

    def __init__(
        self,
        root: Path | str,
        topic: str,
        partition: str,
        *,
        fsync_interval_s: float = 1.0,
        segment_rows: int = 1_000_000,
        segment_bytes: int = 256 << 20,
        segment_frames: int = 65_536,
        segment_age_s: float = 3600.0,
        wait_s: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.folder = layout.partition_path(Path(root), topic, partition)
        self.rows_written = 0
        self.bytes_written = 0
        self.flushes = 0
        self.sync_error: OSError | None = None
        """The last failure to sync or seal in the background, until one succeeds."""
        self._fsync_interval_s = fsync_interval_s
        self._segment_rows = segment_rows
        self._segment_bytes = segment_bytes
        self._segment_frames = segment_frames
        self._segment_age_s = segment_age_s
        self._clock = clock
        self._lock = threading.RLock()
        self._wake = threading.Condition()
        self._dirty = False
        self._closed = False
        self._stopping = False
        self._broken: str | None = None
        self._items: list[Item] = []
        self._serialized: dict[int, tuple[pa.Schema, bytes]] = {}
        self._last_schema: tuple[pa.Schema, bytes] | None = None
        self._full: list[OpenSegment] = []
        self._thread: threading.Thread | None = None

        try:
            self._lock_fd = acquire(self.folder, f"{topic}/{partition}", wait_s)
            try:
                found = recovery.recover(self.folder, clock())
            except BaseException:
                os.close(self._lock_fd)
                raise
        except OSError as exc:
            raise self._failure(exc) from exc
        self.torn_bytes = found.torn_bytes
        """How many bytes of an unfinished write were cut away when the partition was opened."""
        self._active: OpenSegment | None = found.active
        self._end = self._next = found.end
        self._sequence = self._next_sequence = found.sequence
        if self._active is not None and self._is_full(self._active):
            self._roll()

    # -- collecting ------------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """Position after the last row that was flushed."""
        return self._end

    @property
    def next_sequence(self) -> int:
        """The number from which on numbered rows are new."""
        return self._next_sequence

    def append(self, record: pa.RecordBatch, *, sequence: int | None = None) -> int:
        """Collect a batch for the next flush and return the position of its first row.

        With `sequence`, the number of the first row at its source, rows that are in the partition already are left
        out: sending again what may or may not have arrived keeps each row once. Raises `InvalidRecord` for a batch a
        log cannot hold.
        """
        with self._lock:
            self._check_open()
            if sequence is not None:
                known = min(max(self._next_sequence - sequence, 0), record.num_rows)
                record, sequence = record.slice(known), sequence + known
            first = self._next
            if record.num_rows == 0:
                return first
            serialized = self._serialize(record.schema)
            collected = []
            position, number = first, sequence or 0
            for piece in records.pieces(record):
                low, high = records.time_bounds(piece)
                rows = piece.num_rows
                collected.append(Item(serialized, position, rows, low, high, number, piece, []))
                position += rows
                number += rows if sequence is not None else 0
            self._items += collected
            self._next = position
            if sequence is not None:
                self._next_sequence = number
            return first

    def append_encoded(
        self, schema: pa.Schema, message: Buffer | Sequence[Buffer], *, rows: int, min_time: int, max_time: int
    ) -> int:
        """Collect an encoded record-batch message for the next flush and return the position of its first row.

        `message`, or its parts one after another, is an encapsulated IPC message as `RecordBatch.serialize()` gives
        it, of batches of `schema` (pass the same object each time: it is recognised by identity), uncompressed. It is
        trusted; `logs verify` would find it out. The buffers must not change until the flush.
        """
        parts = message if isinstance(message, _SEQUENCES) else (message,)
        with self._lock:
            self._check_open()
            first = self._next
            if rows <= 0:
                return first
            serialized = self._serialize(schema)
            size = sum(map(len, parts))
            last = self._items[-1] if self._items else None
            if last is not None and last.takes(serialized, rows):
                last.parts += parts
                last.rows += rows
                last.size += size
                last.messages += 1
                last.min_time = min(last.min_time, min_time)
                last.max_time = max(last.max_time, max_time)
            else:
                item = Item(serialized, first, rows, min_time, max_time, 0, None, list(parts), size, 1)
                self._items.append(item)
            self._next = first + rows
            return first

    def _serialize(self, schema: pa.Schema) -> bytes:
        known = self._serialized.get(id(schema))
        if known is not None and known[0] is schema:
            return known[1]
        if self._last_schema is not None and self._last_schema[0].equals(schema, check_metadata=True):
            return self._last_schema[1]
        records.check_schema(schema)
        serialized: bytes = schema.serialize().to_pybytes()
        if len(self._serialized) >= 64:
            self._serialized.clear()
        self._serialized[id(schema)] = self._last_schema = (schema, serialized)
        return serialized

    def _check_open(self) -> None:
        if self._closed:
            raise LogWriteError(f"The writer of {self.topic}/{self.partition} is closed.")
        if self._broken:
            raise LogWriteError(self._broken)

    # -- writing ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand everything collected to the operating system, in one write.

        Raises `LogFull` or `LogWriteError` when that fails; then none of the records collected since the last flush
        are kept, and the partition is as it was before them.
        """
        with self._lock:
            self._check_open()
            if not self._items:
                return
            items, self._items = self._items, []
            try:
                self._write(items)
            except BaseException:
                self._next, self._next_sequence = self._end, self._sequence
                raise
            self._end, self._sequence = self._next, self._next_sequence
            self.flushes += 1
            if self._active is not None and self._is_full(self._active):
                self._roll()
        if self._fsync_interval_s > 0 and not self._dirty:
            self._dirty = True
            self._start_thread()

    def discard(self) -> None:
        """Forget everything collected since the last flush."""
        with self._lock:
            self._items = []
            self._next, self._next_sequence = self._end, self._sequence

    def roll(self) -> None:
        """Begin a new segment with the next write; the current one is sealed in the background."""
        with self._lock:
            if self._active is not None and self._active.frames:
                self._roll()

    def _write(self, items: list[Item]) -> None:
        segment = self._active or self._create(items[0].position)
        group = (lone(segment, items[0]) if len(items) == 1 else None) or assemble(segment, items)
        self._put(segment, group)
        segment.committed(group.frames, group.schemas, group.end)
        self._active = segment
        for item in items:
            self.rows_written += item.rows

    def _create(self, position: int) -> OpenSegment:
        try:
            return recovery.create(self.folder, position, self._clock())
        except OSError as exc:
            raise self._failure(exc) from exc

    def _put(self, segment: OpenSegment, group: Group) -> None:
        offset = segment.size
        if group.end > segment.room:
            segment.make_room(group.end)
        try:
            write_all(segment.fd, group.parts, offset)
            if self._fsync_interval_s <= 0:
                os.fdatasync(segment.fd)
        except OSError as exc:
            try:
                segment.cut(offset)
            except OSError as second:
                self._broken = f"{segment.path} could not be cut back after a failed write: {second}"
            if self._active is None:
                segment.close()
            raise self._failure(exc) from exc
        self.bytes_written += group.end - offset

    def _failure(self, exc: OSError) -> LogFull | LogWriteError:
        kind = LogFull if exc.errno in _NO_ROOM else LogWriteError
        return kind(f"The log {self.topic}/{self.partition} took no records: {exc.strerror or exc}")

    # -- segments --------------------------------------------------------------------------------------------------

    def _is_full(self, segment: OpenSegment) -> bool:
        return (
            self._end - segment.start >= self._segment_rows
            or segment.size >= self._segment_bytes
            or len(segment.frames) >= self._segment_frames
            or len(segment.schemas) >= 1_000
            or self._clock() - segment.created_at >= self._segment_age_s
        )

    def _roll(self) -> None:
        """Begin a new segment with the next write; the full one is sealed in the background."""
        assert self._active is not None  # noqa: S101
        with self._wake:
            self._full.append(self._active)
            self._active = None
            self._wake.notify()
        self._start_thread()

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_durable, name=f"log-{self.partition}", daemon=True)
            self._thread.start()

    def _keep_durable(self) -> None:
        pause_s = self._fsync_interval_s if self._fsync_interval_s > 0 else 1.0
        while not self._stopping:
            with self._wake:
                if not self._full and not self._stopping:
                    self._wake.wait(pause_s)
            try:
                self._sync_written()
                self._seal_full()
                self.sync_error = None
            except OSError as exc:  # a full disk must not end the thread; the next round tries again
                self.sync_error = exc
                with self._wake:
                    if not self._stopping:
                        self._wake.wait(pause_s)

    def _sync_written(self) -> None:
        segment = self._active
        if self._dirty and segment is not None:
            self._dirty = False
            try:
                os.fdatasync(segment.fd)
            except OSError:
                self._dirty = True
                raise

    def _seal_full(self) -> None:
        while True:
            with self._wake:
                if not self._full:
                    return
                segment = self._full[0]
            recovery.seal(self.folder, segment, self._clock())
            with self._wake:
                self._full.pop(0)
            segment.close()

    def sync(self) -> None:
        """Flush, and wait until the records are on the disk itself."""
        self.flush()
        self.sync_flushed()

    def sync_flushed(self) -> int:
        """Wait until what was flushed so far is on the disk itself, and return the position after its last row."""
        with self._lock:
            end = self._end
            with self._wake:
                segments = [*self._full, self._active]
        for segment in segments:
            if segment is not None:
                segment.sync()
        return end

    def seal(self) -> None:
        """Flush and end the current segment now, instead of when it is full."""
        self.flush()
        self.roll()
        self._stop_thread()
        self._seal_full()

    def _stop_thread(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._wake:
            self._stopping = True
            self._wake.notify()
        thread.join()
        self._stopping = False

    def close(self) -> None:
        """Flush, sync, seal what is full and let the partition go. Records that cannot be flushed are given up with
        the error.
        """
        if self._closed:
            return
        try:
            self.sync()
        finally:
            self._stop_thread()
            self._closed = True
            try:
                self._seal_full()
            finally:
                if self._active is not None:
                    self._active.cut(self._active.size)
                for segment in [*self._full, self._active]:
                    if segment is not None:
                        segment.close()
                os.close(self._lock_fd)

    def __enter__(self) -> PartitionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
