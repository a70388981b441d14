"""Forms that values take on the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import PlainSerializer


def wire_time(moment: datetime) -> str:
    """Return `moment` as Postgres prints it in JSON: UTC as `+00:00`, the fraction without trailing zeros."""
    moment = moment.astimezone(UTC)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    if moment.microsecond:
        text += f".{moment.microsecond:06d}".rstrip("0")
    return text + "+00:00"


WireTime = Annotated[datetime, PlainSerializer(wire_time, return_type=str, when_used="json")]
"""A time in a reply."""
