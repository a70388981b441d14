"""One contract for every storage: a folder, and S3."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import fs as arrow_fs

from app.errors import InsufficientStorage, NotFound
from app.kit.storage import Storage, open_storage

MIB = 1024 * 1024


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a bucket on a stand-in for S3: `POTOROO_TEST_S3_URL`, or a `moto_server` of our own."""
    if given_url := os.environ.get("POTOROO_TEST_S3_URL"):
        yield given_url
        return
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("no S3 server: put moto_server on the PATH, or name a bucket in POTOROO_TEST_S3_URL")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path_factory.mktemp("s3") / "log").open("wb") as log:
        server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
        try:
            url = f"s3://key:secret@blobs?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
            _make_bucket(url, port)
            yield url.replace("@blobs?", "@blobs/some/prefix?")
        finally:
            server.terminate()
            server.wait()


def _make_bucket(url: str, port: int) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
    filesystem, bucket = arrow_fs.FileSystem.from_uri(f"{url}&allow_bucket_creation=true")
    filesystem.create_dir(bucket)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "blobs"))
    url = request.getfixturevalue("s3_url")
    return open_storage(url.replace("/some/prefix", f"/some/{uuid.uuid4().hex}"))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for one in parts:
        yield one


async def broken(*parts: bytes) -> AsyncIterator[bytes]:
    for one in parts:
        yield one
    raise ConnectionResetError("the client is gone")


async def read(storage: Storage, key: str) -> bytes:
    return b"".join([chunk async for chunk in storage.stream(key)])


async def everything(storage: Storage) -> list[str]:
    return [key for prefix in ("models", "incoming", "other") for key in await storage.keys(prefix)]


async def test_what_is_put_is_found_under_its_hash(storage: Storage) -> None:
    content = os.urandom(3 * MIB + 17)

    blob = await storage.put("models", chunks(content[:10], content[10 : 2 * MIB], b"", content[2 * MIB :]))

    sha = hashlib.sha256(content).hexdigest()
    assert (blob.key, blob.sha256, blob.size_bytes) == (f"models/{sha}", sha, len(content))
    assert await read(storage, blob.key) == content
    assert await storage.size(blob.key) == len(content)
    assert await everything(storage) == [blob.key]


async def test_an_empty_stream_is_an_empty_blob(storage: Storage) -> None:
    blob = await storage.put("models", chunks())

    assert await read(storage, blob.key) == b""


async def test_the_same_bytes_are_kept_once(storage: Storage) -> None:
    blobs = await asyncio.gather(*(storage.put("models", chunks(b"same")) for _ in range(8)))

    assert len(set(blobs)) == 1
    assert await everything(storage) == [blobs[0].key]


async def test_a_stream_that_breaks_leaves_nothing(storage: Storage) -> None:
    with pytest.raises(ConnectionResetError):
        await storage.put("models", broken(b"x" * 2 * MIB, b"y"))

    assert await everything(storage) == []


async def test_a_cancelled_writer_leaves_nothing(storage: Storage) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * MIB
            reached.set()
            await asyncio.sleep(0)

    task = asyncio.create_task(storage.put("models", endless()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await everything(storage) == []


async def test_a_blob_is_fetched_into_a_file(storage: Storage, tmp_path: Path) -> None:
    blob = await storage.put("models", chunks(b"hello"))
    target = tmp_path / "deep" / "model.onnx"

    await storage.fetch(blob.key, target)
    await storage.fetch(blob.key, target)

    assert target.read_bytes() == b"hello"
    assert [p.name for p in target.parent.iterdir()] == ["model.onnx"]


async def test_what_is_not_there_is_not_found(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await read(storage, "models/nothing")
    with pytest.raises(NotFound):
        await storage.fetch("models/nothing", tmp_path / "x")
    assert await storage.size("models/nothing") is None
    assert await storage.keys("models") == []


async def test_deleting_is_repeatable(storage: Storage) -> None:
    blob = await storage.put("models", chunks(b"hello"))

    await storage.delete(blob.key)
    await storage.delete(blob.key)

    assert await storage.size(blob.key) is None


async def test_keys_are_listed_by_prefix_and_age(storage: Storage) -> None:
    one, two = [await storage.put("models/a", chunks(text)) for text in (b"1", b"2")]
    await storage.put("other", chunks(b"3"))

    assert await storage.keys("models") == sorted([one.key, two.key])
    assert await storage.keys("models", older_than=timedelta(hours=1)) == []
    assert await storage.keys("models", older_than=timedelta(seconds=-5)) == sorted([one.key, two.key])


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "models/../../secret", "models/x\x00y"])
async def test_a_key_stays_inside_the_storage(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError):
        await storage.size(key)
    with pytest.raises(ValueError):
        await storage.put(key, chunks(b"x"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.binary(max_size=400_000), max_size=6))
async def test_how_a_stream_is_cut_does_not_matter(tmp_path: Path, parts: list[bytes]) -> None:
    folder = open_storage(str(tmp_path / "blobs"))

    blob = await folder.put("models", chunks(*parts))

    assert blob.sha256 == hashlib.sha256(b"".join(parts)).hexdigest()
    assert await read(folder, blob.key) == b"".join(parts)


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path / "blobs"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    try:
        with pytest.raises(InsufficientStorage):
            await folder.put("models", chunks(*[b"x" * MIB] * 5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert await everything(folder) == []


async def test_another_failure_of_the_disk_is_no_lack_of_room(tmp_path: Path) -> None:
    root = tmp_path / "blobs"
    folder = open_storage(str(root))
    (root / "models").write_text("a file where a folder should be")

    with pytest.raises(OSError) as caught:
        await folder.put("models", chunks(b"x"))

    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
    assert list((root / "incoming").iterdir()) == []


async def test_a_dead_writers_remains_are_swept_and_a_living_ones_are_not(tmp_path: Path) -> None:
    root = tmp_path / "blobs"
    folder = open_storage(str(root))
    program = (
        "import asyncio, sys\n"
        "from app.kit.storage import open_storage\n"
        "async def slow():\n"
        "    yield b'x' * 3_000_000\n"
        "    print('written', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(open_storage(sys.argv[1]).put('models', slow()))\n"
    )
    command = [sys.executable, "-c", program, str(root)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]  # noqa: ASYNC220
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "written\n"
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        removed = await folder.sweep()

        assert removed == 1
        assert len(await folder.keys("incoming")) == 1
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_a_folder_tells_where_a_blob_lies_and_s3_does_not(tmp_path: Path) -> None:
    assert open_storage(str(tmp_path)).local_path("models/x") == tmp_path / "models" / "x"
