"""The list of a partition's sealed segments: read without a lock, changed under one, replaced whole."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from engine.logs.errors import CorruptLog
from engine.logs.layout import MANIFEST, MANIFEST_LOCK


class Segment(msgspec.Struct, kw_only=True):
    """A sealed run of rows in one file."""

    start: int
    end: int
    file: str
    """Name in the partition's folder, or a URI when the segment was moved away."""
    index: str
    kind: Literal["log", "parquet"]
    schemas: list[str]
    """Keys into `Manifest.schemas`, in the order of the numbers that the index uses."""
    min_time: int
    max_time: int
    size_bytes: int
    batches: int
    sealed_at: float
    tier: int = 0
    """How often it was rewritten: 0 as written, 1 merged into large batches, 2 Parquet."""

    @property
    def rows(self) -> int:
        """Count the rows."""
        return self.end - self.start


class Garbage(msgspec.Struct, kw_only=True):
    """A file that nothing refers to any more; it is deleted once no reader can still be on its way to it."""

    file: str
    since: float


class Manifest(msgspec.Struct, kw_only=True):
    """What a partition consists of, up to the segments that are still being written."""

    version: int = 1
    start: int = 0
    """Position of the oldest row that is kept."""
    end: int = 0
    """Position after the last sealed row; the segment being written begins here."""
    sequence: int = 0
    """Number that the next row of a numbered source must have at least, as far as sealed rows tell."""
    segments: list[Segment] = []
    schemas: dict[str, bytes] = {}
    """Serialised Arrow schemas."""
    garbage: list[Garbage] = []
    torn_tails: int = 0
    torn_bytes: int = 0
    """How often, and how much, recovery cut away after a crash."""


def load(folder: Path) -> Manifest:
    """Return the manifest of a partition, an empty one if nothing was sealed yet; raises `CorruptLog`."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return Manifest()
    except msgspec.DecodeError as exc:
        raise CorruptLog(f"{folder / MANIFEST} cannot be read: {exc}") from exc


def store(folder: Path, manifest: Manifest, reserve: Path | None = None) -> None:
    """Replace the manifest, durably and at once; in the room of the file `reserve` if it is given."""
    used = {key for segment in manifest.segments for key in segment.schemas}
    manifest.schemas = {key: value for key, value in manifest.schemas.items() if key in used}
    content = msgspec.json.encode(manifest)
    if reserve is None:
        write_durably(folder / MANIFEST, content)
    else:
        write_over(reserve, folder / MANIFEST, content)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is there whole, or not at all, even after a power cut."""
    _swap(path, content, "wb")


def write_over(reserve: Path, path: Path, content: bytes) -> None:
    """Do the same on a disk without room: `reserve`, a file of the same disk, is written over and becomes the new one.

    Raises `FileNotFoundError` when it is not there.
    """
    reserve.replace(_temporary(path))
    _swap(path, content, "r+b")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _swap(path: Path, content: bytes | memoryview, mode: Literal["wb", "r+b"]) -> None:
    temporary = _temporary(path)
    try:
        with temporary.open(mode) as file:
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # whatever happened, nothing half-written stays
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def changing(folder: Path, reserve: Path | None = None) -> Iterator[Manifest]:
    """Hold the manifest's lock and store what the block made of it; an exception stores nothing.

    The lock is held for a few file writes only: the writer (sealing) and maintenance (compaction, retention) share it.
    """
    fd = os.open(folder / MANIFEST_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        manifest = load(folder)
        yield manifest
        store(folder, manifest, reserve)
    finally:
        os.close(fd)
