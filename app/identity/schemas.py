"""What the identity routes take and give."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_EMAIL = re.compile(r"[^\s@<>\"'\\,;:()\[\]\x00-\x1f\x7f]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})+")
_JO = "f1f32bdf-9bd9-4595-a531-aca5778ceaf0"


def is_email(text: str) -> bool:
    """Tell whether `text` has the form of an e-mail address."""
    return len(text) <= 254 and _EMAIL.fullmatch(text) is not None and text.isprintable() and _encodes(text)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and nothing can store
        return False
    return True


def _email(text: str) -> str:
    text = text.strip().lower()
    if not is_email(text):
        raise ValueError("this is not an e-mail address")
    return text


def _plain(text: str) -> str:
    if not text.isprintable() or not _encodes(text):
        raise ValueError("this holds characters that are not allowed")
    return text


Email = Annotated[
    str,
    AfterValidator(_email),
    Field(examples=["jo@example.org"], max_length=254, json_schema_extra={"format": "email"}),
]
Name = Annotated[str, AfterValidator(_plain), Field(max_length=255)]
Secret = Annotated[str, AfterValidator(_plain)]


class Discovery(BaseModel):
    """The provider's description of itself."""

    issuer: str = Field(examples=["https://potoroo.example.org/auth/realms/master"])
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str
    end_session_endpoint: str
    revocation_endpoint: str
    device_authorization_endpoint: str
    grant_types_supported: list[str]
    scopes_supported: list[str]
    id_token_signing_alg_values_supported: list[str]
    response_types_supported: list[str] = []
    subject_types_supported: list[str] = ["public"]
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic", "client_secret_post"]
    claims_supported: list[str] = ["sub", "iss", "email", "name", "given_name", "family_name", "preferred_username"]


class Jwks(BaseModel):
    """Public keys."""

    keys: list[dict[str, str]] = Field(
        examples=[[{"kid": "9b3c…", "kty": "RSA", "use": "sig", "alg": "RS256", "n": "u1SU…", "e": "AQAB"}]]
    )


class TokenOut(BaseModel):
    """Tokens; a client's own (client_credentials) come without a refresh token and a session."""

    access_token: str = Field(examples=["eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6…"])
    expires_in: int = Field(examples=[3600])
    refresh_expires_in: int = Field(examples=[1800], description="0: no end (offline_access), or no refresh token.")
    refresh_token: str | None = Field(None, examples=["6f1c2a34-…"], description="May be used more than once.")
    token_type: str = Field(examples=["Bearer"])
    id_token: str | None = Field(None, description="With `scope=openid`.")
    session_state: str | None = Field(None, examples=["6f1c2a34-9c9a-4b43-b2a3-0d5f4b1c0e11"])
    scope: str = Field(examples=["profile email"])


class DeviceOut(BaseModel):
    """A sign-in that waits for its user."""

    device_code: str
    user_code: str = Field(examples=["WDJB-MJHT"])
    verification_uri: str = Field(examples=["https://potoroo.example.org/auth/realms/master/device"])
    verification_uri_complete: str = Field(
        examples=["https://potoroo.example.org/auth/realms/master/device?user_code=WDJB-MJHT"]
    )
    expires_in: int = Field(examples=[600])
    interval: int = Field(examples=[5])


class UserInfo(BaseModel):
    """What is known of a user."""

    sub: str = Field(examples=[_JO])
    email_verified: bool
    preferred_username: str = Field(examples=["jo@example.org"])
    name: str | None = None
    given_name: str | None = None
    family_name: str | None = None
    email: str | None = None


class Representation(BaseModel):
    """A user as Keycloak represents them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _JO,
                    "username": "jo@example.org",
                    "email": "jo@example.org",
                    "firstName": "Jo",
                    "lastName": "Doe",
                    "enabled": True,
                    "emailVerified": False,
                    "createdTimestamp": 1684355671859,
                    "notBefore": 0,
                    "requiredActions": [],
                    "disableableCredentialTypes": [],
                    "access": {
                        "view": True,
                        "mapRoles": True,
                        "manage": True,
                        "manageGroupMembership": True,
                        "impersonate": False,
                    },
                }
            ]
        }
    )
    id: str
    username: str
    enabled: bool
    emailVerified: bool
    createdTimestamp: int = Field(description="Epoch milliseconds.")
    notBefore: int = 0
    requiredActions: list[str]
    disableableCredentialTypes: list[str] = []
    access: dict[str, bool]
    email: str | None = None
    firstName: str | None = None
    lastName: str | None = None
    federatedIdentities: list[dict[str, Any]] | None = None
    realmRoles: list[str] | None = None
    lastLogin: int | None = Field(None, description="Epoch milliseconds.")


class SearchIn(BaseModel):
    """Which users to look for."""

    email: Name | None = Field(None, examples=["jo@example.org"])
    username: Name | None = None
    search: Name | None = Field(None, description="Part of the username, the e-mail or a name.")
    exact: bool = Field(False, description="Whether e-mail and username must match wholly.")
    enabled: bool | None = None
    first: int = Field(0, ge=0, le=2**31 - 1)
    max: int = Field(100, ge=0, le=10_000)


class RepresentationIn(BaseModel):
    """What a PUT may change of a user; everything else in the body is left alone."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": False, "firstName": "Jo"}]})
    enabled: bool | None = None
    email: Email | None = None
    emailVerified: bool | None = None
    firstName: Name | None = None
    lastName: Name | None = None
    requiredActions: list[Name] | None = None


class QueryIn(BaseModel):
    """Which users to return; without ids, all."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"user_ids": [_JO]}]})
    user_ids: list[uuid.UUID] | None = Field(None, max_length=10_000)


class QueryOut(BaseModel):
    """Users by their ids; null for an id that nobody has."""

    users: dict[str, Representation | None]


class InviteIn(BaseModel):
    """Somebody to invite."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"email": "jo@example.org", "password": "Snugglebunnies1!"}]}
    )
    email: Email
    password: Secret | None = Field(None, description="Without one, a temporary password is made up.")
    roles: list[Name] | None = Field(None, description="`admin` makes an administrator; only administrators may.")
    require_reset: bool | None = Field(
        None, description="Whether the password has to be changed at the first login; it is so for one made up here."
    )


class InviteOut(BaseModel):
    """The new user, and the password they sign in with."""

    id: str = Field(examples=[_JO])
    password: str = Field(examples=["Snugglebunnies1!"])


class EmailIn(BaseModel):
    """A user by e-mail (or username)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"email": "jo@example.org"}]})
    email: Secret = Field(min_length=1, max_length=255)


class EditIn(BaseModel):
    """A user as they shall be."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _JO,
                    "firstName": "Jo",
                    "lastName": "Doe",
                    "email": "jo@example.org",
                    "enabled": True,
                    "isAdmin": False,
                }
            ]
        }
    )
    id: uuid.UUID
    firstName: Name
    lastName: Name
    email: Email
    enabled: bool
    isAdmin: bool = Field(description="Grants or removes the administrator's role.")


class Empty(BaseModel):
    """An empty object."""


class ConfigOut(BaseModel):
    """What a client has to know before it signs in."""

    default_arch: str = Field(examples=["x86"])


class FeaturesOut(BaseModel):
    """What this instance can do."""

    features: dict[str, str] = Field(examples=[{"plateau": "true"}])
    name: str = Field(examples=["Potoroo"])
    is_auth_enabled: bool
