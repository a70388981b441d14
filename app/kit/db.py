"""Tables, sessions and locks on Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, ClassVar

from fastapi import Depends, Request
from sqlalchemy import BigInteger, DateTime, FetchedValue, Identity, MetaData, String, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_NAMES = {
    "pk": "%(table_name)s_pkey",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "ck": "%(table_name)s_%(constraint_name)s_check",
}


class Table(DeclarativeBase):
    """Base of all tables. Constraint names are part of the wire: GraphQL clients see them as enum values."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        list[str]: JSONB,
        int: BigInteger,
        str: String,
    }
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy declares it as an instance variable


Key = Annotated[int, mapped_column(BigInteger, Identity(), primary_key=True)]
"""An integer key made by the database."""


class Created:
    """Mixin: when a row came into being."""

    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Record(Created):
    """Mixin: when a row came into being and when it last changed (kept by a trigger, so every door counts)."""

    updated_at: Mapped[datetime] = mapped_column(server_default=text("now()"), server_onupdate=FetchedValue())


def sync_url(url: str) -> str:
    """Return `url` for SQLAlchemy on psycopg 3, whatever spelling of postgres it came in."""
    for prefix in ("postgres://", "postgresql://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    return url


def plain_url(url: str) -> str:
    """Return `url` as libpq takes it."""
    return sync_url(url).replace("postgresql+psycopg://", "postgresql://", 1)


_SESSION = "-c timezone=UTC -c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000"


def connect(url: str, pool: int = 10) -> AsyncEngine:
    """Return an engine on the database at `url`; sessions speak UTC, and a lost connection is replaced on checkout."""
    return create_async_engine(
        sync_url(url),
        pool_size=pool,
        max_overflow=pool,
        pool_timeout=10,
        pool_pre_ping=True,
        connect_args={"options": _SESSION,
                      "connect_timeout": 5},
    )  # fmt: skip


def sessions_on(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Return the maker of sessions on `engine`; loaded rows stay readable after the commit."""
    return async_sessionmaker(engine, expire_on_commit=False)


async def request_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Yield the one transaction of a request, committed before the answer goes out, rolled back on an error."""
    async with request.app.state.context.sessions.begin() as session:
        yield session


Session = Annotated[AsyncSession, Depends(request_session, scope="function")]


@asynccontextmanager
async def leadership(engine: AsyncEngine, name: str) -> AsyncIterator[AsyncConnection | None]:
    """Yield a connection that holds the lock `name` over all processes, or None while another holds it."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        held = await connection.scalar(text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))"), {"name": name})
        try:
            yield connection if held else None
        finally:
            if held and not connection.closed and not connection.invalidated:
                unlock = text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))")
                try:
                    await connection.execute(unlock, {"name": name})
                except DBAPIError:  # which must not take the place of what ended us, a cancellation for instance
                    await connection.invalidate()  # the lock goes with the connection
