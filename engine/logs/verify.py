"""Checking that the stored bytes are what was written, and counting what there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa

from engine.logs import frames, layout, manifest
from engine.logs.errors import CorruptLog
from engine.logs.frames import CHECKED, HEADER_BYTES, SCHEMA, Frame
from engine.logs.manifest import Manifest, Segment
from engine.logs.records import schema_key
from engine.logs.recovery import checksum
from engine.logs.segments import decode, open_sealed
from engine.logs.store import LogStore


@dataclass
class Checked:
    """A file that was checked."""

    topic: str
    partition: str
    file: str
    rows: int
    size_bytes: int
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PartitionStats:
    """What a partition holds."""

    topic: str
    partition: str
    start: int
    end: int
    size_bytes: int
    segments: dict[str, int]
    """Files by kind: `open`, `log`, `parquet`, `archived`."""
    batches: int
    min_time: int | None
    max_time: int | None
    torn_tails: int


def stats(store: LogStore, topics: list[str] | None = None) -> Iterator[PartitionStats]:
    """Yield what the partitions of all topics, or of the given ones, hold."""
    for topic in store.topics() if topics is None else topics:
        for view in store.views(topic):
            folder = layout.partition_path(store.root, topic, view.name)
            loaded = manifest.load(folder)
            kinds: dict[str, int] = {}
            for entry in loaded.segments:
                kind = "archived" if "://" in entry.file else entry.kind
                kinds[kind] = kinds.get(kind, 0) + 1
            if len(view.segments) > len(loaded.segments):
                kinds["open"] = len(view.segments) - len(loaded.segments)
            yield PartitionStats(
                topic,
                view.name,
                view.start,
                view.end,
                view.size_bytes,
                kinds,
                sum(len(segment.index) for segment in view.segments),
                min((segment.min_time for segment in view.segments), default=None),
                max((segment.max_time for segment in view.segments), default=None),
                loaded.torn_tails,
            )


def verify(store: LogStore, topics: list[str] | None = None) -> Iterator[Checked]:
    """Check every file: headers, checksums, positions, schemas, and that Parquet decodes. Beside a writer, too."""
    for topic in store.topics() if topics is None else topics:
        for partition in store.partitions(topic):
            folder = layout.partition_path(store.root, topic, partition)
            try:
                loaded = manifest.load(folder)
            except CorruptLog as exc:
                yield Checked(topic, partition, layout.MANIFEST, 0, 0, [str(exc)])
                continue
            position = loaded.start
            for entry in loaded.segments:
                found = Checked(topic, partition, _shown(entry.file), entry.rows, entry.size_bytes)
                if entry.start < position:
                    found.problems.append(f"begins at {entry.start}, inside the file before, which ends at {position}")
                position = entry.end
                try:
                    _check_sealed(folder, loaded, entry, found.problems)
                except (OSError, CorruptLog, pa.ArrowException, KeyError, ValueError) as exc:
                    found.problems.append(f"cannot be read: {exc}")
                yield found
            yield from _check_open(folder, topic, partition, loaded)


def _shown(file: str) -> str:
    """Return a file's name, or its URI without the credentials and options that may be in it."""
    scheme, mark, rest = file.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if mark else file


def _check_sealed(folder: Path, loaded: Manifest, entry: Segment, problems: list[str]) -> None:
    view = open_sealed(folder, entry, loaded)
    index = view.index
    position = entry.start
    for key in entry.schemas:
        if schema_key(loaded.schemas[key]) != key:
            problems.append("a schema in the manifest is not the one that was written")
    fd = os.open(folder / entry.file, os.O_RDONLY) if entry.kind == "log" else -1
    try:
        for number in range(len(index)):
            item = index[number]
            if int(item["position"]) != position:
                problems.append(f"batch {number} begins at {int(item['position'])}, not at {position}")
            position = int(item["position"]) + int(item["rows"])
            if fd >= 0:
                _check_frame(fd, item, number, problems)
            batch = view.batch(number)
            batch.validate(full=True)
            if batch.num_rows != int(item["rows"]):
                problems.append(f"batch {number} has {batch.num_rows} rows, not {int(item['rows'])}")
    finally:
        if fd >= 0:
            os.close(fd)
    if position != entry.end:
        problems.append(f"ends at {position}, not at {entry.end}")


def _check_frame(fd: int, item: object, number: int, problems: list[str]) -> None:
    offset, length = int(item["offset"]), int(item["length"])  # type: ignore[index]  # a numpy record
    frame = frames.unpack_header(os.pread(fd, HEADER_BYTES, offset - HEADER_BYTES), offset - HEADER_BYTES)
    if frame is None or frame.length != length:
        problems.append(f"the header of batch {number} is damaged")
    elif checksum(fd, frame) != int(item["checksum"]):  # type: ignore[index]  # a numpy record
        problems.append(f"batch {number} does not have its checksum")


def _check_open(folder: Path, topic: str, partition: str, loaded: Manifest) -> Iterator[Checked]:
    position = loaded.end
    for path in sorted(folder.glob("*.log")):
        if int(path.stem) < loaded.end:
            continue
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            found, size = frames.committed(partial(_read, fd), 0, os.fstat(fd).st_size)
            checked = Checked(topic, partition, path.name, 0, size)
            schemas: dict[int, pa.Schema] = {}
            for frame in found:
                payload = os.pread(fd, frame.length, frame.offset)
                if frame.flags & CHECKED and frames.checksum([payload], frame.flags) != frame.checksum:
                    checked.problems.append(f"the record at byte {frame.offset} does not have its checksum")
                    continue
                if frame.kind == SCHEMA:
                    schemas[frame.schema] = pa.ipc.read_schema(pa.py_buffer(payload))
                    continue
                if frame.position != position:
                    checked.problems.append(f"a batch begins at {frame.position}, not at {position}")
                position = frame.position + frame.rows
                checked.rows += frame.rows
                _check_payload(payload, schemas.get(frame.schema), frame, checked.problems)
            yield checked
        finally:
            os.close(fd)


def _read(fd: int, offset: int, length: int) -> bytes:
    return os.pread(fd, length, offset)


def _check_payload(payload: bytes, schema: pa.Schema | None, frame: Frame, problems: list[str]) -> None:
    if schema is None:
        problems.append("a batch has a schema that the file does not hold")
        return
    try:
        batch = decode(pa.py_buffer(payload), schema, frame.flags, "the file")
        batch.validate(full=True)
    except (CorruptLog, pa.ArrowException) as exc:
        problems.append(f"a batch cannot be read: {exc}")
        return
    if batch.num_rows != frame.rows:
        problems.append(f"a batch has {batch.num_rows} rows, not {frame.rows}")
