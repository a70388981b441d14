"""Tells by the first bytes of a connection whether it asks for an inference, and of which deployment."""

from __future__ import annotations

_START = b"POST /v1/api/pipelines/infer/"
_LONGEST_NAME = 300
OTHER = ""


def deployment_asked(received: bytes | bytearray) -> str | None:
    """Return the `<deploy id>-<id>` that a request begins with, `OTHER` for any other request, None if it is too early.

    Only the plainest spelling is recognised; whatever else is an inference goes the longer way and is one there.
    """
    if not received.startswith(_START):
        return None if _START.startswith(received) else OTHER
    for end in range(len(_START), min(len(received), len(_START) + _LONGEST_NAME)):
        if received[end] in b"/ ?":
            return received[len(_START) : end].decode("latin-1")
    return None if len(received) < len(_START) + _LONGEST_NAME else OTHER
