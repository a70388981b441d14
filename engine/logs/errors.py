"""What can go wrong in the log store."""

from __future__ import annotations


class LogError(Exception):
    """Any failure of the log store."""


class InvalidRecord(LogError):
    """A record batch cannot be kept: its first column is not `time` (int64), or a type has no place in a log."""


class InvalidQuery(LogError):
    """A question to the log makes no sense; the message says which part."""


class InvalidCursor(InvalidQuery):
    """A cursor was not given out by this store, or belongs to another question."""


class PartitionBusy(LogError):
    """Another writer, in this process or another, holds the partition."""


class LogFull(LogError):
    """There is no room for the records (disk, quota, file size, or a spool's limit); nothing of them was kept."""


class LogWriteError(LogError):
    """The operating system refused a write for another reason than room; nothing of the records was kept."""


class CorruptLog(LogError):
    """Stored bytes are not what was written."""
