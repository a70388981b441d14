"""Where things lie: one folder per topic, one per partition in it, names safe for any file system."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from engine.logs.errors import InvalidQuery

_UNSAFE = re.compile(r"[^A-Za-z0-9_\-.]|^\.")
_LONGEST_NAME = 200

MANIFEST = "manifest.json"
MANIFEST_LOCK = "manifest.lock"
WRITER_LOCK = "writer.lock"
RESERVE = ".reserve"


def folder_name(name: str) -> str:
    """Return the name of the folder of a topic or partition.

    Raises `InvalidQuery` for a name that is empty or too long for a file system.
    """
    if not name or "\0" in name:
        raise InvalidQuery("A topic or partition needs a name.")
    encoded = _UNSAFE.sub(lambda m: "".join(f"%{b:02X}" for b in m.group().encode()), name)
    if len(encoded) > _LONGEST_NAME:
        raise InvalidQuery(f"The name {name[:40]!r}… is too long: {_LONGEST_NAME} bytes are the limit.")
    return encoded


def name_of(folder: str) -> str:
    """Return the topic or partition that a folder belongs to."""
    return unquote(folder)


def topic_path(root: Path, topic: str) -> Path:
    """Return the folder of a topic, there or not."""
    return root / folder_name(topic)


def partition_path(root: Path, topic: str, partition: str) -> Path:
    """Return the folder of a partition, there or not."""
    return root / folder_name(topic) / folder_name(partition)


def partitions_of(root: Path, topic: str) -> list[str]:
    """Return the names of a topic's partitions, sorted; none for an unknown topic."""
    return _children(topic_path(root, topic))


def topics_of(root: Path) -> list[str]:
    """Return the names of all topics, sorted."""
    return _children(root)


def _children(folder: Path) -> list[str]:
    try:
        return sorted(name_of(entry.name) for entry in folder.iterdir() if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def segment_name(position: int) -> str:
    """Return the file name of the segment that begins at `position`."""
    return f"{position:020d}.log"


def index_name(position: int) -> str:
    """Return the file name of the index beside a sealed segment."""
    return f"{position:020d}.idx"
