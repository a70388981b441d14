"""Blobs: models, bundles and other large things, in a folder or in S3, by the same protocol."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, ParamSpec, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as arrow_fs

from app.errors import InsufficientStorage, NotFound

P = ParamSpec("P")
T = TypeVar("T")

_CHUNK = 1024 * 1024
_LARGEST_COPY = 5 * 1024**3
"""S3 copies no larger object in one go."""
_INCOMING = "incoming"
_NEW_S = 60.0
_STALE = timedelta(days=2)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored thing: its key, the SHA-256 of its bytes (hex) and their number."""

    key: str
    sha256: str
    size_bytes: int


class Storage(Protocol):
    """Where blobs lie. Keys are relative paths with `/`; a blob is there whole or not at all."""

    async def put(self, prefix: str, chunks: AsyncIterator[bytes]) -> Blob:
        """Store a stream under `<prefix>/<its sha256>`; a broken stream leaves nothing.

        Raises `InsufficientStorage` when there is no room.
        """
        ...

    async def fetch(self, key: str, target: Path) -> None:
        """Put the blob's bytes into the file `target` (which may share its disk blocks: do not write to it)."""
        ...

    def stream(self, key: str) -> AsyncIterator[bytes]:
        """Yield the blob's bytes; raises `NotFound` before the first."""
        ...

    async def keys(self, prefix: str, *, older_than: timedelta | None = None) -> list[str]:
        """Return the keys below `prefix`, sorted; only those last written more than `older_than` ago, if given."""
        ...

    async def sweep(self) -> int:
        """Remove what writers that died left behind, and return how many; those at work are left alone."""
        ...

    async def size(self, key: str) -> int | None:
        """Return the blob's size in bytes, or None when there is no such blob."""
        ...

    async def delete(self, key: str) -> None:
        """Remove a blob; removing what is not there is no error."""
        ...

    def local_path(self, key: str) -> Path | None:
        """Return the blob's own file where blobs are files, else None."""
        ...


def open_storage(url: str) -> Storage:
    """Return the storage at `url`: a folder, or `s3://bucket/prefix?endpoint_override=…`."""
    if url.startswith("s3://"):
        if "allow_delayed_open" not in url:  # a small blob is one request instead of three
            url += ("&" if "?" in url else "?") + "allow_delayed_open=true"
        filesystem, root = arrow_fs.FileSystem.from_uri(url)
        return _ArrowStorage(filesystem, root, files=False)
    root = urlsplit(url).path if url.startswith("file://") else url
    Path(root).mkdir(parents=True, exist_ok=True)
    return _ArrowStorage(arrow_fs.LocalFileSystem(), root, files=True)


