"""Reading a log store: what there is (`topics`, `describe`), pages of it (`read_page`), streams of it (`scan`)."""

from __future__ import annotations

from engine.logs.query import Order, Page, Status, TimeRange, read_page, scan
from engine.logs.store import LogStore, Span, TopicDescription, describe, open_store, topics

__all__ = [
    "LogStore",
    "Order",
    "Page",
    "Span",
    "Status",
    "TimeRange",
    "TopicDescription",
    "describe",
    "open_store",
    "read_page",
    "scan",
    "topics",
]
