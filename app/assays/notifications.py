"""Telling people that the status of an assay changed: by webhook and by e-mail, once, again until it got there."""

from __future__ import annotations

import asyncio
import re
import smtplib
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.utils import formatdate
from urllib.parse import unquote, urlsplit

import httpx
import structlog
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.assays import schemas
from app.assays.lookups import visible_watch
from app.assays.stored import Json, zulu
from app.assays.tables import AssayDelivery, AssayResult, AssayWatch
from app.errors import Invalid
from app.identity.caller import Caller
from app.kit.context import Context
from app.settings import Settings

log = structlog.get_logger()

TOPIC = "assay-notices"
FIRST_PAUSE, MOST_ATTEMPTS = timedelta(seconds=10), 10
"""After ten seconds, twenty, forty …: given up after about an hour and a half."""
TIMEOUT_S = 10.0
LEASE = timedelta(minutes=2)
POLL_S = 5.0
SHOWN = 20
_ADDRESS = re.compile(r"[^@\s,;<>\"]+@[^@\s,;<>\"]+")

Send = Callable[[Settings, AssayDelivery], Awaitable[None]]


class Undelivered(Exception):
    """A notice did not get to its address; the message says why."""


async def change(session: AsyncSession, caller: Caller, wanted: schemas.NotificationsIn) -> schemas.NotificationsOut:
    """Store whom an assay tells; raises `NotFound`, and `Invalid` for an address that cannot be one."""
    watch = await visible_watch(session, caller, wanted.assay_id)
    if wanted.webhook is not None:
        parts = urlsplit(wanted.webhook)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Invalid(f"The webhook {wanted.webhook[:80]!r} is not an http or https URL.")
    if wanted.email is not None and not _ADDRESS.fullmatch(wanted.email):
        raise Invalid(f"{wanted.email[:80]!r} is not an e-mail address.")
    watch.notifications = {"webhook": wanted.webhook, "email": wanted.email}
    await session.flush()
    rows = await session.scalars(
        select(AssayDelivery)
        .join(AssayResult, AssayResult.id == AssayDelivery.result_id)
        .where(AssayResult.watch_id == watch.id)
        .order_by(AssayDelivery.id.desc())
        .limit(SHOWN)
    )
    return schemas.NotificationsOut(
        assay_id=watch.assay_id or str(watch.public_id),
        webhook=wanted.webhook,
        email=wanted.email,
        deliveries=[delivery_json(row) for row in rows],
    )


def delivery_json(row: AssayDelivery) -> Json:
    """Return a notice and its fate."""
    state = "delivered" if row.delivered_at else "waiting" if row.due_at else "given up"
    return {
        "channel": row.channel,
        "address": row.address,
        "state": state,
        "attempts": row.attempts,
        "delivered_at": zulu(row.delivered_at),
        "next_attempt": zulu(row.due_at),
        "error": row.error,
        "result_id": row.result_id,
    }


async def announce(session: AsyncSession, watch: AssayWatch, result_id: int, row: Json, now: datetime) -> None:
    """Write down a notice for each address of the assay, in the transaction that writes the result."""
    payload: Json = {
        "event": "assay.status_changed",
        "assay_id": watch.assay_id or str(watch.public_id),
        "assay_name": watch.name,
        "pipeline_id": watch.pipeline_id,
        "previous_status": watch.last_status,
        "status": row["status"],
        "reason": row["reason"],
        "scores": {k: s["score"] if isinstance(s, dict) else s for k, s in row["scores"].items()},
        "warning_threshold": row["warning_threshold"],
        "alert_threshold": row["alert_threshold"],
        "window_start": zulu(row["window_start"]),
        "window_end": zulu(row["window_end"]),
    }
    for channel, address in (watch.notifications or {}).items():
        if address:
            values = {"result_id": result_id, "channel": channel, "address": address, "payload": payload, "due_at": now}
            await session.execute(insert(AssayDelivery).values(values).on_conflict_do_nothing())


async def run(context: Context) -> None:
    """Deliver for ever."""
    woken = context.events.subscribe(TOPIC)
    while True:
        if not await deliver(context):
            await context.events.wait(woken, POLL_S)


async def deliver(context: Context, send: Send | None = None) -> int:
    """Try the notices that are due; returns how many were tried."""
    now = context.clock.now()
    async with context.sessions.begin() as session:
        due = list(
            await session.scalars(
                select(AssayDelivery)
                .where(AssayDelivery.due_at <= now)
                .order_by(AssayDelivery.due_at)
                .limit(20)
                .with_for_update(skip_locked=True)
            )
        )
        for row in due:  # nobody else tries it meanwhile; a process that is killed tries it again later
            row.due_at = now + LEASE
    for row in due:
        error = None
        try:
            await (send or _SENDERS[row.channel])(context.settings, row)
        except Undelivered as exc:
            error = str(exc)
        await _note(context, row, error)
    return len(due)


async def _note(context: Context, tried: AssayDelivery, error: str | None) -> None:
    now = context.clock.now()
    async with context.sessions.begin() as session:
        row = await session.get(AssayDelivery, tried.id, with_for_update=True)
        if row is None:  # the assay was deleted meanwhile
            return
        row.attempts += 1
        row.error = error
        row.due_at = None
        if error is None:
            row.delivered_at = now
        elif row.attempts < MOST_ATTEMPTS:
            row.due_at = now + FIRST_PAUSE * 2 ** (row.attempts - 1)
        log.info("assays.notice", delivery=row.id, channel=row.channel, attempts=row.attempts, ok=error is None)


async def _webhook(_: Settings, row: AssayDelivery) -> None:
    headers = {"X-Potoroo-Event": "assay.status_changed", "X-Potoroo-Delivery": str(row.id)}
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client:
            answer = await client.post(row.address, json=row.payload, headers=headers)
    except httpx.HTTPError as exc:
        raise Undelivered(f"{type(exc).__name__}: {exc}"[:500]) from exc
    if not answer.is_success:
        raise Undelivered(f"The webhook answered {answer.status_code}.")


async def _email(settings: Settings, row: AssayDelivery) -> None:
    if settings.smtp_url is None:
        raise Undelivered("No mail server is set (POTOROO_SMTP_URL).")
    message = EmailMessage()
    payload = row.payload
    message["Subject"] = _one_line(f"[{payload['status']}] assay {payload['assay_name']}")
    message["From"], message["To"] = settings.smtp_from or settings.admin_email, row.address
    message["Date"], message["Message-ID"] = formatdate(), f"<assay-notice-{row.id}@potoroo>"
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in payload.items() if value is not None]
    message.set_content("\n".join(lines) + "\n")
    try:
        await asyncio.to_thread(_submit, settings.smtp_url.get_secret_value(), message)
    except (OSError, smtplib.SMTPException) as exc:
        raise Undelivered(f"{type(exc).__name__}: {exc}"[:500]) from exc


def _submit(url: str, message: EmailMessage) -> None:
    parts = urlsplit(url)
    secure = parts.scheme == "smtps"
    host, port = parts.hostname or "localhost", parts.port or (465 if secure else 25)
    tls = ssl.create_default_context()
    server = (
        smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=tls)
        if secure
        else smtplib.SMTP(host, port, timeout=TIMEOUT_S)
    )
    with server:
        server.ehlo_or_helo_if_needed()
        if not secure and server.has_extn("starttls"):
            server.starttls(context=tls)
        elif not secure and parts.password:
            raise smtplib.SMTPException("The mail server offers no STARTTLS; a password is not sent in the clear.")
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        server.send_message(message)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


_SENDERS: dict[str, Send] = {"webhook": _webhook, "email": _email}
