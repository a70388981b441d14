"""The query string of `/v1/logs/topic/…/records`, read as the log store's own server does."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa

from app.errors import Invalid
from app.logs.service import Wanted
from app.logs.times import time_range
from engine.contract.datasets import parse_selection
from engine.logs.query import Order, TimeRange

NOTHING = pa.table({})


def parse(query: str, *, older: bool = False) -> Wanted:
    """Return what a query string asks for; one that makes no sense counts as none, as it always did.

    `older` clients may call the size of a page `limit`. Raises `Invalid` for half a time range, or one that is to be
    read in descending order.
    """
    single: dict[str, str] = {}
    partitions: list[str] = []
    for key, value in parse_qsl(query, keep_blank_values=True):
        name = key.partition("[")[0]
        if name == "partition_filter":
            partitions.append(value)
        else:
            single[name] = value
    try:
        page_size = int(single.get("page_size") or (older and single.get("limit")) or 1000)
        order = Order((single.get("order") or "asc").lower())
        if page_size < 1:
            raise ValueError
    except ValueError:
        return Wanted()
    span = _time_range(single)
    if span is not None and order is Order.DESC:
        raise Invalid("invalid query: a time range is read in ascending order; leave order=desc out.")
    return Wanted(page_size, order, span, tuple(partitions), parse_selection(query))


def _time_range(single: dict[str, str]) -> TimeRange | None:
    try:
        return time_range(single.get("time.start"), single.get("time.end"), "time.start", "time.end")
    except ValueError as exc:
        raise Invalid(f"invalid query: {exc}.") from exc


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


_TEXTS = {"type": "array", "items": {"type": "string"}}

PARTITION_PARAMETERS = [
    _parameter("page_size", "Most rows of the page; 10000 at most.", {"type": "integer", "default": 1000}),
    _parameter("time.start", "RFC 3339; goes together with time.end.", {"type": "string", "format": "date-time"}),
    _parameter("time.end", "RFC 3339, included.", {"type": "string", "format": "date-time"}),
    _parameter("dataset[]", "Columns by path; * for all.", _TEXTS),
    _parameter("dataset.exclude[]", "Columns to leave out.", _TEXTS),
    _parameter("dataset.separator", "Flatten structs into columns with this separator.", {"type": "string"}),
]

PARAMETERS = [
    _parameter("order", "`asc` or `desc` (newest first).", {"type": "string", "enum": ["asc", "desc"]}),
    _parameter("partition_filter[]", "Names of partitions, or `regex:` and a pattern.", _TEXTS),
    *PARTITION_PARAMETERS,
]
