"""New files for sealed segments: large batches in place of small ones, Parquet in place of frames."""

from __future__ import annotations

import itertools
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from engine.logs import frames, manifest, records
from engine.logs.frames import BATCH, CHECKED, COMMIT, HASHED, HEADER_BYTES, INDEX_DTYPE, SCHEMA, Frame, IndexArray
from engine.logs.manifest import Manifest, Segment
from engine.logs.segments import SegmentView, open_sealed
from engine.logs.store import batch_at

IntArray: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]

SEGMENT_ROWS = 1_000_000
SEGMENT_BYTES = 256 << 20
_ROW_GROUP_BYTES = 16 << 20
_PAGE_ROWS = 10_000
_BEFOREHAND_BYTES = 40_000
"""Beginning to read a column of a row group takes as long as decoding about so much of it."""
_COMPRESSION = "zstd"
_NUMBERS = dict.fromkeys(("FLOAT", "DOUBLE"), "BYTE_STREAM_SPLIT") | dict.fromkeys(
    ("INT32", "INT64"), "DELTA_BINARY_PACKED"
)
"""How numbers are written without a dictionary."""
_WORTH = 1.05
"""Numbers without a dictionary may be a little larger, because they read faster."""
_MAX_RUNS = 8


@dataclass
class Rewritten:
    """What takes the place of old segments."""

    segments: list[Segment]
    schemas: dict[str, bytes]


@dataclass
class _Piece:
    """Rows of one schema beside each other."""

    key: str
    position: int
    batch: pa.RecordBatch


def merge(folder: Path, loaded: Manifest, group: list[Segment]) -> Rewritten:
    """Write the rows of neighbouring segments into one segment with large batches."""
    name = _fresh_name(group[0].start, "seg")
    keys: list[str] = []
    out: list[Frame] = []
    with _new_file(folder, name) as temporary:
        with temporary.open("wb") as file:
            views = [open_sealed(folder, entry, loaded) for entry in group]
            places = ((view, at) for view in views for at in range(len(view.index)))
            for piece in _joined(places, records.MAX_FRAME_ROWS, records.MAX_FRAME_BYTES):
                if piece.key not in keys:
                    keys.append(piece.key)
                    schema = loaded.schemas[piece.key]
                    flags = CHECKED | HASHED
                    checksum = frames.checksum([schema], flags)
                    head = (SCHEMA, flags, len(keys) - 1, checksum, 0, len(schema), piece.position, 0, 0, 0)
                    _put(file, Frame(*head, file.tell() + HEADER_BYTES), schema)
                out.append(_put_batch(file, piece, keys.index(piece.key)))
        _make_durable(temporary, folder / name)
        index = frames.index_of(out)
        span = group[0].start, group[-1].end
        sealed_at = max(entry.sealed_at for entry in group)
        entry = _entry(folder, name, "log", keys, index, span=span, sealed_at=sealed_at, tier=1)
    return Rewritten([entry], {key: loaded.schemas[key] for key in keys})


def _put_batch(file: BinaryIO, piece: _Piece, number: int) -> Frame:
    content = piece.batch.serialize()
    low, high = records.time_bounds(piece.batch)
    rows, at = piece.batch.num_rows, file.tell() + HEADER_BYTES
    flags = CHECKED | HASHED | COMMIT
    checksum = frames.checksum([content], flags)
    head = Frame(BATCH, flags, number, checksum, rows, content.size, piece.position, low, high, 0, at)
    _put(file, head, content)
    return head


def cool(folder: Path, loaded: Manifest, entry: Segment) -> Rewritten:
    """Write a segment as Parquet, a file for each run of rows of one schema, and check that it reads back the same.

    A segment that has many short runs, or types that Parquet changes, stays as it is, and is marked so that it is not
    tried again.
    """
    unchanged = Rewritten([_marked(entry, tier=2)], loaded.schemas)
    if entry.kind != "log" or _count_runs(folder, loaded, entry) > _MAX_RUNS:
        return unchanged
    made: list[Segment] = []
    try:
        for run in _runs(folder, loaded, entry):
            made.append(_write_parquet(folder, loaded, entry, run))
            _check_same(folder, loaded, entry, made[-1])
    except BaseException as exc:  # whatever happened, nothing half-made stays
        for segment in made:
            (folder / segment.file).unlink(missing_ok=True)
            (folder / segment.index).unlink(missing_ok=True)
        if isinstance(exc, pa.ArrowNotImplementedError | pa.ArrowInvalid | _Changed):
            return unchanged
        raise
    return Rewritten(made, loaded.schemas)


