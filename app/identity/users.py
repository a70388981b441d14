"""The rules of managing users: who may do what to whom.

Everybody who is signed in may see all users: clients need their names and e-mails wherever members are shown.
Everybody may invite, unless `POTOROO_INVITATIONS=admins`; an invitation to be an administrator takes one. Changing
others takes an administrator; their own name everybody may change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from app.errors import Conflict, Forbidden, NotFound
from app.identity import mail, passwords
from app.identity.caller import Caller
from app.identity.directory import UNSET, Changes, Person, Profile, managed_directory_of
from app.kit.context import Context

log = structlog.get_logger()

ADMIN_ROLES = {"admin", "admin_user"}


@dataclass(frozen=True, slots=True)
class Invitation:
    """A user who was just added, and what they sign in with."""

    user_id: str
    password: str

    def __repr__(self) -> str:
        return f"Invitation({self.user_id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Somebody to invite; without a password, one is made up and has to be changed at the first login."""

    email: str
    password: str | None = None
    roles: tuple[str, ...] = ()
    require_reset: bool | None = None

    def __repr__(self) -> str:
        return f"Guest({self.email!r})"


async def invite(context: Context, caller: Caller, guest: Guest, page_url: str) -> Invitation:
    """Add a user and mail them where to sign in, if mail is set up.

    Raises `Forbidden` for those who may not, `Invalid` for a password that is too short, `Conflict` for an e-mail that
    is in use.
    """
    if context.settings.invitations == "admins" and not caller.is_admin:
        raise Forbidden("Only an administrator may invite users on this instance.")
    is_admin = not ADMIN_ROLES.isdisjoint(guest.roles)
    if is_admin and not caller.is_admin:
        raise Forbidden("Only an administrator may invite an administrator.")
    password = passwords.check(guest.password) if guest.password else passwords.make_up()
    temporary = guest.require_reset if guest.require_reset is not None else not guest.password
    directory = managed_directory_of(context)
    user_id = await directory.invite(guest.email, password, temporary=temporary, is_admin=is_admin)
    log.info("user.invited", user=user_id, by=caller.id, admin=is_admin, temporary=temporary)
    await mail.invite(context, guest.email, password if not guest.password else None, page_url)
    return Invitation(user_id, password)


async def set_enabled(context: Context, caller: Caller, email: str, enabled: bool) -> None:
    """Let a user sign in, or not any more: their sessions and tokens end at once.

    Raises `NotFound` for an unknown user, `Forbidden` for those who may not, `Conflict` for oneself and the last
    administrator.
    """
    found = await managed_directory_of(context).by_email(email)
    if found is None:
        raise NotFound(f"There is no user {email[:255]!r}.")
    await change(context, caller, found, Changes(enabled=enabled))


async def change(context: Context, caller: Caller, user: Person, changes: Changes) -> None:
    """Change a user; what equals the present is no change.

    Raises `Forbidden` for those who may not, `Conflict` for an e-mail in use, for switching oneself off, and for the
    last administrator.
    """
    changes = _differing(user, changes)
    if changes == Changes():
        return
    only_name = replace(changes, first_name=UNSET, last_name=UNSET) == Changes()
    if not caller.is_admin and not (only_name and user.id == caller.id):
        raise Forbidden("Only an administrator may change other users.")
    if user.id == caller.id and changes.enabled is False:
        raise Conflict("You cannot deactivate yourself.")
    if user.id == caller.id and changes.is_admin is False:
        raise Conflict("You cannot take the administrator's role from yourself; ask another administrator.")
    await managed_directory_of(context).change(user.id, changes)
    log.info("user.changed", user=user.id, by=caller.id, enabled=_said(changes.enabled), admin=_said(changes.is_admin))


def _differing(user: Person, changes: Changes) -> Changes:
    """Return `changes` without what is so already: clients send whole users back to change one value."""
    if changes.enabled == user.enabled:
        changes = replace(changes, enabled=UNSET)
    if changes.email == user.email:
        changes = replace(changes, email=UNSET)
    if changes.is_admin == user.is_admin:
        changes = replace(changes, is_admin=UNSET)
    if isinstance(user, Profile):
        if changes.email_verified == user.email_verified:
            changes = replace(changes, email_verified=UNSET)
        if changes.first_name == user.first_name:
            changes = replace(changes, first_name=UNSET)
        if changes.last_name == user.last_name:
            changes = replace(changes, last_name=UNSET)
        if changes.required_actions == user.required_actions:
            changes = replace(changes, required_actions=UNSET)
    return changes


def _said(value: object) -> object:
    return None if value is UNSET else value
