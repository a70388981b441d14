"""The pages people see: login, device, account, and the change of a password. They work without JavaScript."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import structlog
from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader

from app.errors import AppError, Invalid, TooManyRequests
from app.identity import browser, device, login, passwords
from app.identity.authenticate import forget
from app.identity.faces import OAuthError
from app.identity.forms import read_form
from app.identity.local import change_password
from app.identity.origin import REALM_PATH, client_address
from app.identity.provider import built_in
from app.identity.tables import User
from app.identity.tokens import revoke_session
from app.kit.context import context_of
from app.kit.http import Faces

log = structlog.get_logger()

LOGIN, DEVICE, ACCOUNT = f"{REALM_PATH}/login", f"{REALM_PATH}/device", f"{REALM_PATH}/account"
CHANGE = f"{REALM_PATH}/login-actions/required-action"
STYLE = f"{REALM_PATH}/style.css"

_PATHS = {"login": LOGIN, "device": DEVICE, "account": ACCOUNT, "change": CHANGE, "style": STYLE}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PAGES = Environment(loader=PackageLoader("app.identity"), autoescape=True)
_STYLESHEET = Path(__file__).parent / "templates" / "style.css"

router = APIRouter(include_in_schema=False, dependencies=[Depends(built_in)])


def show(request: Request, page: str, status: int = 200, **values: object) -> HTMLResponse:
    """Return a page with the forms' token in it."""
    token = browser.form_token(request)
    name = context_of(request).settings.instance_name
    html = _PAGES.get_template(page).render(instance=name, csrf=token, paths=_PATHS, **values)
    response = HTMLResponse(html, status, headers=_HEADERS)
    browser.keep_form_token(request, response, token)
    return response


def error_page(request: Request, error: AppError) -> Response:
    """Render `error` as a page."""
    title = "This did not work" if error.status < 500 else "Something is wrong on the server"
    return HTMLResponse(
        _PAGES.get_template("message.html").render(
            instance=context_of(request).settings.instance_name,
            title=title,
            text=error.message,
            failed=True,
            paths=_PATHS,
        ),
        error.status,
        headers={**_HEADERS, **error.headers},
    )


def register(faces: Faces) -> None:
    """Show the pages' errors as pages."""
    for path in (LOGIN, DEVICE, ACCOUNT):
        faces.register(path, error_page)


@router.get(STYLE)
async def style() -> FileResponse:
    """Return the pages' stylesheet."""
    return FileResponse(_STYLESHEET, media_type="text/css", headers={"Cache-Control": "max-age=3600"})


@router.get(LOGIN)
async def login_page(request: Request) -> Response:
    """Ask for name and password."""
    return show(request, "login.html", next=_local(request.query_params.get("next")))


@router.post(LOGIN)
async def log_in(request: Request) -> Response:
    """Sign in, and go on to where the person wanted to be."""
    context, form = context_of(request), await _form(request)
    wanted, username = _local(form.get("next")), form.get("username", "")
    try:
        user = await login.check_password(context, username, form.get("password", ""), client_address(request))
    except (OAuthError, TooManyRequests) as exc:
        page = show(request, "login.html", exc.status, next=wanted, username=username[:255], problem=_said(exc))
        page.headers.update(exc.headers if isinstance(exc, TooManyRequests) else {})
        return page
    kind = browser.CHANGE if login.UPDATE_PASSWORD in user.required_actions else browser.BROWSER
    async with context.sessions.begin() as session:
        current = await session.get_one(User, user.id)
        token = browser.open_session(context, session, current, kind)
        if kind == browser.BROWSER:
            current.last_login = context.clock.now()
    log.info("login.succeeded", user=user.id, client="browser")
    target = f"{CHANGE}?{urlencode({'next': wanted})}" if kind == browser.CHANGE else wanted
    response = RedirectResponse(target, 303, headers=_HEADERS)
    browser.keep(request, response, token)
    return response


@router.get(CHANGE)
async def change_page(request: Request) -> Response:
    """Ask for a new password in place of a temporary one."""
    wanted = _local(request.query_params.get("next"))
    async with context_of(request).sessions() as session:
        found = await browser.signed_in(request, session, browser.CHANGE)
    if found is None:
        return _to_login(wanted)
    return show(request, "change.html", next=wanted, user=found[1], least=passwords.MIN_LENGTH)


@router.post(CHANGE)
async def change(request: Request) -> Response:
    """Replace a temporary password and sign in."""
    context, form = context_of(request), await _form(request)
    wanted = _local(form.get("next"))
    async with context.sessions() as session:
        found = await browser.signed_in(request, session, browser.CHANGE)
    if found is None:
        return _to_login(wanted)
    row, user = found
    problem = await _problem_with(form, user)
    if problem:
        return show(request, "change.html", 400, next=wanted, user=user, least=passwords.MIN_LENGTH, problem=problem)
    fresh = await passwords.hashed(form["password"])
    async with context.sessions.begin() as session:
        still = await browser.signed_in(request, session, browser.CHANGE)
        if still is None or still[0].id != row.id:
            return _to_login(wanted)
        await change_password(context, session, still[1], fresh, temporary=False)
        token = browser.open_session(context, session, still[1])
    forget(context)
    log.info("user.password_changed", user=user.id)
    response = RedirectResponse(wanted, 303, headers=_HEADERS)
    browser.keep(request, response, token)
    return response


