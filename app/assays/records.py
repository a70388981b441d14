"""Logged records as `get_baseline` shows them: flat, a few at a time."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa

from app.assays.columns import matching
from app.assays.plan import Source
from app.assays.stored import Json
from engine.logs import reader

_PAGE = 2_000


def flat_records(
    root: str, source: Source, within: tuple[int, int] | None, limit: int, positions: Mapping[str, int] | None = None
) -> list[Json]:
    """Return up to `limit` records of the source in `[start, end)` milliseconds, oldest first."""
    store = reader.open_store(root)
    span = None if within is None else reader.TimeRange(within[0], within[1] - 1)
    found: list[Json] = []
    at = dict(positions or {})
    while len(found) < limit:
        size = min(_PAGE, max(limit - len(found), 100))
        page = reader.read_page(store, source.topic, page_size=size, positions=at, time_range=span)
        if page.table.num_rows == 0 and page.next == at:
            break
        for batch in _flat(page.table).to_batches():
            asked = matching(batch, "", source)
            kept = batch if asked is None else batch.filter(pa.array(asked.tolist()))
            found.extend({name: plain(value) for name, value in row.items()} for row in kept.to_pylist())
        if page.status is reader.Status.ALL:
            break
        at = dict(page.next)
    found.sort(key=lambda row: int(row["time"]))
    return found[:limit]


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _flat(table: pa.Table) -> pa.Table:
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table
