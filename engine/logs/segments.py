"""Reading one segment: memory-mapped when sealed, by plain reads while it is being written, by row group when cold."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from engine.logs import frames, records
from engine.logs.errors import CorruptLog
from engine.logs.frames import BATCH, INDEX_DTYPE, MANY, SCHEMA, IndexArray
from engine.logs.manifest import Manifest, Segment
from engine.logs.projection import Path_, narrowed, project, rebuild

_SMALL_INDEX_BYTES = 128 << 10
_UNKNOWN_BYTES = 16 << 20


class SegmentView(Protocol):
    """A run of rows as it was at one moment; it stays readable while files change around it."""

    @property
    def start(self) -> int:
        """Position of the first row."""

    @property
    def end(self) -> int:
        """Position after the last row."""

    @property
    def min_time(self) -> int:
        """No row is older."""

    @property
    def max_time(self) -> int:
        """No row is newer."""

    @property
    def index(self) -> IndexArray:
        """One entry per batch, in the order of positions."""

    @property
    def schemas(self) -> Sequence[str]:
        """Keys of the schemas, by the numbers that the index uses."""

    def schema(self, number: int) -> pa.Schema:
        """Return the schema with this number."""

    def batch(self, number: int, columns: Sequence[Path_] | None = None) -> pa.RecordBatch:
        """Return the batch with this number: whole, or the columns at these paths that it has, each named by its
        path.
        """


class _SealedSegment:
    """A sealed segment; nothing is opened before it is needed.

    Raises `FileNotFoundError` on first use when the file was replaced since the manifest was read: read that again.
    """

    def __init__(self, folder: Path, entry: Segment, manifest: Manifest) -> None:
        self.entry = entry
        self.start, self.end = entry.start, entry.end
        self.min_time, self.max_time = entry.min_time, entry.max_time
        self.schemas: Sequence[str] = entry.schemas
        self._folder = folder
        self._serialized = [manifest.schemas[key] for key in entry.schemas]
        self._schemas: dict[int, pa.Schema] = {}
        self._index: IndexArray | None = None
        self._lock = threading.Lock()

    @property
    def index(self) -> IndexArray:
        """One entry per batch; a large one is mapped, which costs a descriptor, a small one is read."""
        if self._index is None:
            with (self._folder / self.entry.index).open("rb") as file:
                if self.entry.batches * INDEX_DTYPE.itemsize <= _SMALL_INDEX_BYTES:
                    self._index = np.frombuffer(file.read(), dtype=INDEX_DTYPE)
                else:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    self._index = np.frombuffer(mapped, dtype=INDEX_DTYPE)
        return self._index

    def schema(self, number: int) -> pa.Schema:
        """Return the schema with this number."""
        if number not in self._schemas:
            self._schemas[number] = pa.ipc.read_schema(pa.py_buffer(self._serialized[number]))
        return self._schemas[number]


class _Touched:
    """The maps that were read lately, oldest first. What was read is let go together, and only so many stay open: who
    pages through a large log keeps neither all of it in its process nor all of its files open.
    """

    def __init__(self, limit_bytes: int, limit_maps: int) -> None:
        self._limit_bytes = limit_bytes
        self._limit_maps = limit_maps
        self._size = 0
        self._maps: OrderedDict[int, weakref.ref[MappedSegment]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, segment: MappedSegment, size: int) -> None:
        """Take note of a read."""
        past = []
        with self._lock:
            self._maps[id(segment)] = weakref.ref(segment)
            self._maps.move_to_end(id(segment))
            while len(self._maps) > self._limit_maps:
                past.append(self._maps.popitem(last=False)[1])
            self._size += size
            all_of_them = list(self._maps.values()) if self._size >= self._limit_bytes else []
            if all_of_them:
                self._size = 0
        for ref in past:
            if (one := ref()) is not None:
                one.close()
        for ref in all_of_them:
            if (one := ref()) is not None:
                one.let_go()


_touched = _Touched(64 << 20, 128)


class MappedSegment(_SealedSegment):
    """A sealed segment of frames in a memory map."""

    _map: mmap.mmap | None = None
    _mapped: pa.Buffer | None = None

    def batch(self, number: int, columns: Sequence[Path_] | None = None) -> pa.RecordBatch:
        """Return a batch without copying it."""
        entry = self.index[number]
        schema = self.schema(int(entry["schema"]))
        payload = self._file().slice(int(entry["offset"]), int(entry["length"]))
        whole = decode(payload, schema, int(entry["flags"]), self.entry.file)
        _touched.add(self, payload.size)
        return whole if columns is None else project(whole, columns)

    def _file(self) -> pa.Buffer:
        found = self._mapped
        if found is None:
            with (self._folder / self.entry.file).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._map, self._mapped = mapped, (found := pa.py_buffer(mapped))
        return found

    def let_go(self) -> None:
        """Take what was read out of this process's memory; it stays in the system's cache, and batches stay good."""
        mapped = self._map
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the file as soon as no batch of it is in use; it is mapped again when it is needed."""
        self._map = self._mapped = None


