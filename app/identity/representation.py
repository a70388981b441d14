"""Users as Keycloak represents them, and what such a representation changes."""

from __future__ import annotations

from typing import Any

from app.identity.caller import Caller
from app.identity.directory import UNSET, Changes, Person, Profile
from app.identity.schemas import Representation, RepresentationIn

ADMIN_ROLE = "admin"


def represent(user: Person, caller: Caller, *, single: bool = False, listing: bool = False) -> Representation:
    """Return `user` as `caller` sees them; what is not known is left out, not null: clients take a null literally.

    `single`: with their accounts elsewhere. `listing`: with their roles, for administrators.
    """
    profile = user if isinstance(user, Profile) else Profile(user.id, user.username, user.email, user.enabled)
    known: dict[str, Any] = {
        "email": profile.email,
        "firstName": profile.first_name,
        "lastName": profile.last_name,
    }
    fields: dict[str, Any] = {key: value for key, value in known.items() if value}
    if single:
        fields["federatedIdentities"] = [dict(one) for one in profile.identities]
    if listing and caller.is_admin:
        fields["realmRoles"] = [ADMIN_ROLE] if user.is_admin else []
    return Representation(
        id=profile.id,
        username=profile.username,
        enabled=profile.enabled,
        emailVerified=profile.email_verified,
        createdTimestamp=profile.created_ms,
        notBefore=profile.not_before,
        requiredActions=list(profile.required_actions),
        disableableCredentialTypes=[],
        access={
            "view": True,
            "manage": caller.is_admin,
            "mapRoles": caller.is_admin,
            "manageGroupMembership": caller.is_admin,
            "impersonate": False,
        },
        lastLogin=profile.last_login_ms,
        **fields,
    )


def changes_of(body: RepresentationIn) -> Changes:
    """Return what a PUT representation changes: what it names and we keep."""
    return Changes(
        enabled=UNSET if body.enabled is None else body.enabled,
        email=UNSET if body.email is None else body.email,
        email_verified=UNSET if body.emailVerified is None else body.emailVerified,
        first_name=UNSET if body.firstName is None else body.firstName or None,
        last_name=UNSET if body.lastName is None else body.lastName or None,
        required_actions=UNSET if body.requiredActions is None else tuple(body.requiredActions),
    )