class _ArrowStorage:
    """Blobs on a `pyarrow.fs` filesystem: written under a temporary name, then moved to their own."""

    def __init__(self, filesystem: arrow_fs.FileSystem, root: str, *, files: bool) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._files = files

    def _path(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/") or "\x00" in key:
            raise ValueError(f"not a key: {key!r}")
        return f"{self._root}/{key}"

    async def put(self, prefix: str, chunks: AsyncIterator[bytes]) -> Blob:
        self._path(prefix)
        temporary = self._path(f"{_INCOMING}/{uuid.uuid4().hex}")
        digest, size = hashlib.sha256(), 0
        try:
            sink = await _in_thread(self._create, temporary)
            try:
                async for block in _blocks(chunks):
                    size += len(block)
                    await _in_thread(_append, sink, digest, block)
                key = f"{prefix}/{digest.hexdigest()}"
                await _in_thread(self._finish, sink, temporary, self._path(key), size)
            except BaseException:
                await _in_thread(self._abandon, sink, temporary)
                raise
            return Blob(key, digest.hexdigest(), size)
        except OSError as exc:
            if exc.errno in _NO_SPACE:
                raise InsufficientStorage(
                    "There is not enough room to store the upload; free some and try again."
                ) from exc
            raise

    def _create(self, path: str) -> BinaryIO:
        if not self._files:
            return cast("BinaryIO", self._fs.open_output_stream(path))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        sink = Path(path).open("wb")  # noqa: SIM115 - closed by `_finish` or `_abandon`
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until death: tells `sweep` that somebody writes
        return cast("BinaryIO", sink)

    def _finish(self, sink: BinaryIO, temporary: str, target: str, size: int) -> None:
        """Give a written blob its name; from then on it survives a crash of the machine."""
        if not self._files:
            sink.close()
            if size <= _LARGEST_COPY:
                self._fs.move(temporary, target)
            else:
                with self._fs.open_input_stream(temporary) as source, self._fs.open_output_stream(target) as copy:
                    shutil.copyfileobj(source, copy, 8 * _CHUNK)
                self._fs.delete_file(temporary)
            return
        sink.flush()
        os.fsync(sink.fileno())
        folder = Path(target).parent
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)
        sink.close()
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _abandon(self, sink: BinaryIO, temporary: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the disk may be full even for the last buffer
            sink.close()
        with contextlib.suppress(OSError):
            self._fs.delete_file(temporary)

    async def sweep(self) -> int:
        return await asyncio.to_thread(self._sweep)

    def _sweep(self) -> int:
        if not self._files:
            stale = self._listed(_INCOMING, _STALE)
            for path in stale:
                self._fs.delete_file(path)
            return len(stale)
        removed = 0
        for path in self._listed(_INCOMING, None):
            try:
                with Path(path).open("rb") as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found = os.fstat(held.fileno())
                    if found.st_size == 0 and time.time() - found.st_mtime < _NEW_S:
                        continue  # its writer may be about to lock it
                    Path(path).unlink()
                    removed += 1
            except OSError:  # somebody writes it, or has finished just now
                continue
        return removed

    async def fetch(self, key: str, target: Path) -> None:
        await asyncio.to_thread(self._fetch, key, target)

    def _fetch(self, key: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            if self._files:
                try:
                    os.link(self._path(key), temporary)
                except FileNotFoundError as exc:
                    raise NotFound(f"There is no blob {key}.") from exc
                except OSError:  # another filesystem, or one without links
                    shutil.copyfile(self._path(key), temporary)
            else:
                with self._open(key) as source, temporary.open("wb") as sink:
                    shutil.copyfileobj(source, sink, _CHUNK)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _open(self, key: str) -> BinaryIO:
        try:
            return cast("BinaryIO", self._fs.open_input_stream(self._path(key)))
        except FileNotFoundError as exc:
            raise NotFound(f"There is no blob {key}.") from exc

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        source = await asyncio.to_thread(self._open, key)
        try:
            while chunk := await asyncio.to_thread(source.read, _CHUNK):
                yield chunk
        finally:
            await asyncio.to_thread(source.close)

    async def keys(self, prefix: str, *, older_than: timedelta | None = None) -> list[str]:
        found = await asyncio.to_thread(self._listed, prefix, older_than)
        return sorted(path.removeprefix(self._root + "/") for path in found)

    def _listed(self, prefix: str, older_than: timedelta | None) -> list[str]:
        selector = arrow_fs.FileSelector(self._path(prefix), recursive=True, allow_not_found=True)
        before = datetime.now(UTC) - older_than if older_than is not None else None
        return [
            str(info.path)
            for info in self._fs.get_file_info(selector)
            if info.type == arrow_fs.FileType.File and (before is None or info.mtime < before)
        ]

    async def size(self, key: str) -> int | None:
        path = self._path(key)
        if self._files:  # asking a folder takes microseconds: less than a turn in a busy pool of threads
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None
        info = await asyncio.to_thread(self._fs.get_file_info, path)
        return int(info.size) if info.type == arrow_fs.FileType.File else None

    async def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            try:
                await asyncio.to_thread(self._fs.delete_file, self._path(key))
            except pa.ArrowException:
                if await self.size(key) is not None:
                    raise

    def local_path(self, key: str) -> Path | None:
        return Path(self._path(key)) if self._files else None


def _append(sink: BinaryIO, digest: hashlib._Hash, chunk: bytes) -> None:
    digest.update(chunk)
    sink.write(chunk)


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the bytes of `chunks` in fewer and larger pieces: each piece costs a change of threads."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) >= _CHUNK:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work in a thread; a cancelled caller goes on only when that has come to its end."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
