"""The directory over our own table of users."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, case, func, or_, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Conflict, NotFound
from app.identity import authenticate, passwords, tokens
from app.identity.directory import UNSET, Changes, Person, Profile, Search
from app.identity.keys import TOPIC
from app.identity.login import UPDATE_PASSWORD
from app.identity.tables import User
from app.kit.context import Context
from app.kit.events import notify

_ADMINS_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('potoroo.admins', 0))")


def profile_of(user: User) -> Profile:
    """Return a row as others see it."""
    return Profile(
        id=user.id,
        username=user.username,
        email=user.email,
        enabled=user.enabled,
        is_admin=user.is_admin,
        first_name=user.first_name,
        last_name=user.last_name,
        email_verified=user.email_verified,
        created_ms=int(user.created_at.timestamp() * 1000),
        last_login_ms=int(user.last_login.timestamp() * 1000) if user.last_login else None,
        not_before=user.not_before,
        required_actions=tuple(user.required_actions),
    )


class OwnDirectory:
    """Users of our own; each call is a transaction of its own."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def by_email(self, email: str) -> Person | None:
        """Return the user whose e-mail or username is `email`, in any case of letters."""
        async with self._context.sessions() as session:
            user = await tokens.find_user(session, email)
        return profile_of(user) if user else None

    async def by_ids(self, ids: Iterable[str]) -> dict[str, Profile]:
        """Return those of the users `ids` that exist, by id."""
        wanted = {one for one in ids if "\x00" not in one}
        async with self._context.sessions() as session:
            rows = await session.scalars(select(User).where(User.id.in_(wanted)))
            return {row.id: profile_of(row) for row in rows}

    async def admins(self) -> list[Profile]:
        """Return the enabled administrators."""
        return await self._select(User.is_admin.is_(True), User.enabled.is_(True))

    async def everybody(self) -> list[Profile]:
        """Return all users, longest-standing first."""
        return await self._select()

    async def find(self, user_id: str) -> Profile | None:
        """Return the user `user_id`."""
        return (await self.by_ids([user_id])).get(user_id)

    async def search(self, wanted: Search) -> list[Profile]:
        """Return the users that match; exact matches first."""
        conditions: list[ColumnElement[bool]] = []
        exact_first: list[Any] = []
        for column, value in ((User.email, wanted.email), (User.username, wanted.username)):
            if value is None:
                continue
            low = value.strip().lower()
            conditions.append(column == low if wanted.exact else column.contains(low, autoescape=True))
            exact_first.append(case((column == low, 0), else_=1))
        if wanted.text:
            low = wanted.text.strip().lower()
            columns = (User.username, User.email, User.first_name, User.last_name)
            conditions.append(or_(*(func.lower(column).contains(low, autoescape=True) for column in columns)))
        if wanted.enabled is not None:
            conditions.append(User.enabled.is_(wanted.enabled))
        async with self._context.sessions() as session:
            rows = await session.scalars(
                select(User)
                .where(*conditions)
                .order_by(*exact_first, User.username)
                .offset(wanted.first)
                .limit(wanted.most)
            )
            return [profile_of(row) for row in rows]

    async def invite(self, email: str, password: str, *, temporary: bool, is_admin: bool) -> str:
        """Add a user who signs in with `password` and return their id; raises `Conflict` for an e-mail in use."""
        user = User(
            id=str(uuid.uuid4()),
            username=email,
            email=email,
            email_verified=True,
            is_admin=is_admin,
            password_hash=await passwords.hashed(passwords.check(password)),
            required_actions=[UPDATE_PASSWORD] if temporary else [],
        )
        async with self._context.sessions.begin() as session:
            await _store(session, user, email)
        return user.id

    async def change(self, user_id: str, changes: Changes) -> None:
        """Change a user; raises `NotFound`, or `Conflict` when an e-mail is taken or no administrator would be left."""
        async with self._context.sessions.begin() as session:
            loses = changes.enabled is False or changes.is_admin is False
            if loses:  # one such change at a time, or two administrators could remove each other
                await session.execute(_ADMINS_LOCK)
            user = await session.get(User, user_id, with_for_update=True)
            if user is None:
                raise NotFound("User not found")
            if loses and user.enabled and user.is_admin:
                await _keep_an_admin(session, user)
            if user.enabled and changes.enabled is False:
                user.not_before = int(self._context.clock.now().timestamp())
                await tokens.revoke_sessions(self._context, session, user.id)
            was_email = user.email
            for field in fields(changes):
                value = getattr(changes, field.name)
                if value is not UNSET:
                    setattr(user, field.name, list(value) if isinstance(value, tuple) else value)
            if user.email != was_email and user.username == was_email and user.email:
                user.username = user.email
            await _store(session, user, user.email or user.username)
            await notify(session, TOPIC, user.id)
        authenticate.forget(self._context)

    async def set_password(self, user_id: str, password: str, *, temporary: bool) -> None:
        """Give a user a new password and end their sessions; raises `NotFound`."""
        fresh = await passwords.hashed(passwords.check(password))
        async with self._context.sessions.begin() as session:
            user = await session.get(User, user_id, with_for_update=True)
            if user is None:
                raise NotFound("User not found")
            await change_password(self._context, session, user, fresh, temporary=temporary)
        authenticate.forget(self._context)

    async def _select(self, *conditions: ColumnElement[bool]) -> list[Profile]:
        async with self._context.sessions() as session:
            rows = await session.scalars(select(User).where(*conditions).order_by(User.created_at, User.id))
            return [profile_of(row) for row in rows]


async def change_password(
    context: Context, session: AsyncSession, user: User, fresh_hash: str, *, temporary: bool, keep: str | None = None
) -> None:
    """Store a new password's hash and end every session of the user but `keep`."""
    others = [action for action in user.required_actions if action != UPDATE_PASSWORD]
    user.password_hash = fresh_hash
    user.required_actions = [*others, UPDATE_PASSWORD] if temporary else others
    await tokens.revoke_sessions(context, session, user.id, keep=keep)


async def _store(session: AsyncSession, user: User, email: str) -> None:
    try:
        async with session.begin_nested():
            session.add(user)
    except IntegrityError as exc:
        raise Conflict(f"A user with the e-mail or username {email!r} exists already.") from exc


async def _keep_an_admin(session: AsyncSession, leaving: User) -> None:
    """Raise `Conflict` if without `leaving` there is no administrator."""
    others = select(User.id).where(User.is_admin, User.enabled, User.id != leaving.id)
    if await session.scalar(others.limit(1)) is None:
        raise Conflict(f"{leaving.username!r} is the only administrator; make somebody else one first.")
