"""What the commands of identity do on this instance's database; imported when one of them runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import ProgrammingError

from app.errors import AppError, Invalid, NotFound
from app.identity import clients, parts, passwords
from app.identity.bootstrap import bootstrap
from app.identity.directory import managed_directory_of
from app.identity.keys import TOPIC
from app.identity.schemas import is_email
from app.identity.tables import Client
from app.kit import db, logging
from app.kit.context import Context
from app.kit.events import Events, notify
from app.kit.postgres import EmbeddedPostgres
from app.kit.secrets import WrongKey, digest
from app.kit.storage import open_storage
from app.settings import Settings

Result = TypeVar("Result")


class Refused(Exception):
    """A command that cannot be carried out; the message is for the person at the terminal."""


def run(settings: Settings, work: Callable[[Context], Awaitable[Result]]) -> Result:
    """Do `work` on this instance's database; raises `Refused` with what a person can act on."""
    logging.configure(settings.model_copy(update={"log_level": "warning"}))

    async def inside() -> Result:
        async with _opened(settings) as context:
            return await work(context)

    try:
        return asyncio.run(inside())
    except (AppError, WrongKey) as exc:
        raise Refused(str(exc)) from exc
    except ProgrammingError as exc:
        if getattr(exc.orig, "sqlstate", None) != "42P01":  # undefined table
            raise
        said = "The database has no tables of this release yet: run `potoroo migrate`, or start the server once."
        raise Refused(said) from exc


async def create_user(context: Context, email: str, password: str | None, admin: bool) -> dict[str, Any]:
    """Add a user; without a password, a temporary one is made up."""
    if not is_email(email):
        raise Invalid(f"{email!r} is not an e-mail address.")
    name = email.strip().lower()
    given = passwords.make_up() if password is None else password
    user_id = await managed_directory_of(context).invite(name, given, temporary=password is None, is_admin=admin)
    return {"id": user_id, "username": name, **({"password": given} if password is None else {})}


async def reset_password(context: Context, email: str, password: str | None) -> dict[str, Any]:
    """Give a user a new password; without one, a temporary one is made up."""
    directory = managed_directory_of(context)
    user = await directory.by_email(email)
    if user is None:
        raise NotFound(f"There is no user {email!r}.")
    given = passwords.make_up() if password is None else password
    await directory.set_password(user.id, given, temporary=password is None)
    return {"id": user.id, "username": user.username, **({"password": given} if password is None else {})}


async def list_users(context: Context) -> list[dict[str, Any]]:
    """Return all users."""
    return [asdict(one) for one in await managed_directory_of(context).everybody()]


async def create_client(context: Context, client_id: str) -> dict[str, Any]:
    """Add a confidential client and return its secret."""
    if not client_id.isascii() or not client_id.replace("-", "").replace("_", "").isalnum() or len(client_id) > 63:
        raise Invalid("The id of a client has ASCII letters, digits, dashes and underscores, at most 63.")
    secret = clients.make_secret()
    async with context.sessions.begin() as session:
        await clients.add_confidential(session, client_id, secret)
    return {"client_id": client_id, "secret": secret}


async def rotate_secret(context: Context, client_id: str) -> dict[str, Any]:
    """Give a confidential client a new secret; the tokens it got for itself end."""
    secret = clients.make_secret()
    async with context.sessions.begin() as session:
        row = await session.get(Client, client_id)
        if row is None or row.secret_hash is None:
            raise NotFound(f"There is no confidential client {client_id!r}.")
        row.secret_hash, row.not_before = digest(secret), int(context.clock.now().timestamp())
        await notify(session, TOPIC, client_id)
    return {"client_id": client_id, "secret": secret}


async def list_clients(context: Context) -> list[dict[str, Any]]:
    """Return all clients."""
    async with context.sessions() as session:
        rows = await session.scalars(select(Client).order_by(Client.client_id))
        return [
            {"client_id": row.client_id, "confidential": row.secret_hash is not None, "grants": row.grants}
            for row in rows
        ]


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Context]:
    """Open the instance's database; an embedded one that was not running is stopped again at the end."""
    own = EmbeddedPostgres(settings.home / "postgres") if settings.database_url is None else None
    was_running = _runs(settings.home / "postgres")
    url = await asyncio.to_thread(own.start) if own else settings.database_url.get_secret_value()  # type: ignore[union-attr]  # one of the two is set
    engine = db.connect(url, 2)
    context = Context(
        settings=settings,
        database=engine,
        sessions=db.sessions_on(engine),
        events=Events(db.plain_url(url)),
        storage=open_storage(settings.blobs_url),
    )
    try:
        await bootstrap(context)
        await parts.open_parts(context)
        yield context
    finally:
        await parts.close_parts(context)
        await engine.dispose()
        if own and not was_running:
            await asyncio.to_thread(own.stop)


def _runs(folder: Path) -> bool:
    """Tell whether a Postgres runs from `folder`."""
    try:
        os.kill(int((folder / "postmaster.pid").read_text().split("\n", 1)[0]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True