class _Changed(Exception):
    """Parquet gave back something else than was written."""


def _marked(entry: Segment, **changes: object) -> Segment:
    return msgspec.structs.replace(entry, **changes)


def _spans(folder: Path, loaded: Manifest, entry: Segment) -> IntArray:
    """Return where runs of one schema begin in the index of a segment, and its length at the end."""
    numbers = open_sealed(folder, entry, loaded).index["schema"]
    edges = np.flatnonzero(np.diff(numbers.astype(np.int64))) + 1
    return np.concatenate([[0], edges, [len(numbers)]]).astype(np.int64)


def _count_runs(folder: Path, loaded: Manifest, entry: Segment) -> int:
    return len(_spans(folder, loaded, entry)) - 1


def _runs(folder: Path, loaded: Manifest, entry: Segment) -> Iterator[tuple[int, int]]:
    spans = _spans(folder, loaded, entry).tolist()
    yield from itertools.pairwise(spans)


def _write_parquet(folder: Path, loaded: Manifest, entry: Segment, run: tuple[int, int]) -> Segment:
    import pyarrow.parquet as pq

    view = open_sealed(folder, entry, loaded)
    number = int(view.index["schema"][run[0]])
    start = entry.start if run[0] == 0 else int(view.index["position"][run[0]])
    name = _fresh_name(start, "parquet")
    rows: list[tuple[int, ...]] = []
    groups = _row_groups(view, run)
    head = next(groups)
    how = {"compression": _COMPRESSION, "write_page_checksum": True, **_encodings(head.batch)}
    with _new_file(folder, name) as temporary:
        with pq.ParquetWriter(temporary, view.schema(number), **how) as writer:
            for group, piece in enumerate(itertools.chain([head], groups)):
                writer.write_batch(piece.batch, row_group_size=max(piece.batch.num_rows, 1))
                low, high = records.time_bounds(piece.batch)
                rows.append((group, piece.batch.nbytes, piece.position, piece.batch.num_rows, 0, 0, low, high, 0, 0))
        index = np.array(rows, dtype=INDEX_DTYPE)
        end = int(index["position"][-1]) + int(index["rows"][-1])
        _make_durable(temporary, folder / name)
        keys = [entry.schemas[number]]
        return _entry(folder, name, "parquet", keys, index, span=(start, end), sealed_at=entry.sealed_at, tier=2)


def _row_groups(view: SegmentView, run: tuple[int, int]) -> Iterator[_Piece]:
    """Yield the rows of a run in the groups they are to be read by: such that any 10,000 rows are read fastest.

    Small groups leave little to decode that is not wanted; large ones are begun less often.
    """
    for piece in _joined(_stretch(view, run), records.MAX_FRAME_ROWS, _ROW_GROUP_BYTES):
        rows, size = piece.batch.num_rows, max(piece.batch.nbytes, 1)
        columns = sum(map(_count_columns, piece.batch.schema.types))
        best = math.sqrt(_PAGE_ROWS * _BEFOREHAND_BYTES * columns * rows / size)
        limit = max(int(min(best, _ROW_GROUP_BYTES * rows / size)), 1)
        step = math.ceil(rows / math.ceil(rows / limit))
        for first in range(0, rows, step):
            yield _Piece(piece.key, piece.position + first, piece.batch.slice(first, step))


def _encodings(batch: pa.RecordBatch) -> dict[str, Any]:
    """Choose how to write each column by trying with the first row group: numbers that mostly differ are smaller, and
    read faster, without a dictionary.
    """
    plain = _tried(batch, {})
    if len({path for path, _, _ in plain}) < len(plain):  # names with dots in them: it cannot be said which is meant
        return {}
    numbers = {path: _NUMBERS[kind] for path, kind, _ in plain if kind in _NUMBERS}
    texts = [path for path, kind, _ in plain if kind not in _NUMBERS]
    others = _tried(batch, {"column_encoding": numbers, "use_dictionary": texts})
    better = {
        path: numbers[path]
        for (path, _, size), (_, _, other) in zip(plain, others, strict=True)
        if path in numbers and other <= _WORTH * size
    }
    return {"column_encoding": better, "use_dictionary": [path for path, _, _ in plain if path not in better]}


