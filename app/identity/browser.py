"""People in browsers: the cookie that keeps them signed in, and the token that proves a form is ours."""

from __future__ import annotations

import hmac
import secrets
from datetime import timedelta
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Forbidden
from app.identity.caller import Caller
from app.identity.origin import base_url
from app.identity.tables import LoginSession, User
from app.identity.tokens import new_session, session_of
from app.kit.context import Context, context_of

BROWSER, CHANGE = "browser", "change"
CHANGE_S = 600
"""How long somebody who has to change their password first may take for it, seconds."""

_SESSION, _CSRF = "potoroo_session", "potoroo_csrf"


async def signed_in(request: Request, session: AsyncSession, kind: str = BROWSER) -> tuple[LoginSession, User] | None:
    """Return the session and the user of the request's cookie, if both still count."""
    token = request.cookies.get(_name(request, _SESSION), "")
    row = await session_of(session, token, (kind,)) if token else None
    if row is None or row.revoked_at is not None:
        return None
    if row.expires_at is not None and row.expires_at <= context_of(request).clock.now():
        return None
    user = await session.get_one(User, row.user_id)
    return (row, user) if user.enabled else None


async def browser_caller(request: Request) -> Caller | None:
    """Return who is signed in with this browser, or None; for pages of ours, which check forms by `check_form`."""
    async with context_of(request).sessions() as session:
        found = await signed_in(request, session)
    if found is None:
        return None
    row, user = found
    return Caller(user.id, user.username, user.email, is_admin=user.is_admin, session_id=row.id)


def open_session(context: Context, session: AsyncSession, user: User, kind: str = BROWSER) -> str:
    """Add a session for a browser and return the token for its cookie."""
    now = context.clock.now()
    life_s = context.settings.session_s if kind == BROWSER else CHANGE_S
    row, token = new_session(user.id, kind, now, now + timedelta(seconds=life_s))
    session.add(row)
    return token


def keep(request: Request, response: Response, token: str) -> None:
    """Put the session's token into a cookie that scripts and other sites cannot use; it ends with the browser."""
    _set(request, response, _SESSION, token)


def let_go(request: Request, response: Response) -> None:
    """Take the session's cookie back."""
    response.delete_cookie(_name(request, _SESSION), path="/", secure=_is_https(request), httponly=True, samesite="lax")


def form_token(request: Request) -> str:
    """Return the token that the forms of this browser carry; `keep_form_token` puts it into a cookie."""
    given = request.cookies.get(_name(request, _CSRF), "")
    return given if len(given) == 43 and given.isascii() else secrets.token_urlsafe(32)


def keep_form_token(request: Request, response: Response, token: str) -> None:
    """Put the forms' token into its cookie."""
    _set(request, response, _CSRF, token)


def check_form(request: Request, given: str) -> None:
    """Raise `Forbidden` unless the form came from a page of ours in this browser."""
    origin = request.headers.get("origin")
    if origin is not None:
        host = urlsplit(origin).netloc
        if host not in (request.headers.get("host"), urlsplit(base_url(request)).netloc):
            raise Forbidden("The form came from another site.")
    expected = request.cookies.get(_name(request, _CSRF), "")
    if not expected or not hmac.compare_digest(expected.encode(), given.encode()):
        raise Forbidden("The form is too old, or the browser keeps no cookies. Go back, load the page again and retry.")


def _set(request: Request, response: Response, name: str, value: str) -> None:
    response.set_cookie(_name(request, name), value, path="/", secure=_is_https(request), httponly=True, samesite="lax")


def _name(request: Request, name: str) -> str:
    # With this prefix a browser takes the cookie from this very host over https alone.
    return f"__Host-{name}" if _is_https(request) else name


def _is_https(request: Request) -> bool:
    return base_url(request).startswith("https://")
