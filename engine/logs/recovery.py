"""Segments that are being written: created, found again after a crash, and sealed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.logs import frames, layout, manifest, records, room
from engine.logs.frames import BATCH, CHECKED, SCHEMA, Frame, IndexArray
from engine.logs.manifest import Segment

_CHUNK_BYTES = 4 << 20
_ANY_SIZE = 2**63


class OpenSegment:
    """A segment file that is not sealed yet, as its writer knows it."""

    def __init__(self, path: Path, start: int, created_at: float, fd: int) -> None:
        self.path = path
        self.start = start
        self.created_at = created_at
        self.fd = fd
        self.size = 0
        self.room = room.FROM_BYTES
        """Up to this size there is nothing to do about room on the disk."""
        self.frames: list[Frame] = []
        self.schemas: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._closing = threading.Lock()

    @property
    def end(self) -> int:
        """Position after the last committed row."""
        return self.frames[-1].position + self.frames[-1].rows if self.frames else self.start

    def number_of(self, schema: bytes) -> int | None:
        """Return the number of a serialised schema in this file, or None if the file does not know it yet."""
        return self._numbers.get(schema)

    def committed(self, new_frames: list[Frame], schemas: list[bytes], size: int) -> None:
        """Take over what a successful write added."""
        for schema in schemas:
            self._numbers[schema] = len(self.schemas)
            self.schemas.append(schema)
        for frame in new_frames:
            if frame.kind == BATCH:
                self.frames.append(frame)
        self.size = size

    def make_room(self, size: int) -> None:
        """Set room aside for growing to `size` and some way beyond; where that fails, do without it."""
        step = min(size, room.MOST_BYTES)
        self.room = size + step if room.set_aside(self.fd, self.size, size - self.size + step) else _ANY_SIZE

    def cut(self, size: int) -> None:
        """Let the file end at `size`, and give back the room behind it."""
        os.ftruncate(self.fd, size)
        self.room = max(size, room.FROM_BYTES)

    def sync(self) -> None:
        """Wait until the file's data is on the disk; a segment that was closed is sealed, and there already."""
        with self._closing:
            if self.fd >= 0:
                os.fdatasync(self.fd)

    def close(self) -> None:
        """Close the file."""
        with self._closing:
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)


class Recovered(NamedTuple):
    """What was found when a partition was opened for writing."""

    active: OpenSegment | None
    end: int
    sequence: int
    torn_bytes: int


def create(folder: Path, position: int, now: float) -> OpenSegment:
    """Begin the segment at `position`."""
    path = folder / layout.segment_name(position)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.ftruncate(fd, 0)
    return OpenSegment(path, position, now, fd)


def recover(folder: Path, now: float) -> Recovered:
    """Find what is not sealed yet, cut unfinished writes off, and seal all but the last segment.

    The caller holds the writer's lock. Payloads are checked only if the machine was started anew since the last
    writer: within one run of the machine, what was handed to the operating system is whole.
    """
    known = manifest.load(folder)
    rebooted = _note_boot(folder)
    sequence, torn_bytes = known.sequence, 0
    found: list[OpenSegment] = []
    for path in sorted(folder.glob("*.log")):
        start = int(path.stem)
        if start < known.end:
            continue
        segment, torn = _reopen(path, start, verify=rebooted)
        torn_bytes += torn
        if segment.frames:
            found.append(segment)
        else:
            segment.close()
            path.unlink()
    if torn_bytes:
        with manifest.changing(folder) as changed:
            changed.torn_tails += 1
            changed.torn_bytes += torn_bytes
    for segment in found:
        for frame in segment.frames:
            if frame.sequence:
                sequence = max(sequence, frame.sequence + frame.rows)
    for segment in found[:-1]:
        seal(folder, segment, now)
        segment.close()
    active = found[-1] if found else None
    return Recovered(active, active.end if active else manifest.load(folder).end, sequence, torn_bytes)


def _note_boot(folder: Path) -> bool:
    """Record this process as the partition's writer; tell whether the machine was restarted since the last one."""
    boot = _boot_id()
    path = folder / layout.WRITER_LOCK
    lines = path.read_text("ascii").split("\n")
    path.write_text(f"{os.getpid()}\n{boot}\n", "ascii")
    return len(lines) < 2 or lines[1] != boot or not boot


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _reopen(path: Path, start: int, *, verify: bool) -> tuple[OpenSegment, int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    status = os.fstat(fd)
    segment = OpenSegment(path, start, status.st_mtime, fd)
    whole, end = frames.committed(lambda at, length: os.pread(fd, length, at), 0, status.st_size)
    if verify:
        bad = next((i for i, f in enumerate(whole) if f.flags & CHECKED and checksum(fd, f) != f.checksum), None)
        if bad is not None:
            while bad and not whole[bad - 1].flags & frames.COMMIT:
                bad -= 1
            end = whole[bad - 1].end if bad else 0
            whole = whole[:bad]
    schemas = [os.pread(fd, f.length, f.offset) for f in whole if f.kind == SCHEMA]
    segment.committed(whole, schemas, end)
    if status.st_size > end:
        os.ftruncate(fd, end)
    return segment, status.st_size - end


def checksum(fd: int, frame: Frame) -> int:
    """Compute the checksum of a frame's payload as it lies in the file."""
    return frames.checksum(_chunks(fd, frame.offset, frame.length), frame.flags)


def _chunks(fd: int, at: int, left: int) -> Iterator[bytes]:
    while left and (chunk := os.pread(fd, min(left, _CHUNK_BYTES), at)):
        yield chunk
        at, left = at + len(chunk), left - len(chunk)


def seal(folder: Path, segment: OpenSegment, now: float) -> None:
    """Make a segment durable, write its index and enter it into the manifest. Doing it twice is harmless."""
    segment.cut(segment.size)
    os.fdatasync(segment.fd)
    checked = [
        frame
        if frame.flags & CHECKED
        else frame._replace(checksum=checksum(segment.fd, frame), flags=frame.flags | CHECKED)
        for frame in segment.frames
    ]
    index = frames.index_of(checked)
    entry, keys = _entry(segment, index, now)
    manifest.write_durably(folder / entry.index, index.tobytes())
    sequence = max((f.sequence + f.rows for f in segment.frames if f.sequence), default=0)
    with manifest.changing(folder) as changed:
        if changed.end >= entry.end:
            return
        if not changed.segments and changed.end == changed.start:
            changed.start = entry.start
        changed.segments.append(entry)
        changed.schemas.update(keys)
        changed.end = entry.end
        changed.sequence = max(changed.sequence, sequence)


def _entry(segment: OpenSegment, index: IndexArray, now: float) -> tuple[Segment, dict[str, bytes]]:
    """Return the manifest entry of a segment file, and the schemas it refers to."""
    schemas = segment.schemas
    keys = [records.schema_key(schema) for schema in schemas]
    entry = Segment(
        start=segment.start,
        end=int(index["position"][-1]) + int(index["rows"][-1]),
        file=segment.path.name,
        index=layout.index_name(segment.start),
        kind="log",
        schemas=keys,
        min_time=int(index["min_time"].min()),
        max_time=int(index["max_time"].max()),
        size_bytes=segment.size,
        batches=len(index),
        sealed_at=now,
    )
    return entry, dict(zip(keys, schemas, strict=True))
