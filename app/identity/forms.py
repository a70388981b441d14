"""Reads the small forms of OAuth requests and of our pages."""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import Request

from app.identity.faces import OAuthError

_LARGEST = 64 * 1024


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form body; raises `OAuthError` for one that is none, or names a field twice."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST:
            raise OAuthError(413, "invalid_request", f"The form is larger than {_LARGEST} bytes.")
    try:
        pairs = parse_qsl(
            body.decode("utf-8"), keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=100
        )
    except ValueError as exc:  # undecodable, or too many fields
        raise OAuthError(400, "invalid_request", "The body is not a form; send it as URL-encoded fields.") from exc
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise OAuthError(400, "invalid_request", "duplicated parameter")
    if any("\x00" in name or "\x00" in value for name, value in pairs):
        raise OAuthError(400, "invalid_request", "A field holds a character that is not allowed.")
    return fields
