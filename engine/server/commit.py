"""Group commit: records first, replies after.

Everything that one turn of the event loop answered is appended to the logs, handed to the operating system in one write
per log, and only then sent. A reply that has left therefore has its record in the file, even if the process is killed
in the next instant.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.contract.deployment import LogDocument
from engine.logs.errors import LogError, LogFull
from engine.logs.spool import SpoolWriter, open_writer
from engine.logs.writer import PartitionWriter
from engine.server.fast.template import Buffer
from engine.server.metrics import Counter, Metrics, labels

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

FAILURES = "-failures"
PARTITION_WAIT_S = 10.0


class RecordsLost(Exception):
    """The log took no records, so the inferences they belong to must not be answered."""


class Logs:
    """The inference logs that this process writes."""

    def __init__(self, document: LogDocument | None, partition: str, metrics: Metrics) -> None:
        self._document = document if document is not None and document.enabled else None
        self.partition = partition
        self._metrics = metrics
        self._writers: dict[str, PartitionWriter | SpoolWriter] = {}
        self._dirty: dict[str, int] = {}
        """Topics with unflushed rows, and how many."""
        self._rows: dict[str, Counter] = {}
        self._retry_at: dict[str, float] = {}

    @property
    def enabled(self) -> bool:
        """Whether inferences are kept at all."""
        return self._document is not None

    @property
    def root(self) -> Path | None:
        """Where the logs lie on this machine."""
        return Path(self._document.root) if self._document is not None else None

    def open(self, topic: str) -> None:
        """Open a topic's partition now, so that no request waits for it; raises `LogError`.

        A full disk is no reason not to start: it is tried again with each record, and `when_full` decides until then.
        """
        if self._document is None:
            return
        try:
            self._writer(topic)
        except LogFull as exc:
            log.error("log.full topic=%s error=%s", topic, exc)

    def _writer(self, topic: str) -> PartitionWriter | SpoolWriter:
        writer = self._writers.get(topic)
        if writer is None:
            document = self._document
            assert document is not None  # noqa: S101 - callers look at `enabled`
            # A predecessor of the same replica may still be letting go of it.
            writer = open_writer(
                document.root,
                topic,
                self.partition,
                spool=document.spool,
                token_file=document.token_file,
                fsync_interval_s=document.fsync_interval_s,
                limit_bytes=document.spool_bytes_limit,
                wait_s=PARTITION_WAIT_S,
            )
            self._writers[topic] = writer
            self._rows[topic] = self._metrics.counter("potoroo_engine_log_rows_total", labels(topic=topic))
        return writer

    def append(self, topic: str, record: pa.RecordBatch) -> None:
        """Collect a record for the next flush; raises `RecordsLost`."""
        if self._document is None or not topic:
            return
        try:
            self._writer(topic).append(record)
        except LogError as exc:
            self._lost(topic, record.num_rows, exc)
        else:
            self._dirty[topic] = self._dirty.get(topic, 0) + record.num_rows

    def append_encoded(self, topic: str, schema: pa.Schema, message: Sequence[Buffer], rows: int, time_ms: int) -> None:
        """Collect an encoded record for the next flush; raises `RecordsLost`."""
        if self._document is None:
            return
        try:
            self._writer(topic).append_encoded(schema, message, rows=rows, min_time=time_ms, max_time=time_ms)
        except LogError as exc:
            self._lost(topic, rows, exc)
        else:
            self._dirty[topic] = self._dirty.get(topic, 0) + rows

    def flush(self) -> set[str]:
        """Hand over what was collected; returns the topics whose records were refused and must not be answered."""
        refused: set[str] = set()
        for topic, rows in self._dirty.items():
            try:
                self._writers[topic].flush()
            except LogError as exc:
                try:
                    self._lost(topic, rows, exc)
                except RecordsLost:
                    refused.add(topic)
            else:
                self._rows[topic].value += rows
        self._dirty.clear()
        return refused

    def _lost(self, topic: str, rows: int, exc: LogError) -> None:
        now = time.monotonic()
        if self._retry_at.get(topic, 0.0) <= now:
            self._retry_at[topic] = now + 10.0
            log.error("log.refused topic=%s rows=%d error=%s", topic, rows, exc)
        assert self._document is not None  # noqa: S101 - something was appended
        if self._document.when_full == "refuse":
            raise RecordsLost(str(exc)) from exc
        self._metrics.add("potoroo_engine_log_dropped_rows_total", labels(topic=topic), rows)

    def measure(self) -> None:
        """Bring the metrics of spools up to date."""
        for topic, writer in self._writers.items():
            if isinstance(writer, SpoolWriter):
                label_set = labels(topic=topic)
                self._metrics.set("potoroo_engine_log_waiting_rows", label_set, writer.waiting_rows)
                self._metrics.set("potoroo_engine_log_rejected_rows_total", label_set, writer.rows_rejected)

    def close(self) -> None:
        """Flush and let go of all partitions."""
        for writer in self._writers.values():
            try:
                writer.close()
            except LogError as exc:
                log.error("log.close_failed topic=%s error=%s", writer.topic, exc)
        self._writers.clear()


def newest(root: Path, topic: str, partition: str, limit: int) -> Any:
    """Return the newest rows of this process's partition of a topic as a table, newest first."""
    from engine.logs.query import Order, read_page

    return read_page(root, topic, order=Order.DESC, page_size=limit, partition_filter=[partition]).table
