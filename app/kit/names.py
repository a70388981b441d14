"""Names that become parts of URLs and Kubernetes objects."""

from __future__ import annotations

import re

from app.errors import Invalid

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,61}[A-Za-z0-9]|[A-Za-z]", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def check_name(kind: str, name: str) -> str:
    """Return `name` if it may name a `kind`; raises `Invalid` otherwise.

    That is: a letter, then letters, digits and dashes, not ending in a dash, at most 63 characters.
    """
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{kind} name {name[:80]!r} is not allowed: use ASCII letters, digits and dashes, start with a letter, "
            "do not end with a dash, at most 63 characters."
        )
    return name


def check_label(kind: str, name: str) -> str:
    """Return `name` if it is a DNS label: lower-case letters, digits and dashes; raises `Invalid` otherwise."""
    if not _LABEL.fullmatch(name):
        raise Invalid(
            f"{kind} name {name[:80]!r} is not allowed: use lower-case ASCII letters, digits and dashes, do not "
            "start or end with a dash, at most 63 characters."
        )
    return name
