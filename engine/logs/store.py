"""Looking at a log store: which topics and partitions there are, and what they hold at this moment."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from engine.logs import layout, manifest
from engine.logs.errors import InvalidQuery, LogError
from engine.logs.manifest import Manifest
from engine.logs.segments import OpenView, Sealed, SegmentView, Tail, open_sealed

T = TypeVar("T")

_ATTEMPTS = 20


class Span(NamedTuple):
    """Positions of a partition: `start` is that of the oldest row, `end` the one after the newest."""

    start: int
    end: int


@dataclass(frozen=True)
class TopicDescription:
    """What a topic holds."""

    partitions: dict[str, Span]
    size_bytes: int


@dataclass(frozen=True)
class PartitionView:
    """A partition as it was at one moment."""

    name: str
    start: int
    end: int
    segments: tuple[SegmentView, ...]
    size_bytes: int

    def segment_at(self, position: int) -> int:
        """Return the number of the segment that holds `position`, or of the first one after it."""
        low, high = 0, len(self.segments)
        while low < high:
            middle = (low + high) // 2
            if self.segments[middle].end <= position:
                low = middle + 1
            else:
                high = middle
        return low


def batch_at(segment: SegmentView, position: int) -> int:
    """Return the number of the batch that holds `position`, or of the first one."""
    return max(int(np.searchsorted(segment.index["position"], position, side="right")) - 1, 0)


@dataclass
class _Known:
    """What is remembered of a partition between reads."""

    signature: tuple[int, int, int] | None = None
    manifest: Manifest = field(default_factory=Manifest)
    sealed: dict[tuple[int, str], Sealed] = field(default_factory=dict)
    order: tuple[Sealed, ...] = ()
    size_bytes: int = 0
    tails: dict[Path, Tail] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class LogStore:
    """A log store for reading; safe to share between threads, and beside writers in any process."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._known: dict[Path, _Known] = {}
        self._lock = threading.Lock()

    def topics(self) -> list[str]:
        """Return the names of all topics, sorted."""
        return layout.topics_of(self.root)

    def partitions(self, topic: str) -> list[str]:
        """Return the names of a topic's partitions, sorted; none for an unknown topic."""
        return layout.partitions_of(self.root, topic)

    def describe(self, topic: str) -> TopicDescription:
        """Return the positions of a topic's partitions and its size; nothing of an unknown topic."""
        views = self.views(topic)
        return TopicDescription({v.name: Span(v.start, v.end) for v in views}, sum(v.size_bytes for v in views))

    def views(self, topic: str) -> list[PartitionView]:
        """Look at all partitions of a topic, in the order of their names."""
        return [self.view(topic, partition) for partition in self.partitions(topic)]

    def view(self, topic: str, partition: str) -> PartitionView:
        """Look at a partition; an unknown one is empty."""
        folder = layout.partition_path(self.root, topic, partition)
        with self._lock:
            known = self._known.setdefault(folder, _Known())
        with known.lock:
            for _ in range(_ATTEMPTS):
                signature = _signature(folder)
                if signature != known.signature:
                    self._load(folder, known, signature)
                open_views = self._follow(folder, known)
                # a segment sealed, compacted and deleted since the manifest was read would be missed: look again
                if _signature(folder) == signature:
                    return _view(partition, known, open_views)
        raise LogError(f"The log {topic}/{partition} changes too fast to be read.")

    @staticmethod
    def _load(folder: Path, known: _Known, signature: tuple[int, int, int] | None) -> None:
        known.manifest = loaded = manifest.load(folder)
        known.sealed = {
            (entry.start, entry.file): known.sealed.get((entry.start, entry.file)) or open_sealed(folder, entry, loaded)
            for entry in loaded.segments
        }
        known.order = tuple(known.sealed.values())
        known.size_bytes = sum(entry.size_bytes for entry in loaded.segments)
        known.signature = signature

    @staticmethod
    def _follow(folder: Path, known: _Known) -> list[OpenView]:
        views: list[OpenView] = []
        tails: dict[Path, Tail] = {}
        position = known.manifest.end
        while True:
            path = folder / layout.segment_name(position)
            try:
                tail = known.tails.get(path) or Tail(path)
            except FileNotFoundError:
                break
            view = tail.refresh()
            if view is None:  # not remembered: recovery may replace a file without records
                break
            tails[path] = tail
            views.append(view)
            position = view.end
        known.tails = tails
        return views


def _view(partition: str, known: _Known, open_views: list[OpenView]) -> PartitionView:
    size = known.size_bytes + sum(view.size_bytes for view in open_views)
    end = open_views[-1].end if open_views else known.manifest.end
    return PartitionView(partition, known.manifest.start, end, (*known.order, *open_views), size)


def _signature(folder: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(folder / layout.MANIFEST)
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def retrying(read: Callable[[], T]) -> T:
    """Run a read again when a file vanished under it: what it held was rewritten under another name, or is no longer
    kept.
    """
    for _ in range(_ATTEMPTS):
        try:
            return read()
        except FileNotFoundError:
            continue
    raise LogError("Files of the log keep vanishing while they are read.")


_stores: dict[Path, LogStore] = {}
_stores_lock = threading.Lock()


def open_store(root: Path | str) -> LogStore:
    """Return the store of a folder; the same one for the same folder, so that what was read once is remembered."""
    path = Path(root).absolute()
    with _stores_lock:
        return _stores.setdefault(path, LogStore(path))


def topics(root: Path | str) -> list[str]:
    """Return the names of all topics, sorted."""
    return open_store(root).topics()


def describe(root: Path | str, topic: str) -> TopicDescription:
    """Return the positions of a topic's partitions and its size; nothing of an unknown topic."""
    return open_store(root).describe(topic)


def check_page_size(page_size: int) -> int:
    """Return a page size, or raise `InvalidQuery`."""
    if page_size < 1:
        raise InvalidQuery("page_size must be at least 1.")
    return page_size
