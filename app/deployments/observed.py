"""What was last seen of a deployment, as its row keeps it."""

from __future__ import annotations

from typing import Any

import msgspec

from app.deployments.plan import Replica


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """The replicas there are, and those by which the last revision failed."""

    replicas: tuple[Replica, ...] = ()
    failed: tuple[Replica, ...] = ()
    """Replicas of a revision that was given up; they are gone, why they failed is not."""
    waiting: tuple[Replica, ...] = ()
    """Replicas for which there is no room yet."""


def read(stored: dict[str, Any] | None) -> Observed:
    """Return what a row holds; a form this release does not know counts as nothing seen."""
    try:
        return msgspec.convert(stored or {}, Observed, strict=False)
    except msgspec.ValidationError:
        return Observed()


def write(observed: Observed) -> dict[str, Any]:
    """Return `observed` in the form rows hold."""
    builtins: dict[str, Any] = msgspec.to_builtins(observed)
    return builtins
