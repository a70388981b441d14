"""Who the users are: our own table, or an external Keycloak behind the same calls.

A look-up may cross the network: make it outside a transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from app.kit.context import Context

PART = "directory"
"""Under this name `Context.parts` holds the process's `Directory`."""


@dataclass(frozen=True, slots=True)
class Person:
    """A user as other modules need them."""

    id: str
    username: str
    email: str | None
    enabled: bool = True
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class Profile(Person):
    """A user as those who manage users need them."""

    first_name: str | None = None
    last_name: str | None = None
    email_verified: bool = False
    created_ms: int = 0
    last_login_ms: int | None = None
    not_before: int = 0
    required_actions: tuple[str, ...] = ()
    identities: tuple[Mapping[str, Any], ...] = ()
    """Accounts elsewhere that sign this user in, as Keycloak lists them."""


class Unset(Enum):
    """Says that a change leaves a value alone."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What shall be different about a user."""

    enabled: bool | Unset = UNSET
    email: str | Unset = UNSET
    email_verified: bool | Unset = UNSET
    first_name: str | Unset | None = UNSET
    last_name: str | Unset | None = UNSET
    required_actions: tuple[str, ...] | Unset = UNSET
    is_admin: bool | Unset = UNSET


class Directory(Protocol):
    """Finds users."""

    async def by_email(self, email: str) -> Person | None:
        """Return the user whose e-mail or username is `email`, in any case of letters."""
        ...

    async def by_ids(self, ids: Iterable[str]) -> Mapping[str, Person]:
        """Return those of the users `ids` that exist, by id."""
        ...

    async def admins(self) -> Sequence[Person]:
        """Return the enabled administrators."""
        ...


class ManagedDirectory(Directory, Protocol):
    """Finds and manages users; our own table and an external Keycloak both can."""

    async def everybody(self) -> list[Profile]:
        """Return all users, longest-standing first, without the accounts of clients."""
        ...

    async def find(self, user_id: str) -> Profile | None:
        """Return the user `user_id`."""
        ...

    async def search(self, wanted: Search) -> list[Profile]:
        """Return the users that match; exact matches first."""
        ...

    async def invite(self, email: str, password: str, *, temporary: bool, is_admin: bool) -> str:
        """Add a user who signs in with `password` and return their id; raises `Conflict` for an e-mail in use."""
        ...

    async def change(self, user_id: str, changes: Changes) -> None:
        """Change a user; raises `NotFound`, or `Conflict` when an e-mail is taken or no administrator would be left."""
        ...

    async def set_password(self, user_id: str, password: str, *, temporary: bool) -> None:
        """Give a user a new password and end their sessions; raises `NotFound`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What to look for among users; what is None does not count."""

    email: str | None = None
    username: str | None = None
    text: str | None = None
    """Part of the username, e-mail or a name."""
    exact: bool = False
    enabled: bool | None = None
    first: int = 0
    most: int = 100


def directory_of(context: Context) -> Directory:
    """Return the process's directory."""
    part: Directory = context.parts[PART]
    return part


def managed_directory_of(context: Context) -> ManagedDirectory:
    """Return the process's directory, for those who manage users."""
    part: ManagedDirectory = context.parts[PART]
    return part
