"""Where a request came from and under which address the client knows this server."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from fastapi import Request

from app.errors import Invalid
from app.kit.context import context_of
from app.settings import Settings

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?", re.ASCII)
REALM_PATH = "/auth/realms/master"


def base_url(request: Request) -> str:
    """Return the URL, without a slash at its end, under which the client reaches this server.

    Raises `Invalid` when the request names no host that could be one.
    """
    settings = context_of(request).settings
    if settings.public_url:
        return settings.public_url.rstrip("/")
    scheme, host = request.url.scheme, request.headers.get("host", "")
    if _is_trusted(request, settings):
        scheme = _first(request, "x-forwarded-proto") or scheme
        host = _first(request, "x-forwarded-host") or host
    if scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise Invalid("The Host header of the request is not a host name.")
    return f"{scheme}://{host}"


def issuer(request: Request) -> str:
    """Return the `iss` of tokens given to this client."""
    return base_url(request) + REALM_PATH


def client_address(request: Request) -> str:
    """Return the address the request came from, as the outermost trusted proxy saw it."""
    settings = context_of(request).settings
    peer = request.client.host if request.client else ""
    if not _is_trusted(request, settings):
        return peer
    for hop in reversed([part.strip() for part in request.headers.get("x-forwarded-for", "").split(",")]):
        if not hop:
            continue
        if not _contains(settings.trusted_proxies, hop) or settings.trusted_proxies.strip() == "*":
            return hop
    return peer


def _first(request: Request, header: str) -> str:
    return request.headers.get(header, "").split(",")[0].strip()


def _is_trusted(request: Request, settings: Settings) -> bool:
    return _contains(settings.trusted_proxies, request.client.host if request.client else "")


def _contains(trusted: str, address: str) -> bool:
    if trusted.strip() == "*":
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in _networks(trusted) if network.version == parsed.version)


@lru_cache(maxsize=8)
def _networks(trusted: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in trusted.split(",") if part.strip())
