"""Looks at what a server needs, and says what to do where something is missing."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg

from app.kit import migrate
from app.kit.db import plain_url
from app.kit.storage import open_storage
from app.settings import Settings

_LEAST_FREE_BYTES = 2 * 1024**3
_LIBRARIES = ("fastapi", "sqlalchemy", "psycopg", "pyarrow", "onnxruntime", "python-jose")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it is, and what to do about it."""

    name: str
    state: Literal["ok", "warning", "failed"]
    text: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what was found, one thing after another."""
    checks: list[Callable[[Settings], Finding]] = [versions, home, database, storage, port, engine]
    for check in checks:
        try:
            yield check(settings)
        except (OSError, psycopg.Error, subprocess.SubprocessError) as exc:
            yield Finding(
                check.__name__, "failed", str(exc).strip() or repr(exc), "See the message; nothing was changed."
            )


def versions(_: Settings) -> Finding:
    """Look at the interpreter and the libraries."""
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    return Finding("versions", "ok", f"Python {sys.version.split()[0]}; {found}")


def home(settings: Settings) -> Finding:
    """Look whether the home can be written and has room."""
    folder = settings.home
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding("home", "failed", f"{folder} cannot be written.", "Choose another folder with POTOROO_HOME.")
    free = shutil.disk_usage(there).free
    text = f"{folder}, {free / 1024**3:.1f} GiB free"
    if free < _LEAST_FREE_BYTES:
        return Finding("home", "warning", text, "Models and logs need room: free some, or move POTOROO_HOME.")
    return Finding("home", "ok", text)


def database(settings: Settings) -> Finding:
    """Look whether the database answers and has this release's schema."""
    if settings.database_url is None:
        folder = settings.home / "postgres"
        if not (folder / "postmaster.pid").exists():
            return Finding("database", "ok", f"Embedded Postgres in {folder}, not running; `potoroo serve` starts it.")
        url = f"postgresql://postgres@/potoroo?host={_socket_folder(folder)}"
    else:
        url = plain_url(settings.database_url.get_secret_value())
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            version = connection.execute("SHOW server_version").fetchone()
            known = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
            revision = None
            if known and known[0]:
                row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
                revision = row[0] if row else None
    except psycopg.Error as exc:
        why = str(exc).strip().splitlines()[0]
        return Finding("database", "failed", why, "Check POTOROO_DATABASE_URL, the server and its network.")
    text = f"Postgres {version[0] if version else '?'}, schema {revision or 'empty'}"
    if revision != migrate.head():
        return Finding(
            "database", "warning", text, f"`potoroo migrate` brings it to {migrate.head()}; `serve` does so too."
        )
    return Finding("database", "ok", text)


def _socket_folder(folder: Path) -> str:
    """Return the folder of the running embedded server's socket: the fifth line of its pid file."""
    lines = (folder / "postmaster.pid").read_text().splitlines()
    return lines[4] if len(lines) > 4 else str(folder)


def storage(settings: Settings) -> Finding:
    """Look whether a blob can be written, read and deleted."""

    async def probe() -> None:
        opened = open_storage(settings.blobs_url)

        async def chunks() -> AsyncIterator[bytes]:
            yield uuid.uuid4().bytes

        blob = await opened.put("doctor", chunks())
        try:
            async for _ in opened.stream(blob.key):
                pass
        finally:
            await opened.delete(blob.key)

    try:
        asyncio.run(probe())
    except OSError as exc:
        return Finding("storage", "failed", f"{settings.blobs_url}: {exc}", "Check POTOROO_STORAGE_URL and its rights.")
    return Finding("storage", "ok", f"{settings.blobs_url} takes blobs.")


def port(settings: Settings) -> Finding:
    """Look whether the port is free, or ours already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError:
            return Finding(
                "port",
                "warning",
                f"{settings.host}:{settings.port} is in use.",
                "If that is not a running Potoroo, choose another port with POTOROO_PORT.",
            )
    return Finding("port", "ok", f"{settings.host}:{settings.port} is free.")


def engine(_: Settings) -> Finding:
    """Look whether an engine could start: onnxruntime is loaded in a process of its own."""
    code = "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'; import onnxruntime as o; print(o.__version__)"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return Finding("engine", "failed", " ".join(last), "Reinstall onnxruntime: `make install`.")
    return Finding("engine", "ok", f"onnxruntime {done.stdout.strip()} loads.")