class ParquetSegment(_SealedSegment):
    """A cold segment: a Parquet file here or in an object store, one row group per batch.

    `length` in the index is the size of a decoded row group; those written before it was noted have 0.
    """

    _metadata: object = None

    @staticmethod
    def sizes(entries: IndexArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the sizes of decoded row groups; one that is not known counts as large."""
        lengths = entries["length"].astype(np.int64)
        return np.where(lengths == 0, _UNKNOWN_BYTES, lengths)

    def batch(self, number: int, columns: Sequence[Path_] | None = None) -> pa.RecordBatch:
        """Decode a row group, or only the wanted columns of it."""
        return self.batches([number], columns)[0]

    def batches(self, numbers: Sequence[int], columns: Sequence[Path_] | None = None) -> list[pa.RecordBatch]:
        """Decode several row groups of one schema at once, which costs less than one by one."""
        import pyarrow.parquet as pq

        entries = self.index[list(numbers)]
        schema = self.schema(int(entries["schema"][0]))
        names = None if columns is None else [".".join(path) for path in columns if path[0] in schema.names]
        with self._open() as source, pq.ParquetFile(source, metadata=self._metadata) as file:
            if self._metadata is None:
                self._metadata = file.metadata
            table = file.read_row_groups(entries["offset"].tolist(), columns=names, use_threads=False)
        whole = rebuild(table, schema if columns is None else narrowed(schema, table.schema))
        if columns is not None:
            whole = project(whole, columns)
        if len(entries) == 1:
            return [whole]
        rows = entries["rows"].tolist()
        return [whole.slice(first, count) for first, count in zip(accumulate(rows, initial=0), rows, strict=False)]

    def _open(self) -> pa.NativeFile:
        name = self.entry.file
        if "://" in name:
            from pyarrow.fs import FileSystem  # 8 MiB that an engine, which archives nothing, does not need

            filesystem, path = FileSystem.from_uri(name)
            return filesystem.open_input_file(path)
        return pa.OSFile(str(self._folder / name), "rb")


Sealed: TypeAlias = MappedSegment | ParquetSegment


def open_sealed(folder: Path, entry: Segment, manifest: Manifest) -> Sealed:
    """Return the reader for a segment of the manifest."""
    if entry.kind == "log":
        return MappedSegment(folder, entry, manifest)
    return ParquetSegment(folder, entry, manifest)


class Tail:
    """A segment that is still being written, followed from read to read; raises `FileNotFoundError` if it is not
    there.
    """

    fd = -1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.scanned = 0
        self._index = np.empty(256, dtype=INDEX_DTYPE)
        self._count = 0
        self._schemas: list[pa.Schema] = []
        self._keys: list[str] = []
        self._bounds = (0, 0)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def refresh(self) -> OpenView | None:
        """Look for records committed since the last time; None while there are none at all."""
        size = os.fstat(self.fd).st_size
        if size > self.scanned:
            found, self.scanned = frames.committed(self.read, self.scanned, size)
            for frame in found:
                if frame.kind == SCHEMA:
                    serialized = self.read(frame.offset, frame.length)
                    self._schemas.append(pa.ipc.read_schema(pa.py_buffer(serialized)))
                    self._keys.append(records.schema_key(serialized))
            self._extend(frames.index_of([frame for frame in found if frame.kind == BATCH]))
        if not self._count:
            return None
        return OpenView(self, self._index[: self._count], list(self._keys), list(self._schemas), self._bounds)

    def _extend(self, more: IndexArray) -> None:
        if not len(more):
            return
        low, high = int(more["min_time"].min()), int(more["max_time"].max())
        self._bounds = (min(self._bounds[0], low), max(self._bounds[1], high)) if self._count else (low, high)
        count = self._count + len(more)
        if count > len(self._index):
            grown = np.empty(max(count, 2 * len(self._index)), dtype=INDEX_DTYPE)
            grown[: self._count] = self._index[: self._count]
            self._index = grown
        self._index[self._count : count] = more
        self._count = count

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file."""
        return os.pread(self.fd, length, offset)


class OpenView:
    """What was committed to a segment when it was looked at."""

    def __init__(
        self, tail: Tail, index: IndexArray, keys: list[str], schemas: list[pa.Schema], bounds: tuple[int, int]
    ) -> None:
        self.index = index
        self.start = int(index["position"][0])
        self.end = int(index["position"][-1]) + int(index["rows"][-1])
        self.min_time, self.max_time = bounds
        self.schemas: Sequence[str] = keys
        self._schemas = schemas
        self._tail = tail

    @property
    def size_bytes(self) -> int:
        """Size of the file up to the last committed record."""
        return self._tail.scanned

    def schema(self, number: int) -> pa.Schema:
        """Return the schema with this number."""
        return self._schemas[number]

    def batch(self, number: int, columns: Sequence[Path_] | None = None) -> pa.RecordBatch:
        """Read a batch."""
        entry = self.index[number]
        payload = self._tail.read(int(entry["offset"]), int(entry["length"]))
        schema = self._schemas[int(entry["schema"])]
        whole = decode(pa.py_buffer(payload), schema, int(entry["flags"]), self._tail.path.name)
        return whole if columns is None else project(whole, columns)


def decode(payload: pa.Buffer, schema: pa.Schema, flags: int, file: str) -> pa.RecordBatch:
    """Return the batch in a frame's payload; raises `CorruptLog` when it holds none."""
    try:
        if flags & MANY:
            stream = pa.py_buffer(b"".join((schema.serialize(), payload)))
            with pa.ipc.open_stream(stream) as reader:
                return pa.concat_batches(list(reader))
        return pa.ipc.read_record_batch(payload, schema)
    except (pa.ArrowInvalid, OSError) as exc:
        raise CorruptLog(f"A record batch in {file} cannot be read: {exc}") from exc