def _tried(batch: pa.RecordBatch, how: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return the path, the type and the size that each column has in a file of Parquet."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, batch.schema, compression=_COMPRESSION, **how) as writer:
        writer.write_batch(batch, row_group_size=batch.num_rows)
    group = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0)
    columns = [group.column(at) for at in range(group.num_columns)]
    return [(column.path_in_schema, column.physical_type, column.total_compressed_size) for column in columns]


def _count_columns(kind: pa.DataType) -> int:
    """Count the columns that Parquet makes of a type."""
    return sum(_count_columns(kind.field(at).type) for at in range(kind.num_fields)) or 1


def _check_same(folder: Path, loaded: Manifest, entry: Segment, made: Segment) -> None:
    """Raise `_Changed` unless the new file holds what the old one does."""
    old, new = open_sealed(folder, entry, loaded), open_sealed(folder, made, loaded)
    first = batch_at(old, made.start)
    run = (first, batch_at(old, made.end - 1) + 1)
    for group, piece in enumerate(_row_groups(old, run)):
        if not _same(piece.batch, new.batch(group)):
            raise _Changed


def _same(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    if one.equals(other, check_metadata=True):
        return True
    if not one.schema.equals(other.schema, check_metadata=True):
        return False
    # NaN differs from itself in Arrow's comparison, but not as text
    pairs = zip(one.columns, other.columns, strict=True)
    return all(a.equals(b) or repr(a.to_pylist()) == repr(b.to_pylist()) for a, b in pairs)


_Place: TypeAlias = tuple[SegmentView, int]
"""A stored batch: its segment, and its number there."""


def _stretch(view: SegmentView, run: tuple[int, int]) -> Iterator[_Place]:
    return ((view, at) for at in range(*run))


def _joined(places: Iterator[_Place], max_rows: int, max_bytes: int) -> Iterator[_Piece]:
    """Yield stored batches, small ones of one schema that follow each other joined up to the limits."""
    held: list[pa.RecordBatch] = []
    key, position, rows, size = "", -1, 0, 0
    for view, at in places:
        item = view.index[at]
        batch = view.batch(at)
        its_key = view.schemas[int(item["schema"])]
        follows = its_key == key and int(item["position"]) == position + rows
        fits = rows + batch.num_rows <= max_rows and size + batch.nbytes <= max_bytes
        if held and not (follows and fits):
            yield _Piece(key, position, _one(held))
            held, rows, size = [], 0, 0
        if not held:
            key, position = its_key, int(item["position"])
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
    if held:
        yield _Piece(key, position, _one(held))


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _fresh_name(start: int, suffix: str) -> str:
    return f"{start:020d}-{uuid.uuid4().hex[:8]}.{suffix}"


@contextmanager
def _new_file(folder: Path, name: str) -> Iterator[Path]:
    """Give the path to write a new file by; if that or its index fails, as on a full disk, nothing of it is left."""
    temporary = folder / f".{name}.tmp"
    try:
        yield temporary
    except BaseException:
        for path in (temporary, folder / name, folder / _index_name(name)):
            path.unlink(missing_ok=True)
        raise


def _index_name(name: str) -> str:
    return f"{name.rpartition('.')[0]}.idx"


def _put(file: BinaryIO, head: Frame, content: bytes | pa.Buffer) -> None:
    file.write(frames.pack_header(head))
    file.write(content)
    file.write(bytes(frames.padding(head.length)))


def _make_durable(temporary: Path, path: Path) -> None:
    fd = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.replace(path)
    manifest.sync_folder(path.parent)


def _entry(
    folder: Path,
    name: str,
    kind: Literal["log", "parquet"],
    keys: list[str],
    index: IndexArray,
    *,
    span: tuple[int, int],
    sealed_at: float,
    tier: int,
) -> Segment:
    """Write the index beside a new file and return the file's entry."""
    index_name = _index_name(name)
    manifest.write_durably(folder / index_name, index.tobytes())
    return Segment(
        start=span[0],
        end=span[1],
        file=name,
        index=index_name,
        kind=kind,
        schemas=keys,
        min_time=int(index["min_time"].min()),
        max_time=int(index["max_time"].max()),
        size_bytes=(folder / name).stat().st_size,
        batches=len(index),
        sealed_at=sealed_at,
        tier=tier,
    )