@router.get(ACCOUNT)
async def account_page(request: Request) -> Response:
    """Show who is signed in, and a form for another password."""
    async with context_of(request).sessions() as session:
        found = await browser.signed_in(request, session)
    if found is None:
        return _to_login(ACCOUNT)
    done = "changed" in request.query_params
    return show(request, "account.html", user=found[1], least=passwords.MIN_LENGTH, done=done)


@router.post(f"{ACCOUNT}/password")
async def change_own_password(request: Request) -> Response:
    """Change the password of the person who is signed in; their other sessions end."""
    context, form = context_of(request), await _form(request)
    async with context.sessions() as session:
        found = await browser.signed_in(request, session)
    if found is None:
        return _to_login(ACCOUNT)
    row, user = found
    try:
        await login.check_password(context, user.username, form.get("current", ""), client_address(request))
        problem = await _problem_with(form, user)
    except (OAuthError, TooManyRequests) as exc:
        problem = "The present password is wrong." if exc.status == 401 else _said(exc)
    if problem:
        return show(request, "account.html", 400, user=user, least=passwords.MIN_LENGTH, problem=problem)
    fresh = await passwords.hashed(form["password"])
    async with context.sessions.begin() as session:
        current = await session.get_one(User, user.id, with_for_update=True)
        await change_password(context, session, current, fresh, temporary=False, keep=row.id)
    forget(context)
    log.info("user.password_changed", user=user.id)
    return RedirectResponse(f"{ACCOUNT}?changed", 303, headers=_HEADERS)


@router.post(f"{ACCOUNT}/logout")
async def log_out(request: Request) -> Response:
    """Sign out of this browser."""
    context = context_of(request)
    await _form(request)
    async with context.sessions.begin() as session:
        found = await browser.signed_in(request, session)
        if found is not None:
            await revoke_session(context, session, found[0].id)
    response = show(request, "message.html", title="Signed out", text="You can close this page.")
    browser.let_go(request, response)
    return response


@router.get(DEVICE)
async def device_page(request: Request) -> Response:
    """Ask for the code that a program shows; then, of the person signed in, whether to let it in."""
    context = context_of(request)
    typed = request.query_params.get("user_code", "")[:64]
    async with context.sessions() as session:
        found = await browser.signed_in(request, session)
        if found is None:
            return _to_login(f"{DEVICE}?{urlencode({'user_code': typed})}" if typed else DEVICE)
        waiting = await device.find(context, session, typed) if typed else None
        if waiting is None:
            problem = "This code is not known, is used up, or is too old." if typed else None
            return show(request, "device.html", 404 if typed else 200, user_code=typed, problem=problem, user=found[1])
        return show(request, "confirm.html", user=found[1], user_code=waiting.user_code, client=waiting.client_id)


@router.post(DEVICE)
async def decide(request: Request) -> Response:
    """Let the program in, or refuse it."""
    context, form = context_of(request), await _form(request)
    typed, allowed = form.get("user_code", ""), form.get("decision") == "allow"
    async with context.sessions.begin() as session:
        found = await browser.signed_in(request, session)
        if found is None:
            return _to_login(f"{DEVICE}?{urlencode({'user_code': typed[:64]})}")
        waiting = await device.find(context, session, typed)
        if waiting is None:
            problem = "This code is not known, is used up, or is too old."
            return show(request, "device.html", 404, user_code=typed[:64], problem=problem, user=found[1])
        waiting.status, waiting.user_id = ("granted" if allowed else "denied"), found[1].id
        client_id = waiting.client_id
    log.info("device.decided", user=found[1].id, client=client_id, allowed=allowed)
    if allowed:
        said = "Go back to your program; it goes on by itself."
        return show(request, "message.html", title="You are signed in", text=said)
    return show(request, "message.html", title="Refused", text="The program was not let in.")


async def _form(request: Request) -> Mapping[str, str]:
    form = await read_form(request)
    browser.check_form(request, form.get("csrf", ""))
    return form


async def _problem_with(form: Mapping[str, str], user: User) -> str | None:
    password = form.get("password", "")
    if password != form.get("again", ""):
        return "The two new passwords differ."
    try:
        passwords.check(password)
    except Invalid as exc:
        return exc.message
    if await passwords.matches(user.password_hash, password):
        return "The new password is the old one."
    return None


def _to_login(wanted: str) -> Response:
    return RedirectResponse(f"{LOGIN}?{urlencode({'next': wanted})}", 303, headers=_HEADERS)


def _local(target: str | None) -> str:
    """Return `target` if it is a page on this server, else the account page: nobody is sent elsewhere."""
    if not target or len(target) > 1000 or not target.isprintable():
        return ACCOUNT
    if not target.startswith("/") or target.startswith("//") or "\\" in target or target.startswith(LOGIN):
        return ACCOUNT
    return target


def _said(error: AppError) -> str:
    return {
        "Invalid user credentials": "Name or password is wrong.",
        "Account disabled": "This account is deactivated; an administrator can activate it.",
    }.get(error.message, error.message)
