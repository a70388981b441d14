"""Mail to invited users, by SMTP when a server is set up."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

import structlog

from app.kit.context import Context
from app.settings import Settings

log = structlog.get_logger()

_TIMEOUT_S = 10.0


async def invite(context: Context, email: str, temporary_password: str | None, page_url: str) -> bool:
    """Mail an invitation; returns whether it was sent. The invitation holds without it, so a failure is only logged."""
    settings = context.settings
    if settings.smtp_url is None:
        log.warning("mail.off", hint="set POTOROO_SMTP_URL; until then pass the password on yourself")
        return False
    message = invitation(settings, email, temporary_password, page_url)
    try:
        await asyncio.to_thread(_send, settings.smtp_url.get_secret_value(), message)
    except (OSError, smtplib.SMTPException) as exc:
        log.warning("mail.failed", error=type(exc).__name__)
        return False
    log.info("mail.sent")
    return True


def invitation(settings: Settings, email: str, temporary_password: str | None, page_url: str) -> EmailMessage:
    """Return the invitation."""
    message = EmailMessage()
    message["From"] = settings.smtp_from or settings.admin_email
    message["To"] = email
    message["Subject"] = f"You are invited to {settings.instance_name}"
    lines = [f"You can sign in to {settings.instance_name} now, with this e-mail address:", "", page_url, ""]
    if temporary_password:
        lines += ["Your first password, which you will be asked to change:", "", temporary_password, ""]
    else:
        lines += ["Whoever invited you knows your password.", ""]
    message.set_content("\n".join(lines))
    return message


def _send(url: str, message: EmailMessage) -> None:
    parts = urlsplit(url)
    host, tls = parts.hostname or "localhost", ssl.create_default_context()
    server: smtplib.SMTP
    if parts.scheme == "smtps":
        server = smtplib.SMTP_SSL(host, parts.port or 465, timeout=_TIMEOUT_S, context=tls)
    else:
        server = smtplib.SMTP(host, parts.port or 25, timeout=_TIMEOUT_S)
    with server:
        if parts.scheme != "smtps" and server.has_extn("starttls") is False:
            server.ehlo()
        if parts.scheme != "smtps" and server.has_extn("starttls"):
            server.starttls(context=tls)
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        server.send_message(message)
