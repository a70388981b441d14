"""Opens what identity keeps for a process: its authenticator and its directory."""

from __future__ import annotations

from app.identity import caller, directory
from app.identity.authenticate import OwnAuthenticator
from app.identity.local import OwnDirectory
from app.kit.context import Context


async def open_parts(context: Context) -> None:
    """Put the authenticator and the directory into `context.parts`: our own, or those of an external Keycloak."""
    if context.settings.oidc_issuer:
        from app.identity.keycloak import Keycloak

        keycloak = Keycloak(context)
        context.parts[caller.PART] = context.parts[directory.PART] = keycloak
        return
    context.parts[caller.PART] = OwnAuthenticator(context)
    context.parts[directory.PART] = OwnDirectory(context)


async def close_parts(context: Context) -> None:
    """Close what `open_parts` opened."""
    part = context.parts.get(caller.PART)
    close = getattr(part, "aclose", None)
    if close is not None:
        await close()
